"""Where waiters sleep: a thread, an asyncio task or a trio task. Each is woken once and never polls.

The waiter at the head of a lane keeps the time for all behind it. On asyncio that is a timer of its loop; a thread or a
trio task wakes up, which costs it one more wake-up. Of several alarms the earliest counts: they come from any thread
and so in any order, and one that is early only costs a look.
"""

from __future__ import annotations

import asyncio
import math
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pacer.smoothing import Smoothing

Tick = Callable[[], None]


class AsyncSeat(Protocol):
    """A seat whose owner awaits."""

    def wake(self) -> None:
        """See :class:`pacer.ticket.Seat`."""

    def arm(self, seconds: float) -> None:
        """See :class:`pacer.ticket.Seat`."""

    def wait(self) -> Awaitable[None]:
        """Sleep until woken."""


class ThreadSeat:
    """A blocked thread; the queue carries new alarms (when) and the wake-up (``None``)."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._signals: queue.SimpleQueue[float | None] = queue.SimpleQueue()

    def wake(self) -> None:
        """Wake the thread."""
        self._signals.put(None)

    def arm(self, seconds: float) -> None:
        """Let the thread call ``tick`` after ``seconds``."""
        self._signals.put(time.monotonic() + seconds)

    def wait(self) -> None:
        """Block until woken."""
        due = math.inf
        while True:
            timeout = None if due == math.inf else max(0.0, due - time.monotonic())
            try:
                signal = self._signals.get(timeout=timeout)
            except queue.Empty:
                due = math.inf
                self._tick()
            else:
                if signal is None:
                    return
                due = min(due, signal)


class AsyncioSeat:
    """A future of the running loop, and at most one timer of that loop."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Wake the task, from its own loop or any other thread."""
        self._in_loop(self._set)

    def arm(self, seconds: float) -> None:
        """Let the loop call ``tick`` after ``seconds``."""
        self._in_loop(self._set_timer, seconds)

    async def wait(self) -> None:
        """Suspend until woken."""
        try:
            await self._woken
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _in_loop(self, do: Callable[..., None], *args: float) -> None:
        if _running_loop() is self._loop:
            do(*args)
        else:
            self._loop.call_soon_threadsafe(do, *args)

    def _set(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    def _set_timer(self, seconds: float) -> None:
        due = self._loop.time() + seconds
        if self._woken.done() or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._tick()


class TrioSeat:
    """A trio task, reached through its run's token. Trio is imported only where it already runs."""

    def __init__(self, tick: Tick) -> None:
        import trio

        self._tick = tick
        self._trio: Any = trio
        self._token = trio.lowlevel.current_trio_token()
        self._send, self._receive = trio.open_memory_channel[float | None](float("inf"))

    def wake(self) -> None:
        """Wake the task from any thread."""
        self._token.run_sync_soon(self._send.send_nowait, None)

    def arm(self, seconds: float) -> None:
        """Let the task call ``tick`` after ``seconds``."""
        self._token.run_sync_soon(self._send.send_nowait, seconds)

    async def wait(self) -> None:
        """Suspend until woken."""
        due = math.inf
        while True:
            with self._trio.move_on_at(due) as scope:
                signal = await self._receive.receive()
                if signal is None:
                    return
                due = min(due, self._trio.current_time() + signal)
            if scope.cancelled_caught:
                due = math.inf
                self._tick()


def no_tick() -> None:
    """The tick of a seat whose owner waits for something that no time brings."""


def owner() -> object:
    """Who runs now: the task of asyncio or trio, else the thread."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop of asyncio runs here
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_task():
            return trio.lowlevel.current_task()
        return threading.get_ident()


def async_seat(tick: Tick) -> AsyncSeat:
    """A seat for the task that runs now, asyncio's or trio's."""
    return TrioSeat(tick) if _running_loop() is None else AsyncioSeat(tick)


async def async_sleep(seconds: float) -> None:
    """Suspend the task that runs now for ``seconds``."""
    if _running_loop() is None:
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def async_turn(smoothing: Smoothing) -> None:
    """Wait for the next free start, in asyncio's way or trio's."""
    if _running_loop() is None:
        await async_sleep(smoothing.turn_seconds(time.monotonic()))
    else:
        await smoothing.turn()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
