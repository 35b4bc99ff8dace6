"""The one decision over all buckets, all accounts and the servers' own word, and the lanes of those waiting for it.

Nothing here locks, waits, wakes or looks at a clock: a store does, and passes ``now``.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol, get_args

import msgspec
from msgspec.structs import replace

from pacer import ledger
from pacer.bucket import Bucket
from pacer.errors import BudgetExceeded, CeilingReached, WaitTooLong
from pacer.ledger import Account
from pacer.server import Server
from pacer.usage import Estimate, Kind, Oddity, Rate, Settlement, Status, Usage, Wait, Word


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

    ``call.worst`` is what is held: less than was asked where the output cap is to be lowered. ``probes`` says that it
    is one of a server's slow start.
    """

    id: int
    process: int
    account: Account
    owner: object
    call: Estimate
    granted_at: float
    waited_seconds: float
    probes: bool = False
    settlement: Settlement | None = None
    settled_at: float | None = None


class Ticket(msgspec.Struct, eq=False):
    """One call on its way to a decision; ``decision`` stays ``None`` as long as it waits in the lane.

    ``bound`` is the least it may hold and what its owner (a task or thread) holds already: an owner that waits closes
    nothing, so both must fit beside each other.
    """

    number: int
    call: Estimate
    owner: object
    bound: int
    since: float
    deadline: float | None
    decision: Reservation | BudgetExceeded | None = None
    wait: Wait | None = None
    position: int = 0
    seat: Seat | None = None


@dataclass(slots=True)
class _Lane:
    """Those who wait to call one model of one server, and what that server says; backlog in each gate's unit."""

    backlog: dict[Gate, int]
    line: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)
    server: Server = field(default_factory=Server)

    @property
    def head(self) -> Ticket:
        return next(iter(self.line))


