"""Ollama's own API, ``POST /api/chat``, ``/api/generate`` and ``/api/embed``: one JSON object a line.

The last line has ``done: true`` and the counts. ``num_predict`` below zero means no cap.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f


class _Request(msgspec.Struct):
    model: Any = None
    options: Any = None


class _Line(msgspec.Struct):
    done: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None

    def usage(self) -> dict[str, object]:
        """The counts that are there."""
        told = {"prompt_eval_count": self.prompt_eval_count, "eval_count": self.eval_count}
        return {name: value for name, value in told.items() if value is not None}


_request = msgspec.json.Decoder(_Request)
_line = msgspec.json.Decoder(_Line)


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    return f.call(said.model, (("options", "num_predict"), f.inside(said.options, "num_predict")))


def _read_answer(body: bytes) -> dict[str, object] | None:
    """The usage of one object, or of the last line of a stream that was not declared as one."""
    said = f.decoded(_line, body) or f.decoded(_line, body.rstrip().rpartition(b"\n")[2])
    return None if said is None else said.usage()


def _read_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_line, data)
    if said is None:
        return False
    if said.done is True:
        f.believed(tally, said.usage())
    else:
        tally.seen_output += 1
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    prompt, output = f.tokens(said.get("prompt_eval_count")), f.tokens(said.get("eval_count"))
    return None if prompt is None or output is None or prompt + output == 0 else Usage(prompt, output)


def _embedded(said: dict[str, object]) -> Usage | None:
    prompt = f.tokens(said.get("prompt_eval_count"))
    return Usage(prompt) if prompt else None


WIRE = f.Wire(
    "ollama", ("/api/chat", "/api/generate"), _read_request, _read_answer, _read_event, _usage, mark=b'_count"'
)
EMBEDDINGS = f.Wire("ollama", "/api/embed", f.embedding, _read_answer, _read_event, _embedded)
