"""The books under one lock: threads, event loops, garbage collections and forks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pacer.admission import Admission
from pacer.errors import CeilingReached
from pacer.parking import AsyncioSeat, ThreadSeat, TrioSeat
from pacer.store.memory import MOST_POSTED, MemoryStore
from pacer.ticket import Ticket
from tests.engine import Engine, Seat, call, granted, place_of


def test_a_waiter_is_woken_once_and_by_the_settlement_itself():
    engine = Engine(ceiling=100)
    first, second = engine.offer(call(100)), engine.offer(call(60))
    engine.settle(first, 30)
    assert granted(second)
    assert engine.seats[0].wakes == 1


def test_who_is_decided_before_sitting_down_is_woken_at_once():
    engine = Engine(ceiling=100)
    first = engine.offer(call(100))
    second = engine.store.offer(call(60), "late", engine.caller)
    engine.settle(first, 30)
    seat = ThreadSeat(engine.store.tick)
    engine.store.sit(second, seat)
    seat.wait()
    assert granted(second)


def test_an_arrival_that_empties_the_line_before_its_timer_does_wakes_those_it_finds_there():
    """The timer of a busy loop is late; nobody is left waiting then who would bring another look at the line."""
    engine = Engine(rate=10, burst=200)
    engine.offer(call(200))
    late = engine.offer(call(100))
    engine.clock.now += 15
    engine.offer(call(50))
    assert granted(late)
    assert engine.seats[0].wakes == 1


def test_what_is_only_counted_is_counted_for_whoever_looks_and_never_heaps_up():
    store = Engine().store
    for _ in range(10 * MOST_POSTED + 1):
        store.count("unmetered")
        assert len(store._posts) < MOST_POSTED
    assert store.status().unmetered == 10 * MOST_POSTED + 1


def test_the_next_is_examined_when_the_head_leaves():
    engine = Engine(ceiling=100)
    engine.offer(call(50))
    head, second = engine.offer(call(90)), engine.offer(call(40))
    assert second.decision is None
    engine.leave(head)
    assert granted(second)


def test_a_place_that_nobody_takes_up_goes_to_the_next():
    """A caller cancelled between its grant and its wake-up gives everything back, ceiling and rate."""
    engine = Engine(ceiling=100, rate=10, burst=100)
    first = engine.offer(call(100))
    second, third = engine.offer(call(60)), engine.offer(call(60))
    engine.settle(first, 0)
    assert granted(second)
    assert third.decision is None
    engine.leave(second)
    assert granted(third)
    assert engine.store.status().tokens_available == pytest.approx(40)


def test_a_closed_loops_waiter_is_passed_over():
    """Its grant is undone and the next one is examined."""
    engine = Engine(ceiling=100)
    first = engine.offer(call(100))
    dead = engine.store.offer(call(60), "dead loop", engine.caller)

    async def sit() -> None:
        engine.store.sit(dead, AsyncioSeat(engine.store.tick))

    asyncio.run(sit())
    third = engine.offer(call(60))
    engine.settle(first, 0)
    assert granted(third)
    assert engine.store.status().in_flight == 1


def test_thousands_of_a_closed_loops_waiters_are_passed_over():
    """Each lets in the next one, and whoever settles has to get through them all."""
    engine = Engine(ceiling=100)
    first = engine.offer(call(100))

    async def sit() -> None:
        for number in range(2_000):
            engine.store.sit(engine.store.offer(call(60), number, engine.caller), AsyncioSeat(engine.store.tick))

    asyncio.run(sit())
    living = engine.offer(call(60))
    engine.settle(first, 0)
    assert granted(living)
    assert engine.seats[-1].wakes == 1


def test_only_who_cannot_be_reached_is_passed_over():
    """While the head is found to be gone, another thread has looked, and armed somebody else."""
    engine = Engine(rate=10, burst=100)
    engine.offer(call(100))
    head = engine.store.offer(call(50), "dead loop", engine.caller)
    living = engine.offer(call(20))

    class Gone(Seat):
        def arm(self, seconds: float) -> None:
            engine.leave(head)
            raise RuntimeError("its event loop is closed")

    engine.store.sit(head, Gone(engine.clock))
    engine.advance(2.1)
    assert granted(living)


def test_a_garbage_collection_under_the_lock_may_settle():
    """A stream that is collected while its own thread holds the lock: posted, and worked off by that thread."""
    engine = Engine(ceiling=1_000)
    ticket = engine.offer(call(100))
    offer = engine.admission.offer

    class Stream:
        def __del__(self) -> None:
            engine.store.count("unread")
            engine.settle(ticket, 40)

    def collecting(*args: object) -> Ticket:
        stream = Stream()
        stream.itself = stream  # type: ignore[attr-defined]
        del stream
        gc.collect()
        return offer(*args)  # type: ignore[arg-type]

    engine.admission.offer = collecting  # type: ignore[method-assign, assignment]
    engine.offer(call(10))
    now = engine.store.status()
    assert (now.spent, now.held, now.unread) == (40, 10, 1)


def test_a_mistake_inside_the_critical_section_does_not_keep_the_lock():
    engine = Engine(ceiling=2)
    engine.offer(call(2))
    waiting = engine.offer(call(2))

    def broken(now: float) -> list[Ticket]:
        raise ZeroDivisionError

    engine.admission.pump = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        engine.store.tick()
    del engine.admission.pump
    engine.set_ceiling(4)
    assert granted(waiting)


@pytest.mark.parametrize("attempt", range(5))
def test_threads_and_loops_stand_in_one_line(attempt: int):
    """Sync and async callers of several loops on one store: never over the ceiling, everybody ends, nothing is held."""
    engine = Engine(ceiling=10_000)
    most_held = [0]

    def note() -> None:
        held = engine.store.status()
        most_held[0] = max(most_held[0], held.held + held.spent)

    def in_thread(number: int) -> bool:
        ticket = engine.store.offer(call(900), number, engine.caller)
        if ticket.decision is None:
            seat = ThreadSeat(engine.store.tick)
            engine.store.sit(ticket, seat)
            seat.wait()
        return finish(ticket)

    def finish(ticket: Ticket) -> bool:
        note()
        if isinstance(ticket.decision, CeilingReached):
            return False
        engine.settle(ticket, 100)
        return True

    async def in_loop(number: int) -> bool:
        ticket = engine.store.offer(call(900), f"task {number}", engine.caller)
        if ticket.decision is None:
            seat = AsyncioSeat(engine.store.tick)
            engine.store.sit(ticket, seat)
            await seat.wait()
        await asyncio.sleep(0)
        return finish(ticket)

    async def loop() -> list[bool]:
        return await asyncio.gather(*(in_loop(number) for number in range(30)))

    with ThreadPoolExecutor(20) as pool:
        loops = [pool.submit(asyncio.run, loop()) for _ in range(2)]
        threads = [pool.submit(in_thread, number) for number in range(60)]
        let_through = sum(sum(each.result()) for each in loops) + sum(each.result() for each in threads)
    status = engine.store.status()
    assert most_held[0] <= 10_000
    assert (status.held, status.waiting, status.in_flight) == (0, 0, 0)
    assert status.spent == 100 * let_through
    assert 10_000 - status.spent < 900


def test_trio_tasks_wait_too():
    import trio

    engine = Engine(ceiling=100)

    async def main() -> None:
        first = engine.store.offer(call(100), "first", engine.caller)
        second = engine.store.offer(call(60), "second", engine.caller)
        seat = TrioSeat(engine.store.tick)
        engine.store.sit(second, seat)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seat.wait)
            await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(lambda: engine.settle(first, 10))
        assert place_of(second)

    trio.run(main)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_counts_alone_and_says_so(caplog: pytest.LogCaptureFixture):
    """New lock, no waiters, none of the parent's reservations; what was spent stays."""
    engine = Engine(ceiling=1_000)
    engine.settle(engine.offer(call(300)), 200)
    parents = engine.offer(call(700))
    parents_waiter = engine.offer(call(500))
    held_lock = engine.store._lock
    read, write = os.pipe()
    with held_lock, caplog.at_level(logging.WARNING, "pacer"):
        child = os.fork()
        if child == 0:
            engine.settle(parents, 650)  # as the child's copy of an open stream does when it is collected
            engine.leave(parents_waiter)
            status = engine.store.status()
            warned = "was forked" in caplog.text
            os.write(write, f"{status.spent} {status.held} {status.waiting} {warned}".encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"200 0 0 True"
    os.close(read)
    os.close(write)
    assert engine.store.status().held == 700


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_for_who_is_in_the_midst_of_the_books():
    """Else the child would have a copy of half an entry."""
    engine = Engine(ceiling=1_000)
    ticket = engine.offer(call(100))
    is_inside, forks = threading.Event(), threading.Event()

    def book(admission: Admission, now: float) -> None:
        admission.account.spent += 10
        is_inside.set()
        forks.wait()
        admission.register.root.spent += 10

    os.register_at_fork(before=forks.set)  # called before the store's
    with ThreadPoolExecutor(1) as pool:
        booking = pool.submit(engine.store.do, book)
        is_inside.wait()
        engine.settle(ticket, 50)  # posted: the books are taken
        child = os.fork()
        if child == 0:
            os._exit(engine.account.spent != engine.admission.register.root.spent)
        assert os.waitpid(child, 0)[1] == 0
        booking.result()
    assert engine.account.spent == 60
    assert not engine.store._lock.locked()


def test_stores_do_not_outlive_their_pacer():
    import weakref

    engine = Engine()
    store: weakref.ref[MemoryStore] = weakref.ref(engine.store)
    del engine
    gc.collect()
    assert store() is None


def test_the_heads_alarm_moves_on_with_the_lane():
    """A thread at the head keeps the time for those behind it; when it goes the next one does."""
    engine = Engine(rate=10, burst=100)
    engine.offer(call(100))
    head, second = engine.offer(call(10)), engine.offer(call(10))
    assert [seat.due is not None for seat in engine.seats] == [True, False]
    engine.leave(head)
    assert engine.seats[1].due == pytest.approx(engine.clock.now + 1.0)
    engine.advance(1.0)
    assert granted(second)


def test_a_blocked_thread_wakes_by_its_own_alarm():
    """ThreadSeat calls tick when its alarm is due; real time, a hundredth of a second of it."""
    ticks = threading.Event()

    def tick() -> None:
        ticks.set()
        seat.wake()

    seat = ThreadSeat(tick)
    seat.arm(0.01)
    seat.wait()
    assert ticks.is_set()