class Admission:
    """Buckets, accounts and the lanes of one pacer. First come, first served; the head is never overtaken.

    There is one lane for each model of a server. They share the buckets in order of arrival; a lane whose own server
    wants a pause holds up nobody else.
    """

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
        self._oddities: dict[Oddity, int] = dict.fromkeys(get_args(Oddity), 0)
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._blocked: list[Ticket] = []
        self.waiting = 0
        """How many stand in the lanes."""
        self._largest_waiting = 0
        self._held_by: dict[object, int] = {}
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._process = 0

    def offer(self, call: Estimate, owner: object, now: float) -> Ticket:
        """Decide on a new call: granted or refused at once, or placed at the end of the lane."""
        deadline = None if self.max_wait is None else now + self.max_wait
        owned = self._held_by.get(owner, 0)
        ticket = Ticket(next(self._numbers), call, owner, call.least + owned, now, deadline)
        wait = self._wait_behind_others(call, now) if self.waiting else self._wait_of(call, now)
        if wait is None:
            self._grant(ticket, now)
        elif (node := self._closed_to(ticket.bound)) is not None:
            self._refuse(ticket, self._ceiling_reached(ticket, node))
        elif not self.may_wait or (self.max_wait is not None and (wait.seconds or 0.0) > self.max_wait):
            self._refuse(ticket, self._too_long(ticket, wait))
        else:
            self._queue(ticket, wait)
        return ticket

    def pump(self, now: float) -> list[Ticket]:
        """Decide on everybody who can be decided now, in order; those are returned and have left their lanes."""
        if not self.waiting:
            self._blocked = []
            return []
        decided = self._dismiss_hopeless(now)
        while True:
            ticket = self._first_in_line(now)
            if ticket is None:
                return decided
            answer = ticket.wait
            if answer is None:
                self._unqueue(ticket, now)
                self._grant(ticket, now)
            else:
                self._unqueue(ticket, now)
                self._refuse(ticket, self._too_long(ticket, answer))
            decided.append(ticket)

    def next_due(self, now: float) -> tuple[Ticket, float] | None:
        """Whose case time alone changes first, and when; ``None`` when it changes nobody's. Asked after ``pump``."""
        soonest: tuple[Ticket, float] | None = None
        for ticket in self._blocked:
            for due in (
                ticket.deadline,
                now + ticket.wait.seconds if ticket.wait is not None and ticket.wait.seconds is not None else None,
            ):
                if due is not None and (soonest is None or due < soonest[1]):
                    soonest = (ticket, due)
        return soonest

    def leave(self, ticket: Ticket, now: float) -> None:
        """The caller has gone: out of the lane without a trace, or everything back that was just granted."""
        if self._is_queued(ticket):
            self._unqueue(ticket, now)
        elif isinstance(place := ticket.decision, Reservation):
            if place.settlement is not None or place.process != self._process:
                return
            place.settlement = Settlement(0, 0, "void")
            ledger.release(place.account, place.call.worst)
            self._let_go(place)
            for gate in self.gates:
                gate.bucket.give_back(gate.asked(ticket.call), now)

    def settle(self, place: Reservation, usage: Usage, settlement: Settlement, now: float) -> None:
        """End a reservation, once: what was spent goes to the books, the difference back to the buckets.

        Where the bill is not known, the buckets keep at least what was expected.
        """
        if place.settlement is not None or place.process != self._process:
            return
        place.settlement = settlement
        place.settled_at = now
        ledger.settle(place.account, place.call.worst, settlement)
        self._let_go(place)
        source = settlement.source
        for gate in self.gates:
            asked = gate.asked(place.call)
            used = 0 if source == "void" else gate.used(usage)
            gate.bucket.give_back(asked - (used if source in ("void", "provider") else max(asked, used)), now)

    def answered(self, place: Reservation, status: int, word: Word | None, now: float, jitter: float) -> None:
        """Take in what a server said of its own limits in its answer to ``place``."""
        if place.process != self._process:
            return
        key = place.call.lane
        lane = self._lanes.get(key) or self._empty_lane()
        if place.probes:
            self._end_probe(place)
        lane.server.answered(status, word, place.granted_at, now, jitter)
        self._keep(key, lane, now)

    def count(self, oddity: Oddity, amount: int, now: float) -> None:
        """Count what is counted beside the books."""
        self._oddities[oddity] += amount

    def set_ceiling(self, ceiling: int | None) -> None:
        """Change the ceiling of the run; what is spent stays spent."""
        self.account.ceiling = ceiling

    def forget_the_living(self) -> None:
        """After a fork: waiters and open reservations are the parent's, what was spent stays.

        The child has copies of their streams all the same; what those settle concerns it no more.
        """
        self._process += 1
        self.waiting = 0
        self._lanes.clear()
        self._blocked.clear()
        self._held_by.clear()
        for node in self.account.path:
            node.held = node.in_flight = 0

    def status(self, now: float) -> Status:
        """How everything stands at ``now``."""
        account, heads = self.account, self._heads()
        wait = self._wait_of(heads[0].call, now) if heads else None
        tokens = next((gate for gate in self.gates if gate.kind == "tokens"), None)
        return Status(
            run=account.name,
            ceiling=account.ceiling,
            spent=account.spent,
            unknown=account.unknown,
            held=account.held,
            remaining=account.remaining,
            in_flight=account.in_flight,
            waiting=self.waiting,
            waits_for=wait.limit if wait else None,
            next_seconds=wait.seconds if wait else None,
            server_pause_seconds=max(
                (lane.server.paused_until - now for lane in self._lanes.values() if lane.server.paused_until > now),
                default=0.0,
            ),
            tokens_per_second=tokens.bucket.rate.per_second if tokens else None,
            tokens_available=tokens.bucket.level(now) if tokens else None,
            calls=account.calls,
            refused=self.refused,
            **self._oddities,
        )

    def _is_late(self, ticket: Ticket, wait: Wait, now: float) -> bool:
        if ticket.deadline is None:
            return False
        return now >= ticket.deadline if wait.seconds is None else now + wait.seconds > ticket.deadline

    def _wait_behind_others(self, call: Estimate, now: float) -> Wait | None:
        """What a newcomer waits for, who lets everybody go first that stands before it."""
        before = [
            lane
            for key, lane in self._lanes.items()
            if lane.line and (key == call.lane or lane.server.wait(now) is None)
        ]
        return self._behind(before, call, now) if before else self._wait_of(call, now)

    def _closed_to(self, amount: int) -> Account | None:
        """The account that can never hold ``amount``, however long one waits."""
        for node in self.account.path:
            if node.ceiling is not None and node.never_fits(amount):
                return node
        return None

    def _first_in_line(self, now: float) -> Ticket | None:
        """The oldest head whose case is decided: it goes, or has waited too long. ``None`` if all go on waiting.

        Heads whose own server holds them back are passed over; the first of the others is not.
        """
        self._blocked = []
        for ticket in self._heads():
            by_server = self._lanes[ticket.call.lane].server.wait(now)
            ticket.wait = by_server or self._decide(ticket.call, now)
            if ticket.wait is None or self._is_late(ticket, ticket.wait, now):
                return ticket
            self._blocked.append(ticket)
            if by_server is None:
                return None
        return None

    def _heads(self) -> list[Ticket]:
        """The first of each lane, the oldest first."""
        return sorted((lane.head for lane in self._lanes.values() if lane.line), key=lambda ticket: ticket.number)

    def _wait_of(self, call: Estimate, now: float) -> Wait | None:
        """What a call would wait for if nobody was before it."""
        lane = self._lanes.get(call.lane) if self._lanes else None
        return (lane.server.wait(now) if lane else None) or self._decide(call, now)

    def _decide(self, call: Estimate, now: float) -> Wait | None:
        """Whether the call may go now, over all accounts and all buckets at once."""
        for node in self.account.path:
            if node.ceiling is not None and not node.takes(call):
                return Wait("ceiling", None)
        longest: Wait | None = None
        for gate in self.gates:
            seconds = gate.bucket.wait_seconds(gate.asked(call), now)
            if seconds > 0.0 and (longest is None or seconds > (longest.seconds or 0.0)):
                longest = Wait(gate.limit, seconds)
        return longest

    def _behind(self, lanes: list[_Lane], call: Estimate, now: float) -> Wait:
        """How long it takes until everybody in ``lanes`` and this call are through, as far as rates tell."""
        heads = [self._wait_of(lane.head.call, now) for lane in lanes]
        longest = max((wait for wait in heads if wait), key=_seconds, default=Wait("ceiling", None))
        for gate in self.gates:
            amount = sum(lane.backlog[gate] for lane in lanes) + gate.asked(call) - gate.bucket.level(now)
            seconds = amount / gate.bucket.rate.per_second
            if seconds > _seconds(longest):
                longest = Wait(gate.limit, seconds)
        return longest

    def _dismiss_hopeless(self, now: float) -> list[Ticket]:
        """Refuse at once all who wait for tokens that are spent; the largest waiting call tells if any can be."""
        if self._closed_to(self._largest_waiting) is None:
            return []
        waiting = [ticket for lane in self._lanes.values() for ticket in lane.line]
        hopeless = []
        for ticket in waiting:
            node = self._closed_to(ticket.bound)
            if node is not None:
                self._refuse(ticket, self._ceiling_reached(ticket, node))
                hopeless.append(ticket)
        for ticket in hopeless:
            self._unqueue(ticket, now)
        self._largest_waiting = max((ticket.bound for ticket in waiting if ticket.decision is None), default=0)
        return hopeless

    def _queue(self, ticket: Ticket, wait: Wait) -> None:
        ticket.wait = wait
        lane = self._lanes.setdefault(ticket.call.lane, self._empty_lane())
        lane.line[ticket] = None
        self.waiting += 1
        ticket.position = len(lane.line)
        self._largest_waiting = max(self._largest_waiting, ticket.bound)
        for gate in self.gates:
            lane.backlog[gate] += gate.asked(ticket.call)

    def _is_queued(self, ticket: Ticket) -> bool:
        lane = self._lanes.get(ticket.call.lane)
        return lane is not None and ticket in lane.line

    def _unqueue(self, ticket: Ticket, now: float) -> None:
        lane = self._lanes[ticket.call.lane]
        del lane.line[ticket]
        self.waiting -= 1
        for gate in self.gates:
            lane.backlog[gate] -= gate.asked(ticket.call)
        self._keep(ticket.call.lane, lane, now)

    def _empty_lane(self) -> _Lane:
        return _Lane(dict.fromkeys(self.gates, 0))

    def _keep(self, key: tuple[str, str], lane: _Lane, now: float) -> None:
        """Remember a lane as long as somebody waits in it or its server's word counts."""
        if lane.line or not lane.server.is_forgettable(now):
            self._lanes[key] = lane
        else:
            self._lanes.pop(key, None)

    def _grant(self, ticket: Ticket, now: float) -> None:
        call = self._cut_to_fit(ticket.call)
        ledger.hold(self.account, call.worst)
        for gate in self.gates:
            gate.bucket.take(gate.asked(call), now)
        self._held_by[ticket.owner] = self._held_by.get(ticket.owner, 0) + call.worst
        lane = self._lanes.get(call.lane) if self._lanes else None
        ticket.decision = Reservation(
            next(self._ids),
            self._process,
            self.account,
            ticket.owner,
            call,
            granted_at=now,
            waited_seconds=now - ticket.since,
            probes=lane is not None and lane.server.granted(call, now, waited=now > ticket.since),
        )

    def _cut_to_fit(self, call: Estimate) -> Estimate:
        """The call with the worst case that there is room for."""
        for node in self.account.path:
            if node.ceiling is not None and (room := node.remaining) is not None and room < call.worst:
                call = replace(call, worst=room)
        return call

    def _let_go(self, place: Reservation) -> None:
        """The reservation is over: for its owner, and for its server's slow start if it was never answered."""
        if place.probes:
            self._end_probe(place)
        held = self._held_by.get(place.owner, 0) - place.call.worst
        if held > 0:
            self._held_by[place.owner] = held
        else:
            self._held_by.pop(place.owner, None)

    def _end_probe(self, place: Reservation) -> None:
        place.probes = False
        self._lanes[place.call.lane].server.probing -= 1

    def _refuse(self, ticket: Ticket, refusal: BudgetExceeded) -> None:
        self.refused += 1
        ticket.decision = refusal

    def _ceiling_reached(self, ticket: Ticket, node: Account) -> CeilingReached:
        if node.never_fits(ticket.call.least):
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
        if gate is not None or wait.limit == "ceiling":
            why = (
                f"Run {account.name!r} is at its {wait.limit}: this call would wait {needed}, and {patience} is allowed"
            )
            way_out = f"Raise PACER_{wait.limit.upper()} or PACER_MAX_WAIT, or try again later."
        else:
            why = f"The provider itself asks this call to wait {needed} ({wait.limit}), and {patience} is allowed"
            way_out = "Raise PACER_MAX_WAIT, or try again later."
        return WaitTooLong(
            f"{why}. {way_out}",
            limit=wait.limit,
            run=account.name,
            asked=ticket.call.tokens,
            amount=gate.bucket.rate.amount if gate else account.ceiling or 0,
            spent=account.spent,
            unknown=account.unknown,
            held=account.held,
            remaining=account.remaining,
            retry_after_seconds=wait.seconds if wait.seconds is not None else 1.0,
        )


def _seconds(wait: Wait) -> float:
    return wait.seconds or 0.0


def gate(limit: str, kind: Kind, rate: Rate, burst: float, now: float) -> Gate:
    """A gate with a full bucket."""
    return Gate(limit, kind, Bucket(rate, burst, now))
