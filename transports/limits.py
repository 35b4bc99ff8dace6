"""What an answer says of the provider's own limits: how long to wait, and how much is left of what.

OpenAI, Azure and Groq write ``x-ratelimit-*``, Anthropic ``anthropic-ratelimit-*``, Mistral ``ratelimitbysize-*``; the
wait that Gemini asks for is in the body (``google.rpc.RetryInfo``). Numbers that make no sense count as not said.
OpenRouter's ``x-ratelimit-remaining`` names no kind and is not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

import msgspec

from pacer.usage import Allowance, Kind, Word

LONGEST_WAIT_SECONDS = 60.0
"""No provider's ``retry-after`` is obeyed beyond this."""

_ALLOWANCES: tuple[tuple[Kind, str], ...] = (
    ("requests", "x-ratelimit-{}-requests"),
    ("tokens", "x-ratelimit-{}-tokens"),
    ("requests", "anthropic-ratelimit-requests-{}"),
    ("tokens", "anthropic-ratelimit-tokens-{}"),
    ("input", "anthropic-ratelimit-input-tokens-{}"),
    ("output", "anthropic-ratelimit-output-tokens-{}"),
    ("tokens", "ratelimitbysize-{}"),
)
_SPOKEN = frozenset(
    {b"retry-after", b"retry-after-ms", *(name.format("remaining").encode() for _, name in _ALLOWANCES)}
)
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_SPAN = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?", re.ASCII)


class _Detail(msgspec.Struct):
    retryDelay: str = ""


class _Error(msgspec.Struct):
    details: list[_Detail] = []


class _Refusal(msgspec.Struct):
    error: _Error


_refusal = msgspec.json.Decoder(_Refusal)


def word_of(headers: Mapping[bytes, bytes], unix_now: float) -> Word | None:
    """What the headers (names in lower case) say; ``None`` where they say nothing."""
    if _SPOKEN.isdisjoint(headers):
        return None
    pause = retry_after_seconds(_text(headers, b"retry-after-ms"), _text(headers, b"retry-after"), unix_now)
    told = (_allowance(headers, unix_now, kind, name) for kind, name in _ALLOWANCES)
    allowances = tuple(allowance for allowance in told if allowance is not None)
    return None if pause is None and not allowances else Word(pause, allowances)


def retry_info(body: bytes) -> Word | None:
    """The wait that the body of a 429 asks for in Gemini's way; ``None`` where there is none."""
    try:
        said = _refusal.decode(body.strip().removeprefix(b"[").removesuffix(b"]"))  # in a stream it is an array
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    for detail in said.error.details:
        span = _SPAN.fullmatch(detail.retryDelay)
        if span and span[3]:
            return Word(min(float(span[3]), LONGEST_WAIT_SECONDS))
    return None


def retry_after_seconds(milliseconds: str | None, said: str | None, unix_now: float) -> float | None:
    """What ``retry-after-ms`` or ``retry-after`` asks for, at most 60 s; ``None`` where neither makes sense."""
    if (number := _number(milliseconds)) is not None:
        return min(number / 1_000, LONGEST_WAIT_SECONDS)
    seconds = _number(said)
    if seconds is None and said:
        try:
            seconds = max(0.0, parsedate_to_datetime(said).timestamp() - unix_now)
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else min(seconds, LONGEST_WAIT_SECONDS)


def _allowance(headers: Mapping[bytes, bytes], unix_now: float, kind: Kind, name: str) -> Allowance | None:
    left = _number(_text(headers, name.format("remaining").encode()))
    if left is None:
        return None
    seconds = _reset_seconds(_text(headers, name.format("reset").encode()), unix_now)
    most = _number(_text(headers, name.format("limit").encode()))
    return None if seconds is None else Allowance(kind, int(left), int(most) if most else None, seconds)


def _reset_seconds(said: str | None, unix_now: float) -> float | None:
    """Seconds until the counter is full: plain, as ``6m0s`` or ``120ms``, or from a time of RFC 3339."""
    if not said:
        return None
    if (plain := _number(said)) is not None:
        return plain
    if span := _SPAN.fullmatch(said):
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in span.groups())
        return hours * 3_600 + minutes * 60 + seconds + milliseconds / 1_000
    try:
        return max(0.0, datetime.fromisoformat(said).timestamp() - unix_now)
    except (ValueError, OverflowError):
        return None


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= 2**53 else None
