"""OpenAI Responses, ``POST .../responses``: cached input is inside ``input_tokens``, reasoning in ``output_tokens``.

A stream ends with ``response.completed``, ``.incomplete`` or ``.failed``, and each of them carries the bill.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f

LEAST_CAP = 16
"""The smallest ``max_output_tokens`` that the API takes (OpenAI's API reference)."""


class _Request(msgspec.Struct):
    model: Any = None
    max_output_tokens: Any = None


class _Response(msgspec.Struct):
    usage: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    response: _Response | None = None


_ENDS = ("response.completed", "response.incomplete", "response.failed")
_request = msgspec.json.Decoder(_Request)
_event = msgspec.json.Decoder(_Event)


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.call(said.model, (("max_output_tokens",), said.max_output_tokens))
    call.least_cap = LEAST_CAP
    return call


def _read_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_event, data)
    if said is None:
        return False
    if said.type.endswith(".delta"):
        tally.seen_output += 1
    elif said.type in _ENDS and said.response is not None:
        f.believed(tally, said.response.usage)
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    given, output = f.tokens(said.get("input_tokens")), f.tokens(said.get("output_tokens"))
    total = f.tokens(said.get("total_tokens", 0))
    if given is None or output is None or total is None or given + output + total == 0:
        return None
    cached = min(given, f.nested(said, "input_tokens_details", "cached_tokens"))
    reasoning = f.nested(said, "output_tokens_details", "reasoning_tokens")
    return Usage(given, output, cached, reasoning, total)


WIRE = f.Wire("openai", "/responses", _read_request, f.usage_of, _read_event, _usage, mark=b'"usage"')
