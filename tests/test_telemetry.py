"""What is told: a span only for a wait, an event for a refusal, one log line for a long wait, metrics of it all."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from pacer import Pacer, flow, parking, telemetry
from pacer.errors import BudgetExceeded, WaitTooLong
from pacer.flow import Park
from pacer.ticket import Caller, Reservation
from pacer.usage import Estimate, Settlement, Usage
from tests.engine import Clock, Engine
from tests.servers import URL, Answer, Inner, ask, ok
from transports import BudgetTransport

CALL = Estimate(60, 20, 100, "openai", "gpt-x", "api.example.com")
READER = InMemoryMetricReader()
EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def sdk() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([READER]))


@pytest.fixture(autouse=True)
def fresh() -> None:
    EXPORTER.clear()


def spans() -> dict[str, dict[str, object]]:
    return {span.name: dict(span.attributes or {}) for span in EXPORTER.get_finished_spans()}


def admitted(way: Generator[object, None, Reservation]) -> Reservation:
    """The place at the end of a way that has nothing to wait for any more."""
    with pytest.raises(StopIteration) as end:
        next(way)
    place: Reservation = end.value.value
    return place


def admitted_elsewhere(way: Generator[object, None, Reservation]) -> Reservation:
    """The same in another thread: nobody waits for an answer that they hold open themselves."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(admitted, way).result()


def pacer_with_one_waiting() -> tuple[Pacer, Clock, object]:
    clock = Clock()
    budget = Pacer(tokens_per_second=10, burst=100, clock=clock, run="told")
    next(budget.admit(Estimate(100, 0, 100)), None)
    return budget, clock, budget.admit(CALL)


# -------------------------------------------------------------------- spans


def test_a_call_that_did_not_wait_has_no_span():
    next(Pacer().admit(CALL), None)
    assert spans() == {}


def test_a_wait_is_a_span_below_the_callers(each_store):
    """Also where books are shared, and who owes tokens of a rate waits with a place already."""
    engine = Engine(rate=10, burst=100)
    agent = engine.agent("writer", parent=engine.agent("planner"))
    admitted(flow.admit(engine.store, Estimate(100, 0, 100), engine.caller))
    with trace.get_tracer("caller").start_as_current_span("agent step") as parent:
        way = flow.admit(engine.store, CALL, Caller(agent))
        step = next(way)
        assert isinstance(step, Park)
        assert trace.get_current_span() is parent, "what happens meanwhile is the caller's"
        engine.clock.now += 8.0
        step.store.tick()
        place = admitted(way)
    assert place.waited_seconds == 8.0
    wait = next(span for span in EXPORTER.get_finished_spans() if span.name == "pacer.wait")
    assert wait.parent is not None
    assert wait.parent.span_id == parent.get_span_context().span_id
    assert wait.attributes == {
        "pacer.limit": "tokens_per_second",
        "pacer.run": "default",
        "pacer.agent": "planner/writer",
        "pacer.tokens.asked": 80,
        "pacer.queue.position": 1,
        "pacer.wait.outcome": "admitted",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "server.address": "api.example.com",
    }


def test_what_is_not_known_of_a_call_is_left_out():
    budget, _, _ = pacer_with_one_waiting()
    way = budget.admit(Estimate(60, 20, 100))
    next(way)
    way.close()
    assert not spans()["pacer.wait"].keys() & {"gen_ai.provider.name", "gen_ai.request.model", "server.address"}


def test_a_wait_says_what_place_in_line_it_had_and_how_it_ended():
    budget, _, _ = pacer_with_one_waiting()
    ways = [budget.admit(CALL) for _ in range(2)]
    for way in ways:
        next(way)
    ways[1].close()
    assert spans()["pacer.wait"]["pacer.queue.position"] == 2
    assert spans()["pacer.wait"]["pacer.wait.outcome"] == "cancelled"
    assert budget.status().waiting == 1


def test_a_wait_for_a_ceiling_asks_for_the_worst_case_and_may_be_refused():
    budget = Pacer(ceiling=110, run="small")
    place = admitted_elsewhere(budget.admit(CALL))
    way = budget.admit(CALL)
    next(way)
    budget.settle(place, Usage(80, 20))
    with pytest.raises(BudgetExceeded):
        next(way)
    told = spans()["pacer.wait"]
    assert (told["pacer.limit"], told["pacer.tokens.asked"], told["pacer.wait.outcome"]) == ("ceiling", 100, "refused")


