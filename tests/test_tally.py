"""What the processes below ``pacer run`` leave behind of their calls."""

from __future__ import annotations

import gc
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from pacer import Pacer, telemetry
from pacer.cli import tally, uncovered
from pacer.cli.tally import Call
from pacer.errors import CeilingReached, WaitTooLong
from pacer.flow import Park
from pacer.usage import Estimate
from tests.records import HOSTILE, call
from tests.servers import CALLERS, URL, Answer, Caller, Inner, answer_json, ask, ok
from transports import BudgetTransport


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Calls of this process are written down there."""
    monkeypatch.setattr(telemetry, "listeners", [tally._Writer(tmp_path)])
    return tmp_path


def calls(directory: Path) -> list[Call]:
    found = list(tally.calls(directory))
    assert None not in found
    return [one for one in found if one is not None]


def only(directory: Path) -> Call:
    [one] = calls(directory)
    return one


# -------------------------------------------------------------------- what is told


@pytest.mark.parametrize("caller", CALLERS)
def test_a_call_of_a_budget_of_ones_own_is_told_with_all_there_is_to_know(directory: Path, caller: Caller):
    """Also where the pacer is the program's own, and nothing is installed."""
    budget = Pacer(run="mine")
    details = {"cached_tokens": 5}, {"reasoning_tokens": 3}
    usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    usage |= {"prompt_tokens_details": details[0], "completion_tokens_details": details[1]}  # type: ignore[dict-item]
    before = time.time()
    with budget.agent("planner"), budget.agent("writer"):
        caller.send(BudgetTransport(Inner(ok(usage)), pacer=budget), json=ask())
    told = only(directory)
    assert before <= told.asked_at <= (told.admitted_at or 0.0) <= told.ended_at <= time.time()
    assert told == Call(
        asked_at=told.asked_at, admitted_at=told.admitted_at, ended_at=told.ended_at, pacer="mine", run="mine",
        agents=("planner", "writer"), provider="openai", model="m", server="model.test", source="provider", input=20,
        output=10, cached=5, reasoning=3, spent=30, status=200,
    )  # fmt: skip


def test_a_refusal_is_told_with_its_limit(directory):
    budget = Pacer(ceiling=0, run="mine")
    with httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client:
        assert client.post(URL, json=ask()).status_code == 402
    told = only(directory)
    assert (told.refused_by, told.source, told.admitted_at, told.is_booked) == ("ceiling", None, None, False)
    assert (told.waited_seconds, told.spent, told.unknown) == (0.0, 0, 0)


@pytest.mark.parametrize(("status", "source"), [(400, "void"), (503, "void"), (408, "partial")])
def test_an_answer_that_is_an_error_is_told_with_its_status(directory, status, source):
    with httpx.Client(transport=BudgetTransport(Inner(Answer(status=status)), pacer=Pacer())) as client:
        client.post(URL, json=ask())
    told = only(directory)
    assert (told.status, told.source, told.is_booked) == (status, source, source != "void")


def test_a_call_that_could_not_be_sent_is_told(directory):
    inner = Inner(Answer(error=httpx.ConnectError("no")))
    with httpx.Client(transport=BudgetTransport(inner, pacer=Pacer())) as client, pytest.raises(httpx.ConnectError):
        client.post(URL, json=ask())
    assert (only(directory).source, only(directory).status) == ("void", None)


def test_each_attempt_is_told(directory):
    transport = BudgetTransport(Inner(Answer(status=503), ok()), pacer=Pacer(retries=1))
    with httpx.Client(transport=transport) as client:
        client.post(URL, json=ask())
    assert [one.status for one in calls(directory)] == [503, 200]


def waiting(budget: Pacer) -> Any:
    """A call that waits for the rate of the pacer."""
    next(budget.admit(Estimate(100, 0, 100)), None)
    way = budget.admit(Estimate(60, 20, 100, "openai", "m", "api.test"))
    assert isinstance(next(way), Park)
    return way


def test_a_wait_is_told_with_its_limit_and_its_length(directory):
    clock = time.monotonic()
    budget = Pacer(tokens_per_second=10, burst=100, clock=lambda: clock)
    way = waiting(budget)
    clock += 8.0
    budget._store.tick()
    with pytest.raises(StopIteration) as end:
        next(way)
    assert calls(directory) == []
    budget.void(end.value.value)
    told = only(directory)
    assert told.waited_for == "tokens_per_second"
    assert told.waited_seconds == pytest.approx(8.0)


def test_a_wait_that_is_given_up_is_told(directory):
    way = waiting(Pacer(tokens_per_second=10, burst=100))
    with pytest.raises(KeyboardInterrupt):
        way.throw(KeyboardInterrupt())
    told = only(directory)
    assert (told.waited_for, told.refused_by, told.source, told.model) == ("tokens_per_second", "", None, "m")
    assert told.waited_seconds > 0.0


