"""Entries: what one process writes into books that it shares with others, and what it is told there.

The books of a pacer that several processes share are its rates and its runs. Agents belong to the process that opened
them; of them the books know the tokens that are carved out, and what each process last told to be shown.
Everything here is plain values: a store spells them in SQL or Lua.
"""

from __future__ import annotations

import msgspec

from pacer.usage import Kind

SUMS = (
    "spent",
    "unknown",
    "held",
    "carved",
    "input",
    "output",
    "cached",
    "written",
    "reasoning",
    "estimated",
    "calls",
    "in_flight",
)
"""What is added up for each run over all processes; the names are those of an account."""


class Limit(msgspec.Struct, frozen=True):
    """One rate: the setting that gives it, what it counts, ``amount`` every ``per`` seconds, and the burst."""

    setting: str
    kind: Kind
    amount: float
    per: float
    burst: float


class Carve(msgspec.Struct, frozen=True):
    """What is carved out for one agent's wrap-up."""

    id: str
    amount: int


class Hold(msgspec.Struct, frozen=True):
    """Asks for a place for one call: ``worst`` tokens under the ceiling of ``run``, but no fewer than ``least``.

    Its agent may start with it: then ``carves`` are made along with it, and ``room`` is what has to be left in all.
    ``reserve`` is the carve that pays for a wrap-up, which no ceiling stops. ``takes`` is what it takes of each kind of
    rate; where that makes it wait longer than ``patience`` seconds, nothing is taken and nothing held.
    """

    id: str
    run: str
    worst: int
    least: int
    takes: dict[Kind, int]
    patience: float | None = None
    room: int = 0
    carves: tuple[Carve, ...] = ()
    reserve: str = ""


class Settle(msgspec.Struct, frozen=True):
    """Ends the hold of that id, once: ``booked`` is added to the sums, ``gives_back`` to the rates (below 0: taken).

    Nothing booked is a call that was never made. ``returned`` goes back to the carve ``reserve``. A call that was let
    go while the store was away was never held (``is_held``): where there is no hold, nothing was taken that could go
    back to the rates.
    """

    id: str
    run: str
    booked: dict[str, int]
    gives_back: dict[Kind, int]
    reserve: str = ""
    returned: int = 0
    is_held: bool = True


class Release(msgspec.Struct, frozen=True):
    """What is left of these carves is everybody's again."""

    run: str
    ids: tuple[str, ...]


class Withdraw(msgspec.Struct, frozen=True):
    """Nobody of this process waits for room under the ceiling of ``run`` any more: see :class:`Short`."""

    run: str


class Look(msgspec.Struct, frozen=True):
    """Asks how a run stands. Without room for ``needs`` tokens the process has a claim then: see :class:`Short`."""

    run: str
    needs: int = 0


class Change(msgspec.Struct, frozen=True):
    """Changes a run (the whole pacer, without a name), for all processes; what is ``UNSET`` stays."""

    run: str = ""
    ceiling: int | msgspec.UnsetType | None = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET
    limits: tuple[Limit, ...] | msgspec.UnsetType = msgspec.UNSET


Entry = Hold | Settle | Release | Withdraw | Look | Change


class Held(msgspec.Struct, frozen=True):
    """Answers a hold: ``amount`` tokens are held, and the call may be sent in ``seconds``, for the rate ``limit``."""

    amount: int
    seconds: float = 0.0
    limit: str = ""


class Short(msgspec.Struct, frozen=True):
    """Answers a hold: no room under the ceiling now, or the run is paused; nothing is held.

    If open holds may make room, the process has a claim now: who claimed first goes first.
    """


class Late(msgspec.Struct, frozen=True):
    """Answers a hold: the rate ``limit`` would make it wait for ``seconds``, which is longer than its patience."""

    limit: str
    seconds: float


class Missing(msgspec.Struct, frozen=True):
    """Answers a settlement: there is no such hold. It was settled before, or the store has lost it."""


Verdict = Held | Short | Late | Missing


class RunBooks(msgspec.Struct, frozen=True):
    """How a run stands over all processes: its sums in the order of :data:`SUMS`, and what others claimed before us."""

    ceiling: int | None
    paused: bool
    claimed: int
    sums: tuple[int, ...]


class Answer(msgspec.Struct, frozen=True):
    """What an exchange brought: one verdict an entry (``None`` where there is nothing to say), and how things stand.

    ``revision`` is another one when the limits of the pacer were changed; ``levels`` are those of its rates, by kind,
    and ``refunds`` all that was ever given back to them by calls that were sent: who took more than there was may go so
    much sooner.
    """

    verdicts: list[Verdict | None]
    runs: dict[str, RunBooks]
    levels: dict[Kind, float]
    refunds: dict[Kind, int]
    paused: bool = False
    revision: int = 0
