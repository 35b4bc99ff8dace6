"""The one decision over all buckets and all accounts, and the lane of those waiting for it.

Nothing here locks, waits, wakes or looks at a clock: a store does, and passes ``now``.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, Protocol

from pacer import ledger
from pacer.bucket import Bucket
from pacer.errors import BudgetExceeded, CeilingReached, WaitTooLong
from pacer.ledger import Account
from pacer.usage import Estimate, Rate, Settlement, Status, Uncharged, Usage, Wait

Kind = Literal["tokens", "input", "output", "requests"]


class Seat(Protocol):
    """Where one waiter sleeps; both calls come from any thread and never block."""

    def wake(self) -> None:
        """Let the waiter go on; raises RuntimeError when nobody can be woken any more (its loop is closed)."""

    def arm(self, seconds: float) -> None:
        """Let the waiter keep the time for its lane: it calls ``tick`` after ``seconds``."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One rate: the setting's name, what it counts, and its bucket."""

    limit: str
    kind: Kind
    bucket: Bucket

    def asked(self, call: Estimate) -> int:
        """What the call is expected to take from this bucket."""
        match self.kind:
            case "tokens":
                return call.expected
            case "input":
                return call.input
            case "output":
                return call.output
            case "requests":
                return 1

    def used(self, usage: Usage) -> int:
        """What the call took in the end."""
        match self.kind:
            case "tokens":
                return usage.total
            case "input":
                return usage.input
            case "output":
                return usage.output
            case "requests":
                return 1


class Reservation:
    """A place for one call, from admission until it is settled. ``process`` counts the forks before it was given."""

    __slots__ = (
        "account",
        "call",
        "granted_at",
        "id",
        "owner",
        "process",
        "settled_at",
        "settlement",
        "waited_seconds",
    )

    def __init__(self, id: int, process: int, account: Account, ticket: Ticket, now: float) -> None:
        self.id = id
        self.process = process
        self.account = account
        self.call = ticket.call
        self.owner = ticket.owner
        self.granted_at = now
        self.waited_seconds = max(0.0, now - ticket.since)
        self.settlement: Settlement | None = None
        self.settled_at: float | None = None


class Ticket:
    """One call on its way to a decision; ``decision`` stays ``None`` as long as it waits in the lane.

    ``bound`` is its worst case and what its owner (a task or thread) holds already: an owner that waits closes nothing,
    so both must fit beside each other.
    """

    __slots__ = ("bound", "call", "deadline", "decision", "owner", "position", "seat", "since", "wait")

    def __init__(self, call: Estimate, owner: object, owned: int, since: float, deadline: float | None) -> None:
        self.call = call
        self.owner = owner
        self.bound = call.worst + owned
        self.since = since
        self.deadline = deadline
        self.decision: Reservation | BudgetExceeded | None = None
        self.wait: Wait | None = None
        self.position = 0
        self.seat: Seat | None = None


