"""The way of one call to its place, written once: it neither blocks nor awaits, it says what to wait for.

A driver runs the generator: it does each step (blocking or awaiting) and goes on; tests drive it by hand.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from pacer import parking, telemetry
from pacer.errors import BudgetExceeded
from pacer.smoothing import Smoothing
from pacer.store import Store
from pacer.ticket import Caller, Reservation, Ticket
from pacer.usage import Estimate


class Park(msgspec.Struct, frozen=True):
    """Sleep until the ticket is decided, or only until books that others share have answered (``asks``)."""

    store: Store
    ticket: Ticket
    asks: bool = False


class Space(msgspec.Struct, frozen=True):
    """Wait for the next free start."""

    smoothing: Smoothing


class Pause(msgspec.Struct, frozen=True):
    """Sleep for ``seconds``."""

    seconds: float


Step = Park | Space | Pause


def admit(
    store: Store, call: Estimate, caller: Caller, smoothing: Smoothing | None = None
) -> Generator[Step, None, Reservation]:
    """A place for ``call``. Whoever cancels it on the way leaves no trace. Raises: BudgetExceeded."""
    ticket = store.offer(call, parking.owner(), caller)
    waited_for = ""
    try:
        while ticket.is_asking:
            yield Park(store, ticket, asks=True)
        if ticket.decision is None:
            waited_for = ticket.wait.limit if ticket.wait else "unknown"
            with telemetry.waiting(ticket):
                while ticket.decision is None:
                    yield Park(store, ticket)
        decision = ticket.decision
        if isinstance(decision, BudgetExceeded):
            telemetry.refused(decision, call)
            raise decision
        assert decision is not None, "a parked call was woken without a decision"
        if smoothing is not None:
            yield Space(smoothing)
        decision.waited_for = waited_for
        telemetry.admitted(decision)
        return decision
    except BaseException as error:
        store.leave(ticket)
        telemetry.tell_of_none(store.account.name, ticket, waited_for, error)
        raise
