"""Where waiters sleep: woken once, on their own loop, from any thread; alarms call tick."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import trio

from pacer import Pacer, parking
from pacer.smoothing import Smoothing
from transports import BudgetTransport


def test_the_owner_is_the_task_or_else_the_thread():
    async def task() -> object:
        return parking.owner()

    async def two() -> tuple[object, object, object]:
        return await asyncio.gather(task(), task(), task())

    assert parking.owner() == threading.get_ident()
    assert len(set(asyncio.run(two()))) == 3

    async def in_trio() -> None:
        assert parking.owner() is trio.lowlevel.current_task()

    trio.run(in_trio)


def test_a_task_is_woken_from_another_thread():
    async def main() -> None:
        seat = parking.async_seat(lambda: None)
        assert isinstance(seat, parking.AsyncioSeat)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(seat.wake).result()
            await seat.wait()

    asyncio.run(main())


def test_a_second_wake_up_does_no_harm():
    async def main() -> None:
        seat = parking.AsyncioSeat(lambda: None)
        seat.wake()
        seat.wake()
        await seat.wait()

    asyncio.run(main())


@pytest.mark.parametrize("alarms", [(3_600.0, 0.001), (0.001, 3_600.0)])
@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)], ids=["asyncio", "trio"])
def test_the_earliest_alarm_calls_tick(run, alarms):
    """One that was decided on before comes later where a thread was slow: it puts off nothing."""

    async def main() -> None:
        seat = parking.async_seat(lambda: seat.wake())
        for seconds in alarms:
            seat.arm(seconds)
        await seat.wait()

    run(main())


@pytest.mark.parametrize("alarms", [(3_600.0, 0.001), (0.001, 3_600.0)])
def test_the_earliest_alarm_calls_a_threads_tick(alarms):
    seat = parking.ThreadSeat(lambda: seat.wake())
    for seconds in alarms:
        seat.arm(seconds)
    seat.wait()


def test_an_alarm_from_another_thread_puts_off_none_that_its_own_loop_has_set_since():
    async def main() -> None:
        seat = parking.AsyncioSeat(lambda: seat.wake())
        with ThreadPoolExecutor(1) as pool:
            pool.submit(seat.arm, 3_600.0).result()
        seat.arm(0.001)
        await seat.wait()

    asyncio.run(main())


def test_a_seat_rings_as_often_as_it_is_armed():
    async def main() -> None:
        ticks: list[int] = []

        def tick() -> None:
            ticks.append(1)
            seat.arm(0.001) if len(ticks) < 3 else seat.wake()

        seat = parking.AsyncioSeat(tick)
        seat.arm(0.001)
        await seat.wait()

    asyncio.run(main())


def test_a_cancelled_task_takes_its_alarm_with_it():
    async def main() -> None:
        seat = parking.AsyncioSeat(lambda: None)
        seat.arm(3_600.0)
        task = asyncio.ensure_future(seat.wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seat._timer is not None
        assert seat._timer.cancelled()

    asyncio.run(main())


def test_a_closed_loop_says_that_nobody_can_be_woken():
    async def main() -> parking.AsyncioSeat:
        return parking.AsyncioSeat(lambda: None)

    seat = asyncio.run(main())
    with pytest.raises(RuntimeError):
        seat.wake()


def test_trio_callers_wait_in_the_same_line():
    """A whole client on trio: the second call waits for the first one's hold."""
    pacer = Pacer(ceiling=1_000)
    first_may_end = trio.Event()
    answer = {"usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}}

    class Inner(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await first_may_end.wait()
            return httpx.Response(200, json=answer)

    async def main() -> None:
        async with httpx.AsyncClient(transport=BudgetTransport(Inner(), pacer=pacer)) as client:

            async def post() -> None:
                await client.post("http://a.test/v1/chat/completions", json={"model": "m", "max_tokens": 600})

            async with trio.open_nursery() as nursery:
                nursery.start_soon(post)
                nursery.start_soon(post)
                while pacer.status().waiting == 0:
                    await trio.lowlevel.checkpoint()
                first_may_end.set()

    trio.run(main)
    assert (pacer.status().spent, pacer.status().held) == (40, 0)


def test_trio_takes_its_turns_too():
    async def main() -> None:
        smoothing = Smoothing(requests_per_second=1_000)
        for _ in range(3):
            await parking.async_turn(smoothing)

    trio.run(main)
