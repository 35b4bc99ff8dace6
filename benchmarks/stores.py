"""What books that several processes share cost: paced, with a rate that is the bottleneck, and with none.

A subject is a way to call in every one of the processes: bare httpx, a pacer of its own in memory, or one pacer for all
in SQLite or Valkey. Two more have a pacer in memory and write one number to SQLite or Valkey before and after each
call: nothing that is there before the call is sent, and before its answer is read, can be had for less. All of them
take turns in each round, so that whatever else the machine does hits all of them.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis

from benchmarks.overhead import URL, Noop, answer, question
from pacer import Pacer
from pacer.store.shared import SharedStore
from tests.valkey import Valkey
from transports import BudgetTransport

ROUNDS = 5
SECONDS = 3.0
"""Of one subject in one round."""
CALLS_PER_SECOND = 125
"""Paced, of each process."""
SCARCE_CALLS_PER_SECOND = 200
"""What the rate lets through where it is the bottleneck."""
SCARCE_SECONDS = 8.0
WINDOW_SECONDS = 2.0
CALLERS = 8
"""Tasks of one process that call one after the other as fast as they may."""
TOKENS = 240
"""Of one call, by its bill."""
LARGE = 10**15
BARE = "bare httpx"
WRITES = "2 x "
"""Begins the name of what only writes: the least that a shared store costs."""
BODY = question(1)
ANSWER = [answer(1)]


@dataclass
class Seen:
    """What one process saw: seconds, but for ``ended_at``, which is by the clock that all of them share."""

    calls: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    exchanges: int = 0
    cpu: float = 0.0


# ---------------------------------------------------------------- one of the processes

_start: threading.Barrier


def ready(start: Any) -> None:
    """First thing in each process."""
    global _start
    _start = start


def paced(settings: dict[str, Any] | None, place: int) -> Seen:
    """Calls at random times within equal slots; those are kept whether or not the call before has ended."""
    slot, rng = 1 / CALLS_PER_SECOND, random.Random(place)
    times = [(number + rng.random()) * slot for number in range(round(SECONDS / slot))]

    async def play(client: httpx.AsyncClient, seen: Seen) -> None:
        started = time.monotonic() + 0.05
        tasks = []
        for at in times:
            await asyncio.sleep(started + at - time.monotonic())
            seen.late.append(time.monotonic() - started - at)
            tasks.append(asyncio.create_task(call(client, seen)))
        await asyncio.gather(*tasks)

    return asyncio.run(with_client(settings, play))


def saturated(settings: dict[str, Any] | None, seconds: float) -> Seen:
    """Calls as fast as they may."""

    async def play(client: httpx.AsyncClient, seen: Seen) -> None:
        until = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < until:
                await call(client, seen)
                await asyncio.sleep(0)  # as a network would, let the others have their turn

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    return asyncio.run(with_client(settings, play))


async def with_client(settings: dict[str, Any] | None, play: Callable[[httpx.AsyncClient, Seen], Any]) -> Seen:
    """All processes begin together, when each of them has made some calls."""
    noop: Any = Noop(ANSWER, "application/json")
    if settings is not None and settings["store"].startswith(WRITES):
        noop = Writing(noop, settings["store"].removeprefix(WRITES))
        settings = {**settings, "store": "memory:"}
    pacer = None if settings is None else Pacer(**settings)
    seen = Seen()
    async with httpx.AsyncClient(transport=noop if pacer is None else BudgetTransport(noop, pacer=pacer)) as client:
        for _ in range(20):
            await call(client, Seen())
        gc.collect()
        _start.wait()
        with watched(seen):
            await play(client, seen)
        _start.wait()
    if pacer is not None:
        pacer.close()
    return seen


class Writing:
    """A transport that writes one number to a store, before and after the call."""

    def __init__(self, inner: Any, store: str) -> None:
        self.inner = inner
        scheme, _, path = store.partition(":")
        if scheme == "sqlite":
            self.books = sqlite3.connect(f"{path}-2", timeout=0, isolation_level=None)
            self.write: Callable[[], object] = self.commit
            self.again(lambda: self.books.execute("PRAGMA journal_mode = WAL"))
            self.books.execute("PRAGMA synchronous = NORMAL")
            self.again(lambda: self.books.execute("CREATE TABLE IF NOT EXISTS sums (name PRIMARY KEY, number)"))
            self.again(lambda: self.books.execute("INSERT OR IGNORE INTO sums VALUES (1, 0)"))
        else:
            server = redis.Redis.from_url(store)
            self.write = lambda: server.incr("benchmark")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.write()
        answer = await self.inner.handle_async_request(request)
        self.write()
        return answer

    def commit(self) -> None:
        self.again(lambda: self.books.execute("UPDATE sums SET number = number + 1"))

    def again(self, write: Callable[[], object]) -> None:
        """As often as it takes."""
        while True:
            try:
                write()
            except sqlite3.OperationalError:
                time.sleep(random.uniform(0.00003, 0.0001))
            else:
                return

    async def aclose(self) -> None:
        """Nothing to close before the process ends."""


async def call(client: httpx.AsyncClient, seen: Seen) -> None:
    """One whole call of a user."""
    started = time.monotonic()
    await client.post(URL, content=BODY, headers={"content-type": "application/json", "authorization": "Bearer none"})
    ended = time.monotonic()
    seen.calls.append(ended - started)
    seen.ended_at.append(ended)


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Count the exchanges, and take the time of what a shared store does at its vault in the thread of the loop."""
    send, exchange, loop = SharedStore._send, SharedStore._exchange_batch, threading.get_ident()
    here = 0

    def timed_send(store: SharedStore) -> None:
        started, before = time.perf_counter(), here
        send(store)
        if threading.get_ident() == loop and here > before:
            seen.blocked.append(time.perf_counter() - started)

    def counted_exchange(store: SharedStore, **given: bool) -> Any:
        nonlocal here
        seen.exchanges += 1
        here += threading.get_ident() == loop
        return exchange(store, **given)

    SharedStore._send, SharedStore._exchange_batch = timed_send, counted_exchange  # type: ignore[method-assign]
    cpu = time.process_time()
    try:
        yield
    finally:
        seen.cpu = time.process_time() - cpu
        SharedStore._send, SharedStore._exchange_batch = send, exchange  # type: ignore[method-assign]


