"""Any other POST that looks like a model call: charged by its usage where we know the spelling, else by estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from pacer.usage import Usage
from transports.wire import anthropic, bedrock, cohere, gemini, ollama, openai_chat
from transports.wire import format as f

_ENDS = ("/generate", "/chat", "/converse", "/converse-stream", "/invoke", "/embed", ":rawPredict", ":streamRawPredict")
_NO_CALLS = ("/count_tokens", ":countTokens", "/input_tokens", "/tokenize", "/moderations", "/files", "/batches")
_CAPS = ("max_output_tokens", "max_completion_tokens", "max_tokens", "max_new_tokens")
_NOTHING = (msgspec.Raw(), msgspec.Raw(b"null"))


class _Request(msgspec.Struct):
    model: Any = None
    n: Any = None
    max_output_tokens: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    max_new_tokens: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    contents: msgspec.Raw = msgspec.Raw()
    texts: msgspec.Raw = msgspec.Raw()

    def speaks(self) -> bool:
        """Whether there is something to say to the model."""
        speech = (self.messages, self.prompt, self.input, self.contents, self.texts)
        return any(said not in _NOTHING for said in speech)


class _Carrier(msgspec.Struct):
    usage: Any = None
    response: Any = None
    usageMetadata: Any = None


_request = msgspec.json.Decoder(_Request)
_carrier = msgspec.json.Decoder(_Carrier)


def looks_like_a_model_call(path: str, body: bytes | None, headers: Mapping[str, str]) -> bool:
    """By its path, or because its JSON names a model and something to say to it."""
    if path.endswith(_ENDS):
        return True
    if path.endswith(_NO_CALLS):
        return False
    if body is None or b'"model"' not in body or "json" not in headers.get("content-type", ""):
        return False
    said = f.decoded(_request, body)
    return said is not None and isinstance(said.model, str) and said.speaks()


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.call(said.model, *(((name,), getattr(said, name)) for name in _CAPS), choices=said.n)
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
    return None if usage is None or total is None else replace(usage, tokens=max(usage.tokens, total))


_KNOWN_BY = {
    "prompt_tokens": openai_chat.WIRE,
    "promptTokenCount": gemini.WIRE,
    "inputTokens": bedrock.CONVERSE,
    "billed_units": cohere.WIRE,
    "prompt_eval_count": ollama.WIRE,
}
WIRE = f.Wire("unknown", "", _read_request, _carried, _read_event, _usage)
