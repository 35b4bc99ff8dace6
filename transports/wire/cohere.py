"""Cohere chat, ``POST .../v2/chat``: usage as floats under ``tokens`` (all of them) and ``billed_units``.

A stream ends with ``message-end``, which carries the same usage in its ``delta``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f


class _Request(msgspec.Struct):
    model: Any = None
    max_tokens: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    delta: Any = None


_request = msgspec.json.Decoder(_Request)
_event = msgspec.json.Decoder(_Event)


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    return f.Call() if said is None else f.call(said.model, (("max_tokens",), said.max_tokens))


def _read_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_event, data)
    if said is None or not isinstance(said.type, str):
        return False
    if said.type.endswith("-delta"):
        tally.seen_output += 1
    elif said.type == "message-end":
        f.believed(tally, said.delta.get("usage") if isinstance(said.delta, dict) else None)
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    told = said.get("tokens") if said.get("tokens") is not None else said.get("billed_units")
    if not isinstance(told, dict):
        return None
    given, output = f.tokens(told.get("input_tokens")), f.tokens(told.get("output_tokens"))
    if given is None or output is None or given + output == 0:
        return None
    return Usage(given, output, cached=min(given, f.tokens(said.get("cached_tokens")) or 0))


WIRE = f.Wire("cohere", "/v2/chat", _read_request, f.usage_of, _read_event, _usage, mark=b'"usage"')
