"""Spacing of request starts, one every ``1 / requests_per_second``. The only importer of aiolimiter.

On asyncio each event loop has its own limiter, and a lock before it: a lock of asyncio serves first come, first served,
where the limiter lets a newcomer pass those who wait. Threads and trio tasks have no loop of that kind: they share one
clockwork of reserved starts.
"""

from __future__ import annotations

import asyncio
import threading
import weakref

from aiolimiter import AsyncLimiter


class Smoothing:
    """``requests_per_second`` as starts in a row."""

    def __init__(self, requests_per_second: float) -> None:
        self._interval = 1.0 / requests_per_second
        self._doors: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[asyncio.Lock, AsyncLimiter]]
        self._doors = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._next_start = 0.0

    async def turn(self) -> None:
        """Wait for this call's turn in the running asyncio loop."""
        loop = asyncio.get_running_loop()
        door = self._doors.get(loop)
        if door is None:
            door = self._doors[loop] = asyncio.Lock(), AsyncLimiter(1, self._interval)
        line, limiter = door
        async with line:
            await limiter.acquire()

    def turn_seconds(self, now: float) -> float:
        """Take the next free start, for callers outside asyncio; seconds until then."""
        with self._lock:
            start = max(now, self._next_start)
            self._next_start = start + self._interval
            return start - now
