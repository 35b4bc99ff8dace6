"""Any other POST that looks like a model call: charged by its usage where we know the spelling, else by estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import anthropic, bedrock, cohere, gemini, ollama, openai_chat
from transports.wire import format as f

_ENDS = ("/generate", "/chat", "/converse", "/converse-stream", "/invoke", "/embed")
_VERBS = (":rawPredict", ":streamRawPredict")
_NO_CALLS = ("/count_tokens", ":countTokens", "/input_tokens", "/tokenize", "/moderations", "/files", "/batches")
_SPEECH = ("messages", "prompt", "input", "contents", "texts")
_CAPS = (("max_output_tokens",), ("max_completion_tokens",), ("max_tokens",), ("max_new_tokens",))


class _Carrier(msgspec.Struct):
    usage: Any = None
    response: Any = None
    usageMetadata: Any = None


_carrier = msgspec.json.Decoder(_Carrier)


def looks_like_a_model_call(path: str, body: bytes | None, headers: Mapping[str, str]) -> bool:
    """By its path, or because its JSON names a model and something to say to it."""
    if path.endswith(_ENDS + _VERBS):
        return True
    if path.endswith(_NO_CALLS):
        return False
    if body is None or b'"model"' not in body or "json" not in headers.get("content-type", ""):
        return False
    said = f.members(body)
    return said is not None and isinstance(said.at("model"), str) and any(said.at(name) is not None for name in _SPEECH)


def _read_request(body: bytes) -> f.Call:
    said = f.members(body)
    if said is None:
        return f.Call()
    call = f.call(said, *_CAPS, choices=("n",))
    if call.output_cap is None:
        call.cap_at = None  # nobody knows which of the names it would take
    return call


def _carried(text: bytes) -> dict[str, object] | None:
    said = f.decoded(_carrier, text)
    if said is None:
        return None
    usage = said.response.get("usage") if isinstance(said.response, dict) else said.usage or said.usageMetadata
    return usage if isinstance(usage, dict) else ollama.WIRE.read_answer(text) or None


def _read_event(data: bytes, tally: f.Tally) -> bool:
    usage = _carried(data) if b'"usage' in data or b'"prompt_eval_count"' in data else None
    if usage is not None:
        tally.usage, tally.final = usage, True
    else:
        tally.seen_output += 1
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    for name, wire in _KNOWN_BY.items():
        if name in said:
            return wire.usage(said)
    usage, total = anthropic.WIRE.usage(said), f.tokens(said.get("total_tokens", 0))
    return None if usage is None or total is None else replace(usage, total=max(usage.total, total))


_KNOWN_BY = {
    "prompt_tokens": openai_chat.WIRE,
    "promptTokenCount": gemini.WIRE,
    "inputTokens": bedrock.CONVERSE,
    "billed_units": cohere.WIRE,
    "prompt_eval_count": ollama.WIRE,
}
WIRE = f.Wire("unknown", "", _read_request, _carried, _read_event, _usage)