def test_a_wait_beyond_the_patience_has_timed_out():
    clock = Clock()
    budget = Pacer(ceiling=100, max_wait=5, clock=clock, run="hasty")
    admitted_elsewhere(budget.admit(CALL))
    way = budget.admit(CALL)
    step = next(way)
    assert isinstance(step, Park)
    clock.now += 6.0
    step.store.tick()
    with pytest.raises(WaitTooLong):
        next(way)
    assert spans()["pacer.wait"]["pacer.wait.outcome"] == "timed_out"
    assert counted("hasty", "pacer.requests") == {("timed_out",): 1}


def test_a_refusal_is_an_event_on_the_callers_span():
    tracer = trace.get_tracer("caller")
    with tracer.start_as_current_span("agent step"), pytest.raises(BudgetExceeded):
        next(Pacer(ceiling=10, run="small").admit(CALL))
    (span,) = EXPORTER.get_finished_spans()
    (event,) = span.events
    assert event.name == "pacer.refused"
    attributes = dict(event.attributes or {})
    assert attributes["pacer.limit"] == "ceiling"
    assert attributes["pacer.run"] == "small"
    assert attributes["pacer.tokens.asked"] == 100
    assert attributes["pacer.tokens.remaining"] == 10


class NoWaits(Sampler):
    """Samples all but our own spans."""

    def should_sample(self, parent_context, trace_id, name, *args, **kwargs):
        return SamplingResult(Decision.DROP if name == "pacer.wait" else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "no waits"


def test_a_refusal_after_a_wait_that_is_not_sampled_is_still_on_the_callers_span(monkeypatch):
    provider = TracerProvider(sampler=NoWaits())
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    monkeypatch.setattr(telemetry, "_tracer", lambda: provider.get_tracer("pacer"))
    budget = Pacer(ceiling=110)
    place = admitted_elsewhere(budget.admit(CALL))
    with provider.get_tracer("caller").start_as_current_span("agent step"):
        way = budget.admit(CALL)
        next(way)
        budget.settle(place, Usage(80, 20))
        with pytest.raises(BudgetExceeded):
            next(way)
    (span,) = EXPORTER.get_finished_spans()
    assert (span.name, span.events[-1].name) == ("agent step", "pacer.refused")


# -------------------------------------------------------------------- log lines


def test_a_long_wait_is_one_log_line_with_limit_seconds_and_place(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "pacer"):
        budget, _, _ = pacer_with_one_waiting()
        way = budget.admit(CALL)
        next(way)
        assert [record.getMessage() for record in caplog.records] == [
            "run told waits for tokens_per_second: about 8.0 s, place 1 in line"
        ]
        way.close()


def test_a_short_wait_is_not_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "pacer"):
        budget, clock, _ = pacer_with_one_waiting()
        clock.now += 7.5
        way = budget.admit(CALL)
        next(way)
        assert caplog.records == []
        way.close()


# -------------------------------------------------------------------- metrics


def points(run: str) -> dict[str, list[Any]]:
    """The data points of a run, by metric."""
    found: dict[str, list[Any]] = {}
    collected = READER.get_metrics_data()
    assert collected is not None
    for metric in (metric for scope in collected.resource_metrics[0].scope_metrics for metric in scope.metrics):
        for point in metric.data.data_points:
            if (point.attributes or {})["pacer.run"] == run:
                found.setdefault(metric.name, []).append(point)
    return found


def counted(run: str, metric: str) -> dict[tuple[str, ...], float]:
    """The values of a metric, by its attributes beside the run."""
    found = points(run).get(metric, [])
    return {tuple(value for name, value in point.attributes.items() if name != "pacer.run"): point.value
            for point in found}  # fmt: skip


def budgets_of(run: str) -> dict[str, float]:
    """What the gauges say of a run."""
    return {
        name.removeprefix("pacer."): found[0].value
        for name, found in points(run).items()
        if name.startswith(("pacer.budget.", "pacer.queued", "pacer.active"))
    }


