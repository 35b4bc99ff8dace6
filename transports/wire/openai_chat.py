"""OpenAI chat completions, ``POST .../chat/completions``, as spoken by OpenAI, Azure, Groq, llama.cpp and many more.

Streams carry usage only when ``stream_options.include_usage`` asks for it: the last data chunk then has
``choices: []`` and ``usage``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f


class _Request(msgspec.Struct):
    model: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    n: Any = None
    stream: Any = None
    stream_options: Any = None


class _Choice(msgspec.Struct):
    delta: Any = None
    text: Any = None
    finish_reason: Any = None


class _Event(msgspec.Struct):
    usage: Any = None
    choices: list[_Choice] | None = None


_request = msgspec.json.Decoder(_Request)
_event = msgspec.json.Decoder(_Event)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _read_request(body: bytes, ask_usage: bool) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.Call(
        model=f.model(said.model),
        output_cap=f.output_cap(said.max_completion_tokens, said.max_tokens),
        choices=f.choices(said.n),
    )
    if said.stream is True and ask_usage:
        call.body_asking_usage = asking_usage(body, said.stream_options)
    return call


def asking_usage(body: bytes, options: object) -> bytes | None:
    """The same request with ``include_usage``, every other member with its bytes; ``None`` if it asks already."""
    if isinstance(options, dict) and options.get("include_usage") is True:
        return None
    fields = f.decoded(_fields, body)
    if fields is None:
        return None
    merged = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(merged))
    return msgspec.json.encode(fields)


def read_event(data: bytes, tally: f.Tally) -> bool:
    """Take one event into the tally; whether it carries nothing but usage."""
    if data == b"[DONE]":
        tally.final = bool(tally.usage)
        return False
    said = f.decoded(_event, data)
    if said is None:
        return False
    if said.choices:
        for choice in said.choices:
            tally.seen_output += bool(choice.text) or _says_something(choice.delta)
    if said.usage is not None:
        tally.usage = said.usage if isinstance(said.usage, dict) else {"invalid": True}
        tally.final = not said.choices or any(choice.finish_reason for choice in said.choices)
        return said.choices == []
    return False


def _says_something(delta: object) -> bool:
    if isinstance(delta, dict):
        for name, value in delta.items():
            if value and name != "role":
                return True
    return False


def usage(said: dict[str, object]) -> Usage | None:
    """The usage, if every number in it can be believed."""
    total = f.tokens(said.get("total_tokens", 0))
    # Only a total can stand in for an output that is not told, as it does for embeddings.
    completion = f.tokens(said.get("completion_tokens", 0 if total else None))
    prompt = f.tokens(said.get("prompt_tokens"))
    if prompt is None or completion is None or total is None or prompt + completion + total == 0:
        return None
    cached = min(prompt, f.nested(said, "prompt_tokens_details", "cached_tokens"))
    # xAI counts reasoning outside completion_tokens but inside the total; the larger one is charged.
    reasoning = f.nested(said, "completion_tokens_details", "reasoning_tokens")
    return Usage(prompt, completion, cached, reasoning, total)


WIRE = f.Wire("openai", "/chat/completions", _read_request, f.usage_of, read_event, usage)
