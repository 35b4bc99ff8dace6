"""The tree of accounts, pacer -> run -> agent -> agent: what is spent, unknown, held and carved out at every node.

The invariants of the books live here: a parent is the sum of its children and its own calls, and for every account
``spent + unknown + held + carved <= ceiling`` as long as holds are upper bounds.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from pacer.entry import SUMS
from pacer.fair import Turn
from pacer.usage import AccountKind, AccountStatus, Classes, Estimate, Finished, Settlement, Threshold, Usage

DEFAULT_FRACTIONS = (0.8, 1.0)
"""Of these parts of every ceiling it is told once when they are booked."""
FINISHED_REMEMBERED = 256
"""So many names of ended agents are told apart in each account; further ones are :data:`OTHERS`."""
OTHERS = "(others)"

_NEVER = 2**63


@dataclass(slots=True)
class Watch:
    """A part of the ceiling whose booking is told, once; without a listener in the log and on the span only."""

    fraction: float
    tell: Callable[[Threshold], object] | None = None
    told: bool = False


class Account:
    """One node of the tree.

    ``remaining`` is derived, never stored. ``path`` is this account and all its ancestors, nearest first. An agent
    starts with its first call: ``started`` is its number among all that have, 0 before. ``reserve`` is what is carved
    out then for its wrap-up; ``left`` is what of that is neither spent nor ``lent`` to an open call.
    """

    __slots__ = (
        "_told_at",
        "_watches",
        "cached",
        "calls",
        "carved",
        "ceiling",
        "children",
        "ended",
        "estimated",
        "finished",
        "held",
        "id",
        "in_flight",
        "input",
        "kind",
        "largest_waiting",
        "left",
        "lent",
        "name",
        "others",
        "output",
        "own",
        "parent",
        "path",
        "paused",
        "reasoning",
        "refusals",
        "reserve",
        "row",
        "run",
        "seen_at",
        "spent",
        "started",
        "turn",
        "unknown",
        "waited_seconds",
        "waiting",
        "wrap_ups",
        "written",
    )

    def __init__(
        self,
        name: str,
        ceiling: int | None = None,
        parent: Account | None = None,
        *,
        kind: AccountKind = "run",
        id: int = 0,
        reserve: int = 0,
        weight: float = 1.0,
    ) -> None:
        self.name = name
        self.kind = kind
        self.id = id
        self.ceiling = ceiling
        self.parent = parent
        self.path: tuple[Account, ...] = (self, *(parent.path if parent is not None else ()))
        self.run: Account = self.path[max(0, len(self.path) - 2)]
        """The run that it belongs to."""
        self.children: dict[int, Account] = {}
        self.finished: OrderedDict[str, Finished] = OrderedDict()
        self.turn: Turn = Turn(parent.turn if parent is not None else None, weight)
        self.own = Turn(self.turn, rank=-1.0)
        """Where its own calls wait, beside those of its children."""
        self.spent = self.unknown = self.held = self.carved = 0
        self.input = self.output = self.cached = self.written = self.reasoning = self.estimated = 0
        self.calls = self.in_flight = self.waiting = self.wrap_ups = 0
        self.waited_seconds = 0.0
        self.refusals: dict[str, int] = {}
        self.reserve = reserve
        self.left = self.lent = 0
        self.started = 0
        self.paused = self.ended = False
        self.largest_waiting = 0
        """The most room that one of those who wait below needs."""
        self._watches = [Watch(fraction) for fraction in DEFAULT_FRACTIONS]
        self._told_at = _NEVER
        self.others: tuple[int, ...] = ()
        """What of its sums is other processes', in the order of :data:`pacer.entry.SUMS`."""
        self.seen_at = math.inf
        """When it was last seen what others have booked on it; always, if there are no others."""
        self.row: AccountStatus | None = None
        """Its status, as long as nothing has changed."""
        self._look_out()
        if parent is not None:
            parent.children[id] = self
            parent.touch()

    @property
    def remaining(self) -> int | None:
        """Tokens that nobody has spent, holds or has carved out; negative after an overshoot."""
        return None if self.ceiling is None else self.ceiling - self.spent - self.unknown - self.carved - self.held

    @property
    def label(self) -> str:
        """Its place below its run: names of agents, parted by ``/``; empty for the run itself."""
        return "/".join(node.name for node in reversed(self.path) if node.kind == "agent")

    @property
    def is_capped(self) -> bool:
        """Whether a ceiling holds for it, its own or one above."""
        return any(node.ceiling is not None for node in self.path)

    def never_fits(self, amount: int) -> bool:
        """Whether there would be no room for ``amount`` even if every open hold came back."""
        return self.ceiling is not None and self.spent + self.unknown + self.carved + amount > self.ceiling

    def touch(self) -> None:
        """Its status is to be made anew, and so is that of all above it."""
        for node in self.path:
            node.row = None

    def is_idle(self) -> bool:
        """Whether nobody calls, waits or works below it."""
        return not self.in_flight and not self.waiting and not self.children

    def set_ceiling(self, ceiling: int | None) -> None:
        """Change the ceiling; what is spent stays spent. What is not booked of the new one any more is told again."""
        self.ceiling = ceiling
        self.touch()
        for watch in self._watches:
            watch.told = watch.told and ceiling is not None and self._has_booked(watch.fraction, ceiling)
        self._look_out()

    def watch(self, watches: list[Watch]) -> None:
        """Tell ``watches`` when their fractions are booked."""
        self._watches += watches
        self._look_out()

    def crossed(self) -> list[Watch]:
        """Those who are to be told now; each is given once."""
        if self.spent + self.unknown < self._told_at or self.ceiling is None:
            return []
        due = [watch for watch in self._watches if not watch.told and self._has_booked(watch.fraction, self.ceiling)]
        for watch in due:
            watch.told = True
        self._look_out()
        return due

    def _has_booked(self, fraction: float, ceiling: int) -> bool:
        return self.spent + self.unknown >= fraction * ceiling

    def _look_out(self) -> None:
        open_ones = [watch.fraction for watch in self._watches if not watch.told]
        self._told_at = math.ceil(min(open_ones) * self.ceiling) if open_ones and self.ceiling else _NEVER


