"""Request starts one after the other, evenly, first come first served."""

from __future__ import annotations

import asyncio
import time

import pytest

from pacer.smoothing import Smoothing


def test_threads_take_the_next_free_start():
    smoothing = Smoothing(requests_per_second=10)
    assert [smoothing.turn_seconds(100.0) for _ in range(3)] == pytest.approx([0.0, 0.1, 0.2])


def test_a_start_that_nobody_took_is_not_saved_up():
    smoothing = Smoothing(requests_per_second=10)
    smoothing.turn_seconds(100.0)
    assert [smoothing.turn_seconds(200.0) for _ in range(2)] == pytest.approx([0.0, 0.1])


def test_tasks_of_a_loop_start_in_order_and_evenly():
    """Real time, a twentieth of a second of it: no two starts closer than the interval allows."""
    smoothing = Smoothing(requests_per_second=200)

    async def main() -> list[tuple[int, float]]:
        starts: list[tuple[int, float]] = []

        async def call(number: int) -> None:
            await smoothing.turn()
            starts.append((number, asyncio.get_running_loop().time()))

        await asyncio.gather(*(call(number) for number in range(10)))
        return starts

    starts = asyncio.run(main())
    assert [number for number, _ in starts] == list(range(10))
    assert starts[-1][1] - starts[0][1] >= 0.9 * 9 / 200


def test_a_task_that_comes_when_a_start_is_free_does_not_pass_those_who_wait():
    """The loop is late: a start has become free, and a newcomer asks before the first who waits was woken."""
    smoothing = Smoothing(requests_per_second=100)

    async def main() -> list[int]:
        starts: list[int] = []

        async def call(number: int) -> None:
            await smoothing.turn()
            starts.append(number)

        calls = [asyncio.create_task(call(number)) for number in range(3)]
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(call(3)))
        _hold_up_the_loop(0.015)
        await asyncio.gather(*calls)
        return starts

    assert asyncio.run(main()) == [0, 1, 2, 3]


def _hold_up_the_loop(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_each_loop_has_its_own_spacing():
    """aiolimiter belongs to one loop; a second loop must neither fail nor wait for the first."""
    smoothing = Smoothing(requests_per_second=0.001)
    asyncio.run(smoothing.turn())
    asyncio.run(smoothing.turn())
