"""No prompt, answer, key or query string enters logs, spans, metrics, errors, answers of ours or a ``repr``."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pacer import Pacer, telemetry
from pacer.errors import BudgetExceeded
from transports import BudgetTransport

REQUEST: dict[str, Any] = {
    "url": "http://a.test/v1/chat/completions?key=SECRET-query",
    "headers": {"authorization": "Bearer SECRET-key"},
    "json": {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "SECRET-prompt"}]},
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    """Everything that telemetry says while the test runs, as one text."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader])
    monkeypatch.setattr(telemetry, "_tracer", lambda: provider.get_tracer("pacer"))
    monkeypatch.setattr(telemetry, "_tokens", meters.get_meter("pacer").create_counter("pacer.tokens"))
    monkeypatch.setattr(telemetry, "_requests", meters.get_meter("pacer").create_counter("pacer.requests"))
    with provider.get_tracer("caller").start_as_current_span("step"):
        yield lambda: "".join(span.to_json() for span in exporter.get_finished_spans()) + str(reader.get_metrics_data())


@pytest.mark.parametrize(
    "answer", [b'{"choices": ["SECRET-answer"], "usage": {"prompt_tokens": "SECRET"}}', b"SECRET {"]
)
def test_an_answer_that_cannot_be_read_is_not_quoted(answer: bytes, told, caplog: pytest.LogCaptureFixture):
    pacer = Pacer(ceiling=10_000)
    with caplog.at_level(logging.DEBUG, "pacer"):
        inner = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(answer)))
        with httpx.Client(transport=BudgetTransport(inner, pacer=pacer)) as client:
            response = client.post(**REQUEST)
    assert response.content == answer
    assert pacer.status().unknown > 0
    said = told() + caplog.text + repr(pacer) + repr(response.extensions["pacer"])
    assert "pacer.tokens" in said
    assert "SECRET" not in said


def test_a_refusal_shows_numbers_and_ids_only(told, caplog: pytest.LogCaptureFixture):
    pacer = Pacer(ceiling=10)
    with caplog.at_level(logging.DEBUG, "pacer"), httpx.Client(transport=BudgetTransport(pacer=pacer)) as client:
        response = client.post(**REQUEST)
    assert response.status_code == 402
    assert "SECRET" not in response.text + str(response.headers) + told() + caplog.text


def test_an_exception_shows_numbers_and_ids_only():
    pacer = Pacer(ceiling=10)
    with (
        httpx.Client(transport=BudgetTransport(pacer=pacer, refusal="raise")) as client,
        pytest.raises(BudgetExceeded) as caught,
    ):
        client.post(**REQUEST)
    assert "SECRET" not in str(caught.value) + repr(caught.value) + str(vars(caught.value))