# ---------------------------------------------------------------- before a call


def fit(account: Account, call: Estimate, threshold: int) -> int | Account:
    """What can be held for ``call`` now, on the whole path; else the nearest account that is short of it.

    That is its worst case, or as much as would fit if every open hold came back, but never less than its least.
    ``threshold`` is the room that an agent needs in its run for its first call.
    """
    worst = call.worst
    if account.started:
        for node in account.path:
            if node.ceiling is not None and (
                node.spent + node.unknown + node.carved + node.held + worst > node.ceiling
            ):
                break
        else:
            return worst
    demands = list(_demands(account, threshold))
    amount = min(
        [worst, *(node.ceiling - _gone(node) - beside for node, beside, _ in demands if node.ceiling is not None)]
    )
    for node, beside, least in demands:
        if node.ceiling is None:
            continue
        room = node.ceiling - _gone(node)
        if room - beside < call.least or max(amount + beside, least) > room - node.held:
            return node
    return amount


def needs(account: Account, call: Estimate, threshold: int) -> list[tuple[Account, int]]:
    """The room that ``call`` needs at each account of the path before it can ever go."""
    return [(node, max(call.least + beside, least)) for node, beside, least in _demands(account, threshold)]


def _demands(account: Account, threshold: int) -> Iterator[tuple[Account, int, int]]:
    """For each account of the path: what is carved out together with the call, and the room that a start needs."""
    beside = 0
    for node in account.path:
        if not node.started:
            beside += node.reserve
        starts = node.kind == "run" and account.kind == "agent" and not account.started
        yield node, beside, threshold if starts else 0


def _gone(node: Account) -> int:
    return node.spent + node.unknown + node.carved


def start(account: Account, number: int) -> tuple[Account, ...]:
    """The account's first call is granted: carve out its reserve, and those of ancestors that have not started yet.

    Those that have started are returned.
    """
    starts = tuple(itertools.takewhile(lambda node: not node.started, account.path))
    for node in starts:
        node.started = number
        node.turn.rank = number
        node.turn.is_late = False
        node.turn.reorder()
        if node.reserve:
            node.left = node.reserve
            _carve(node, node.reserve)
    return starts


def not_start(starts: Iterable[Account]) -> None:
    """These have not started after all; their next call starts them."""
    for node in starts:
        node.started = 0
        _carve(node, -node.left)
        node.left = 0


def end(account: Account) -> None:
    """The account takes no more calls; what is left of its reserve is everybody's again."""
    account.ended = True
    _carve(account, -account.left)
    account.left = account.reserve = 0  # a call of it that still waits carves nothing out any more


def _carve(account: Account, amount: int) -> None:
    for node in account.path:
        node.carved += amount
        node.row = None


# ---------------------------------------------------------------- around a call


def hold(account: Account, amount: int, *, from_reserve: bool = False) -> None:
    """Set ``amount`` aside on the whole path, out of the account's reserve or of what remains; it was asked before."""
    if from_reserve:
        account.left -= amount
        account.lent += amount
        _carve(account, -amount)
    for node in account.path:
        node.held += amount
        node.in_flight += 1
        node.row = None


def lower(account: Account, amount: int) -> None:
    """Hold ``amount`` less for an open call."""
    for node in account.path:
        node.held -= amount
        node.row = None


def release(account: Account, amount: int, *, from_reserve: bool = False) -> None:
    """Take back a hold whose call was never made."""
    for node in account.path:
        node.held -= amount
        node.in_flight -= 1
        node.row = None
    if from_reserve:
        account.lent -= amount
        _give_back(account, amount)


