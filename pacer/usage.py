"""The values that walk through the house: what a call may cost, what it did cost, and how an account stands.

They are msgspec structs: frozen, JSON-serialisable, and made in a tenth of the time of a frozen dataclass.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["provider", "estimate", "partial", "void"]
"""Where the number of a settlement came from: the provider's usage, our estimate, what was seen of a broken answer,
or nothing at all because nothing was billed."""


Kind = Literal["tokens", "input", "output", "requests"]
"""What a limit counts."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one call after it ended. ``cached`` (read from a cache) and ``written`` (to it) are parts of ``input``,
    ``reasoning`` is a part of ``output``.

    ``tokens`` is what is charged; it is at least ``input + output`` and larger where the provider's total says so.
    ``requests`` is what a limit on requests counts: one call.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    tokens: int = 0
    written: int = 0
    requests: int = 1

    def __post_init__(self) -> None:
        if self.tokens < self.input + self.output:
            msgspec.structs.force_setattr(self, "tokens", self.input + self.output)


class Estimate(msgspec.Struct, frozen=True):
    """What one call is thought to cost, in tokens, before it is sent.

    ``input`` and ``output`` are what is expected (the rate's side), ``tokens`` is both together; ``worst`` is the upper
    bound for the ceiling, of which ``output_cap`` is the output. ``least`` is how far a lower output cap may bring the
    worst case down: to ``worst`` if the cap is not ours to lower. ``least_input`` is what of the input is on the bill
    for sure once the provider answers. ``requests`` is what a limit on requests counts: one call.
    """

    input: int
    output: int
    worst: int
    provider: str = "unknown"
    model: str = "unknown"
    server: str = ""
    least: int = -1
    least_input: int = 0
    output_cap: int = 0
    tokens: int = 0
    requests: int = 1

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "tokens", self.input + self.output)
        if self.least < 0:
            msgspec.structs.force_setattr(self, "least", self.worst)

    @property
    def lane(self) -> tuple[str, str]:
        """Whose line it stands in: providers limit each model of theirs by itself."""
        return self.server, self.model

    def asked(self, kind: Kind) -> int:
        """What the call is expected to take of a limit that counts ``kind``."""
        amount: int = getattr(self, kind)
        return amount


class Rate(msgspec.Struct, frozen=True):
    """``amount`` every ``per`` seconds."""

    amount: float
    per: float = 1.0

    @property
    def per_second(self) -> float:
        """The same rate, by the second."""
        return self.amount / self.per


class Settlement(msgspec.Struct, frozen=True):
    """How a reservation ended: ``spent`` tokens were seen, up to ``unknown`` more may be on the bill."""

    spent: int
    unknown: int
    source: Source


class Wait(msgspec.Struct, frozen=True):
    """A decision: not yet. ``seconds`` until the rate allows it, ``None`` when open holds have to come back first."""

    limit: str
    seconds: float | None


class Allowance(msgspec.Struct, frozen=True):
    """One of a provider's own limits, as its last answer told it."""

    kind: Kind
    remaining: int
    limit: int | None
    reset_seconds: float


class Word(msgspec.Struct, frozen=True):
    """What an answer said about the provider's limits."""

    pause_seconds: float | None
    allowances: tuple[Allowance, ...] = ()


AccountKind = Literal["pacer", "run", "agent"]
"""What a node of the tree of accounts stands for."""

Oddity = Literal["unmetered", "failed", "failed_tokens", "unread", "unshared"]
"""What is counted beside the books: requests that are no model calls; calls that the provider answered with an error,
and what 5xx and 529 among them would have cost at worst; answers that an error of ours kept from being read; calls that
went without the word of other processes, while the store was away."""


class Classes(msgspec.Struct, frozen=True):
    """Spent tokens by class. ``cached`` and ``written`` are parts of ``input``, ``reasoning`` of ``output``; what only
    a provider's total tells is in none of them.
    """

    input: int
    output: int
    cached: int
    written: int
    reasoning: int


