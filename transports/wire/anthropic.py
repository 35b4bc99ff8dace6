"""Anthropic Messages, ``POST .../messages``. Cached input is reported beside ``input_tokens``, not inside.

A stream gives the input in ``message_start`` and the cumulative output in ``message_delta``; the first alone is not the
bill. Bedrock (``/model/{id}/invoke``, its streams in AWS frames) and Vertex (``:rawPredict``) carry the same bodies
with the model in the path.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f
from transports.wire.bedrock import INVOKE_ENDS, unwrapped

VERTEX_ENDS = (":rawPredict", ":streamRawPredict")


class _Request(msgspec.Struct):
    model: Any = None
    max_tokens: Any = None
    thinking: Any = None


class _Message(msgspec.Struct):
    usage: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    message: _Message | None = None
    usage: Any = None


_request = msgspec.json.Decoder(_Request)
_event = msgspec.json.Decoder(_Event)


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.call(said.model, (("max_tokens",), said.max_tokens))
    call.least_cap = 1 + (f.tokens(f.inside(said.thinking, "budget_tokens")) or 0)  # the cap must be above it
    return call


def _read_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_event, data)
    if said is None:
        return False
    if said.type == "content_block_delta":
        tally.seen_output += 1
    elif said.type == "message_start" and said.message is not None and isinstance(said.message.usage, dict):
        tally.usage = dict(said.message.usage)
    elif said.type == "message_delta" and said.usage is not None:
        f.believed(tally, _merged(tally.usage, said.usage) if isinstance(said.usage, dict) else said.usage)
    return False


def _read_wrapped_event(data: bytes, tally: f.Tally) -> bool:
    return _read_event(unwrapped(data), tally)


def _merged(start: dict[str, object], end: dict[str, object]) -> dict[str, object]:
    """The usage of both events; an input that the later one leaves empty is the earlier one's."""
    told = {name: value for name, value in end.items() if name == "output_tokens" or f.tokens(value) != 0}
    return {**start, **{name: value for name, value in told.items() if value is not None}}


def _usage(said: dict[str, object]) -> Usage | None:
    fresh, output = f.tokens(said.get("input_tokens")), f.tokens(said.get("output_tokens"))
    cache = f.parts(said, "cache_read_input_tokens", "cache_creation_input_tokens")
    if fresh is None or output is None or cache is None or fresh + output + sum(cache) == 0:
        return None
    read, written = cache
    return Usage(fresh + read + written, output, cached=read, written=written)


def _speaks(path: str, body: bytes | None) -> bool:
    """Whether it is no single message, in plain text, as chats and mailers take it under the same last word."""
    return body is None or b'"messages"' in body or not _is_text(body)


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:  # compressed: nobody knows what it says
        return False
    return True


def _on_bedrock(path: str, body: bytes | None) -> bool:
    return "anthropic" in path or (body is not None and b'"anthropic_version"' in body)


def _on_vertex(path: str, body: bytes | None) -> bool:
    return "/publishers/anthropic/" in path


_MARK = b'"usage"'
WIRE = f.Wire("anthropic", "/messages", _read_request, f.usage_of, _read_event, _usage, only_if=_speaks, mark=_MARK)
BEDROCK = f.Wire(
    "aws.bedrock",
    INVOKE_ENDS,
    _read_request,
    f.usage_of,
    _read_wrapped_event,
    _usage,
    f.model_before(*INVOKE_ENDS),
    _on_bedrock,
)
VERTEX = f.Wire(
    "gcp.vertex_ai",
    VERTEX_ENDS,
    _read_request,
    f.usage_of,
    _read_event,
    _usage,
    f.model_before(*VERTEX_ENDS),
    _on_vertex,
    _MARK,
)
