"""Calls of all dialects, plain and streamed, against a loopback provider that keeps its own bill and has its faults."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from pacer import Pacer
from tests.servers import Connection, Server, chunked, whole
from transports import BudgetTransport

CALLS = 2_500
THREADS = 4
FAULTS = ["none"] * 26 + ["no usage", "cut", "500", "400"]


def sse(*events: object) -> list[bytes]:
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]


def lines(*events: object) -> list[bytes]:
    return [json.dumps(event).encode() + b"\n" for event in events]


def frames(*events: object) -> list[bytes]:
    payloads = [json.dumps(event).encode() for event in events]
    return [
        (16 + len(payload)).to_bytes(4) + bytes(8) + payload + bytes(4) for payload in payloads
    ]  # nobody here checks their sums


def wrapped(*events: object) -> list[bytes]:
    return frames(*({"bytes": base64.b64encode(json.dumps(event).encode()).decode()} for event in events))


@dataclass(frozen=True)
class Dialect:
    """One API: where its calls go, and how it tells ``given`` and ``made`` tokens at the end of its events."""

    path: str
    streamed_path: str
    cap: Callable[[int], dict[str, object]]
    usage: Callable[[int, int], dict[str, object]]
    ends: Callable[[dict[str, object]], list[object]]
    pack: Callable[..., list[bytes]] = sse
    kind: str = "text/event-stream"
    delta: object = None


def openai(given: int, made: int) -> dict[str, object]:
    return {"usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}}


def anthropic(given: int, made: int) -> dict[str, object]:
    return {"usage": {"input_tokens": given - given // 3, "cache_read_input_tokens": given // 3, "output_tokens": made}}


def responses(given: int, made: int) -> dict[str, object]:
    return {"usage": {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}}


def gemini(given: int, made: int) -> dict[str, object]:
    half = made // 2
    return {"usageMetadata": {"promptTokenCount": given, "candidatesTokenCount": made - half,
                              "thoughtsTokenCount": half, "totalTokenCount": given + made}}  # fmt: skip


def anthropic_ends(usage: dict[str, object]) -> list[object]:
    return [{"type": "message_delta", "delta": {}, **usage}, {"type": "message_stop"}]


DIALECTS = {
    "openai": Dialect(
        "/v1/chat/completions", "/v1/chat/completions", lambda cap: {"max_tokens": cap}, openai,
        lambda usage: [{"choices": [], **usage}], delta={"choices": [{"delta": {"content": "x"}}]},
    ),
    "azure": Dialect(
        "/openai/deployments/d/chat/completions?api-version=1", "/openai/deployments/d/chat/completions?api-version=1",
        lambda cap: {"max_completion_tokens": cap}, openai, lambda usage: [{"choices": [], **usage}],
        delta={"choices": [{"delta": {"content": "x"}}]},
    ),
    "responses": Dialect(
        "/v1/responses", "/v1/responses", lambda cap: {"max_output_tokens": cap}, responses,
        lambda usage: [{"type": "response.completed", "response": usage}], delta={"type": "response.text.delta"},
    ),
    "anthropic": Dialect(
        "/v1/messages", "/v1/messages", lambda cap: {"max_tokens": cap}, anthropic, anthropic_ends,
        delta={"type": "content_block_delta"},
    ),
    "bedrock anthropic": Dialect(
        "/model/anthropic.c/invoke", "/model/anthropic.c/invoke-with-response-stream", lambda cap: {"max_tokens": cap},
        anthropic, anthropic_ends, wrapped, "application/vnd.amazon.eventstream", {"type": "content_block_delta"},
    ),
    "vertex anthropic": Dialect(
        "/v1/p/publishers/anthropic/models/c:rawPredict", "/v1/p/publishers/anthropic/models/c:streamRawPredict",
        lambda cap: {"max_tokens": cap}, anthropic, anthropic_ends, delta={"type": "content_block_delta"},
    ),
    "converse": Dialect(
        "/model/nova/converse", "/model/nova/converse-stream", lambda cap: {"inferenceConfig": {"maxTokens": cap}},
        lambda given, made: {"usage": {"inputTokens": given, "outputTokens": made, "totalTokens": given + made}},
        lambda usage: [usage], frames, "application/vnd.amazon.eventstream", {"delta": {"text": "x"}},
    ),
    "gemini": Dialect(
        "/v1beta/models/g:generateContent", "/v1beta/models/g:streamGenerateContent?alt=sse",
        lambda cap: {"generationConfig": {"maxOutputTokens": cap}}, gemini,
        lambda usage: [{"candidates": [{"finishReason": "STOP"}], **usage}],
        delta={"candidates": [{"content": {"parts": []}}]},
    ),
    "cohere": Dialect(
        "/v2/chat", "/v2/chat", lambda cap: {"max_tokens": cap},
        lambda given, made: {"usage": {"tokens": {"input_tokens": float(given), "output_tokens": float(made)}}},
        lambda usage: [{"type": "message-end", "delta": usage}], delta={"type": "content-delta"},
    ),
    "ollama": Dialect(
        "/api/chat", "/api/chat", lambda cap: {"options": {"num_predict": cap}},
        lambda given, made: {"prompt_eval_count": given, "eval_count": made, "done": True},
        lambda usage: [usage or {"message": {}, "done": False}], lines, "application/x-ndjson", {"done": False},
    ),
}  # fmt: skip


class Provider:
    """Answers as each request's ``x-test`` header says, and writes down what it bills."""

    def __init__(self) -> None:
        self.bill = 0
        self._lock = threading.Lock()

    def play(self, connection: Connection) -> None:
        while (request := connection.read()) is not None:
            test = next(line for line in request[0].splitlines() if line.lower().startswith("x-test:"))
            if not self._answer(connection, json.loads(test.split(":", 1)[1])):
                return

    def _answer(self, connection: Connection, test: dict[str, Any]) -> bool:
        fault = test["fault"]
        if fault in ("500", "400"):
            connection.write(whole(b"{}", status=f"{fault} No"))
            return True
        with self._lock:
            self.bill += test["given"] + test["made"]
        dialect = DIALECTS[test["dialect"]]
        usage = {} if fault == "no usage" else dialect.usage(test["given"], test["made"])
        if not test["streamed"]:
            text = whole(json.dumps({"text": "x" * 40, **usage}).encode(), "content-type: application/json")
        else:
            events = dialect.pack(*[dialect.delta] * 5, *dialect.ends(usage))
            text = chunked(events, f"content-type: {dialect.kind}")
        connection.write(text[: len(text) // 2] if fault == "cut" else text)
        return bool(fault != "cut")


def call(client: httpx.Client, url: str, number: int) -> tuple[str, int, Any]:
    """One call: what went wrong on purpose, the tokens it was billed, and its receipt."""
    rng = random.Random(number)
    name, fault, streamed = rng.choice(list(DIALECTS)), rng.choice(FAULTS), rng.random() < 0.5
    dialect = DIALECTS[name]
    # As many tokens as the text really may have, and never more output than its cap.
    text, made = "word " * rng.randint(20, 200), rng.randint(6, 60)
    given = len(text) // 4
    said = {"model": name, "messages": [{"role": "user", "content": text}], "stream": streamed, **dialect.cap(60)}
    test = {"dialect": name, "fault": fault, "streamed": streamed, "given": given, "made": made}
    receipt = None
    try:
        with client.stream(
            "POST",
            url + (dialect.streamed_path if streamed else dialect.path),
            json=said,
            headers={"x-test": json.dumps(test)},
        ) as response:
            receipt = response.extensions["pacer"]
            response.read()
    except httpx.RemoteProtocolError:
        assert fault == "cut"
    return fault, given + made, receipt


@pytest.mark.parametrize("include_usage", ["on", "off"])
def test_the_books_are_the_bill(include_usage):
    """Where usage was sent, to the token; where it was not, the bill is between what is spent and that with unknown."""
    pacer, provider = Pacer(ceiling=10**9), Provider()
    transport = BudgetTransport(pacer=pacer, include_usage=include_usage)
    with (
        Server(provider.play) as server,
        httpx.Client(transport=transport, timeout=60) as client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        ended = list(threads.map(lambda number: call(client, server.url, number), range(CALLS)))
    for fault, billed, receipt in ended:
        if fault == "none":
            assert (receipt.charged, receipt.unknown, receipt.source) == (billed, 0, "provider")
        elif fault in ("500", "400"):
            assert (receipt.charged, receipt.unknown) == (0, 0)
        elif receipt is not None:
            assert receipt.source in ("estimate", "partial")
            assert receipt.charged <= billed <= receipt.charged + receipt.unknown
    now = pacer.status()
    assert (now.held, now.in_flight) == (0, 0)
    assert provider.bill == sum(billed for fault, billed, _ in ended if fault not in ("500", "400"))
    assert now.spent <= provider.bill <= now.spent + now.unknown
    assert now.unknown <= 0.1 * provider.bill
