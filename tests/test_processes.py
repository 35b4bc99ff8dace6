"""Real processes on one shared store: they are killed, forked and cut off, and the books are right all the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pacer import settings
from pacer.store.opening import vault_of
from pacer.store.vault import RunRow
from tests import worker
from tests.servers import Connection, Server, answer_json, whole
from tests.valkey import Valkey
from tests.worker import BILLED, CAP, INPUT, RESERVED, Told

PROCESSES, CALLERS = 4, 8
JSON = "content-type: application/json"
# Forked from a server that has all modules: a process is there in a moment, and has nothing of this one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.worker", "pacer.store.redis", "pacer.store.sqlite"])


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.002)


# ---------------------------------------------------------------- the provider


@dataclass
class Provider(Server):
    """Bills each call when it starts to answer it, which takes it ``seconds``."""

    seconds: float = 0.01
    bill: int = 0
    calls: list[tuple[float, int]] = field(default_factory=list)
    """When each call came, and its output cap."""
    stops: bool = False
    """Tells callers to stop, with its answers."""

    request_queue_size = 128

    def __post_init__(self) -> None:
        self._counting = threading.Lock()
        self._never = threading.Event()
        Server.__init__(self, self._serve)

    def _serve(self, connection: Connection) -> None:
        while (request := connection.read()) is not None:
            if not request[1].endswith(b"}"):
                return  # whoever wrote it was killed meanwhile
            cap = json.loads(request[1])["max_tokens"]
            self.calls.append((time.monotonic(), cap))
            self.think(cap)
            with self._counting:
                self.bill += INPUT + cap
            usage = {"prompt_tokens": INPUT, "completion_tokens": cap, "total_tokens": INPUT + cap}
            connection.write(whole(answer_json(usage), JSON, *(["x-stop: 1"] if self.stops else [])))

    def think(self, cap: int) -> None:
        """What an answer takes."""
        self._never.wait(self.seconds)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Alone in its test."""
    with Provider() as server:
        yield server


# ---------------------------------------------------------------- stores and workers


class Crew:
    """The workers of one test on one store, whose books it looks at."""

    def __init__(self, store: str, provider: Provider, **environment: object) -> None:
        self.store = store
        self.provider = provider
        self.environment = {"PACER_STORE": store, "PACER_RUN": "nightly"} | {
            f"PACER_{name.upper()}": str(value) for name, value in environment.items()
        }
        self.workers: list[Worker] = []
        self._vault = vault_of(settings.explicit(store=store, run="onlooker"))

    def start(
        self, callers: int = CALLERS, calls: int | None = None, cap: int = CAP, **environment: object
    ) -> Worker:
        """One more worker."""
        own = self.environment | {f"PACER_{name.upper()}": str(value) for name, value in environment.items()}
        self.workers.append(Worker(own, self.provider.url, callers, calls, cap))
        return self.workers[-1]

    def row(self) -> RunRow:
        """How the run stands on disk."""
        (row,) = self._vault.rows()
        return row

    def sums(self) -> dict[str, int]:
        """Its sums."""
        return self.row().sums()

    def check(self, ceiling: int) -> None:
        """The two sides of the bill, at any time: what is on it is in the books, and not more is spent."""
        bill = self.provider.bill
        now = self.sums()
        assert bill <= now["spent"] + now["unknown"] + now["held"]
        assert now["spent"] <= self.provider.bill <= ceiling

    def close(self) -> None:
        """Nobody stays behind."""
        for one in self.workers:
            one.kill()
        self._vault.close()


class Worker:
    """One process."""

    def __init__(self, environment: dict[str, str], url: str, callers: int, calls: int | None, cap: int) -> None:
        self._pipe, theirs = FORKS.Pipe()
        self._process = FORKS.Process(target=worker.start, args=(theirs, environment, url, callers, calls, cap))
        self._process.start()
        theirs.close()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.exitcode is not None

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def told(self) -> Told:
        """What became of its calls, when it has ended by itself."""
        told: Told = self._pipe.recv()
        self._process.join()
        assert self._process.exitcode == 0
        return told


