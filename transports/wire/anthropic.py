"""Anthropic Messages, ``POST .../messages``. Cached input is reported beside ``input_tokens``, not inside.

A stream gives the input in ``message_start`` and the cumulative output in ``message_delta``; the first alone is not the
bill.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f


class _Request(msgspec.Struct):
    model: Any = None
    max_tokens: Any = None


class _Message(msgspec.Struct):
    usage: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    message: _Message | None = None
    usage: Any = None


_request = msgspec.json.Decoder(_Request)
_event = msgspec.json.Decoder(_Event)


def _read_request(body: bytes, ask_usage: bool) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    return f.Call(f.model(said.model), f.output_cap(said.max_tokens))


def _read_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_event, data)
    if said is None:
        return False
    if said.type == "content_block_delta":
        tally.seen_output += 1
    elif said.type == "message_start" and said.message is not None and isinstance(said.message.usage, dict):
        tally.usage = dict(said.message.usage)
    elif said.type == "message_delta" and said.usage is not None:
        tally.usage = _merged(tally.usage, said.usage) if isinstance(said.usage, dict) else {"invalid": True}
        tally.final = True
    return False


def _merged(start: dict[str, object], end: dict[str, object]) -> dict[str, object]:
    """The usage of both events; an input that the later one leaves empty is the earlier one's."""
    told = {name: value for name, value in end.items() if name == "output_tokens" or f.tokens(value) != 0}
    return {**start, **{name: value for name, value in told.items() if value is not None}}


def _usage(said: dict[str, object]) -> Usage | None:
    fresh, output = f.tokens(said.get("input_tokens")), f.tokens(said.get("output_tokens"))
    read = f.tokens(said.get("cache_read_input_tokens") or 0)
    written = f.tokens(said.get("cache_creation_input_tokens") or 0)
    if fresh is None or output is None or read is None or written is None or fresh + output + read + written == 0:
        return None
    return Usage(fresh + read + written, output, cached=read)


WIRE = f.Wire("anthropic", "/messages", _read_request, f.usage_of, _read_event, _usage)
