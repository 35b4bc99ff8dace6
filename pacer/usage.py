"""The values that walk through the house: what a call may cost, what it did cost, and how an account stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["provider", "estimate", "partial", "void"]
"""Where the number of a settlement came from: the provider's usage, our estimate, what was seen of a broken answer,
or nothing at all because nothing was billed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call after it ended. ``cached`` is a part of ``input``, ``reasoning`` a part of ``output``.

    ``total`` is what is charged; it is at least ``input + output`` and larger where the provider's total says so.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        if self.total < self.input + self.output:
            object.__setattr__(self, "total", self.input + self.output)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one call is thought to cost, in tokens, before it is sent.

    ``input`` and ``output`` are what is expected (the rate's side); ``worst`` is the upper bound for the ceiling.
    """

    input: int
    output: int
    worst: int
    provider: str = "unknown"
    model: str = "unknown"
    server: str = ""

    @property
    def expected(self) -> int:
        """Input and output together: what the rate takes."""
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class Rate:
    """``amount`` every ``per`` seconds."""

    amount: float
    per: float = 1.0

    @property
    def per_second(self) -> float:
        """The same rate, by the second."""
        return self.amount / self.per


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation ended: ``spent`` tokens were seen, up to ``unknown`` more may be on the bill."""

    spent: int
    unknown: int
    source: Source


@dataclass(frozen=True, slots=True)
class Wait:
    """A decision: not yet. ``seconds`` until the rate allows it, ``None`` when open holds have to come back first."""

    limit: str
    seconds: float | None


Uncharged = Literal["unmetered", "failed"]
"""Requests that passed without being charged: no model call, or one that the provider answered with an error."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a pacer stands at one instant; tokens unless the name says otherwise.

    ``remaining`` is what nobody has spent or holds (negative after an overshoot), ``None`` without a ceiling.
    ``tokens_available`` is the level of the token bucket (negative while it pays back), ``None`` without a rate.
    """

    run: str
    ceiling: int | None
    spent: int
    unknown: int
    held: int
    remaining: int | None
    in_flight: int
    waiting: int
    waits_for: str | None
    next_seconds: float | None
    tokens_per_second: float | None
    tokens_available: float | None
    calls: int
    refused: int
    unmetered: int
    failed: int