# ---------------------------------------------------------------- all of them


class Subjects:
    """The processes, and the stores for them."""

    def __init__(self, processes: int, pool: ProcessPoolExecutor, directory: str, valkey: Valkey) -> None:
        self.processes = processes
        self._pool = pool
        shared = {"SQLite": f"sqlite:{Path(directory) / 'books'}", "Valkey": valkey.url}
        writes = {WRITES + name: WRITES + url for name, url in shared.items()}
        self.stores = {"memory": "memory:", **writes, **shared}
        self._opened = 0

    def play(self, name: str, what: Callable[..., Seen], each: Sequence[float], rate: float = LARGE) -> list[Seen]:
        """What each process saw; every time in a new run, in which half a second of the rate is saved up at most."""
        self._opened += 1
        settings = None
        if name != BARE:
            limits = {"tokens_per_second": rate, "burst": rate / 2, "ceiling": LARGE}
            settings = {"store": self.stores[name], "run": f"bench-{os.getpid()}-{self._opened}", **limits}
        return list(self._pool.map(what, [settings] * self.processes, each))


def report(processes: int) -> None:
    """Print all tables."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes, timeout=60.0)  # who fails keeps nobody
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=ready, initargs=(start,))
    with tempfile.TemporaryDirectory() as directory, Valkey() as valkey, pool:
        subjects = Subjects(processes, pool, directory, valkey)
        report_paced(subjects)
        report_scarce(subjects)
        report_saturated(subjects)


def report_paced(subjects: Subjects) -> None:
    processes, names = subjects.processes, [BARE, *subjects.stores]
    rounds = [{name: subjects.play(name, paced, range(processes)) for name in names} for _ in range(ROUNDS)]
    print(f"{processes} processes, {CALLS_PER_SECOND:g} calls/s each, asyncio, no-op transport; us, p50 / p99, medians")
    print(f"of {ROUNDS} rounds. Aims for 8 processes, time added: SQLite 150 / 3,000, Valkey 400 / 5,000\n")
    print(f"  {'':12}{'a call':>16}{'over bare httpx':>18}{'over memory':>18}{'late timers':>16}{'CPU a call':>12}")
    for name in names:
        columns = [
            spelled(rounds, lambda r, n=name: quantiles(r[n], "calls")),
            spelled(rounds, lambda r, n=name: difference(r[n], r[BARE]), "+") if name != BARE else "",
            spelled(rounds, lambda r, n=name: difference(r[n], r["memory"]), "+")
            if name not in (BARE, "memory")
            else "",
            spelled(rounds, lambda r, n=name: quantiles(r[n], "late")),
        ]
        cpu = statistics.median(sum(s.cpu for s in r[name]) / sum(len(s.calls) for s in r[name]) for r in rounds)
        print(f"  {name:12}{columns[0]:>16}{columns[1]:>18}{columns[2]:>18}{columns[3]:>16}{cpu * 1e6:>12,.0f}")
    print("\n  A visit to the vault in the thread of the loop, us (aim: p99 of 1,000):")
    for name in ("SQLite", "Valkey"):
        all_seen = [seen for turn in rounds for seen in turn[name]]
        visits = sum(len(seen.blocked) for seen in all_seen) / sum(len(seen.calls) for seen in all_seen)
        half, most = quantiles(all_seen, "blocked") if visits else (0.0, 0.0)
        print(f"  {name:12}p50 {half:,.0f}, p99 {most:,.0f}; {visits:.2f} a call")


def spelled(
    rounds: list[dict[str, list[Seen]]], of: Callable[[dict[str, list[Seen]]], tuple[float, float]], sign: str = ""
) -> str:
    halves, most = zip(*map(of, rounds), strict=True)
    return f"{statistics.median(halves):{sign},.0f} / {statistics.median(most):{sign},.0f}"


def quantiles(all_seen: list[Seen], what: str) -> tuple[float, float]:
    """Microseconds, p50 and p99."""
    times = sorted(each for seen in all_seen for each in getattr(seen, what))
    return times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6


def difference(mine: list[Seen], base: list[Seen]) -> tuple[float, float]:
    (half, most), (base_half, base_most) = quantiles(mine, "calls"), quantiles(base, "calls")
    return half - base_half, most - base_most


def report_scarce(subjects: Subjects) -> None:
    print(f"\n{subjects.processes} processes with {CALLERS} callers each, as fast as a common rate lets them, which is")
    print(f"{SCARCE_CALLS_PER_SECOND} calls/s. Over any {WINDOW_SECONDS:g} s (aim: none below half of its share)\n")
    for name in ("SQLite", "Valkey"):
        rate = SCARCE_CALLS_PER_SECOND * TOKENS
        all_seen = subjects.play(name, saturated, [SCARCE_SECONDS] * subjects.processes, rate)
        shares = sorted(shares_of([seen.ended_at for seen in all_seen]))
        calls = sum(len(seen.calls) for seen in all_seen)
        exchanges = sum(seen.exchanges for seen in all_seen)
        print(f"  {name:12}of the fair share: least {shares[0]:.2f}, most {shares[-1]:.2f};", end=" ")
        print(f"{calls / SCARCE_SECONDS:,.0f} calls/s, {exchanges / calls:.1f} exchanges a call")


def shares_of(ended_at: list[list[float]]) -> Iterator[float]:
    """Of each process in each window: what it got of an equal part, once all have begun and while all go on."""
    first = max(times[0] for times in ended_at) + 1.0
    last = min(times[-1] for times in ended_at) - 0.5
    at = first
    while at + WINDOW_SECONDS <= last:
        got = [sum(at <= time < at + WINDOW_SECONDS for time in times) for times in ended_at]
        fair = sum(got) / len(got)
        yield from (each / fair for each in got)
        at += 0.1


def report_saturated(subjects: Subjects) -> None:
    print(f"\n{subjects.processes} processes with {CALLERS} callers each, as fast as they can; p50 / p99\n")
    for name in (BARE, *subjects.stores):
        all_seen = subjects.play(name, saturated, [SECONDS] * subjects.processes)
        calls, exchanges = (sum(each) for each in zip(*((len(s.calls), s.exchanges) for s in all_seen), strict=True))
        half, most = quantiles(all_seen, "calls")
        print(f"  {name:12}{calls / SECONDS:8,.0f} calls/s{exchanges / SECONDS:10,.0f} exchanges/s", end="")
        print(f"{half / 1e3:10,.2f} / {most / 1e3:,.2f} ms")
    print()
