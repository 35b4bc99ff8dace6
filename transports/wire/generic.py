"""Any other POST that looks like a model call: charged by its usage where we know the spelling, else by estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import anthropic, openai_chat
from transports.wire import format as f

_ENDS = ("/generate", "/chat", "/converse", "/converse-stream", "/invoke")
_VERBS = (":rawPredict", ":streamRawPredict")
_NO_CALLS = ("/count_tokens", ":countTokens", "/input_tokens", "/tokenize", "/moderations", "/files", "/batches")


class _Request(msgspec.Struct):
    model: Any = None
    max_output_tokens: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    n: Any = None
    messages: Any = None
    prompt: Any = None
    input: Any = None
    contents: Any = None


class _Carrier(msgspec.Struct):
    usage: Any = None
    response: Any = None


_request = msgspec.json.Decoder(_Request)
_carrier = msgspec.json.Decoder(_Carrier)


def looks_like_a_model_call(path: str, body: bytes | None, headers: Mapping[str, str]) -> bool:
    """By its path, or because its JSON names a model and something to say to it."""
    if path.endswith(_ENDS + _VERBS):
        return True
    if path.endswith(_NO_CALLS):
        return False
    if body is None or b'"model"' not in body or "json" not in headers.get("content-type", ""):
        return False
    said = f.decoded(_request, body)
    speech = () if said is None else (said.messages, said.prompt, said.input, said.contents)
    return said is not None and isinstance(said.model, str) and any(part is not None for part in speech)


def _read_request(body: bytes, ask_usage: bool) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    cap = f.output_cap(said.max_output_tokens, said.max_completion_tokens, said.max_tokens)
    return f.Call(f.model(said.model), cap, f.choices(said.n))


def _carried(text: bytes) -> dict[str, object] | None:
    said = f.decoded(_carrier, text)
    if said is None:
        return None
    usage = said.response.get("usage") if isinstance(said.response, dict) else said.usage
    return usage if isinstance(usage, dict) else None


def _read_event(data: bytes, tally: f.Tally) -> bool:
    usage = _carried(data) if b'"usage"' in data else None
    if usage is not None:
        tally.usage, tally.final = usage, True
    else:
        tally.seen_output += 1
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    if "prompt_tokens" in said:
        return openai_chat.WIRE.usage(said)
    usage, total = anthropic.WIRE.usage(said), f.tokens(said.get("total_tokens", 0))
    return None if usage is None or total is None else replace(usage, total=max(usage.total, total))


WIRE = f.Wire("unknown", "", _read_request, _carried, _read_event, _usage)
