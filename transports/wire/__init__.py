"""Wire formats: how one API spells model, output cap, usage and stream events. One file a family.

``recognise`` finds the family of a request by method and path, on any host.
"""

from __future__ import annotations

from collections.abc import Mapping

from transports.wire import anthropic, gemini, generic, openai_chat, openai_responses, openai_text
from transports.wire.format import Call, Tally, Wire

__all__ = ["Call", "Tally", "Wire", "recognise"]

_FAMILIES: tuple[Wire, ...] = (
    openai_chat.WIRE,  # before completions: its path ends like theirs
    openai_responses.WIRE,
    openai_text.COMPLETIONS,
    openai_text.EMBEDDINGS,
    anthropic.WIRE,
    gemini.WIRE,
)


def recognise(method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Wire | None:
    """The wire format of a request, ``None`` when it is no model call. ``body`` is ``None`` if it cannot be read."""
    if method != "POST":
        return None
    for wire in _FAMILIES:
        if path.endswith(wire.path_end) and "/threads/" not in path:  # those hold messages, they do not answer them
            return wire
    return generic.WIRE if generic.looks_like_a_model_call(path, body, headers) else None
