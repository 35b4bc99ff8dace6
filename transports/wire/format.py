"""What every wire format gives: the reading of a request, of a whole answer and of stream events.

Numbers from a provider are believed only if they are whole and not negative; everything else counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from pacer.usage import Usage

T = TypeVar("T")
Path = tuple[str, ...]
"""Where a member stands in a JSON object: its name, after the names of the objects around it."""

LARGEST_CAP = 10_000_000
"""A declared output cap above this is nonsense and counts as this."""
LARGEST_COUNT = 2**53
"""Beyond this not every whole number is a JSON number everywhere; no count of tokens is that large."""


class Call(msgspec.Struct, gc=False):
    """What a request says of itself. ``output_cap`` in tokens for one choice, ``None`` where none is declared.

    ``cap_at`` is where the cap stands, or would stand if there was one; ``least_cap`` the smallest that the API takes.
    ``usage_at`` is the switch that has to be on for a stream to report its usage, if it is not on already.
    """

    model: str = "unknown"
    output_cap: int | None = None
    choices: int = 1
    cap_at: Path | None = None
    least_cap: int = 1
    usage_at: Path | None = None


class Tally(msgspec.Struct, gc=False):
    """What the events of one stream have said so far.

    ``usage`` is the last report, ``final`` whether it is the bill; ``seen_output`` counts deltas, a lower bound of the
    output tokens.
    """

    usage: dict[str, object] = {}
    final: bool = False
    seen_output: int = 0


@dataclass(frozen=True, slots=True)
class Wire:
    """One family. ``read_event`` updates the tally and tells whether the event carries nothing but usage.

    ``path_end`` is how the path of its calls ends (one of several ways), ``only_if`` what else must hold of path and
    body where other families have the same path; ``model_of`` finds the model in a path, where the body does not name
    it. An event in which ``mark`` does not occur says nothing of the bill, unless it is the last one.
    """

    provider: str
    path_end: str | tuple[str, ...]
    read_request: Callable[[bytes], Call]
    read_answer: Callable[[bytes], dict[str, object] | None]
    read_event: Callable[[bytes, Tally], bool]
    usage: Callable[[dict[str, object]], Usage | None]
    model_of: Callable[[str], str] | None = None
    only_if: Callable[[str, bytes | None], bool] | None = None
    mark: bytes = b""

    @property
    def path_ends(self) -> tuple[str, ...]:
        """All the ways in which the path of its calls ends."""
        return (self.path_end,) if isinstance(self.path_end, str) else self.path_end

    @property
    def endpoint(self) -> str:
        """What tells this family from others that serve the same model: the first end that its paths have."""
        return self.path_ends[0]


# ---------------------------------------------------------------- requests


def edited(body: bytes | msgspec.Raw, edits: Mapping[Path, object]) -> bytes | None:
    """The same request with the values of ``edits``, every other member with its bytes; ``None`` if it is no object."""
    raw = decoded(_members, body)
    if raw is None:
        return None
    for path, value in edits.items():
        text: bytes | None = msgspec.json.encode(value)
        if len(path) > 1:
            text = edited(raw.get(path[0], _NO_MEMBERS), {path[1:]: value}) or edited(_NO_MEMBERS, {path[1:]: value})
        raw[path[0]] = msgspec.Raw(text or b"null")
    return msgspec.json.encode(raw)


def call(model: object, *caps: tuple[Path, object], choices: object = None) -> Call:
    """What most requests say: the model, the first of the ``caps`` that is declared, and the number of choices."""
    found = Call(named(model), cap_at=caps[0][0])
    if choices is not None:
        found.choices = count(choices)
    for path, declared in caps:
        if declared is not None and (cap := tokens(declared)):
            found.output_cap, found.cap_at = min(cap, LARGEST_CAP), path
            break
    return found


def embedding(body: bytes) -> Call:
    """A request for embeddings: a model, and no output."""
    said = decoded(_named, body)
    return Call("unknown" if said is None else named(said.model), output_cap=0)


def inside(group: object, name: str) -> object:
    """The member ``name`` of ``group``; ``None`` if there is none."""
    return group.get(name) if isinstance(group, dict) else None


def count(value: object) -> int:
    """How many answers are asked for at once."""
    return min(tokens(value) or 1, 1_024)


def named(value: object) -> str:
    """The model's name, shortened: it ends up in spans and in memory."""
    return value[:128] if isinstance(value, str) and value else "unknown"


def model_before(*ends: str) -> Callable[[str], str]:
    """Finds the model in a path that has it before one of the ``ends``; of an ARN its last part."""

    def find(path: str) -> str:
        for end in ends:
            path = path.removesuffix(end)
        return named(unquote(path.rpartition("/")[2]).rpartition("/")[2])

    return find


# ---------------------------------------------------------------- usage


def tokens(value: object) -> int | None:
    """A token count, or ``None`` for anything that is not a whole number from 0."""
    if type(value) is int and 0 <= value <= LARGEST_COUNT:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value < 0 or value > LARGEST_COUNT or value != int(value):
        return None
    return int(value)


def parts(usage: dict[str, object], *names: str) -> tuple[int, ...] | None:
    """The counts under ``names``, an absent or null one as 0; ``None`` if one of them cannot be believed."""
    found = [0 if usage.get(name) is None else tokens(usage[name]) for name in names]
    return None if None in found else tuple(number for number in found if number is not None)


def nested(usage: dict[str, object], group: str, name: str) -> int:
    """A detail such as ``prompt_tokens_details.cached_tokens``; 0 where it is missing or not a count."""
    details = usage.get(group)
    return tokens(details.get(name)) or 0 if isinstance(details, dict) else 0


def believed(tally: Tally, said: object) -> None:
    """Take the usage of an event that ends a stream; one that is no object spoils what was said before."""
    tally.usage = said if isinstance(said, dict) else {"invalid": True}
    tally.final = True


# ---------------------------------------------------------------- JSON, however hostile

_DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError)


def decoded(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw) -> T | None:
    """``text`` by ``decoder``; ``None`` for anything that is not such JSON, however hostile."""
    try:
        return decoder.decode(text)
    except _DECODE_ERRORS:
        return None


class _Answer(msgspec.Struct):
    usage: Any = None


class _Named(msgspec.Struct):
    model: Any = None


_NO_MEMBERS = msgspec.Raw(b"{}")
_answer = msgspec.json.Decoder(_Answer)
_named = msgspec.json.Decoder(_Named)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def usage_of(body: bytes) -> dict[str, object] | None:
    """The member ``usage`` of a whole answer, where OpenAI and Anthropic have it; ``None`` if there is none."""
    said = decoded(_answer, body)
    return said.usage if said is not None and isinstance(said.usage, dict) else None
