"""The one decision over all buckets, all accounts and the servers' own word, and the lines of those waiting for it.

Nothing here locks, waits, wakes or looks at a clock: a store does, and passes ``now``.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import msgspec
from msgspec.structs import replace

from pacer import ledger, verdict
from pacer.entry import Limit
from pacer.errors import BudgetExceeded
from pacer.fair import Line, Turn
from pacer.ledger import Account, Watch
from pacer.register import Register
from pacer.server import Server
from pacer.ticket import Caller, Gate, Posted, Reservation, Ticket, gates_of
from pacer.usage import (
    Estimate,
    Oddity,
    Settlement,
    Status,
    Threshold,
    Usage,
    Wait,
    Waiting,
    Word,
)

WAITS_SHOWN = 100


class _Lane(msgspec.Struct, eq=False):
    """Those who wait to call one model of one server, and what that server says; backlog in each gate's unit, and in
    tokens.

    Wrap-ups have a line of their own, because no ceiling that holds up the others holds them up.
    """

    line: Line[Ticket]
    wrap_ups: Line[Ticket]
    server: Server
    backlog: dict[Gate, int]
    tokens: int = 0
    is_closed: bool = False

    def line_of(self, ticket: Ticket) -> Line[Ticket]:
        return self.wrap_ups if ticket.caller.wraps_up else self.line

    @property
    def is_empty(self) -> bool:
        return not self.line and not self.wrap_ups

    def tickets(self) -> Iterator[Ticket]:
        yield from self.line.items()
        yield from self.wrap_ups.items()


class Admission:
    """Buckets, accounts and the lanes of one pacer.

    There is one lane for each model of a server; a lane whose own server wants a pause holds up nobody else. Agents
    take fair turns in all of them, and each agent's calls go in order of arrival. Whose turn it is, is not overtaken if
    the rate is short; if an account is short, only those are held up who draw on it too.
    """

    def __init__(
        self,
        account: Account,
        gates: tuple[Gate, ...] = (),
        *,
        max_wait: float | None = None,
        may_wait: bool = True,
        spawn_threshold: int = 0,
        order: Literal["fair", "finish_first"] = "fair",
    ) -> None:
        self.account = account
        """The run of those who name none."""
        self.gates = gates
        self.max_wait = max_wait
        self.may_wait = may_wait
        self.spawn_threshold = spawn_threshold
        self.waiting = 0
        """How many stand in the lanes."""
        self._by_rank = order == "finish_first"
        self.register = Register(account, late_spawns=spawn_threshold > 0)
        self._oddities: dict[Oddity, int] = dict.fromkeys(get_args(Oddity), 0)
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._blocked: list[Ticket] = []
        self._held_up: set[Turn] = set()
        """Below these somebody was found short of room, and nothing has changed there since."""
        self._arrivals: deque[Ticket] = deque()
        self._shrunk: set[Account] = set()
        self._decided: list[Ticket] = []
        self.outbox: deque[Posted] = deque()
        """What is to be written into books that others share; nothing, where they do not."""
        self.crossed: list[tuple[Watch, Threshold]] = []
        """Whom to tell, outside the lock, that a part of a ceiling is booked."""
        self._open_by: dict[object, dict[int, Reservation]] = {}
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._starts = itertools.count(1)
        self._process = 0

    # ---------------------------------------------------------------- calls

    def offer(self, call: Estimate, owner: object, caller: Caller, now: float) -> Ticket:
        """Decide on a new call: granted or refused at once, or placed in its line."""
        deadline = None if self.max_wait is None else now + self.max_wait
        ticket = Ticket(next(self._numbers), call, caller, owner, now, deadline)
        if caller.tokens is not None and call.worst > caller.tokens:
            if call.least > caller.tokens:
                self._refuse(ticket, verdict.call_too_large(call, caller.account, caller.tokens))
                return ticket
            ticket.call = replace(call, worst=caller.tokens)
        wait = None
        if not self.waiting:
            wait = self._server_wait(ticket.call, now) or self._decide(ticket, now)[0]
            if wait is None:
                self._grant(ticket, now)
                return ticket
        self._wait_in_line(ticket, wait, now)
        return ticket

    def pump(self, now: float) -> list[Ticket]:
        """Decide on everybody who can be decided now, in order; those are returned and have left their lines."""
        if self.waiting:
            self._dismiss_late(now)
            while (ticket := self._next_decided(now)) is not None:
                late = ticket.wait
                self._unqueue(ticket, now)
                if late is None:
                    ticket.account.own.charge(ticket.call.tokens)
                    self._grant(ticket, now).charged = ticket.call.tokens
                else:
                    self._refuse(ticket, self._too_long(ticket, late))
                if ticket.decision is not None:
                    self._decided.append(ticket)
        else:
            self._blocked = []
            self._shrunk.clear()
            self._arrivals.clear()
        decided, self._decided = self._decided, []
        return decided

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits, or is to be told something."""
        return bool(self.waiting or self._decided or self.crossed)

    def next_due(self, now: float) -> tuple[Ticket, float] | None:
        """Whose case time alone changes first, and when; ``None`` when it changes nobody's. Asked after ``pump``."""
        dues = [
            (ticket, now + ticket.wait.seconds)
            for ticket in self._blocked
            if ticket.wait is not None and ticket.wait.seconds is not None
        ]
        if self._arrivals and self._arrivals[0].deadline is not None:
            dues.append((self._arrivals[0], self._arrivals[0].deadline))
        return min(dues, key=lambda due: due[1], default=None)

    def leave(self, ticket: Ticket, now: float) -> None:
        """The caller has gone: out of the line without a trace, or everything back that was just granted."""
        if self._is_queued(ticket):
            self._unqueue(ticket, now)
            self.register.retire(ticket.account)
        elif ticket.place is not None and self._is_open(ticket.place):
            self._undo(ticket.place, now)

    def _undo(self, place: Reservation, now: float) -> None:
        """As if it had never been granted."""
        place.settlement = Settlement(0, 0, "void")
        ledger.release(place.account, place.call.worst, from_reserve=place.from_reserve)
        self._look_again(place.account)
        if self.waiting:  # what a wrap-up gives back is its agent's alone
            self._shrunk.update(place.account.path)
        self._let_go(place)
        place.account.own.correct(-place.charged)
        for gate in place.gates:
            gate.bucket.give_back(gate.asked(place.call), now)

    def settle(self, place: Reservation, usage: Usage, counted: Usage, settlement: Settlement, now: float) -> None:
        """End a reservation, once: ``usage`` goes to the books, the difference to what ``counted`` back to the buckets.

        Where the bill is not known, the buckets keep at least what was expected.
        """
        if not self._is_open(place):
            return
        place.settlement = settlement
        place.settled_at = now
        account, source = place.account, settlement.source
        ledger.settle(account, place.call.worst, usage, settlement, from_reserve=place.from_reserve)
        self._let_go(place)
        if place.charged and source in ("void", "provider"):
            account.own.correct(settlement.spent - place.charged)
        for gate in place.gates:
            gate.bucket.give_back(gate.back(place.call, counted, source), now)
        if self.waiting:
            self._shrunk.update(account.path)
            self._look_again(account)
        for node in account.path:
            self._tell_of(node)

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

    # ---------------------------------------------------------------- scopes

    def end(self, account: Account) -> None:
        """An agent has ended: what is left of its reserve goes back, and what it cost goes into a summary."""
        self.register.end(account)
        self._look_again(account)
        if self.waiting:  # to wrap up, maybe: what was to pay for it is gone
            self._shrunk.update(account.path)

    def set_ceiling(self, account: Account, ceiling: int | None) -> None:
        """Change a ceiling; what is spent stays spent."""
        account.set_ceiling(ceiling)
        self._look_again(account)
        self._shrunk.add(account)
        self._tell_of(account)

    def set_paused(self, account: Account, paused: bool) -> None:
        """Let no call of the account go until it is resumed."""
        account.paused = paused
        self._look_again(account)
        account.touch()

    def set_limits(self, limits: Iterable[Limit], now: float) -> None:
        """Change the rates. Open calls give back to the buckets they took from."""
        self.gates = gates = gates_of(limits, now, self.gates)
        for lane in self._lanes.values():
            lane.backlog = {gate: sum(gate.asked(ticket.call) for ticket in lane.tickets()) for gate in gates}

    def watch(self, account: Account, watches: list[Watch]) -> None:
        """Tell the watches when their parts of the ceiling are booked."""
        account.watch(watches)
        self._tell_of(account)

    def _tell_of(self, account: Account) -> None:
        for watch in account.crossed():
            self.crossed.append((watch, verdict.threshold(account, watch.fraction)))

    def forget_the_living(self) -> None:
        """After a fork: waiters and open reservations are the parent's, what was spent stays.

        The child has copies of their streams all the same; what those settle concerns it no more.
        """
        self._process += 1
        for lane in self._lanes.values():
            for ticket in list(lane.tickets()):
                lane.line_of(ticket).remove(ticket, ticket.account.own)
        self.waiting = 0
        self._lanes.clear()
        self._blocked.clear()
        self._held_up.clear()
        self._arrivals.clear()
        self._shrunk.clear()
        self._decided.clear()
        self.crossed.clear()
        self._open_by.clear()
        accounts = [self.register.root]
        for node in accounts:
            node.held = node.in_flight = node.waiting = node.lent = node.own.queued = 0
            node.row = None
            accounts.extend(node.children.values())

    # ---------------------------------------------------------------- what is to be seen

    def status(self, account: Account, now: float) -> Status:
        """How everything stands at ``now``, seen from one account."""
        waits = tuple(itertools.islice(self._waits(account, now), WAITS_SHOWN)) if account.waiting else ()
        tokens = self._tokens_gate()
        return Status(
            **ledger.fields(account),
            waits=waits,
            waits_for=waits[0].limit if waits else None,
            next_seconds=waits[0].seconds if waits else None,
            server_pause_seconds=max(
                (lane.server.paused_until - now for lane in self._lanes.values() if lane.server.paused_until > now),
                default=0.0,
            ),
            tokens_per_second=self.tokens_per_second(),
            tokens_available=tokens.bucket.level(now) if tokens else None,
            unmetered=self._oddities["unmetered"],
            failed=self._oddities["failed"],
            failed_tokens=self._oddities["failed_tokens"],
            unread=self._oddities["unread"],
            unshared=self._oddities["unshared"],
        )

    def _tokens_gate(self) -> Gate | None:
        return next((gate for gate in self.gates if gate.kind == "tokens"), None)

    def tokens_per_second(self) -> float | None:
        """The rate of tokens."""
        tokens = self._tokens_gate()
        return tokens.bucket.rate.per_second if tokens else None

    def _waits(self, account: Account, now: float) -> Iterator[Waiting]:
        """The calls of ``account`` that wait, those whose turn it is first."""
        due = dict.fromkeys(self.gates, 0.0)
        heads = (ticket for _, ticket in self._heads(list(self._lanes.values()), set()))
        others = (ticket for lane in self._lanes.values() for ticket in lane.tickets())
        seen = set[int]()
        for ticket in itertools.chain(heads, others):
            if ticket.number in seen:
                continue
            seen.add(ticket.number)
            for gate in self.gates:
                due[gate] += gate.asked(ticket.call)
            if account not in ticket.account.path:
                continue
            wait = self._server_wait(ticket.call, now) or self._decide(ticket, now)[0] or ticket.wait
            yield self._waiting(ticket, self._longest(wait or Wait("ceiling", None), due, now), now)

    def _waiting(self, ticket: Ticket, wait: Wait, now: float) -> Waiting:
        account, call = ticket.account, ticket.call
        since_seconds = now - ticket.since
        return Waiting(account.run.name, account.label, call.model, call.worst, wait.limit, since_seconds, wait.seconds)

    # ---------------------------------------------------------------- the decision

    def _decide(self, ticket: Ticket, now: float) -> tuple[Wait | None, Turn | None]:
        """Whether a call may go now, over all accounts and all buckets at once; else why, and whom it holds up.

        Those are all below the turn that is returned; with a wait for a rate it is everybody.
        """
        account, call = ticket.caller.account, ticket.call
        for node in account.path:
            if node.paused:
                return Wait("paused", None), node.turn
        if not self._pays_from_reserve(ticket):
            if account.lent and self._reserve_may_pay(ticket):
                return Wait("wrap_up_reserve", None), None
            amount = ledger.fit(account, call, self.spawn_threshold)
            if isinstance(amount, Account):
                limit = self._limit_of(amount, account, call)
                return Wait(limit, None), account.turn if limit == "spawn_threshold" else amount.turn
        longest: Wait | None = None
        for gate in self.gates:
            seconds = gate.bucket.wait_seconds(gate.asked(call), now)
            if seconds > 0.0 and (longest is None or seconds > (longest.seconds or 0.0)):
                longest = Wait(gate.limit, seconds)
        return longest, None

    def _pays_from_reserve(self, ticket: Ticket) -> bool:
        account = ticket.caller.account
        return ticket.caller.wraps_up and account.left > 0 and ticket.call.least <= account.left

    def _reserve_may_pay(self, ticket: Ticket) -> bool:
        """Whether the reserve can hold the call, at the latest when what it has lent comes back."""
        account = ticket.caller.account
        return ticket.caller.wraps_up and ticket.call.least <= account.left + account.lent

    def _limit_of(self, node: Account, account: Account, call: Estimate) -> str:
        if node.kind == "agent":
            return "agent_ceiling"
        if not account.started and account.kind == "agent" and isinstance(ledger.fit(account, call, 0), int):
            return "spawn_threshold"
        return "ceiling"

    def _next_decided(self, now: float) -> Ticket | None:
        """The first whose case is decided: it goes, or has waited too long. ``None`` if all go on waiting.

        Those without hope are dismissed before.
        """
        if self._shrunk:
            self._dismiss_hopeless(now)
        self._blocked = []
        open_lanes = []
        for lane in self._lanes.values():
            by_server = lane.server.wait(now)
            if lane.is_closed != (by_server is not None):
                self._held_up.clear()  # by those whose turn it is not any more, or those behind whose it is now
            lane.is_closed = by_server is not None
            if by_server is None:
                open_lanes.append(lane)
                continue
            for _, ticket in itertools.islice(self._heads([lane], set()), 1):
                ticket.wait = by_server
                if self._is_late(ticket, by_server, now):
                    return ticket
                self._blocked.append(ticket)
        spawns: set[Turn] = set()  # wait for the run, whose changes are not theirs
        try:
            for _, ticket in self._heads(open_lanes, self._held_up):
                ticket.wait, turn = self._decide(ticket, now)
                if ticket.wait is None or self._is_late(ticket, ticket.wait, now):
                    return ticket
                if ticket.wait.seconds is not None:
                    self._blocked.append(ticket)
                    return None
                if turn is not None:
                    self._held_up.add(turn)
                    if ticket.wait.limit == "spawn_threshold":
                        spawns.add(turn)
            return None
        finally:
            self._held_up -= spawns

    def _look_again(self, account: Account) -> None:
        """Something has changed in the account: who was held up on its path may not be any more."""
        if self._held_up:
            self._held_up.difference_update([node.turn for node in account.path])

    def _heads(self, lanes: list[_Lane], held_up: set[Turn]) -> Iterator[tuple[tuple[float, ...], Ticket]]:
        """The first of each agent in each lane, in the order of their turns; ``held_up`` holds up no wrap-ups."""
        lines = [lane.line.heads(held_up) for lane in lanes if lane.line]
        wrap_ups = [lane.wrap_ups.heads() for lane in lanes if lane.wrap_ups]
        if len(lines) == 1 and not wrap_ups:
            return lines[0]
        # The merge takes the first of each line before anybody is found to be held up.
        return (
            (key, ticket)
            for key, ticket in heapq.merge(*lines, *wrap_ups)
            if ticket.caller.wraps_up or held_up.isdisjoint([node.turn for node in ticket.account.path])
        )

    def _is_late(self, ticket: Ticket, wait: Wait, now: float) -> bool:
        if ticket.deadline is None:
            return False
        return now >= ticket.deadline if wait.seconds is None else now + wait.seconds > ticket.deadline

    def _server_wait(self, call: Estimate, now: float) -> Wait | None:
        lane = self._lanes.get(call.lane) if self._lanes else None
        return lane.server.wait(now) if lane is not None else None

    def _closed_to(self, ticket: Ticket) -> Account | None:
        """The account that can never hold the call, however long one waits."""
        if self._reserve_may_pay(ticket):
            return None
        for node, amount in ticket.needs:
            if node.never_fits(amount):
                return node
        return None

    # ---------------------------------------------------------------- waiting

    def _wait_in_line(self, ticket: Ticket, wait: Wait | None, now: float) -> None:
        """Place a call in its line, unless it has no hope or no patience. ``wait`` is known if nobody else waits."""
        ticket.needs = self._needs(ticket)
        if (node := self._closed_to(ticket)) is not None:
            self._refuse(ticket, self._ceiling_reached(ticket, node))
        elif not self.may_wait:
            self._refuse(ticket, self._too_long(ticket, wait or Wait("ceiling", None)))
        else:
            self._queue(ticket)
            if wait is None:
                self._decided = self.pump(now)
                if not self._is_queued(ticket):
                    return
            ticket.wait = self._forecast(ticket, wait, now)
            if self.max_wait is not None and (ticket.wait.seconds or 0.0) > self.max_wait:
                self._unqueue(ticket, now)
                self._refuse(ticket, self._too_long(ticket, ticket.wait))

    def _needs(self, ticket: Ticket) -> list[tuple[Account, int]]:
        owned = self._open_by.get(ticket.owner, {}).values()
        return [
            (node, least + sum(place.call.worst for place in owned if node in place.account.path))
            for node, least in ledger.needs(ticket.account, ticket.call, self.spawn_threshold)
        ]

    def _forecast(self, ticket: Ticket, wait: Wait | None, now: float) -> Wait:
        """What a newcomer waits for, and how long it takes as far as rates tell."""
        if wait is None:
            first = self._blocked[0].wait if self._blocked else None
            wait = self._server_wait(ticket.call, now) or self._decide(ticket, now)[0] or first or Wait("ceiling", None)
        mine = self._lanes[ticket.call.lane]
        before = [lane for lane in self._lanes.values() if lane is mine or lane.server.wait(now) is None]
        own, total = ticket.account.own, sum(lane.tokens for lane in before)
        # While all who wait go on waiting, its agent gets its share: it is through before those of longer lines are.
        part = min(1.0, own.queued / (own.share() * total)) if total else 1.0
        due = {
            gate: max(gate.asked(ticket.call), part * sum(lane.backlog[gate] for lane in before)) for gate in self.gates
        }
        return self._longest(wait, due, now)

    def _longest(self, wait: Wait, due: dict[Gate, float], now: float) -> Wait:
        """The longer of ``wait`` and the time until the buckets have given what is ``due``."""
        for gate, amount in due.items():
            seconds = (amount - gate.bucket.level(now)) / gate.bucket.rate.per_second
            if seconds > (wait.seconds or 0.0):
                wait = Wait(gate.limit, seconds)
        return wait

    def _dismiss_hopeless(self, now: float) -> None:
        """Refuse at once all who wait for tokens that are gone; the largest waiting call tells if any can be."""
        shrunk, self._shrunk = self._shrunk, set()
        closed = [node for node in shrunk if node.waiting and node.never_fits(node.largest_waiting)]
        if not closed:
            return
        waiting = dict.fromkeys(ticket for node in closed for ticket in self._waiting_below(node))
        for node in closed:
            node.largest_waiting = 0
        for ticket in waiting:
            if self._closed_to(ticket) is not None:
                ticket.needs = self._needs(ticket)  # the reserve it was to carve out may have been meanwhile
            short = self._closed_to(ticket)
            if short is None:
                self._remember_largest(ticket)
                continue
            self._unqueue(ticket, now)
            self._refuse(ticket, self._ceiling_reached(ticket, short))
            self._decided.append(ticket)

    def _waiting_below(self, account: Account) -> Iterator[Ticket]:
        accounts = [account]
        for node in accounts:
            for lane in self._lanes.values():
                yield from lane.line.at(node.own)
                yield from lane.wrap_ups.at(node.own)
            accounts.extend(child for child in node.children.values() if child.waiting)

    def _dismiss_late(self, now: float) -> None:
        """Refuse those whose patience is over, whether it is their turn or not."""
        arrivals = self._arrivals
        while arrivals and (not self._is_queued(arrivals[0]) or now >= (arrivals[0].deadline or now)):
            ticket = arrivals.popleft()
            if self._is_queued(ticket):
                self._unqueue(ticket, now)
                self._refuse(ticket, self._too_long(ticket, ticket.wait or Wait("ceiling", None)))
                self._decided.append(ticket)

    def _queue(self, ticket: Ticket) -> None:
        lane = self._lanes.get(ticket.call.lane)
        if lane is None:
            lane = self._lanes[ticket.call.lane] = self._empty_lane()
        own = ticket.account.own
        own.queued += ticket.call.tokens
        ticket.position = lane.line_of(ticket).add(ticket, own, ticket.number)
        self.waiting += 1
        ledger.queue(ticket.account, 1)
        self._look_again(ticket.account)
        self._remember_largest(ticket)
        if ticket.deadline is not None:
            if self._arrivals and ticket.number < self._arrivals[0].number:
                self._arrivals.appendleft(ticket)
            else:
                self._arrivals.append(ticket)
        lane.tokens += ticket.call.tokens
        for gate in self.gates:
            lane.backlog[gate] += gate.asked(ticket.call)

    def _remember_largest(self, ticket: Ticket) -> None:
        for node, amount in ticket.needs:
            node.largest_waiting = max(node.largest_waiting, amount)

    def _is_queued(self, ticket: Ticket) -> bool:
        lane = self._lanes.get(ticket.call.lane)
        return lane is not None and (ticket.account.own, ticket) in lane.line_of(ticket)

    def _unqueue(self, ticket: Ticket, now: float) -> None:
        lane = self._lanes[ticket.call.lane]
        lane.line_of(ticket).remove(ticket, ticket.account.own)
        ticket.account.own.queued -= ticket.call.tokens
        self.waiting -= 1
        ledger.queue(ticket.account, -1)
        self._look_again(ticket.account)
        lane.tokens -= ticket.call.tokens
        for gate in self.gates:
            lane.backlog[gate] -= gate.asked(ticket.call)
        self._keep(ticket.call.lane, lane, now)

    def _empty_lane(self) -> _Lane:
        return _Lane(Line(by_rank=self._by_rank), Line(by_rank=self._by_rank), Server(), dict.fromkeys(self.gates, 0))

    def _keep(self, key: tuple[str, str], lane: _Lane, now: float) -> None:
        """Remember a lane as long as somebody waits in it or its server's word counts."""
        if not lane.is_empty or not lane.server.is_forgettable(now):
            self._lanes[key] = lane
        else:
            self._lanes.pop(key, None)

    # ---------------------------------------------------------------- the end of it

    def _grant(self, ticket: Ticket, now: float) -> Reservation:
        """Keep a place for the call, and let it go."""
        place = ticket.place = self._keep_place(ticket, now)
        self._let_in(ticket, place, now, now - ticket.since)
        return place

    def _let_in(self, ticket: Ticket, place: Reservation, now: float, waited_seconds: float) -> None:
        place.granted_at = now
        if waited_seconds > 0.0:
            place.waited_seconds = waited_seconds
            ledger.waited(place.account, waited_seconds)
        ticket.decision = place

    def _keep_place(self, ticket: Ticket, now: float) -> Reservation:
        account, call = ticket.caller.account, ticket.call
        from_reserve = self._pays_from_reserve(ticket)
        amount = min(call.worst, account.left) if from_reserve else ledger.fit(account, call, self.spawn_threshold)
        assert isinstance(amount, int), "granted without room"
        if amount != call.worst:
            call = replace(call, worst=amount)
        starts: tuple[Account, ...] = ()
        if not account.started:
            starts = ledger.start(account, next(self._starts))
            if self.waiting:
                self._shrunk.update(account.path)
        ledger.hold(account, amount, from_reserve=from_reserve)
        for gate in self.gates:
            gate.bucket.take(gate.asked(call), now)
        lane = self._lanes.get(call.lane) if self._lanes else None
        server = lane.server if lane is not None else None
        place = Reservation(
            next(self._ids),
            self._process,
            account,
            ticket.owner,
            call,
            self.gates,
            now,
            from_reserve=from_reserve,
            probes=server is not None and server.granted(call, now, waited=now > ticket.since),
            tells=server is not None and server.has_paused,
            starts=starts,
        )
        owned = self._open_by.get(ticket.owner)
        if owned is None:
            self._open_by[ticket.owner] = {place.id: place}
        else:
            owned[place.id] = place
        return place

    def _is_open(self, place: Reservation) -> bool:
        return place.settlement is None and place.process == self._process

    def _let_go(self, place: Reservation) -> None:
        """The reservation is over: for its owner, its agent, and its server's slow start if it was never answered."""
        if place.probes:
            self._end_probe(place)
        owned = self._open_by[place.owner]
        del owned[place.id]
        if not owned:
            del self._open_by[place.owner]
        self.register.retire(place.account)

    def _end_probe(self, place: Reservation) -> None:
        place.probes = False
        self._lanes[place.call.lane].server.probing -= 1

    def _refuse(self, ticket: Ticket, refusal: BudgetExceeded) -> None:
        ledger.refuse(ticket.account, refusal.limit)
        ticket.decision = refusal
        self.register.retire(ticket.account)

    def _ceiling_reached(self, ticket: Ticket, node: Account) -> BudgetExceeded:
        alone = dict(ledger.needs(ticket.account, ticket.call, self.spawn_threshold))
        limit = self._limit_of(node, ticket.account, ticket.call)
        if node.never_fits(alone[node]):
            return verdict.ceiling_reached(ticket.call, ticket.account, node, limit, "never")
        return verdict.ceiling_reached(ticket.call, ticket.account, node, limit, "own")

    def _too_long(self, ticket: Ticket, wait: Wait) -> BudgetExceeded:
        short = ledger.fit(ticket.account, ticket.call, self.spawn_threshold)
        node = short if wait.limit in verdict.CEILINGS and isinstance(short, Account) else ticket.account.run
        if wait.limit in verdict.CEILINGS and not self.may_wait:
            return verdict.ceiling_reached(ticket.call, ticket.account, node, wait.limit, "no wait")
        gate = next((gate for gate in self.gates if gate.limit == wait.limit), None)
        amount = gate.bucket.rate.amount if gate else None
        max_wait = self.max_wait if self.may_wait else None
        return verdict.wait_too_long(ticket.call, ticket.account, node, wait, amount, max_wait)
