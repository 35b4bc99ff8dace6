"""OpenAI chat completions, ``POST .../chat/completions``, as spoken by OpenAI, Azure, Groq, llama.cpp and many more.

Streams carry usage only when ``stream_options.include_usage`` asks for it: the last data chunk then has
``choices: []`` and ``usage``. Mistral and Together report it unasked on the last chunk with text, Groq in ``x_groq``.
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
    x_groq: Any = None


MARK = b'"usage"'
_request = msgspec.json.Decoder(_Request)
_event = msgspec.json.Decoder(_Event)


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.call(
        said.model,
        (("max_completion_tokens",), said.max_completion_tokens),
        (("max_tokens",), said.max_tokens),
        choices=said.n,
    )
    if said.stream is True:
        call.usage_at = usage_switch(said.stream_options)
    return call


def usage_switch(options: object) -> f.Path | None:
    """Where a stream is told to report its usage; ``None`` if it was told already."""
    return None if f.inside(options, "include_usage") is True else ("stream_options", "include_usage")


def read_event(data: bytes, tally: f.Tally) -> bool:
    """Take one event into the tally; whether it carries nothing but usage."""
    if data == b"[DONE]":
        tally.final = bool(tally.usage)
        return False
    said = f.decoded(_event, data)
    if said is None:
        return False
    for choice in said.choices or ():
        tally.seen_output += bool(choice.text) or _says_something(choice.delta)
    usage = said.usage
    if usage is None and isinstance(said.x_groq, dict):
        usage = said.x_groq.get("usage")
    if usage is None:
        return False
    tally.usage = usage if isinstance(usage, dict) else {"invalid": True}
    tally.final = not said.choices or any(choice.finish_reason for choice in said.choices)
    return said.choices == []


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
    cached = f.nested(said, "prompt_tokens_details", "cached_tokens")
    if not cached and "prompt_cache_hit_tokens" in said:  # DeepSeek's name for it
        cached = f.tokens(said["prompt_cache_hit_tokens"]) or 0
    # xAI counts reasoning outside completion_tokens but inside the total; the larger one is charged.
    reasoning = f.nested(said, "completion_tokens_details", "reasoning_tokens")
    return Usage(prompt, completion, min(prompt, cached), reasoning, total)


WIRE = f.Wire("openai", "/chat/completions", _read_request, f.usage_of, read_event, usage, mark=MARK)
