"""Real processes on one shared store: they are killed, forked and cut off, and the books are right all the same."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest

from pacer import Pacer, settings
from pacer.errors import SettingsError
from pacer.store.opening import vault_of
from pacer.store.vault import Away, RunRow
from tests import worker
from tests.servers import CHAT, URL, Connection, Inner, Server, answer_json, ask, ok, whole
from tests.valkey import Valkey
from tests.worker import BILLED, CAP, INPUT, RESERVED, Told
from transports import BudgetTransport

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parent.parent
PROCESSES, CALLERS = 4, 8
JSON = "content-type: application/json"
# Forked from a server that has all modules: a process is there in a moment, and has nothing of this one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.worker", "pacer.store.redis", "pacer.store.sqlite", "anyio._backends._asyncio", "httpcore"]
)


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
    late: float = 0.0
    """By how many seconds the loop of one of its callers was held up at worst."""

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
            self.late = max(self.late, *map(float, re.findall(r"x-late: (\S+)", request[0])), 0.0)
            output = self.think(cap)
            with self._counting:
                self.bill += INPUT + output
            usage = {"prompt_tokens": INPUT, "completion_tokens": output, "total_tokens": INPUT + output}
            connection.write(whole(answer_json(usage), JSON, *(["x-stop: 1"] if self.stops else [])))

    def wait_for(self, calls: int = 0, bill: int = 0) -> None:
        """Wait until so much has come, and so much is billed."""
        until(lambda: len(self.calls) >= calls and self.bill >= bill)

    def think(self, cap: int) -> int:
        """Take the time of an answer, and the tokens of its output."""
        self._never.wait(self.seconds)
        return cap


@dataclass
class Gatekeeper(Provider):
    """Answers one call for each time it is let, with few tokens."""

    lets: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def think(self, cap: int) -> int:
        self.lets.acquire()
        return 5


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Alone in its test."""
    with Provider() as server:
        yield server


# ---------------------------------------------------------------- stores and workers


class Crew:
    """The workers of one test on one store, whose books it looks at."""

    def __init__(self, state: str, store: str, provider: Provider, **environment: object) -> None:
        self.store = store
        self.provider = provider
        self.environment = {"PACER_STORE": store, "PACER_RUN": "nightly", "XDG_STATE_HOME": state} | {
            f"PACER_{name.upper()}": str(value) for name, value in environment.items()
        }
        self.workers: list[Worker] = []
        self._vault = vault_of(settings.explicit(store=store, run="onlooker"))
        self._rows: list[RunRow] = []

    def start(self, callers: int = CALLERS, calls: int | None = None, cap: int = CAP, **environment: object) -> Worker:
        """One more worker."""
        own = self.environment | {f"PACER_{name.upper()}": str(value) for name, value in environment.items()}
        self.workers.append(Worker(worker.start, own, self.provider.url, callers, calls, cap))
        return self.workers[-1]

    def join(self, **environment: object) -> str:
        """What another process with these settings is told when it joins."""
        own = self.environment | {f"PACER_{name.upper()}": str(value) for name, value in environment.items()}
        self.workers.append(Worker(worker.join, own))
        told: str = self.workers[-1].told()
        return told

    def row(self) -> RunRow:
        """How the run stands on disk, as soon as that can be seen."""
        until(self._looks)
        (row,) = self._rows
        return row

    def _looks(self) -> bool:
        try:
            self._rows = self._vault.rows()
        except Away:  # the server was restarted
            return False
        return True

    def sums(self) -> dict[str, int]:
        """Its sums."""
        return self.row().sums()

    def check(self, ceiling: int) -> None:
        """The two sides of the bill, at any time: what is on it is in the books, and not more is spent."""
        bill = self.provider.bill
        now = self.sums()
        assert bill <= now["spent"] + now["unknown"] + now["held"] <= ceiling
        assert now["spent"] <= self.provider.bill <= ceiling

    def close(self) -> None:
        """Nobody stays behind."""
        for one in self.workers:
            one.kill()
        self._vault.close()