def test_tokens_are_counted_by_class_and_none_twice():
    """All but the unknown ones are what was spent: what only the provider's total tells is in no class of its own."""
    budget = Pacer(run="counted")
    usage = Usage(60, 30, cached=10, written=20, reasoning=12, tokens=100)
    budget.settle(admitted(budget.admit(CALL)), usage)
    budget.settle_unseen(admitted(budget.admit(CALL)), "partial", Usage(5, 2), 60)
    assert counted("counted", "pacer.tokens") == {
        ("input",): 30 + 5,
        ("cached",): 10,
        ("written",): 20,
        ("output",): 18 + 2,
        ("reasoning",): 12,
        ("unclassified",): 10,
        ("unknown",): 93,
    }
    assert budget.status().spent == 107


def test_calls_are_counted_by_how_they_ended_each_for_the_run_it_belongs_to():
    budget = Pacer(run="around", ceiling=1_000)
    with budget.run("within", ceiling=250):
        budget.settle(admitted(budget.admit(CALL)), Usage(60, 20))
        budget.void(admitted(budget.admit(CALL)))
        budget.settle_unseen(admitted(budget.admit(CALL)), "estimate", Usage(60, 20), 60)
        with pytest.raises(BudgetExceeded):
            next(budget.admit(CALL))
        budget.count_failed(admitted(budget.admit(Estimate(1, 1, 2))), 0)
    assert counted("within", "pacer.requests") == {("provider",): 1, ("void",): 1, ("estimate",): 1, ("refused",): 1}
    assert counted("within", "pacer.uncharged_requests") == {("provider_error",): 1}
    assert counted("around", "pacer.requests") == {}


def test_how_far_an_estimate_was_off_is_told_for_both_sides():
    budget = Pacer(run="guessed")
    for billed in (50, 80):
        budget.settle(admitted(budget.admit(CALL)), Usage(billed, 20))
    budget.settle_unseen(admitted(budget.admit(CALL)), "partial", Usage(5, 2), 60)
    told = {point.attributes["pacer.estimate.side"]: point for point in points("guessed")["pacer.estimate.error"]}
    assert {side: (point.count, point.sum) for side, point in told.items()} == {"over": (1, 0.2), "under": (1, 0.25)}
    assert told["over"].explicit_bounds == telemetry.ERRORS


def test_the_time_in_the_queue_is_told_of_all_who_were_admitted():
    budget, clock, _ = pacer_with_one_waiting()
    before = points("told")["pacer.request.time_in_queue"][0]
    way = budget.admit(CALL)
    step = next(way)
    assert isinstance(step, Park)
    clock.now += 8.0
    step.store.tick()
    admitted(way)
    (point,) = points("told")["pacer.request.time_in_queue"]
    assert (point.count, point.sum) == (before.count + 1, before.sum + 8.0)
    assert point.explicit_bounds == telemetry.WAITS


def test_how_a_run_stands_is_measured_as_long_as_its_pacer_is_there():
    budget = Pacer(run="stands", ceiling=250)
    place = admitted(budget.admit(CALL))
    budget.settle_unseen(place, "estimate", Usage(30, 20), 60)
    admitted_elsewhere(budget.admit(CALL))
    way = budget.admit(Estimate(60, 20, 110))
    next(way)
    assert budgets_of("stands") == {
        "budget.limit": 250,
        "budget.spent": 50,
        "budget.unknown": 50,
        "budget.held": 100,
        "budget.remaining": 50,
        "queued_requests": 1,
        "active_reservations": 1,
    }
    way.close()
    gone = weakref.ref(budget)
    del budget, place, way
    gc.collect()
    assert gone() is None, "measuring keeps nothing alive"
    assert budgets_of("stands") == {}


def test_a_run_without_a_ceiling_has_no_limit_and_nothing_remaining():
    budget = Pacer(run="open")
    assert budgets_of(budget.name).keys() == {
        "budget.spent", "budget.unknown", "budget.held", "queued_requests", "active_reservations"}  # fmt: skip


def test_budgets_of_one_name_are_added_up():
    budgets = [Pacer(run="twice", ceiling=100) for _ in range(2)]
    budgets[0].settle(admitted(budgets[0].admit(CALL)), Usage(20, 10))
    assert (budgets_of("twice")["budget.limit"], budgets_of("twice")["budget.spent"]) == (200, 30)


