"""The values around one decision: who asks, what for, where it sleeps meanwhile, and the place it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from pacer.bucket import Bucket
from pacer.entry import Entry, Limit
from pacer.errors import BudgetExceeded
from pacer.ledger import Account
from pacer.usage import Estimate, Kind, Rate, Settlement, Source, Usage, Wait


class Seat(Protocol):
    """Where one waiter sleeps; both calls come from any thread and never block."""

    def wake(self) -> None:
        """Let the waiter go on; raises RuntimeError when nobody can be woken any more (its loop is closed)."""

    def arm(self, seconds: float) -> None:
        """Let the waiter keep the time for its lane: it calls ``tick`` after ``seconds``."""


class Gate(msgspec.Struct, frozen=True, eq=False):
    """One rate: the setting's name, what it counts, and its bucket."""

    limit: str
    kind: Kind
    bucket: Bucket

    def asked(self, call: Estimate) -> int:
        """What the call is expected to take from this bucket."""
        amount: int = getattr(call, self.kind)
        return amount

    def used(self, usage: Usage) -> int:
        """What the call took in the end."""
        amount: int = getattr(usage, self.kind)
        return amount

    def back(self, call: Estimate, counted: Usage, source: Source) -> int:
        """What the call gives back in the end, below 0 if it takes more; an unseen bill may be as large as expected."""
        asked = self.asked(call)
        used = 0 if source == "void" else self.used(counted)
        return asked - (used if source in ("void", "provider") else max(asked, used))


class Reservation(msgspec.Struct, eq=False):
    """A place for one call, from admission until it is settled. ``process`` counts the forks before it was given.

    ``call.worst`` is what is held: less than was asked where the output cap is to be lowered. It was taken from
    ``gates``, and with ``from_reserve`` out of the agent's own reserve. ``probes`` says that it is one of a server's
    slow start, ``tells`` that any answer to it tells the server's pace, ``charged`` what its agent's turn was charged,
    if it had to wait for one. ``starts`` are the accounts that started with it. ``shared`` is what books that others
    share hold for it, ``None`` where they do not. ``waited_for`` is the limit that it had to wait for at first,
    ``status`` that of its answer.
    """

    id: int
    process: int
    account: Account
    owner: object
    call: Estimate
    gates: tuple[Gate, ...]
    granted_at: float
    waited_seconds: float = 0.0
    from_reserve: bool = False
    probes: bool = False
    tells: bool = False
    charged: int = 0
    starts: tuple[Account, ...] = ()
    shared: int | None = None
    settlement: Settlement | None = None
    settled_at: float | None = None
    waited_for: str = ""
    status: int | None = None


class Caller(msgspec.Struct, frozen=True, eq=False):
    """Whose call it is. ``tokens`` is the most that it may hold, ``wraps_up`` says that its agent's reserve may pay."""

    account: Account
    tokens: int | None = None
    wraps_up: bool = False


class Ticket(msgspec.Struct, eq=False):
    """One call on its way to a decision; ``decision`` stays ``None`` as long as it waits in its line.

    ``place`` is its place from the moment that it is kept, ``is_asking`` while books that others share are asked for
    it; and then it ``is_left`` if nobody wants it any more.

    ``needs`` is the room it needs at each account of its path: the least that it may hold, and beside that what its
    owner (a task or thread) holds there already, for an owner that waits closes nothing.
    """

    number: int
    call: Estimate
    caller: Caller
    owner: object
    since: float
    deadline: float | None
    needs: list[tuple[Account, int]] = []
    decision: Reservation | BudgetExceeded | None = None
    place: Reservation | None = None
    is_asking: bool = False
    is_left: bool = False
    wait: Wait | None = None
    position: int = 0
    seat: Seat | None = None

    @property
    def account(self) -> Account:
        """The account of the caller."""
        return self.caller.account


class Posted(msgspec.Struct, eq=False):
    """An entry on its way to shared books: whose case it decides, whose place it ends, and when it was written.

    ``done`` is called, outside the lock, when the books have it; it ``is_kept`` where it outlives this process,
    and ``is_doubtful`` if they may have it already.
    """

    entry: Entry
    since: float
    ticket: Ticket | None = None
    place: Reservation | None = None
    done: Callable[[], object] | None = None
    is_kept: bool = False
    is_doubtful: bool = False


def gate(limit: str, kind: Kind, rate: Rate, burst: float, now: float) -> Gate:
    """A gate with a full bucket."""
    return Gate(limit, kind, Bucket(rate, burst, now))


def gates_of(limits: Iterable[Limit], now: float, old: tuple[Gate, ...] = ()) -> tuple[Gate, ...]:
    """The gates for these limits; one that counts what an ``old`` one counted goes on with its bucket."""
    gates = []
    for limit in limits:
        made = gate(limit.setting, limit.kind, Rate(limit.amount, limit.per), limit.burst, now)
        before = next((gate for gate in old if gate.kind == limit.kind), None)
        if before is not None:
            made.bucket.set_level(before.bucket.level(now), now)
        gates.append(made)
    return tuple(gates)