@pytest.fixture(params=["sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each of the two."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'books.db'}"
    valkey: Valkey = request.getfixturevalue("valkey")
    return valkey.url


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A server that writes everything down."""
    with Valkey(appendonly="yes") as server:
        yield server


@pytest.fixture
def crew_of() -> Iterator[Callable[..., Crew]]:
    """Makes crews, whose processes end with the test."""
    with ExitStack() as stack:

        def make(*given: Any, **environment: object) -> Crew:
            crew = Crew(*given, **environment)
            stack.callback(crew.close)
            return crew

        yield make


# ---------------------------------------------------------------- killed


def test_whoever_is_killed_at_any_moment_the_bill_is_in_the_books_and_under_the_ceiling(store, provider, crew_of):
    """4 processes with 8 calls at a time, killed 40 times, each followed by another one that goes on with the run."""
    ceiling, kills = 200_000, 40
    crew = crew_of(store, provider, ceiling=ceiling, lease=1)
    chance = random.Random(7)
    running = [crew.start() for _ in range(PROCESSES)]
    for bill in sorted(chance.sample(range(BILLED, ceiling * 7 // 10), kills)):
        until(lambda bill=bill: provider.bill >= bill)
        running.pop(chance.randrange(PROCESSES)).kill()
        crew.check(ceiling)
        running.append(crew.start())
    for one in running:
        assert {status for status, _ in one.told()} <= {200, 402}
        crew.check(ceiling)
    until(lambda: (crew.sums()["held"], crew.sums()["in_flight"]) == (0, 0))
    crew.check(ceiling)
    now = crew.sums()
    over = now["spent"] + now["unknown"] - provider.bill
    print(f"{kills} kills: {provider.bill} billed, {now['spent']} spent, {now['unknown']} unknown, {over} over-booked")
    assert 0 <= over <= now["unknown"] <= kills * CALLERS * RESERVED
    assert now["spent"] + now["unknown"] > ceiling - RESERVED, "it stopped before it had to"


# ---------------------------------------------------------------- cut off


def passed(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since."""
    since = time.monotonic()
    return lambda: time.monotonic() >= since + seconds


def more_calls(provider: Provider, number: int) -> None:
    """Wait until so many more calls have come."""
    before = len(provider.calls)
    until(lambda: len(provider.calls) >= before + number)


def restarted(valkey: Valkey, provider: Provider) -> None:
    valkey.restart()


def frozen(valkey: Valkey, provider: Provider) -> None:
    valkey.freeze()
    until(passed(5.0))
    valkey.cont()


def gone(valkey: Valkey, provider: Provider) -> None:
    valkey.kill()
    until(passed(2.0))
    valkey.restart()


def through_an_outage(outage: Callable[..., None], valkey: Valkey, provider: Provider, crew: Crew) -> Told:
    """What callers are told while it happens, whose books are right to the token afterwards."""
    running = [crew.start() for _ in range(2)]
    more_calls(provider, 100)
    outage(valkey, provider)
    more_calls(provider, 200)
    provider.stops = True
    told = [call for one in running for call in one.told()]
    until(lambda: (crew.sums()["held"], crew.sums()["in_flight"]) == (0, 0))
    now = crew.sums()
    assert (now["spent"], now["unknown"], now["calls"]) == (provider.bill, 0, len(provider.calls))
    assert provider.bill == BILLED * sum(status == 200 for status, _ in told)
    return told


@pytest.mark.parametrize("outage", [restarted, frozen, gone])
def test_calls_are_refused_soon_while_the_store_is_away(outage, valkey, provider, crew_of):
    """Nobody waits much longer than the grace, and what was called before and after is booked once."""
    crew = crew_of(valkey.url, provider, ceiling="1M", lease=1, store_grace=0.5)
    told = through_an_outage(outage, valkey, provider, crew)
    print(f"{outage.__name__}: {len(told)} calls, the longest {max(seconds for _, seconds in told):.2f} s")
    assert {status for status, _ in told} <= {200, 503}
    assert max(seconds for _, seconds in told) < 0.5 + 2
    assert outage is restarted or 503 in {status for status, _ in told}


@pytest.mark.parametrize("outage", [restarted, frozen])
def test_no_call_is_lost_to_an_outage_that_is_shorter_than_the_grace(outage, valkey, provider, crew_of):
    crew = crew_of(valkey.url, provider, ceiling="1M", lease=1, store_grace=10)
    told = through_an_outage(outage, valkey, provider, crew)
    assert {status for status, _ in told} == {200}


@pytest.mark.parametrize("outage", [restarted, frozen, gone])
def test_calls_go_without_a_store_that_is_away_and_are_booked_when_it_is_back(outage, valkey, provider, crew_of):
    crew = crew_of(valkey.url, provider, ceiling="1M", lease=1, store_grace=0.5, store_failure="pass")
    told = through_an_outage(outage, valkey, provider, crew)
    assert {status for status, _ in told} == {200}
    assert max(seconds for _, seconds in told) < 0.5 + 2
