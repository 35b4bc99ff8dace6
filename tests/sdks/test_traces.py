"""A wait has its place in a trace: below the caller's span, before the request, whoever else records and whoever came
first: the instrumentations of openai, httpx and httpx2, and Logfire.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import transports
from pacer import settings
from pacer.pacer import join
from tests.collector import Collector
from tests.sdks.provider import Provider
from tests.test_run import environment

EXPORTER = InMemorySpanExporter()
INSTRUMENTATIONS = (OpenAIInstrumentor, HTTPXClientInstrumentor, HTTPX2ClientInstrumentor)
TREE = [
    ("agent step", None),
    ("chat m", "agent step"),
    ("POST", "chat m"),
    ("chat m", "agent step"),
    ("pacer.wait", "chat m"),
    ("POST", "chat m"),
]
"""The second call has to wait."""


@pytest.fixture(scope="module", autouse=True)
def sdk() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    EXPORTER.clear()
    yield
    transports.uninstall()
    for kind in INSTRUMENTATIONS:
        if kind().is_instrumented_by_opentelemetry:
            kind().uninstrument()


def instrument() -> None:
    for kind in INSTRUMENTATIONS:
        kind().instrument()


def install() -> None:
    transports.install()


def pause() -> None:
    """Let no call go until one waits."""
    budget = join(settings.load())
    budget.pause()

    def resume() -> None:
        give_up = time.monotonic() + 30
        while not budget.status().waiting and time.monotonic() < give_up:
            time.sleep(0.001)
        budget.resume()

    threading.Thread(target=resume).start()


def bare(library: Any, awaits: bool) -> Any:
    return (library.AsyncClient if awaits else library.Client)()


def with_transport(library: Any, awaits: bool) -> Any:
    return (library.AsyncClient if awaits else library.Client)(transport=transports.BudgetTransport())


def called(url: str, client: Any, awaits: bool) -> None:
    """Two calls of an agent, of which the second has to wait."""
    ask: Any = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    kind = openai.AsyncOpenAI if awaits else openai.OpenAI
    made = kind(api_key="k", base_url=f"{url}/v1", max_retries=0, http_client=client)

    async def call() -> None:
        await made.chat.completions.create(**ask)
        pause()
        await made.chat.completions.create(**ask)
        await client.aclose()

    with trace.get_tracer("caller").start_as_current_span("agent step"):
        if awaits:
            asyncio.run(call())
            return
        made.chat.completions.create(**ask)
        pause()
        made.chat.completions.create(**ask)
        client.close()


def tree(spans: list[ReadableSpan]) -> list[tuple[str, str | None]]:
    """Each span and its parent, in the order in which they began."""
    names = {span.context.span_id: span.name for span in spans if span.context}
    in_order = sorted(spans, key=lambda span: span.start_time or 0)
    return [(span.name, names[span.parent.span_id] if span.parent else None) for span in in_order]


@pytest.mark.parametrize("awaits", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize(
    ("steps", "client"),
    [
        pytest.param([install, instrument], bare, id="installed first"),
        pytest.param([instrument, install], bare, id="instrumented first"),
        pytest.param([instrument], with_transport, id="a transport"),
    ],
)
def test_a_wait_is_beside_the_request_and_before_it(
    provider: Provider, steps: list[Callable[[], None]], client: Any, library: Any, awaits: bool
):
    for step in steps:
        step()
    called(provider.url, client(library, awaits), awaits)
    spans = list(EXPORTER.get_finished_spans())
    assert tree(spans) == TREE
    wait, post = sorted(spans, key=lambda span: span.start_time or 0)[-2:]
    assert wait.end_time is not None
    assert post.start_time is not None
    assert wait.end_time <= post.start_time


def test_a_client_that_is_instrumented_by_itself_is_paced_around_that(provider: Provider):
    OpenAIInstrumentor().instrument()
    client = httpx.Client()
    HTTPXClientInstrumentor.instrument_client(client)
    install()
    called(provider.url, client, False)
    assert tree(list(EXPORTER.get_finished_spans())) == TREE


def test_a_refusal_is_on_the_span_of_the_sdks_call(provider: Provider):
    instrument()
    transports.install(ceiling=10, run="capped")
    with pytest.raises(openai.APIStatusError):
        called(provider.url, bare(httpx2, False), False)
    chat = next(span for span in EXPORTER.get_finished_spans() if span.name == "chat m")
    assert [event.name for event in chat.events if event.name.startswith("pacer.")] == ["pacer.refused"]
    assert "POST" not in [span.name for span in EXPORTER.get_finished_spans()]


AGENT = """
import sys
import openai
from opentelemetry import trace

client = openai.OpenAI(api_key="k", base_url=sys.argv[1] + "/v1", max_retries=0)
with trace.get_tracer("caller").start_as_current_span("agent step"):
    for _ in range(2):
        ask = [{"role": "user", "content": "Hi"}]
        client.chat.completions.create(model="m", max_tokens=10, messages=ask)
"""
INSTRUMENT = [str(Path(sys.executable).parent / "opentelemetry-instrument")]
PACER_RUN = [sys.executable, "-m", "pacer.cli", "run", "--quiet", "--tokens-per-second", "20", "--burst", "1", "--"]


@pytest.mark.parametrize("words", [PACER_RUN + INSTRUMENT, INSTRUMENT + PACER_RUN], ids=["outside", "inside"])
def test_a_stock_script_has_such_a_trace_in_either_order(provider: Provider, words: list[str]):
    """It knows nothing of us nor of the instrumentations; the second call waits for what the first one took."""
    with Collector() as collector:
        done = subprocess.run(
            [*words, sys.executable, "-c", AGENT, provider.url],
            capture_output=True,
            text=True,
            env=environment(OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url),
            timeout=60,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    spans = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    names = {span.span_id: span.name for span in spans}
    assert [(span.name, names.get(span.parent_span_id)) for span in spans] == TREE


LOGFIRE = """
import json, sys
import httpx, logfire, openai, transports
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.sdks.test_traces import pause, tree

exporter = InMemorySpanExporter()
processors = [SimpleSpanProcessor(exporter)]
logfire.configure(send_to_logfire=False, console=False, inspect_arguments=False, additional_span_processors=processors)
logfire.instrument_openai(suppress_other_instrumentation=False)
logfire.instrument_httpx()
transports.install()
client = openai.OpenAI(api_key="k", base_url=sys.argv[1] + "/v1", max_retries=0, http_client=httpx.Client())
ask = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
with logfire.span("agent step"):
    client.chat.completions.create(**ask)
    pause()
    client.chat.completions.create(**ask)
print(json.dumps(tree(list(exporter.get_finished_spans()))))
"""


def test_a_wait_is_in_the_traces_of_logfire(provider: Provider):
    """In a process of its own: it is set up once and for all."""
    command = [sys.executable, "-c", LOGFIRE, provider.url]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    theirs = "Chat Completion with {request_data[model]!r}"
    wanted = [[theirs if name == "chat m" else name for name in row] for row in TREE]
    assert json.loads(done.stdout) == wanted
