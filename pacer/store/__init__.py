"""Where the books lie: in the memory of this process, or where other processes book, too. One protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from pacer.admission import Admission
from pacer.ledger import Account
from pacer.ticket import Caller, Reservation, Seat, Ticket
from pacer.usage import Estimate, Oddity, Settlement, Status, Usage, Word

__all__ = ["Store"]

T = TypeVar("T")


class Store(Protocol):
    """The books of one pacer. Every call is atomic, thread-safe and wakes whom it lets in."""

    @property
    def account(self) -> Account:
        """The run of those who name none."""

    def offer(self, call: Estimate, owner: object, caller: Caller) -> Ticket:
        """Decide on a call of ``owner`` (a task or thread) for ``caller``, or queue it."""

    def run(self, name: str, ceiling: int | None) -> Account:
        """The run of that name; a new one gets this ceiling. Raises: StoreError."""

    def sit(self, ticket: Ticket, seat: Seat, *, asks: bool = False) -> None:
        """Tell where the owner of an undecided ticket sleeps, with ``asks`` only until the books of others answer."""

    def leave(self, ticket: Ticket) -> None:
        """The owner of a ticket does not want it any more, granted or not; safe inside a garbage collection."""

    def settle(self, place: Reservation, usage: Usage, counted: Usage, settlement: Settlement) -> None:
        """End a reservation: ``usage`` for the books, ``counted`` for the rates; safe inside a garbage collection."""

    def answered(self, place: Reservation, status: int, word: Word | None) -> None:
        """Take in what a server said of its own limits in its answer to ``place``."""

    def tick(self) -> None:
        """Time has passed for the head of the lane."""

    def do(self, operation: Callable[[Admission, float], T]) -> T:
        """Do something with the admission, which is told the time, too."""

    def look(self, operation: Callable[[Admission, float], T], account: Account | None = None) -> T:
        """The same, to see only: as it stands in all processes, for the run of ``account``."""

    def when_written(self, place: Reservation, seat: Seat) -> bool:
        """Wake ``seat`` when the end of a reservation is written for all processes; ``False`` if it is."""

    def close(self) -> None:
        """Let go of what the books of other processes keep for this one. Twice is fine."""

    def post(self, operation: Callable[[Admission, float], object]) -> None:
        """The same, at once or as soon as the books are free; safe inside a garbage collection."""

    def count(self, oddity: Oddity, amount: int = 1) -> None:
        """Count what is counted beside the books; safe inside a garbage collection."""

    def status(self, account: Account | None = None) -> Status:
        """How everything stands at one instant, seen from ``account`` or the run of those who name none."""
