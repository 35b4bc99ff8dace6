"""What is told: a span only for a wait, an event for a refusal, one log line for a long wait, counts of it all."""

from __future__ import annotations

import gc
import logging
import threading
from contextlib import nullcontext

import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pacer import Pacer, telemetry
from pacer.errors import BudgetExceeded
from pacer.flow import Park
from pacer.usage import Estimate, Settlement, Usage
from tests.engine import Clock
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


def pacer_with_one_waiting() -> tuple[Pacer, Clock, object]:
    clock = Clock()
    budget = Pacer(tokens_per_second=10, burst=100, clock=clock, run="told")
    next(budget.admit(Estimate(100, 0, 100)), None)
    return budget, clock, budget.admit(CALL)


def test_a_call_that_did_not_wait_has_no_span():
    next(Pacer().admit(CALL), None)
    assert spans() == {}


def test_a_wait_is_a_span_below_the_callers():
    budget, clock, _ = pacer_with_one_waiting()
    tracer = trace.get_tracer("caller")
    with tracer.start_as_current_span("agent step") as parent:
        way = budget.admit(CALL)
        step = next(way)
        assert isinstance(step, Park)
        clock.now += 8.0
        step.store.tick()
        with pytest.raises(StopIteration):
            next(way)
    wait = next(span for span in EXPORTER.get_finished_spans() if span.name == "pacer.wait")
    assert wait.parent is not None
    assert wait.parent.span_id == parent.get_span_context().span_id
    assert wait.attributes == {
        "pacer.limit": "tokens_per_second",
        "pacer.run": "told",
        "pacer.tokens.asked": 80,
        "pacer.queue.position": 1,
        "pacer.wait.outcome": "admitted",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "server.address": "api.example.com",
    }


def test_a_cancelled_wait_says_so():
    budget, _, _ = pacer_with_one_waiting()
    way = budget.admit(CALL)
    next(way)
    way.close()
    assert spans()["pacer.wait"]["pacer.wait.outcome"] == "cancelled"
    assert budget.status().waiting == 0


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


def test_tokens_and_calls_are_counted_by_class_and_result():
    budget = Pacer(run="counted")
    with pytest.raises(StopIteration) as end:
        next(budget.admit(CALL))
    budget.settle(end.value.value, Usage(60, 20, cached=10))
    points = {}
    found = READER.get_metrics_data()
    assert found is not None
    for metric in found.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            attributes = dict(point.attributes or {})
            if attributes.pop("pacer.run", "") == "counted":
                points[metric.name, *attributes.values()] = getattr(point, "value", None)
    assert points["pacer.tokens", "input"] == 50
    assert points["pacer.tokens", "cached"] == 10
    assert points["pacer.tokens", "output"] == 20
    assert points["pacer.requests", "provider"] == 1
    assert points["pacer.active_reservations",] == 0
    assert ("pacer.request.time_in_queue",) in points


class Unyielding:
    """An instrument that collects garbage inside a lock which cannot be taken twice, as the SDK's cannot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.added: list[float] = []

    def add(self, amount: float, attributes: object) -> None:
        assert self.lock.acquire(blocking=False), "taken twice"
        gc.collect()
        self.added.append(amount)
        self.lock.release()


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_stream_that_is_collected_inside_the_sdk_measures_later(monkeypatch, is_begun):
    """Its hold comes back at once; what there is to measure waits for the next call."""
    active = Unyielding()
    monkeypatch.setattr(telemetry, "_active", active)
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
        assert (pacer.status().in_flight, active.added) == (0, [1, 1, -1])
        client.post(URL, json=ask())
    assert active.added == [1, 1, -1, -1, 1, -1]


def test_a_finalizer_inside_a_finalizer_leaves_the_outer_one_as_it_was(monkeypatch):
    """A collection may run in the middle of another object's end."""
    telemetry._catch_up()  # what the end of something in another test has left
    active = Unyielding()
    monkeypatch.setattr(telemetry, "_active", active)
    with telemetry.in_finalizer():
        with telemetry.in_finalizer():
            pass
        telemetry.settled(Usage(1), Settlement(1, 0, "provider"), "told")
        assert active.added == []
    telemetry._catch_up()
    assert active.added == [-1]