class Worker:
    """One process."""

    def __init__(self, does: Callable[..., None], *given: object) -> None:
        self._pipe, theirs = FORKS.Pipe()
        self._process = FORKS.Process(target=does, args=(theirs, *given))
        self._process.start()
        theirs.close()

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def told(self) -> Any:
        """What it has to tell, when it has ended by itself."""
        told = self._pipe.recv()
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
    with Valkey(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def crew_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Crew]]:
    """Makes crews, whose processes end with the test."""
    state = str(tmp_path / "state")
    monkeypatch.setenv("XDG_STATE_HOME", state)
    with ExitStack() as stack:

        def make(store: str, provider: Provider, **environment: object) -> Crew:
            crew = Crew(state, store, provider, **environment)
            stack.callback(crew.close)
            return crew

        yield make


# ---------------------------------------------------------------- killed, and cut off


def passed(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since."""
    since = time.monotonic()
    return lambda: time.monotonic() >= since + seconds


def more_calls(provider: Provider, number: int) -> None:
    """Wait until so many more calls have come."""
    provider.wait_for(calls=len(provider.calls) + number)


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


def test_whoever_is_killed_at_any_moment_the_bill_is_in_the_books_and_under_the_ceiling(
    store, request, provider, crew_of
):
    """4 processes with 8 calls at a time, killed 40 times, each followed by another one that goes on with the run; a
    server is restarted and out of reach for 5 s in between.
    """
    ceiling, kills = 200_000, 40
    outages = {15: restarted, 30: frozen} if store.startswith("redis:") else {}
    crew = crew_of(store, provider, ceiling=ceiling, lease=1, store_grace=20)
    chance = random.Random(7)
    running = [crew.start() for _ in range(PROCESSES)]
    for number, bill in enumerate(sorted(chance.sample(range(BILLED, ceiling * 7 // 10), kills))):
        provider.wait_for(bill=bill)
        running.pop(chance.randrange(PROCESSES)).kill()
        if number in outages:
            outages[number](request.getfixturevalue("valkey"), provider)
        crew.check(ceiling)
        running.append(crew.start())
    for one in running:
        assert {status for status, _ in one.told()} == {200, 402}
        crew.check(ceiling)
    until(lambda: (crew.sums()["held"], crew.sums()["in_flight"]) == (0, 0))
    crew.check(ceiling)
    now = crew.sums()
    over = now["spent"] + now["unknown"] - provider.bill
    print(f"{kills} kills: {provider.bill} billed, {now['spent']} spent, {now['unknown']} unknown, {over} over-booked")
    assert 0 <= over <= now["unknown"] <= kills * CALLERS * RESERVED
    assert now["spent"] + now["unknown"] > ceiling - RESERVED, "it stopped before it had to"


def through_an_outage(outage: Callable[..., None], valkey: Valkey, provider: Provider, crew: Crew) -> Told:
    """What callers are told while it happens, whose books are right to the token afterwards."""
    running = [crew.start() for _ in range(PROCESSES)]
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


def test_a_process_that_starts_while_the_store_is_away_waits_for_it_as_a_call_does(valkey, provider, crew_of):
    crew = crew_of(valkey.url, provider, store_grace=20)
    valkey.kill()
    starts = crew.start(callers=1, calls=1)
    until(passed(0.5))
    valkey.restart()
    assert [status for status, _ in starts.told()] == [200]


@pytest.mark.parametrize("outage", [restarted, frozen, gone])
def test_calls_go_without_a_store_that_is_away_and_are_booked_when_it_is_back(outage, valkey, provider, crew_of):
    crew = crew_of(valkey.url, provider, ceiling="1M", lease=1, store_grace=0.5, store_failure="pass")
    told = through_an_outage(outage, valkey, provider, crew)
    assert {status for status, _ in told} == {200}
    assert max(seconds for _, seconds in told) < 0.5 + 2


# ---------------------------------------------------------------- waiting for one another


def exchanges(valkey: Valkey) -> int:
    """How many scripts a server has run."""
    found = re.search(rb"cmdstat_evalsha:calls=(\d+)", valkey.ask("INFO", "commandstats"))
    return int(found[1]) if found else 0


def looks_a_second(valkey: Valkey) -> float:
    before, since = exchanges(valkey), time.monotonic()
    until(passed(1.0))
    return (exchanges(valkey) - before) / (time.monotonic() - since)


def test_what_one_process_gives_back_lets_another_one_go_at_once(store, request, crew_of):
    """One call at a time has room; whoever waits for it in another process hears of it soon, and does not storm."""
    with Gatekeeper() as provider:
        crew = crew_of(store, provider, ceiling=12_000, output_cap="leave")
        crew.start(callers=1, cap=10_000)
        provider.wait_for(calls=1)
        crew.start(callers=1, cap=10_000)
        took = []
        for served in range(1, 21):
            until(lambda: crew.row().books.claimed > 0)
            let = time.monotonic()
            provider.lets.release()
            provider.wait_for(calls=served + 1)
            took.append(provider.calls[served][0] - let)
        print(f"wake-up: median {statistics.median(took) * 1e3:.0f} ms, longest {max(took) * 1e3:.0f} ms")
        assert statistics.median(took) < 0.3
        assert max(took) < 1.0
        until(lambda: crew.row().books.claimed > 0)
        if store.startswith("redis:"):
            looks = looks_a_second(request.getfixturevalue("valkey"))
            print(f"{looks:.1f} looks a second")
            assert 5 < looks <= 25


def test_one_rate_holds_for_all_processes_and_a_large_call_is_not_starved(store, provider, crew_of):
    """Tokens in any time T are at most burst + rate x T, beside what a call cost more than was expected of it."""
    rate, burst, cap = 4_000, 1_000, 2_000
    crew = crew_of(store, provider, tokens_per_second=rate, burst=burst)
    flood = [crew.start(callers=4) for _ in range(3)]
    more_calls(provider, 30)
    ((status, seconds),) = crew.start(callers=1, calls=1, cap=cap).told()
    more_calls(provider, 30)
    provider.stops = True
    for one in flood:
        assert {status for status, _ in one.told()} == {200}
    assert status == 200
    assert seconds < 3
    large = [output for _, output in provider.calls].index(cap)
    before, after = (most_above(rate, provider.calls[:end]) for end in (large, None))
    pace = provider.bill / (provider.calls[-1][0] - provider.calls[0][0])
    print(f"above the rate: {before:.0f}, with debt {after:.0f}; {pace:.0f}/s; the large call took {seconds:.2f} s")
    print(f"held up at worst {provider.late:.3f} s")
    late = rate * (0.1 + provider.late)  # a call is seen where it comes in, after whatever has held up its caller
    assert before <= burst + BILLED + late
    assert after <= burst + BILLED + late + INPUT + cap
    assert pace > rate / 2


def most_above(rate: float, calls: list[tuple[float, int]]) -> float:
    """By how much the calls of some time T have ever cost more than rate x T."""
    level, most, last = 0.0, 0.0, calls[0][0]
    for at, output in calls:
        level = max(0.0, level - (at - last) * rate) + INPUT + output
        most, last = max(most, level), at
    return most


# ---------------------------------------------------------------- families


@pytest.mark.parametrize("way", ["os.fork", "fork", "spawn", "subprocess"])
def test_a_process_and_its_children_share_one_ceiling(way, store, provider, crew_of):
    """Forked with an open pacer and an open call, or told by nothing but the environment."""
    ceiling = 3_000
    crew = crew_of(store, provider, ceiling=ceiling)
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker", provider.url, way],
        env=os.environ | crew.environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    now = crew.sums()
    assert (now["spent"], now["unknown"], now["held"], now["in_flight"]) == (provider.bill, 0, 0, 0)
    assert ceiling - RESERVED < provider.bill <= ceiling


# ---------------------------------------------------------------- the end


def test_nobody_waits_for_a_store_that_was_left(store, provider, crew_of):
    """Who waits then, and who calls later, is refused; a call that is open gets its answer, and is unknown."""
    crew = crew_of(store, provider)
    pacer = Pacer(store=store, run="nightly", ceiling=12_000, output_cap="leave", lease=1)

    async def leave() -> list[int]:
        async with httpx.AsyncClient(transport=BudgetTransport(pacer=pacer, verify=False), timeout=20) as client:
            async with client.stream("POST", provider.url + CHAT, json=ask(10_000)) as response:
                waits = asyncio.create_task(client.post(provider.url + CHAT, json=ask(10_000)))
                while not pacer.status().waiting:
                    await asyncio.sleep(0)
                pacer.close()
                await response.aread()
            late = await client.post(provider.url + CHAT, json=ask(10))
            return [response.status_code, (await waits).status_code, late.status_code]

    assert asyncio.run(leave()) == [200, 503, 503]
    until(lambda: crew.sums()["held"] == 0)
    assert crew.sums()["unknown"] >= provider.bill


# ---------------------------------------------------------------- limits


def test_other_limits_for_one_run_are_refused_or_change_it_for_all(store, provider, crew_of):
    crew = crew_of(store, provider)
    with closing(Pacer(store=store, run="nightly", ceiling=5_000, tokens_per_second=100)) as first:
        assert crew.join(ceiling=5_000, tokens_per_second=100) == ""
        assert crew.join() == "", "what is not given is as it is there"
        told = crew.join(ceiling=7_000)
        assert "ceiling=5000" in told
        assert "ceiling=7000" in told
        told = crew.join(tokens_per_second=200)
        assert "tokens_per_second=100" in told
        assert "tokens_per_second=200" in told
        assert (first.status().ceiling, first.status().tokens_per_second) == (5_000, 100)
        assert crew.join(ceiling=7_000, tokens_per_second=200, update_limits="on") == ""
        until(lambda: (first.status().ceiling, first.status().tokens_per_second) == (7_000, 200))


# ---------------------------------------------------------------- names

NAMES = [
    *("../../../../tmp/agent", "a\nERROR run nightly: forged", "a\r\nx-forged: 1", "{}", "{other}", "x" * 10_000),
    *("a\0b", "a|open|9", "'; DROP TABLE runs; --", "pacer:1:{nightly}:books", "%0d%0ax-forged: 1", "\u2028é", "%s%n"),
]


@pytest.mark.parametrize("name", [*NAMES, "", "x" * 129, "nightly\n"])
def test_a_run_has_no_name_that_leaves_its_place(name, tmp_path):
    with pytest.raises(SettingsError, match="run="):
        Pacer(store=f"sqlite:{tmp_path / 'books.db'}", run=name)
    with closing(Pacer(store=f"sqlite:{tmp_path / 'books.db'}")) as pacer, pytest.raises(SettingsError, match="run="):
        pacer.run(name)


@pytest.mark.parametrize("given_as", ["scope", "header"])
def test_the_name_of_an_agent_does_not_leave_its_place(given_as, store, request, caplog, tmp_path, crew_of, provider):
    """It may be any string. It is shown in JSON, quoted in headers, spelt out in logs, and names no key and no file."""
    crew = crew_of(store, provider)
    caplog.set_level("DEBUG", "pacer")
    costs = {"prompt_tokens": 20, "completion_tokens": 105, "total_tokens": 125}  # enough to be in the log
    with (
        closing(Pacer(store=store, run="nightly", agent_ceiling=150, output_cap="leave")) as pacer,
        httpx.Client(transport=BudgetTransport(Inner(ok(costs)), pacer=pacer)) as client,
        ExitStack() as stack,
    ):
        for name in NAMES:
            headers = {}
            if given_as == "scope":
                stack.enter_context(pacer.agent(name, reserve=5))
            else:
                headers = {"x-pacer-agent": quote(name)}
            assert client.post(URL, json=ask(30), headers=headers).status_code in (200, 402)
            refused = client.post(URL, json=ask(30_000), headers=headers)
            assert refused.status_code == 402
            assert unquote(refused.headers["x-pacer-agent"]).endswith(name[:128])
            assert refused.headers["x-pacer-agent"].isprintable()
            assert "x-forged" not in refused.headers
            assert refused.json()["agent"].endswith(name[:128])
        json.loads(pacer.status().json())
        until(lambda: any(NAMES[0] in shown for shown in crew.row().members))
        (shown,) = crew.row().members
        assert json.loads(shown)["runs"].keys() == {"nightly"}
        if store.startswith("redis:"):
            keys = request.getfixturevalue("valkey").ask("KEYS", "*").split(b"\r\n")[2::2]
            assert all(re.fullmatch(rb"pacer:1:\{nightly\}:[a-z]+", key) for key in keys)
        else:
            assert {file.name for file in tmp_path.iterdir()} <= {"books.db", "books.db-wal", "books.db-shm", "state"}
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for line in lines)
    assert any(ascii(NAMES[0]) in line for line in lines)
