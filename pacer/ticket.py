"""The values around one decision: who asks, what for, where it sleeps meanwhile, and the place it gets."""

from __future__ import annotations

from typing import Protocol

import msgspec

from pacer.bucket import Bucket
from pacer.errors import BudgetExceeded
from pacer.ledger import Account
from pacer.usage import Estimate, Kind, Rate, Settlement, Usage, Wait


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


class Reservation(msgspec.Struct, eq=False):
    """A place for one call, from admission until it is settled. ``process`` counts the forks before it was given.

    ``call.worst`` is what is held: less than was asked where the output cap is to be lowered. It was taken from
    ``gates``, and with ``from_reserve`` out of the agent's own reserve. ``probes`` says that it is one of a server's
    slow start, ``charged`` what its agent's turn was charged, if it had to wait for one.
    """

    id: int
    process: int
    account: Account
    owner: object
    call: Estimate
    gates: tuple[Gate, ...]
    granted_at: float
    waited_seconds: float
    from_reserve: bool = False
    probes: bool = False
    charged: int = 0
    settlement: Settlement | None = None
    settled_at: float | None = None


class Caller(msgspec.Struct, frozen=True, eq=False):
    """Whose call it is. ``tokens`` is the most that it may hold, ``wraps_up`` says that its agent's reserve may pay."""

    account: Account
    tokens: int | None = None
    wraps_up: bool = False


class Ticket(msgspec.Struct, eq=False):
    """One call on its way to a decision; ``decision`` stays ``None`` as long as it waits in its line.

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
    wait: Wait | None = None
    position: int = 0
    seat: Seat | None = None

    @property
    def account(self) -> Account:
        """The account of the caller."""
        return self.caller.account


def gate(limit: str, kind: Kind, rate: Rate, burst: float, now: float) -> Gate:
    """A gate with a full bucket."""
    return Gate(limit, kind, Bucket(rate, burst, now))
