"""The values that walk through the house: what a call may cost, what it did cost, and how an account stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["provider", "estimate", "partial", "void"]
"""Where the number of a settlement came from: the provider's usage, our estimate, what was seen of a broken answer,
or nothing at all because nothing was billed."""


Kind = Literal["tokens", "input", "output", "requests"]
"""What a limit counts."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call after it ended. ``cached`` (read from a cache) and ``written`` (to it) are parts of ``input``,
    ``reasoning`` is a part of ``output``.

    ``total`` is what is charged; it is at least ``input + output`` and larger where the provider's total says so.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    total: int = 0
    written: int = 0

    def __post_init__(self) -> None:
        if self.total < self.input + self.output:
            object.__setattr__(self, "total", self.input + self.output)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one call is thought to cost, in tokens, before it is sent.

    ``input`` and ``output`` are what is expected (the rate's side); ``worst`` is the upper bound for the ceiling.
    ``least`` is how far a lower output cap may bring the worst case down, ``None`` if the cap is not ours to lower.
    ``least_input`` is what of the input is on the bill for sure once the call was sent.
    """

    input: int
    output: int
    worst: int
    provider: str = "unknown"
    model: str = "unknown"
    server: str = ""
    least: int | None = None
    least_input: int = 0

    @property
    def likely_input(self) -> int:
        """What of the input is likely on the bill beyond ``least_input``."""
        return self.input - self.least_input

    @property
    def lane(self) -> tuple[str, str]:
        """Whose line it stands in: providers limit each model of theirs by itself."""
        return self.server, self.model

    @property
    def at_least(self) -> int:
        """What must fit under the ceiling for the call to go at all."""
        return self.worst if self.least is None else self.least

    @property
    def expected(self) -> int:
        """Input and output together: what the rate takes."""
        return self.input + self.output

    def asked(self, kind: Kind) -> int:
        """What the call is expected to take of a limit that counts ``kind``."""
        match kind:
            case "tokens":
                return self.expected
            case "input":
                return self.input
            case "output":
                return self.output
            case "requests":
                return 1


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


@dataclass(frozen=True, slots=True)
class Allowance:
    """One of a provider's own limits, as its last answer told it."""

    kind: Kind
    remaining: int
    limit: int | None
    reset_seconds: float


@dataclass(frozen=True, slots=True)
class Word:
    """What an answer said about the provider's limits."""

    pause_seconds: float | None
    allowances: tuple[Allowance, ...] = ()


Uncharged = Literal["unmetered", "failed"]
"""Requests that passed without being charged: no model call, or one that the provider answered with an error."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a pacer stands at one instant; tokens unless the name says otherwise.

    ``remaining`` is what nobody has spent or holds (negative after an overshoot), ``None`` without a ceiling.
    ``server_pause_seconds`` is the longest pause in force that a provider asked for, 0 without one.
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
    server_pause_seconds: float
    tokens_per_second: float | None
    tokens_available: float | None
    calls: int
    refused: int
    unmetered: int
    failed: int
