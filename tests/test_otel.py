"""``pacer run --otel`` into a collector on loopback, and ``pacer run`` beside ``opentelemetry-instrument``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pacer import telemetry
from pacer.cli import otel
from pacer.errors import SettingsError
from tests.collector import Collector, plain
from tests.servers import Server, answer_json, whole
from tests.test_run import environment, paced

pytestmark = pytest.mark.processes

INSTRUMENT = str(Path(sys.executable).parent / "opentelemetry-instrument")
PROGRAM = """
import os, sys, httpx
from opentelemetry import trace

def call(_=None):
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "NEEDLE-prompt"}]}
    url = os.environ["URL"] + "/v1/chat/completions?key=NEEDLE-query"
    return httpx.post(url, json=body, headers={"authorization": "Bearer NEEDLE-key"}, timeout=30).status_code

if __name__ == "__main__":
    with trace.get_tracer("their program").start_as_current_span("agent step"):
        print([call() for _ in range(int(sys.argv[1]))], flush=True)
"""
RECEIPT = """\
pacer: 2 calls, 60 tokens spent, 0 unknown, 1 refused, waited 0.0 s
pacer: input 40, output 20; 54.5% of the ceiling of 110 used
pacer: 1 refused by ceiling
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A provider that bills 30 tokens a call."""
    message = {"role": "assistant", "content": "NEEDLE-answer"}
    body = answer_json(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])
    with Server(whole(body, "content-type: application/json")) as provider:
        yield provider


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def run(server: Server, collector: Collector, tmp_path: Path) -> Any:
    """Runs a program under ``pacer run`` with these words, exporting into the collector."""

    def run(*words: str, program: str = PROGRAM, **variables: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(program)
        words = tuple(str(path) if word == "PROGRAM" else word for word in words)
        return paced(*words, URL=server.url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)

    return run


# -------------------------------------------------------------------- --otel


def test_traces_and_metrics_of_a_stock_program_arrive_and_nothing_secret_is_in_them(run, collector):
    """The span that the program has is recorded, a wait is below it, a refusal on it; the metrics are the bill."""
    words = ("--otel", "--tokens-per-second", "100", "--burst", "1", "--ceiling", "85", "--run", "nightly", "--quiet")
    done = run(*words, "--", sys.executable, "PROGRAM", "3", OTEL_METRIC_EXPORT_INTERVAL="600000")
    assert (done.stdout, done.stderr) == ("[200, 200, 402]\n", "")
    (step,) = collector.named("agent step")
    (wait,) = collector.named("pacer.wait")
    assert wait.parent_span_id == step.span_id
    asked = plain(wait.attributes).pop("pacer.tokens.asked")
    assert plain(wait.attributes) == {
        "pacer.limit": "tokens_per_second",
        "pacer.run": "nightly",
        "pacer.tokens.asked": asked,
        "pacer.queue.position": 1,
        "pacer.wait.outcome": "admitted",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
    }
    (event,) = [event for event in step.events if event.name == "pacer.refused"]
    assert plain(event.attributes)["pacer.tokens.remaining"] == 25
    numbers = {
        (name, *sorted(set(plain(point.attributes).values()) - {"nightly"})): point.as_int
        for name, point in collector.metrics
        if name not in ("pacer.request.time_in_queue", "pacer.estimate.error")
    }
    assert numbers == {
        ("pacer.requests", "provider"): 2,
        ("pacer.requests", "refused"): 1,
        ("pacer.tokens", "input"): 40,
        ("pacer.tokens", "output"): 20,
        ("pacer.queued_requests",): 0,
        ("pacer.active_reservations",): 0,
        ("pacer.budget.limit",): 85,
        ("pacer.budget.spent",): 60,
        ("pacer.budget.unknown",): 0,
        ("pacer.budget.held",): 0,
        ("pacer.budget.remaining",): 25,
    }
    times = [point for name, point in collector.metrics if name == "pacer.request.time_in_queue"]
    assert [(point.count, tuple(point.explicit_bounds)) for point in times] == [(2, telemetry.WAITS)]
    assert sum(point.count for name, point in collector.metrics if name == "pacer.estimate.error") == 2
    assert collector.bodies
    assert not any(b"NEEDLE" in body for body in collector.bodies)


OWN = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
"""
SHOWN = """
    print(sorted({span.name for span in exporter.get_finished_spans()}))
    found = reader.get_metrics_data().resource_metrics[0].scope_metrics
    print([point.value for scope in found for metric in scope.metrics if metric.name == "pacer.budget.spent"
           for point in metric.data.data_points if point.attributes["pacer.run"] == "mine"])
"""


@pytest.mark.parametrize("when", ["before httpx", "after a call", "at last"])
def test_a_program_that_sets_up_its_own_has_that_alone_and_no_warning(run, collector, when):
    """What it set up stays, what it sets up later takes the place; the collector has only what was there before."""
    program = PROGRAM.replace("if __name__", OWN + "\nif __name__") + SHOWN
    if when == "before httpx":
        program = "from opentelemetry import trace\n" + OWN + PROGRAM + SHOWN
    elif when == "after a call":
        program = program.replace(OWN, "call()\n" + OWN)
    words = ("--otel", "--quiet", "--run", "mine", "--tokens-per-second", "100", "--burst", "1")
    done = run(*words, "--", sys.executable, "PROGRAM", "2", program=program)
    spent = 90 if when == "after a call" else 60
    assert (done.stdout, done.stderr) == (f"[200, 200]\n['agent step', 'pacer.wait']\n[{spent}]\n", "")
    assert collector.spans == []
    exported = [point.as_int for name, point in collector.metrics if name == "pacer.budget.spent"]
    assert exported == {"before httpx": [], "after a call": [30], "at last": [0]}[when]


