"""Where the books lie that several processes share: what a shared store needs of SQLite or Redis, and no more.

A vault decides nothing that needs more than the sums of a run and the levels of the rates; whose turn it is, refusals
and agents are the business of each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pacer.entry import SUMS, Answer, Entry, Limit, RunBooks

KEPT_SECONDS = 30 * 24 * 3600.0
"""The books of a run are kept so long after it was last used."""


class Away(Exception):
    """The vault cannot be reached, or does not answer in time; it may have done what it was asked to."""


class Busy(Away):
    """Another process is at it just now; nothing was done."""


class Forgotten(Exception):
    """The vault does not know any more what it knew before: it was emptied, replaced or restored, or the run ended.

    ``run`` is the run that is gone; all of them, without a name.
    """

    def __init__(self, why: str, run: str = "") -> None:
        super().__init__(why)
        self.run = run


class Opened(msgspec.Struct, frozen=True):
    """A pacer's limits as its first process set them (or as they were changed), and one of its runs."""

    limits: tuple[Limit, ...]
    paused: bool
    revision: int
    run: RunBooks


class RunRow(msgspec.Struct, frozen=True):
    """One run of a vault, for an operator. ``members`` holds what each living process last told, as JSON."""

    pacer: str
    name: str
    books: RunBooks
    limits: tuple[Limit, ...]
    levels: dict[str, float]
    used_at: float
    members: tuple[str, ...] = ()

    def sums(self) -> dict[str, int]:
        """The sums by name."""
        return dict(zip(SUMS, self.books.sums, strict=True))


class Vault(Protocol):
    """The shared books of one pacer, as one process reaches them. Not thread-safe: who uses it has it alone.

    All times are the vault's own. Raises on all ways: Away, Forgotten, and StoreError for what no waiting mends.
    """

    is_quick: bool
    """Whether an exchange is short enough just now for an event loop to wait for."""
    member: str
    """What this process is called there."""

    def open(self, run: str, ceiling: int | None, limits: tuple[Limit, ...]) -> Opened:
        """The run, made with this ceiling if there is none; and the pacer, made with these limits if there is none."""

    def exchange(self, entries: Sequence[Entry], *, patient: bool = True) -> Answer:
        """Write entries, in order, each in one critical section, and each once however often its id comes.

        Raises: Busy if it would have to wait and is not to be ``patient``, or Away if the answer is still to come.
        """

    def renew(self, status: str) -> None:
        """This process lives: prolong the lease of all it holds. What it has to show is ``status``, JSON.

        The holds of others whose lease has run out become unknown; what they had carved out is everybody's again.
        """

    def limits(self) -> tuple[Limit, ...]:
        """The limits of the pacer as they are now."""

    def leave(self) -> None:
        """This process ends: its carves and claims go, its holds are left to their lease."""

    def after_fork(self) -> None:
        """In a forked child: be another process, with a connection of its own; the inherited one is left alone."""

    def rows(self) -> list[RunRow]:
        """Every run of every pacer there, the one used last at the end. Leases that have run out are booked before."""

    def end(self, run: str) -> None:
        """Remove the books of a run of this pacer; processes that are still in it find it forgotten."""

    def close(self) -> None:
        """Close the connection."""