class Finished(msgspec.Struct, frozen=True):
    """What the ended agents of one name came to, all together; tokens unless the name says otherwise."""

    name: str
    agents: int
    calls: int
    spent: int
    unknown: int
    refused: int
    wrap_ups: int


class AccountStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one account of the tree stands, all below it included; tokens unless the name says otherwise.

    ``remaining`` is what nobody has spent, holds or has carved out (negative after an overshoot), ``None`` without a
    ceiling. ``reserve`` is what the agent itself has left for its wrap-up, ``carved`` what it and those below it have.
    ``estimated`` is the part of ``spent`` that no provider told. ``refusals`` counts the refused calls by limit,
    ``wrap_ups`` the calls that a reserve has paid. ``agents`` are those at work, ``finished`` those that have ended.
    """

    name: str
    kind: AccountKind
    ceiling: int | None
    remaining: int | None
    spent: int
    unknown: int
    held: int
    carved: int
    reserve: int
    classes: Classes
    estimated: int
    calls: int
    in_flight: int
    waiting: int
    waited_seconds: float
    refused: int
    refusals: dict[str, int]
    wrap_ups: int
    weight: float
    paused: bool
    agents: tuple[AccountStatus, ...]
    finished: tuple[Finished, ...]

    @property
    def estimated_share(self) -> float:
        """The part of all that was spent which no provider told."""
        return self.estimated / self.spent if self.spent else 0.0

    @property
    def unknown_share(self) -> float:
        """The part of all that may be on the bill which nobody saw."""
        return self.unknown / (self.spent + self.unknown) if self.unknown else 0.0


class Waiting(msgspec.Struct, frozen=True):
    """One call that waits: whose it is (``agent`` as a path below its run), for which limit, since when and how long.

    ``seconds`` until it goes, as far as rates tell; ``None`` when open calls have to settle first.
    """

    run: str
    agent: str
    model: str
    tokens: int
    limit: str
    since_seconds: float
    seconds: float | None


class Status(AccountStatus, frozen=True, kw_only=True):
    """How a run or an agent stands at one instant, and the pacer around it.

    ``waits`` are the first 100 of its calls that wait, in the order in which they will go; ``waits_for`` and
    ``next_seconds`` are the limit and the time of the first one. The rest is the whole pacer's: ``tokens_available``,
    the level of the token bucket (negative while it pays back), ``None`` without a rate; ``server_pause_seconds``, the
    longest pause in force that a provider asked for, 0 without one; and what is counted beside the books.
    """

    waits: tuple[Waiting, ...]
    waits_for: str | None
    next_seconds: float | None
    server_pause_seconds: float
    tokens_per_second: float | None
    tokens_available: float | None
    unmetered: int
    failed: int
    failed_tokens: int
    unread: int
    unshared: int

    def json(self) -> str:
        """All of it as one JSON object."""
        return msgspec.json.encode(self).decode()


class Limits(msgspec.Struct, frozen=True):
    """The limits in force for a scope, those of its ancestors included; tokens unless the name says otherwise.

    ``ceiling`` is the smallest of them and ``ceiling_of`` names whose that is; ``remaining`` is the least that any of
    them leaves. ``reserve`` is what is kept for its own wrap-up. ``call`` is what one call may cost here
    (:func:`pacer.limit`). ``share`` is the part of the rate that it gets while all who wait now go on waiting.
    """

    ceiling: int | None
    ceiling_of: str | None
    remaining: int | None
    reserve: int
    call: int | None
    weight: float
    share: float
    tokens_per_second: float | None


class Threshold(msgspec.Struct, frozen=True):
    """An account has booked ``fraction`` of its ceiling: ``spent`` and ``unknown`` of ``ceiling`` tokens.

    ``agent`` is its path below the run, empty for the run itself.
    """

    run: str
    agent: str
    fraction: float
    spent: int
    unknown: int
    ceiling: int
