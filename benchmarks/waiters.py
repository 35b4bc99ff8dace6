"""Ten thousand calls that wait on one bucket: wake-ups, CPU, order, idle CPU, memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import tracemalloc

import httpx

from benchmarks.overhead import URL, Noop, answer, question
from pacer import Pacer, parking
from transports import BudgetTransport

BODY = question(1)
DRAIN_SECONDS = 5.0
IDLE_SECONDS = 2.0


class CountedSeat(parking.AsyncioSeat):
    """Counts who waits, how often they are woken and how often an alarm is set."""

    seats = 0
    wakes = 0
    alarms = 0

    def __init__(self, tick: parking.Tick) -> None:
        CountedSeat.seats += 1
        super().__init__(tick)

    def _set(self) -> None:
        CountedSeat.wakes += 1
        super()._set()

    def _set_timer(self, seconds: float) -> None:
        CountedSeat.alarms += 1
        super()._set_timer(seconds)


async def measure(number: int) -> None:
    """Print what waiting costs."""
    seat, parking.AsyncioSeat = parking.AsyncioSeat, CountedSeat  # type: ignore[misc]
    try:
        print(f"{number:,} waiters on one bucket")
        await drain(number)
        await idle(number)
    finally:
        parking.AsyncioSeat = seat  # type: ignore[misc]


async def drain(number: int) -> None:
    """All are admitted one after the other in about five seconds."""
    order: list[int] = []
    per_call = await expected_tokens()
    pacer = Pacer(tokens_per_second=number * per_call / DRAIN_SECONDS, burst=per_call)
    CountedSeat.seats = CountedSeat.wakes = CountedSeat.alarms = 0
    tasks = await parked(number, pacer, order)
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*tasks)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    inversions = sum(later < earlier for earlier, later in itertools.pairwise(order))
    seats = CountedSeat.seats
    print(f"  {seats:,} had to wait; drained in {wall:.1f} s, {inversions} out of the order of arrival")
    print(f"  {CountedSeat.wakes / seats:.3f} wake-ups and {CountedSeat.alarms / seats:.3f} alarms set per waiter")
    print(f"  {cpu / number * 1e6:.0f} us CPU per call from its grant to its end")


async def idle(number: int) -> None:
    """All wait for tokens that do not come."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    pacer = Pacer(tokens_per_minute=1, burst=1)
    tasks = await parked(number, pacer, [])
    kilobytes = (tracemalloc.get_traced_memory()[0] - before) / number / 1_024
    tracemalloc.stop()
    cpu = time.process_time()
    await asyncio.sleep(IDLE_SECONDS)
    share = (time.process_time() - cpu) / IDLE_SECONDS
    print(f"  idle: {share:.1%} of a core, {kilobytes:.1f} KB for each waiting call, request and task included")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert pacer.status().waiting == 0


async def parked(number: int, pacer: Pacer, order: list[int]) -> list[asyncio.Task[None]]:
    """Tasks that all wait in the line, but for those that were let in at once."""
    transport = BudgetTransport(Noop([answer(1)], "application/json"), pacer=pacer)

    async def call(place: int) -> None:
        response = await transport.handle_async_request(httpx.Request("POST", URL, content=BODY))
        order.append(place)
        await response.aclose()

    tasks = [asyncio.create_task(call(place)) for place in range(number)]
    await asyncio.sleep(0)
    return tasks


async def expected_tokens() -> int:
    """What one of these calls takes from the bucket."""
    transport = BudgetTransport(Noop([answer(1)], "application/json"), pacer=Pacer())
    response = await transport.handle_async_request(httpx.Request("POST", URL, content=BODY))
    await response.aclose()
    tokens: int = response.extensions["pacer"].paced
    return tokens