@pytest.mark.parametrize(("limits", "error"), [({"max_wait": 0.1}, WaitTooLong), ({"ceiling": 99}, CeilingReached)])
def test_whatever_refuses_is_told(directory, limits, error):
    budget = Pacer(tokens_per_second=10, burst=100, **limits)
    next(budget.admit(Estimate(90, 0, 90)), None)
    with pytest.raises(error):
        list(budget.admit(Estimate(100, 0, 100)))
    assert only(directory).refused_by == {WaitTooLong: "tokens_per_second", CeilingReached: "ceiling"}[error]


def test_a_stream_that_a_collection_ends_is_told(directory):
    transport = BudgetTransport(
        Inner(Answer([b"data: 1\n\n"] * 9, {"content-type": "text/event-stream"})), pacer=Pacer()
    )
    request = httpx.Request("POST", URL, json=ask(stream=True))
    stream = iter(transport.handle_request(request).stream)
    next(stream)
    assert calls(directory) == []
    del stream
    gc.collect()
    assert only(directory).source == "partial"


def test_what_a_forked_child_holds_of_its_parents_calls_is_the_parents(directory):
    """The child's copy of an open stream ends, too; what the child itself asks is told."""
    budget = Pacer(run="forked")
    transport = BudgetTransport(Inner(ok()), pacer=budget)
    response = transport.handle_request(httpx.Request("POST", URL, json=ask()))
    child = os.fork()
    if child == 0:
        try:
            b"".join(response.stream)
            transport.handle_request(httpx.Request("POST", URL, json=ask(model="child"))).read()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert [one.model for one in calls(directory)] == ["child"]
    response.read()
    assert [one.model for one in calls(directory)] == ["child", "m"]


def test_a_listener_that_fails_breaks_no_call(monkeypatch, caplog):
    def fails(ended: telemetry.Ended) -> None:
        raise ValueError("theirs")

    heard: list[telemetry.Ended] = []
    monkeypatch.setattr(telemetry, "listeners", [fails, heard.append])
    with httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=Pacer())) as client:
        assert client.post(URL, json=ask()).json()["usage"]["total_tokens"] == 30
    assert len(heard) == 1
    assert "a listener of calls failed" in caplog.text


# -------------------------------------------------------------------- the file


def test_nothing_secret_is_written_and_only_the_user_reads_it(directory):
    url = f"{URL}?key=SECRET-1"
    body = {"model": "m", "messages": [{"role": "user", "content": "SECRET-2"}], "user": "SECRET-3"}
    answer = Answer([answer_json(None, system_fingerprint="SECRET-4")], {"content-type": "application/json"})
    with httpx.Client(transport=BudgetTransport(Inner(answer), pacer=Pacer()), auth=("u", "SECRET-5")) as client:
        client.post(url, json=body, headers={"authorization": "Bearer SECRET-6"})
    file = directory / tally.CALLS
    assert "SECRET" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_hostile_names_are_kept_as_they_are(directory):
    budget = Pacer()
    with budget.agent(HOSTILE):
        BudgetTransport(Inner(ok()), pacer=budget).handle_request(httpx.Request("POST", URL, json=ask())).read()
    assert only(directory).agents == (HOSTILE[:128],)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"went 1.0",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"asked_at":1e999,"ended_at":1,"pacer":"p","run":"r"}',
        b'{"asked_at":1,"ended_at":1,"pacer":"p","run":"r","spent":-5}',
        b'{"asked_at":1,"ended_at":1,"pacer":"p","run":"r","spent":' + b"9" * 60 + b"}",
        b'{"asked_at":1,"ended_at":1,"pacer":"p","run":"r","agents":["' + b"x" * 300 + b'"]}',
        b'{"asked_at":1,"ended_at":1,"pacer":"p","run":"r","source":"magic"}',
        b'{"asked_at":1,"ended_at":1,"pacer":"p","ru',
    ],
)
def test_a_line_that_is_not_ours_is_passed_over(tmp_path, line):
    good = msgspec.json.encode(call())
    (tmp_path / tally.CALLS).write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    assert list(tally.calls(tmp_path)) == [call(), None, call()]


def test_a_command_that_is_over_takes_no_records(directory):
    (directory / tally.CALLS).mkdir()
    with httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=Pacer())) as client:
        assert client.post(URL, json=ask()).status_code == 200
    assert calls(directory) == []


def test_what_is_written_beside_the_calls(tmp_path):
    assert tally.read(tmp_path) == tally.Tally(False, (), ())
    (tmp_path / tally.STARTED).touch()
    (tmp_path / tally.MISSING).write_text("b\na\nb\n")
    (tmp_path / uncovered.FILE).write_text("grpc a\ngrpc a\n")
    assert tally.read(tmp_path) == tally.Tally(True, ("a", "b"), ("2 calls to a by grpc",))


def test_a_line_says_only_what_there_is_to_say():
    line = json.loads(msgspec.json.encode(call()))
    assert not line.keys() & {"unknown", "waited_for", "refused_by", "agents", "cached"}
