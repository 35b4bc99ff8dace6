"""Where the books lie. One protocol; today the memory of this process."""

from __future__ import annotations

from typing import Protocol

from pacer.admission import Reservation, Seat, Ticket
from pacer.usage import Estimate, Oddity, Settlement, Status, Usage, Word

__all__ = ["Store"]


class Store(Protocol):
    """The books of one pacer. Every call is atomic, thread-safe and wakes whom it lets in."""

    @property
    def ceiling(self) -> int | None:
        """The ceiling of the run right now."""

    def offer(self, call: Estimate, owner: object) -> Ticket:
        """Decide on a call of ``owner`` (a task or thread), or queue it."""

    def sit(self, ticket: Ticket, seat: Seat) -> None:
        """Tell where the owner of a queued ticket sleeps."""

    def leave(self, ticket: Ticket) -> None:
        """The owner of a ticket does not want it any more, granted or not; safe inside a garbage collection."""

    def settle(self, place: Reservation, usage: Usage, settlement: Settlement) -> None:
        """End a reservation; safe inside a garbage collection."""

    def answered(self, place: Reservation, status: int, word: Word | None) -> None:
        """Take in what a server said of its own limits in its answer to ``place``."""

    def tick(self) -> None:
        """Time has passed for the head of the lane."""

    def set_ceiling(self, ceiling: int | None) -> None:
        """Change the ceiling of the run at once."""

    def count(self, oddity: Oddity, amount: int = 1) -> None:
        """Count what is counted beside the books; safe inside a garbage collection."""

    def status(self) -> Status:
        """How everything stands at one instant."""