class Admission:
    """Buckets, accounts and the lane of one pacer. First come, first served; the head is never overtaken."""

    def __init__(
        self,
        account: Account,
        gates: tuple[Gate, ...] = (),
        *,
        max_wait: float | None = None,
        may_wait: bool = True,
    ) -> None:
        self.account = account
        self.gates = gates
        self.max_wait = max_wait
        self.may_wait = may_wait
        self.refused = 0
        self.uncharged: dict[Uncharged, int] = {"unmetered": 0, "failed": 0}
        self._lane: OrderedDict[Ticket, None] = OrderedDict()
        self._backlog = dict.fromkeys(gates, 0)
        self._largest_waiting = 0
        self._held_by: dict[object, int] = {}
        self._ids = itertools.count(1)
        self._process = 0

    def offer(self, call: Estimate, owner: object, now: float) -> Ticket:
        """Decide on a new call: granted or refused at once, or placed at the end of the lane."""
        deadline = None if self.max_wait is None else now + self.max_wait
        ticket = Ticket(call, owner, self._held_by.get(owner, 0), now, deadline)
        answer = self._answer(ticket, now)
        if answer is None:
            self._grant(ticket, now)
        elif isinstance(answer, BudgetExceeded):
            self._refuse(ticket, answer)
        elif not self.may_wait or (self.max_wait is not None and (answer.seconds or 0.0) > self.max_wait):
            self._refuse(ticket, self._too_long(ticket, answer))
        else:
            self._queue(ticket, answer)
        return ticket

    def pump(self, now: float) -> list[Ticket]:
        """Decide on everybody who can be decided now, in order; those are returned and have left the lane."""
        decided = self._dismiss_hopeless()
        while self._lane:
            ticket = next(iter(self._lane))
            answer = self._decide(ticket.call, now)
            if answer is None:
                self._unqueue(ticket)
                self._grant(ticket, now)
            elif self._is_late(ticket, answer, now):
                self._unqueue(ticket)
                self._refuse(ticket, self._too_long(ticket, answer))
            else:
                ticket.wait = answer
                break
            decided.append(ticket)
        return decided

    def next_due(self, now: float) -> tuple[Ticket, float] | None:
        """The head of the lane and the moment at which time alone changes its case; ``None`` when it never does."""
        if not self._lane:
            return None
        ticket = next(iter(self._lane))
        due = [ticket.deadline] if ticket.deadline is not None else []
        if ticket.wait is not None and ticket.wait.seconds is not None:
            due.append(now + ticket.wait.seconds)
        return (ticket, min(due)) if due else None

    def leave(self, ticket: Ticket, now: float) -> None:
        """The caller has gone: out of the lane without a trace, or everything back that was just granted."""
        if ticket in self._lane:
            self._unqueue(ticket)
        elif isinstance(ticket.decision, Reservation) and self._is_open(ticket.decision):
            place = ticket.decision
            place.settlement = Settlement(0, 0, "void")
            ledger.release(place.account, ticket.call.worst)
            self._disown(place)
            for gate in self.gates:
                gate.bucket.give_back(gate.asked(ticket.call), now)

    def settle(self, place: Reservation, usage: Usage, settlement: Settlement, now: float) -> None:
        """End a reservation, once: what was spent goes to the books, the difference back to the buckets.

        Where the bill is not known, the buckets keep at least what was expected.
        """
        if not self._is_open(place):
            return
        place.settlement = settlement
        place.settled_at = now
        ledger.settle(place.account, place.call.worst, settlement)
        self._disown(place)
        for gate in self.gates:
            asked, used = gate.asked(place.call), gate.used(usage)
            if settlement.source == "void":
                used = 0
            elif settlement.source != "provider":
                used = max(asked, used)
            gate.bucket.give_back(asked - used, now)

    def set_ceiling(self, ceiling: int | None) -> None:
        """Change the ceiling of the run; what is spent stays spent."""
        self.account.ceiling = ceiling

    def forget_the_living(self) -> None:
        """After a fork: waiters and open reservations are the parent's, what was spent stays.

        The child has copies of their streams all the same; what those settle concerns it no more.
        """
        self._process += 1
        self._lane.clear()
        self._held_by.clear()
        self._backlog = dict.fromkeys(self.gates, 0)
        for node in self.account.path():
            node.held = node.in_flight = 0

    def status(self, now: float) -> Status:
        """How everything stands at ``now``."""
        account, head = self.account, next(iter(self._lane), None)
        wait = self._decide(head.call, now) if head else None
        tokens = next((gate for gate in self.gates if gate.kind == "tokens"), None)
        return Status(
            run=account.name,
            ceiling=account.ceiling,
            spent=account.spent,
            unknown=account.unknown,
            held=account.held,
            remaining=account.remaining,
            in_flight=account.in_flight,
            waiting=len(self._lane),
            waits_for=wait.limit if wait else None,
            next_seconds=wait.seconds if wait else None,
            tokens_per_second=tokens.bucket.rate.per_second if tokens else None,
            tokens_available=tokens.bucket.level(now) if tokens else None,
            calls=account.calls,
            refused=self.refused,
            unmetered=self.uncharged["unmetered"],
            failed=self.uncharged["failed"],
        )

    def _is_open(self, place: Reservation) -> bool:
        return place.settlement is None and place.process == self._process

    def _is_late(self, ticket: Ticket, wait: Wait, now: float) -> bool:
        if ticket.deadline is None:
            return False
        return now >= ticket.deadline if wait.seconds is None else now + wait.seconds > ticket.deadline

    def _answer(self, ticket: Ticket, now: float) -> Wait | BudgetExceeded | None:
        """The answer to a newcomer, who also waits for everybody in line."""
        node = self._closed_to(ticket.bound)
        if node is not None:
            return self._ceiling_reached(ticket, node)
        return self._behind_the_lane(ticket.call, now) if self._lane else self._decide(ticket.call, now)

    def _closed_to(self, amount: int) -> Account | None:
        """The account that can never hold ``amount``, however long one waits."""
        return next((node for node in self.account.path() if node.never_fits(amount)), None)

    def _decide(self, call: Estimate, now: float) -> Wait | None:
        """Whether the call may go now, over all accounts and all buckets at once."""
        for node in self.account.path():
            if not node.fits(call.worst):
                return Wait("ceiling", None)
        longest: Wait | None = None
        for gate in self.gates:
            seconds = gate.bucket.wait_seconds(gate.asked(call), now)
            if seconds > 0.0 and (longest is None or seconds > (longest.seconds or 0.0)):
                longest = Wait(gate.limit, seconds)
        return longest

    def _behind_the_lane(self, call: Estimate, now: float) -> Wait:
        """How long it takes until everybody in line and this call are through, as far as rates tell."""
        head = self._decide(next(iter(self._lane)).call, now)
        limit, longest = (head.limit, head.seconds) if head else ("ceiling", None)
        for gate in self.gates:
            amount = self._backlog[gate] + gate.asked(call) - gate.bucket.level(now)
            seconds = amount / gate.bucket.rate.per_second
            if seconds > (longest or 0.0):
                limit, longest = gate.limit, seconds
        return Wait(limit, longest)

    def _dismiss_hopeless(self) -> list[Ticket]:
        """Refuse at once all who wait for tokens that are spent; the largest waiting call tells if any can be."""
        if not self._lane or self._closed_to(self._largest_waiting) is None:
            return []
        hopeless = []
        for ticket in self._lane:
            node = self._closed_to(ticket.bound)
            if node is not None:
                self._refuse(ticket, self._ceiling_reached(ticket, node))
                hopeless.append(ticket)
        for ticket in hopeless:
            self._unqueue(ticket)
        self._largest_waiting = max((ticket.bound for ticket in self._lane), default=0)
        return hopeless

    def _queue(self, ticket: Ticket, wait: Wait) -> None:
        ticket.wait = wait
        self._lane[ticket] = None
        ticket.position = len(self._lane)
        self._largest_waiting = max(self._largest_waiting, ticket.bound)
        for gate in self.gates:
            self._backlog[gate] += gate.asked(ticket.call)

    def _unqueue(self, ticket: Ticket) -> None:
        del self._lane[ticket]
        for gate in self.gates:
            self._backlog[gate] -= gate.asked(ticket.call)

    def _grant(self, ticket: Ticket, now: float) -> None:
        ledger.hold(self.account, ticket.call.worst)
        for gate in self.gates:
            gate.bucket.take(gate.asked(ticket.call), now)
        self._held_by[ticket.owner] = self._held_by.get(ticket.owner, 0) + ticket.call.worst
        ticket.decision = Reservation(next(self._ids), self._process, self.account, ticket, now)

    def _disown(self, place: Reservation) -> None:
        held = self._held_by.get(place.owner, 0) - place.call.worst
        if held > 0:
            self._held_by[place.owner] = held
        else:
            self._held_by.pop(place.owner, None)

    def _refuse(self, ticket: Ticket, refusal: BudgetExceeded) -> None:
        self.refused += 1
        ticket.decision = refusal

    def _ceiling_reached(self, ticket: Ticket, node: Account) -> CeilingReached:
        if node.never_fits(ticket.call.worst):
            why = ", and waiting cannot help"
        elif node.never_fits(ticket.bound):
            why = " beside the answers that its own task still holds open: read or close those first"
        else:
            why = " while other calls are in flight, and on_limit=refuse allows no wait"
        # No digit and no word of rates in this text: retry loops in agent frameworks fire on those.
        return CeilingReached(
            f"The token ceiling of run {node.name!r} has no room left for this call{why}. "
            "Raise it with PACER_CEILING or BudgetTransport(ceiling=...), or start another run. "
            "The numbers are in the x-pacer-* headers.",
            limit="ceiling",
            run=node.name,
            asked=ticket.call.worst,
            amount=node.ceiling or 0,
            spent=node.spent,
            unknown=node.unknown,
            held=node.held,
            remaining=node.remaining,
        )

    def _too_long(self, ticket: Ticket, wait: Wait) -> BudgetExceeded:
        account = self.account
        if wait.limit == "ceiling" and not self.may_wait:
            return self._ceiling_reached(ticket, account)
        gate = next((gate for gate in self.gates if gate.limit == wait.limit), None)
        patience = "no wait" if not self.may_wait else f"at most {self.max_wait:g} s"
        needed = "until open calls have settled" if wait.seconds is None else f"{wait.seconds:.1f} s"
        return WaitTooLong(
            f"Run {account.name!r} is at its {wait.limit}: this call would wait {needed}, and {patience} is allowed. "
            f"Raise PACER_{wait.limit.upper()} or PACER_MAX_WAIT, or try again later.",
            limit=wait.limit,
            run=account.name,
            asked=ticket.call.expected,
            amount=gate.bucket.rate.amount if gate else account.ceiling or 0,
            spent=account.spent,
            unknown=account.unknown,
            held=account.held,
            remaining=account.remaining,
            retry_after_seconds=wait.seconds if wait.seconds is not None else 1.0,
        )


def gate(limit: str, kind: Kind, rate: Rate, burst: float, now: float) -> Gate:
    """A gate with a full bucket."""
    return Gate(limit, kind, Bucket(rate, burst, now))