STEP = """
def step():
    with trace.get_tracer("their program").start_as_current_span("child"):
        call()

"""
FAMILY = """
    import multiprocessing
    for method in ("fork", "spawn", "forkserver"):
        child = multiprocessing.get_context(method).Process(target=step)
        child.start()
        child.join()
"""


def test_a_child_of_each_kind_exports_before_it_ends(run, collector):
    program = PROGRAM.replace("if __name__", STEP + "if __name__") + FAMILY
    done = run("--otel", "--quiet", "--", sys.executable, "PROGRAM", "1", program=program)
    assert (done.stdout, done.stderr) == ("[200]\n", "")
    assert len(collector.named("child")) == 3
    assert max(point.as_int for name, point in collector.metrics if name == "pacer.budget.spent") == 120


def test_without_it_nothing_is_set_up(run, collector):
    done = run("--quiet", "--", sys.executable, "PROGRAM", "1")
    assert (done.stdout, done.stderr) == ("[200]\n", "")
    assert collector.bodies == []


def test_what_cannot_be_set_up_is_told_and_the_program_runs(run):
    done = run("--otel", "--quiet", "--", sys.executable, "PROGRAM", "1", OTEL_TRACES_EXPORTER="pigeons")
    assert done.stdout == "[200]\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"traces and metrics of {sys.executable} go nowhere, OpenTelemetry says: ")
    assert "pigeons" in line
    assert "token-pacer[otel]" in line


CARRIER = """
import httpx
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

class Exporter(SpanExporter):
    def export(self, spans):
        print("carried", len(spans))
        return SpanExportResult.SUCCESS
"""


def test_an_exporter_that_needs_httpx_itself_is_set_up_once(run, tmp_path):
    """It is loaded while somebody is about to import that: the SDK is being set up already."""
    (tmp_path / "carrier.py").write_text(CARRIER)
    (tmp_path / "carrier-1.dist-info").mkdir()
    entry = "[opentelemetry_traces_exporter]\ncarrier = carrier:Exporter\n"
    (tmp_path / "carrier-1.dist-info" / "entry_points.txt").write_text(entry)
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    there = {"PYTHONPATH": path, "OTEL_TRACES_EXPORTER": "carrier"}
    done = run("--otel", "--quiet", "--", sys.executable, "PROGRAM", "1", **there)
    assert (done.stdout, done.stderr) == ("[200]\ncarried 1\n", "")


def test_packages_that_are_missing_are_told_before_the_command_starts(run, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['opentelemetry.distro'] = None")
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    done = run("--otel", "--", sys.executable, "PROGRAM", "1", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("pacer: --otel needs the OpenTelemetry SDK and an exporter: pip install token-pacer[otel]\n")


def test_packages_that_only_the_program_lacks_are_told_there(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.distro", None)
    monkeypatch.setattr(otel, "_has_begun", False)
    with pytest.raises(SettingsError, match=r"token-pacer\[otel\]"):
        otel.variables()
    with caplog.at_level(logging.WARNING, "pacer"):
        otel.begin()
        assert caplog.messages == []
        monkeypatch.setenv(otel.ASKED, "1")
        otel.begin()
    assert "pip install token-pacer[otel]" in caplog.text


def test_what_the_environment_says_wins_over_the_defaults(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "")
    assert otel.variables() == {otel.ASKED: "1", "OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "otlp"}


# -------------------------------------------------------------------- opentelemetry-instrument


PARENT = (
    PROGRAM
    + """
    import subprocess
    if sys.argv[2:]:
        subprocess.run([sys.executable, __file__, *sys.argv[2:]])
"""
)
EXPORTS = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


@pytest.mark.parametrize("words", [(), ("--otel",)])
def test_a_command_under_opentelemetry_instrument_is_paced_with_its_children(run, collector, words):
    """It puts a ``sitecustomize`` of its own before ours, which runs no other; each of the two has its way."""
    command = ("--ceiling", "110", "--", INSTRUMENT, sys.executable, "PROGRAM", "2", "1")
    done = run(*words, *command, program=PARENT, **EXPORTS)
    assert (done.stdout, done.stderr) == ("[200, 200]\n[402]\n", RECEIPT)
    assert len(collector.named("agent step")) == 2


def test_a_command_is_paced_where_all_of_it_is_under_opentelemetry_instrument(server, collector, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PARENT)
    words = ("--ceiling", "110", "--", sys.executable, str(program), "2", "1")
    done = subprocess.run(
        [INSTRUMENT, sys.executable, "-m", "pacer.cli", "run", *words],
        capture_output=True,
        text=True,
        env=environment(URL=server.url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **EXPORTS),
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[200, 200]\n[402]\n", RECEIPT)
    assert len(collector.named("agent step")) == 2


def test_a_command_is_paced_even_where_opentelemetry_fails_to_start(run):
    done = run("--ceiling", "75", "--", INSTRUMENT, sys.executable, "PROGRAM", "2", OTEL_TRACES_EXPORTER="pigeons")
    assert done.stdout == "[200, 402]\n"
    assert "Failed to auto initialize OpenTelemetry" in done.stderr
