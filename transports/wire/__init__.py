"""Wire formats: how one API spells model, output cap, usage and stream events. One file a family.

``recognise`` finds the family of a request by method and path (and its body where paths collide), on any host.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from transports.wire import (
    anthropic,
    bedrock,
    cohere,
    gemini,
    generic,
    ollama,
    openai_chat,
    openai_responses,
    openai_text,
)
from transports.wire.format import Call, Path, Tally, Wire, edited

__all__ = ["FAMILIES", "Call", "Path", "Tally", "Wire", "edited", "recognise"]

FAMILIES: tuple[Wire, ...] = (
    openai_chat.WIRE,  # before completions: its path ends like theirs
    openai_responses.WIRE,
    openai_text.COMPLETIONS,
    openai_text.EMBEDDINGS,
    anthropic.WIRE,
    anthropic.BEDROCK,
    anthropic.VERTEX,
    bedrock.CONVERSE,
    bedrock.INVOKE,
    gemini.WIRE,
    gemini.EMBEDDINGS,
    cohere.WIRE,
    ollama.WIRE,
    ollama.EMBEDDINGS,
)
"""Asked in this order; the first that matches reads the call."""
_PATH_ENDS = tuple(end for wire in FAMILIES for end in wire.path_ends)


def recognise(method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Wire | None:
    """The wire format of a request, ``None`` when it is no model call. ``body`` is ``None`` if it cannot be read."""
    if method != "POST":
        return None
    if path.endswith(_PATH_ENDS):  # of other traffic, each path may be another one
        for wire in _families_of(path):
            if wire.only_if is None or wire.only_if(path, body):
                return wire
    return generic.WIRE if generic.looks_like_a_model_call(path, body, headers) else None


@lru_cache(maxsize=256)
def _families_of(path: str) -> tuple[Wire, ...]:
    """The families whose calls may have this path."""
    if "/threads/" in path:  # those hold messages, they do not answer them
        return ()
    return tuple(wire for wire in FAMILIES if path.endswith(wire.path_ends))