def settle(account: Account, amount: int, usage: Usage, settlement: Settlement, *, from_reserve: bool = False) -> None:
    """Replace a hold of ``amount`` by what became of it. More than was held is booked all the same, never clamped."""
    if settlement.source == "void":
        release(account, amount, from_reserve=from_reserve)
        return
    spent, unknown = settlement.spent, settlement.unknown
    estimated = 0 if settlement.source == "provider" else spent
    for node in account.path:
        node.held -= amount
        node.in_flight -= 1
        node.spent += spent
        node.unknown += unknown
        node.input += usage.input
        node.output += usage.output
        node.cached += usage.cached
        node.written += usage.written
        node.reasoning += usage.reasoning
        node.estimated += estimated
        node.calls += 1
        node.row = None
        if from_reserve:
            node.wrap_ups += 1
    if from_reserve:
        account.lent -= amount
        _give_back(account, max(0, amount - spent - unknown))


def _give_back(account: Account, amount: int) -> None:
    """What a wrap-up did not use is its agent's again, or everybody's if that has ended."""
    if not account.ended:
        account.left += amount
        _carve(account, amount)


def queue(account: Account, number: int) -> None:
    """Add ``number`` to the calls that wait."""
    for node in account.path:
        node.waiting += number
        node.row = None


def waited(account: Account, seconds: float) -> None:
    """A call has waited for ``seconds``."""
    for node in account.path:
        node.waited_seconds += seconds


def refuse(account: Account, limit: str) -> None:
    """A call was refused by ``limit``."""
    for node in account.path:
        node.refusals[limit] = node.refusals.get(limit, 0) + 1
        node.row = None


def usual_call(account: Account) -> int | None:
    """What a call of the account's run has cost so far in the middle, at least 1; ``None`` before the first one."""
    run = account.run
    return max(1, round((run.spent + run.unknown) / run.calls)) if run.calls else None


# ---------------------------------------------------------------- beside other processes


def take_over(run: Account, others: tuple[int, ...]) -> bool:
    """Let the sums of a run include those of ``others`` who book on it, too; whether that changes anything."""
    before = run.others or (0,) * len(SUMS)
    if others == before:
        return False
    run.others = others
    for name, was, now in zip(SUMS, before, others, strict=True):
        if was != now:
            for node in run.path:
                setattr(node, name, getattr(node, name) + now - was)
    run.touch()
    return True


def own_sums(run: Account) -> list[int]:
    """What of a run's sums is this process's."""
    others = run.others or (0,) * len(SUMS)
    return [getattr(run, name) - theirs for name, theirs in zip(SUMS, others, strict=True)]


# ---------------------------------------------------------------- after it all


def retire(account: Account) -> list[Account]:
    """Fold ended accounts below which nothing goes on into their parents' summaries; those that are gone."""
    gone = []
    node = account
    while node.ended and node.parent is not None and node.is_idle() and node.id in node.parent.children:
        del node.parent.children[node.id]
        _remember(node.parent.finished, node)
        node.parent.touch()
        gone.append(node)
        node = node.parent
    return gone


def _remember(finished: OrderedDict[str, Finished], account: Account) -> None:
    name = account.name if account.name in finished or len(finished) < FINISHED_REMEMBERED else OTHERS
    before = finished.get(name, Finished(name, 0, 0, 0, 0, 0, 0))
    finished[name] = replace(
        before,
        agents=before.agents + 1,
        calls=before.calls + account.calls,
        spent=before.spent + account.spent,
        unknown=before.unknown + account.unknown,
        refused=before.refused + sum(account.refusals.values()),
        wrap_ups=before.wrap_ups + account.wrap_ups,
    )


def row(account: Account) -> AccountStatus:
    """The account's status; that of everything below which nothing has changed is taken as it was."""
    if account.row is None:
        account.row = AccountStatus(**fields(account))
    return account.row


def fields(account: Account) -> dict[str, Any]:
    """The fields of the account's status."""
    return {
        "name": account.name,
        "kind": account.kind,
        "ceiling": account.ceiling,
        "remaining": account.remaining,
        "spent": account.spent,
        "unknown": account.unknown,
        "held": account.held,
        "carved": account.carved,
        "reserve": account.left,
        "classes": Classes(account.input, account.output, account.cached, account.written, account.reasoning),
        "estimated": account.estimated,
        "calls": account.calls,
        "in_flight": account.in_flight,
        "waiting": account.waiting,
        "waited_seconds": account.waited_seconds,
        "refused": sum(account.refusals.values()),
        "refusals": dict(account.refusals),
        "wrap_ups": account.wrap_ups,
        "weight": account.turn.weight,
        "paused": account.paused,
        "agents": tuple([row(child) for child in account.children.values()]),
        "finished": tuple(account.finished.values()),
    }
