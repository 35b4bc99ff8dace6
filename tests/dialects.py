"""The dialects of the providers: where calls go, how answers are packed, and how they tell their usage."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass


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

    def answer(self, usage: dict[str, object]) -> bytes:
        """A whole answer."""
        return json.dumps({"text": "x" * 40, **usage}).encode()

    def stream(self, usage: dict[str, object]) -> list[bytes]:
        """The events of a streamed one."""
        return self.pack(*[self.delta] * 5, *self.ends(usage))


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