def test_beside_others_a_run_stands_as_in_all_processes_and_calls_are_each_ones_own(tmp_path):
    store = f"sqlite:{tmp_path / 'books.db'}"
    clock = Clock()
    here, there = (Pacer(store=store, run="of-two", ceiling=1_000, clock=clock) for _ in range(2))
    place = driven(there.admit(CALL))
    clock.now += 1.0  # what was seen so long ago is looked at again
    (seen,), (own,) = here.standings(), there.standings()
    assert (seen.held, seen.remaining, seen.active, own.active) == (100, 900, 0, 1)
    there.settle(place, Usage(60, 20))
    if there.when_written(place, seat := parking.ThreadSeat(parking.no_tick)):
        seat.wait()
    clock.now += 1.0
    (seen,) = here.standings()
    assert (seen.limit, seen.spent, seen.held) == (1_000, 80, 0)
    for budget in (here, there):
        budget.close()
    assert budgets_of("of-two") == {}


def driven(way: Generator[Any, None, Reservation]) -> Reservation:
    """The place at the end of a way that may have to ask shared books."""
    while True:
        try:
            step = next(way)
        except StopIteration as end:
            place: Reservation = end.value
            return place
        seat = parking.ThreadSeat(step.store.tick)
        step.store.sit(step.ticket, seat, asks=step.asks)
        seat.wait()


def test_runs_beyond_a_number_are_measured_as_one(monkeypatch):
    """Names of runs come from elsewhere, and there may be any number of them."""
    monkeypatch.setattr(telemetry, "_named_runs", set())
    telemetry._of.cache_clear()
    budget = Pacer(run="first")
    for number in range(telemetry.RUNS_NAMED + 1):
        with budget.run(f"many-{number}"):
            budget.settle(admitted(budget.admit(CALL)), Usage(1))
    telemetry._of.cache_clear()
    assert len(telemetry._named_runs) == telemetry.RUNS_NAMED
    assert counted("many-0", "pacer.tokens") == {("input",): 1}
    assert counted(f"many-{telemetry.RUNS_NAMED}", "pacer.tokens") == {}
    assert counted(telemetry.OTHER, "pacer.tokens")["input",] >= 1
    assert budgets_of(telemetry.OTHER)["budget.spent"] >= 1


# -------------------------------------------------------------------- inside a garbage collection


class Unyielding:
    """An instrument that collects garbage inside a lock which cannot be taken twice, as the SDK's cannot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.told: list[str] = []

    def add(self, amount: float, attributes: dict[str, str]) -> None:
        assert self.lock.acquire(blocking=False), "taken twice"
        gc.collect()
        self.told.append(attributes["pacer.result"])
        self.lock.release()


@pytest.fixture
def collects_only_when_asked() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collects_only_when_asked")
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_stream_that_is_collected_inside_the_sdk_measures_later(monkeypatch, is_begun):
    """Its hold comes back at once; what there is to measure waits for the next call."""
    requests = Unyielding()
    monkeypatch.setattr(telemetry, "_requests", requests)
    pacer = Pacer(ceiling=100_000)
    stream = Answer([b"data: 1\n\n", b"data: 2\n\n"], {"content-type": "text/event-stream"})
    transport = BudgetTransport(Inner(stream, ok()), pacer=pacer)
    response = transport.handle_request(httpx.Request("POST", URL, json=ask(stream=True)))
    dropped = [response]
    if is_begun:
        dropped = [iter(response.stream)]  # the answer is kept, but read no further
        next(dropped[0])
    else:
        del response
    dropped.append(dropped)
    del dropped
    with httpx.Client(transport=transport) as client:
        with nullcontext() if is_begun else pytest.warns(ResourceWarning, match="dropped"):
            client.post(URL, json=ask())
        assert (pacer.status().in_flight, requests.told) == (0, ["provider"])
        client.post(URL, json=ask())
    assert requests.told == ["provider", "partial", "provider"]


def test_a_finalizer_inside_a_finalizer_leaves_the_outer_one_as_it_was(monkeypatch):
    """A collection may run in the middle of another object's end."""
    telemetry._catch_up()  # what the end of something in another test has left
    requests = Unyielding()
    monkeypatch.setattr(telemetry, "_requests", requests)
    place = admitted(Pacer().admit(CALL))
    with telemetry.in_finalizer():
        with telemetry.in_finalizer():
            pass
        telemetry.settled(place, Usage(1), Settlement(1, 0, "provider"))
        assert requests.told == []
    telemetry._catch_up()
    assert requests.told == ["provider"]
