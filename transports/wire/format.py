"""What every wire format gives: the reading of a request, of a whole answer and of stream events.

Numbers from a provider are believed only if they are whole and not negative; everything else counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from pacer.usage import Usage

T = TypeVar("T")

LARGEST_CAP = 10_000_000
"""A declared output cap above this is nonsense and counts as this."""


@dataclass(slots=True)
class Call:
    """What a request says of itself. ``output_cap`` in tokens for one choice, ``None`` where none is declared."""

    model: str = "unknown"
    output_cap: int | None = None
    choices: int = 1
    body_asking_usage: bytes | None = None


@dataclass(slots=True)
class Tally:
    """What the events of one stream have said so far.

    ``usage`` is the last report, ``final`` whether it is the bill; ``seen_output`` counts deltas, a lower bound of the
    output tokens.
    """

    usage: dict[str, object] = field(default_factory=dict)
    final: bool = False
    seen_output: int = 0


@dataclass(frozen=True, slots=True)
class Wire:
    """One family. ``read_event`` updates the tally and tells whether the event carries nothing but usage.

    ``path_end`` is how the path of its calls ends (one of several ways); ``model_of`` finds the model in a path, where
    the body does not name it.
    """

    provider: str
    path_end: str | tuple[str, ...]
    read_request: Callable[[bytes, bool], Call]
    read_answer: Callable[[bytes], dict[str, object] | None]
    read_event: Callable[[bytes, Tally], bool]
    usage: Callable[[dict[str, object]], Usage | None]
    model_of: Callable[[str], str] | None = None


def tokens(value: object) -> int | None:
    """A token count, or ``None`` for anything that is not a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value < 0 or value > 2**53 or value != int(value):
        return None
    return int(value)


def output_cap(*declared: object) -> int | None:
    """The first declared cap that is a positive whole number."""
    for value in declared:
        cap = tokens(value)
        if cap:
            return min(cap, LARGEST_CAP)
    return None


def choices(value: object) -> int:
    """How many answers are asked for at once."""
    return min(tokens(value) or 1, 1_024)


def model(value: object) -> str:
    """The model's name, shortened: it ends up in spans and in memory."""
    return value[:128] if isinstance(value, str) and value else "unknown"


def nested(usage: dict[str, object], group: str, name: str) -> int:
    """A detail such as ``prompt_tokens_details.cached_tokens``; 0 where it is missing or not a count."""
    details = usage.get(group)
    return tokens(details.get(name)) or 0 if isinstance(details, dict) else 0


_DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError)


def decoded(decoder: msgspec.json.Decoder[T], text: bytes) -> T | None:
    """``text`` by ``decoder``; ``None`` for anything that is not such JSON, however hostile."""
    try:
        return decoder.decode(text)
    except _DECODE_ERRORS:
        return None


class _Answer(msgspec.Struct):
    usage: Any = None


_answer = msgspec.json.Decoder(_Answer)


def usage_of(body: bytes) -> dict[str, object] | None:
    """The member ``usage`` of a whole answer, where OpenAI and Anthropic have it; ``None`` if there is none."""
    said = decoded(_answer, body)
    return said.usage if said is not None and isinstance(said.usage, dict) else None
