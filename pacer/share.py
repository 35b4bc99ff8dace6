"""What of the sums that several processes share is this one's, told by what the books have answered; the rest of them
is what others booked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pacer import ledger
from pacer.entry import SUMS, Hold, RunBooks, Settle
from pacer.ledger import Account
from pacer.register import RUNS_REMEMBERED

_SPENT, _HELD, _CARVED, _IN_FLIGHT = (SUMS.index(name) for name in ("spent", "held", "carved", "in_flight"))
_INDEX = {name: index for index, name in enumerate(SUMS)}


class Receded(Exception):
    """Shared books say that less of a run was spent than they said before: writes were lost."""


class Share:
    """One process's part of each run it uses, and of what is carved out there."""

    def __init__(self) -> None:
        self._own: dict[Account, list[int]] = {}
        self._highest: dict[Account, int] = {}
        self._carves: dict[str, int] = {}

    def open(self, run: Account) -> None:
        """A run is used from now on; what is there of this process is known here already."""
        if len(self._own) > 2 * RUNS_REMEMBERED:
            self._own = {run: own for run, own in self._own.items() if not run.ended}
            self._highest = {run: spent for run, spent in self._highest.items() if not run.ended}
        self._own.setdefault(run, ledger.own_sums(run))

    def expect(self, run: Account, books: RunBooks) -> None:
        """These books are at least those seen before. Raises: Receded."""
        spent = books.sums[_SPENT]
        if spent < self._highest.get(run, 0):
            raise Receded(run.name)
        self._highest[run] = spent

    def others(self, run: Account, books: RunBooks) -> tuple[int, ...]:
        """What others have booked on a run; what they have claimed counts as held."""
        others = [total - own for total, own in zip(books.sums, self._of(run), strict=True)]
        others[_HELD] += books.claimed
        return tuple(others)

    def hold(self, run: Account, entry: Hold, amount: int) -> None:
        """The books hold ``amount`` tokens for this process, and what its agents have carved out with them."""
        own = self._of(run)
        own[_HELD] += amount
        own[_IN_FLIGHT] += 1
        for carve in entry.carves:
            if carve.id not in self._carves:
                self._carves[carve.id] = carve.amount
                own[_CARVED] += carve.amount
        self._draw(own, entry.reserve, entry.worst)

    def end(self, run: Account, entry: Settle, amount: int) -> None:
        """The hold of ``amount`` tokens has ended."""
        own = self._of(run)
        own[_HELD] -= amount
        own[_IN_FLIGHT] -= 1
        self._draw(own, entry.reserve, -entry.returned)

    def book(self, run: Account, booked: Mapping[str, int]) -> None:
        """A settlement was added to the sums."""
        own = self._of(run)
        for name, amount in booked.items():
            own[_INDEX[name]] += amount

    def release(self, run: Account, names: Iterable[str]) -> None:
        """What was left of these carves is everybody's again."""
        self._of(run)[_CARVED] -= sum(self._carves.pop(name, 0) for name in names)

    def begin_anew(self, runs: Iterable[Account]) -> None:
        """After a fork: what was carved out is the parent's."""
        self._carves.clear()
        self._own |= {run: ledger.own_sums(run) for run in runs}

    def _of(self, run: Account) -> list[int]:
        own = self._own.get(run)
        if own is None:
            own = self._own[run] = [0] * len(SUMS)
        return own

    def _draw(self, own: list[int], name: str, amount: int) -> None:
        """Take from a carve, at most what it has; a negative amount goes back. Nothing, if it is not there any more."""
        if name in self._carves:
            drawn = min(amount, self._carves[name])
            self._carves[name] -= drawn
            own[_CARVED] -= drawn
