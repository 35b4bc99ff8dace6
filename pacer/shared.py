"""The one decision where other processes share the books: what goes by its own rules is asked for there as well.

A call that would go keeps its place here and is posted; the answer lets it in, later if the rate says so, or puts it
back to the head of its line. What others book is seen as a part of the run's own sums. Of the rates others take too:
the buckets here are what was seen of them last, and one call at a time may ask for more than they have.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from pacer import ledger, verdict
from pacer.admission import Admission
from pacer.delay import Delays
from pacer.entry import (
    SUMS,
    Answer,
    Carve,
    Change,
    Entry,
    Held,
    Hold,
    Late,
    Limit,
    Look,
    Missing,
    Release,
    RunBooks,
    Settle,
    Short,
    Verdict,
    Withdraw,
)
from pacer.fair import Turn
from pacer.ledger import Account
from pacer.share import Share
from pacer.ticket import Gate, Posted, Reservation, Ticket
from pacer.usage import Settlement, Usage, Wait, Waiting

FRESH_SECONDS = 0.05
"""What was seen of a run so long ago is looked at again before somebody waits or is refused for it."""

AGENTS_TOLD = 500
WAITS_TOLD = 20
"""What a process tells of itself, to be shown elsewhere, holds no more agents and no more of those who wait."""

_OF_USAGE = ("input", "output", "cached", "written", "reasoning")


class SharedAdmission(Admission):
    """The admission of one of several processes; ``member`` is what it calls itself in the shared books."""

    def __init__(self, account: Account, gates: tuple[Gate, ...], member: str, **given: Any) -> None:
        super().__init__(account, gates, **given)
        self.member = member
        self.revision = 0
        """Of the pacer's limits, as they are known here."""
        self.passes = False
        """Whether calls go without asking, because the store is away."""
        self.told: list[Ticket] = []
        """Who was answered: to be woken even if nobody waits in line."""
        self._lost: dict[Account, str] = {}
        self._share = Share()
        self._delayed = Delays()
        self._debtor: Reservation | None = None
        self._unheld: set[Reservation] = set()
        self._claims: set[Account] = set()
        """Runs in which this process may have a claim."""
        self._asking: Counter[Account] = Counter()
        self._unwritten: dict[Reservation, Posted] = {}

    # ---------------------------------------------------------------- asking

    def _decide(self, ticket: Ticket, now: float) -> tuple[Wait | None, Turn | None]:
        if ticket.account.run in self._lost:
            return Wait("store", None), None
        wait, turn = super()._decide(ticket, now)
        if wait is not None and wait.seconds is not None and self._debtor is None and not self.passes:
            return None, None  # the next one in debt: take now, act later
        return wait, turn

    def _grant(self, ticket: Ticket, now: float) -> Reservation:
        if self.passes:
            place = super()._grant(ticket, now)
            self._pass(place)
            return place
        owes = any(gate.bucket.wait_seconds(gate.asked(ticket.call), now) > 0.0 for gate in self.gates)
        place = ticket.place = self._keep_place(ticket, now)
        if owes:
            self._debtor = place
            if not ticket.position:  # its turn came before there was a line
                ticket.account.own.charge(ticket.call.tokens)
                place.charged = ticket.call.tokens
        self._ask(ticket)
        self._post(self._hold_for(ticket, place, now), ticket, place, now)
        return place

    def _hold_for(self, ticket: Ticket, place: Reservation, now: float) -> Hold:
        account, call = place.account, place.call
        patience = None if ticket.deadline is None else ticket.deadline - now
        return Hold(
            self._id(place),
            account.run.name,
            call.worst,
            call.least,
            {gate.kind: gate.asked(call) for gate in place.gates},
            patience if self.may_wait else 0.0,
            room=self.spawn_threshold if place.starts and account.kind == "agent" else 0,
            carves=tuple(Carve(self._carve_id(node), node.left) for node in place.starts if node.left),
            reserve=self._carve_id(account) if place.from_reserve else "",
        )

    def _wait_in_line(self, ticket: Ticket, wait: Wait | None, now: float) -> None:
        run = ticket.account.run
        if (why := self._lost.get(run)) is not None:
            self._refuse(ticket, verdict.store_unavailable(ticket.call, ticket.account, why))
        elif now - run.seen_at > FRESH_SECONDS and not self.passes:
            self._ask(ticket)
            self._post(Look(run.name), ticket, since=now)
        else:
            super()._wait_in_line(ticket, wait, now)

    def _ask(self, ticket: Ticket) -> None:
        ticket.is_asking = True
        self._asking[ticket.account.run] += 1
        if ticket.place is None:
            ledger.queue(ticket.account, 1)  # an ended agent is not over before its last call is

    def _is_answered(self, ticket: Ticket) -> None:
        ticket.is_asking = False
        self._asking[ticket.account.run] -= 1
        if ticket.place is None:
            ledger.queue(ticket.account, -1)
            if ticket.is_left:
                self.register.retire(ticket.account)

    def _post(
        self, entry: Entry, ticket: Ticket | None = None, place: Reservation | None = None, since: float = 0.0
    ) -> None:
        if not any(run.name == entry.run for run in self._lost):
            self.outbox.append(Posted(entry, since, ticket, place))

    def _id(self, place: Reservation) -> str:
        return f"{self.member}.{place.id}{'p' if place in self._unheld else ''}"

    def _carve_id(self, account: Account) -> str:
        return f"{self.member}.a{account.id}"

    # ---------------------------------------------------------------- answers

    def take_in(self, batch: Sequence[Posted], answer: Answer, now: float) -> None:
        """What became of a batch, in order; who has to wait now is put back to the head of its line.

        Raises: Receded, before anything is taken in.
        """
        runs = [(run, books) for name, books in answer.runs.items() if (run := self.register.known(name)) is not None]
        for run, books in runs:
            self._share.expect(run, books)
        told = list(zip(batch, answer.verdicts, strict=True))
        for posted, said in told:
            self._acknowledge(posted, said)
        not_held = [posted for posted, said in told if isinstance(said, Short | Late)]
        for gate in self.gates:
            if gate.kind in answer.levels:
                gate.bucket.set_level(answer.levels[gate.kind] - self._taken_here(gate, not_held), now)
        self._delayed.refunds = answer.refunds
        for run, books in runs:
            self._see(run, books, now)
        if answer.paused != self.register.root.paused:
            super().set_paused(self.register.root, answer.paused)
        for posted, said in reversed(told):
            if posted.ticket is not None:
                self._take_answer(posted.ticket, said, now)
        self._withdraw_claims()

    def _take_answer(self, ticket: Ticket, said: Verdict | None, now: float) -> None:
        self._is_answered(ticket)
        if ticket.is_left:
            if ticket.place is not None and not isinstance(said, Held):
                ledger.not_start(ticket.place.starts)
            return
        is_new = not ticket.position
        match said:
            case Held():
                self._admit(ticket, said, now)
            case Short():
                self._put_back(ticket, now)
                super()._wait_in_line(ticket, self._decide(ticket, now)[0] or Wait("ceiling", None), now)
            case Late():
                self._put_back(ticket, now)
                self._refuse(ticket, self._too_long(ticket, Wait(said.limit, said.seconds)))
            case None:
                self._consider(ticket, now)
        if ticket.seat is not None and (ticket.decision is not None or (is_new and not ticket.is_asking)):
            self.told.append(ticket)

    def _consider(self, ticket: Ticket, now: float) -> None:
        """The look that it asked for has come: decide as for a new call."""
        wait = None
        if not self.waiting:
            wait = self._server_wait(ticket.call, now) or self._decide(ticket, now)[0]
            if wait is None:
                self._grant(ticket, now)
                return
        super()._wait_in_line(ticket, wait, now)

    def _admit(self, ticket: Ticket, held: Held, now: float) -> None:
        place = ticket.place
        assert place is not None, "an answer without a question"
        if held.amount < place.call.worst:
            ledger.lower(place.account, place.call.worst - held.amount)
            place.call = replace(place.call, worst=held.amount)
        if held.seconds > 0.0:
            ticket.wait = Wait(held.limit, held.seconds)
            ticket.position = ticket.position or 1
            self._delayed.add(ticket, self.gates, held, now)
            self._count_delayed(ticket, 1)
        else:
            self._let_in(ticket, place, now, now - ticket.since if ticket.position else 0.0)

    def _let_in(self, ticket: Ticket, place: Reservation, now: float, waited_seconds: float) -> None:
        super()._let_in(ticket, place, now, waited_seconds)
        if self._debtor is place:
            self._debtor = None

    def _put_back(self, ticket: Ticket, now: float) -> None:
        """The books did not hold it: as if it had not been asked for."""
        place = ticket.place
        assert place is not None, "an answer without a question"
        ledger.queue(ticket.account, 1)  # as above
        super()._undo(place, now)
        ledger.queue(ticket.account, -1)
        ledger.not_start(place.starts)
        ticket.place = None
        if self._debtor is place:
            self._debtor = None

    def _acknowledge(self, posted: Posted, said: Verdict | None) -> None:
        """Keep account of what of the shared sums is this process's."""
        entry, place = posted.entry, posted.place
        match entry:
            case Hold() if place is not None:
                if isinstance(said, Held):
                    place.shared = said.amount
                    self._share.hold(place.account.run, entry, said.amount)
                elif isinstance(said, Short):
                    self._claims.add(place.account.run)
            case Settle() if place is not None:
                self._acknowledge_end(entry, place, is_lost=isinstance(said, Missing) and not posted.is_doubtful)
            case Release() if (run := self.register.known(entry.run)) is not None:
                self._share.release(run, entry.ids)
            case Look() if entry.needs and (run := self.register.known(entry.run)) is not None:
                self._claims.add(run)

    def _acknowledge_end(self, entry: Settle, place: Reservation, *, is_lost: bool) -> None:
        run = place.account.run
        self._unwritten.pop(place, None)
        if entry.is_held and place.shared is not None:
            self._share.end(run, entry, place.shared)
            if is_lost:
                self._book_again(entry, place)
                return
        if not entry.is_held or place.shared is not None:
            self._share.book(run, entry.booked)

    def _book_again(self, entry: Settle, place: Reservation) -> None:
        """The store has lost the hold, and with it what it took; the bill is booked all the same."""
        again = replace(entry, id=f"{entry.id}l", gives_back={}, reserve="", returned=0, is_held=False)
        self._post(again, place=place)

    def _taken_here(self, gate: Gate, not_held: Iterable[Posted]) -> int:
        """What calls take whose question is not answered yet, or that are about to give it back."""
        goes_back = [posted for posted in not_held if posted.ticket is not None and not posted.ticket.is_left]
        taking = (posted.entry for posted in (*self.outbox, *goes_back))
        return sum(entry.takes.get(gate.kind, 0) for entry in taking if isinstance(entry, Hold))

    def _see(self, run: Account, books: RunBooks, now: float) -> None:
        """Take in how a run stands over all processes."""
        others = self._share.others(run, books)
        run.seen_at = now
        if ledger.take_over(run, others):
            self._look_again(run)
            self._tell_of(run)
            if self.waiting:
                self._shrunk.add(run)
        if books.ceiling != run.ceiling:
            super().set_ceiling(run, books.ceiling)
        if books.paused != run.paused:
            super().set_paused(run, books.paused)

    def see(self, run: Account, books: RunBooks, now: float) -> None:
        """A run was opened: this is how it stands. Raises: Receded."""
        self._share.open(run)
        self._share.expect(run, books)
        self._see(run, books, now)

    # ---------------------------------------------------------------- those who wait

    def _next_decided(self, now: float) -> Ticket | None:
        if self._debtor is None:
            return super()._next_decided(now)
        if self._shrunk:
            self._dismiss_hopeless(now)
        self._blocked = []  # all behind the one that has taken more than there was
        return None

    def _waits(self, account: Account, now: float) -> Iterator[Waiting]:
        for ticket in self._delayed:
            if account in ticket.account.path and ticket.wait is not None:
                yield self._waiting(ticket, Wait(ticket.wait.limit, self._delayed.acts_at(ticket) - now), now)
        yield from super()._waits(account, now)

    def pump(self, now: float) -> list[Ticket]:
        """Decide on everybody who can be decided now; see :meth:`pacer.admission.Admission.pump`."""
        for ticket in self._delayed:
            acts_at = self._delayed.acts_at(ticket)
            if acts_at <= now or (ticket.deadline is not None and acts_at > ticket.deadline):
                self._end_delay(ticket, acts_at - now, now)
        decided = super().pump(now)
        self._withdraw_claims()
        return decided

    def _withdraw_claims(self) -> None:
        for run in [run for run in self._claims if not run.waiting and not self._asking[run]]:
            self._claims.discard(run)
            self._post(Withdraw(run.name))

    def next_due(self, now: float) -> tuple[Ticket, float] | None:
        """Whose case time alone changes first, and when."""
        due = super().next_due(now)
        dues = [(ticket, self._delayed.acts_at(ticket)) for ticket in self._delayed] + (
            [due] if due is not None else []
        )
        return min(dues, key=lambda due: due[1], default=None)

    def needed(self, run: Account) -> int:
        """The room under the ceiling of a run that the first one waits for who is short of it; 0 without any."""
        for _, ticket in self._heads(list(self._lanes.values()), set()):
            account, call = ticket.account, ticket.call
            if account.run is not run or self._pays_from_reserve(ticket):
                continue
            if ledger.fit(account, call, self.spawn_threshold) is run:
                return dict(ledger.needs(account, call, self.spawn_threshold))[run]
        return 0

    @property
    def has_passed(self) -> bool:
        """Whether any call went without asking."""
        return self._oddities["unshared"] > 0

    @property
    def in_line(self) -> int:
        """How many stand in the lanes; of those who wait, all but those whose place is kept already."""
        return self.waiting - len(self._delayed)

    @property
    def waits_for_others(self) -> bool:
        """Whether somebody waits for what no time brings, but perhaps another process."""
        if self.in_line:
            return bool(self._held_up) or not self._blocked or bool(self._delayed)
        return bool(self._delayed)

    def _end_delay(self, ticket: Ticket, seconds: float, now: float) -> None:
        """It may go now, or has learned that it would come too late."""
        self._stop_delay(ticket)
        place = ticket.place
        assert place is not None, "delayed without a place"
        if seconds <= 0.0:
            self._let_in(ticket, place, now, now - ticket.since)
        else:
            wait = ticket.wait
            assert wait is not None, "delayed without a reason"
            self._undo(place, now)
            self._refuse(ticket, self._too_long(ticket, Wait(wait.limit, seconds)))
        self._decided.append(ticket)

    def _stop_delay(self, ticket: Ticket) -> None:
        self._delayed.remove(ticket)
        self._count_delayed(ticket, -1)

    def _count_delayed(self, ticket: Ticket, number: int) -> None:
        self.waiting += number
        ledger.queue(ticket.account, number)

    # ---------------------------------------------------------------- ends

    def leave(self, ticket: Ticket, now: float) -> None:
        """The caller has gone; what was asked for is given back there, too."""
        ticket.is_left = True
        if ticket in self._delayed:
            self._stop_delay(ticket)
        super().leave(ticket, now)
        self._withdraw_claims()

    def _undo(self, place: Reservation, now: float) -> None:
        if place not in self._unheld:
            self._post(self._end_of(place, Usage(), Usage(), Settlement(0, 0, "void")), place=place)
        self._unheld.discard(place)
        super()._undo(place, now)
        if self._debtor is place:
            self._debtor = None

    def settle(self, place: Reservation, usage: Usage, counted: Usage, settlement: Settlement, now: float) -> None:
        """End a reservation, here and in the shared books."""
        if self._is_open(place):
            if place not in self._unheld or settlement.source != "void":
                self._post(self._end_of(place, usage, counted, settlement), place=place)
                if place.account.run not in self._lost:
                    self._unwritten[place] = self.outbox[-1]
            self._unheld.discard(place)
        super().settle(place, usage, counted, settlement, now)

    def when_written(self, place: Reservation, tell: Callable[[], object]) -> bool:
        """Call ``tell`` when the end of the reservation is in the shared books; ``False`` if it is there."""
        posted = self._unwritten.get(place)
        if posted is not None:
            posted.done = tell
        return posted is not None

    def _end_of(self, place: Reservation, usage: Usage, counted: Usage, settlement: Settlement) -> Settle:
        booked: dict[str, int] = {}
        source, cost = settlement.source, settlement.spent + settlement.unknown
        if source != "void":
            booked = {name: getattr(usage, name) for name in _OF_USAGE}
            booked |= {"spent": settlement.spent, "unknown": settlement.unknown, "calls": 1}
            booked["estimated"] = 0 if source == "provider" else settlement.spent
        is_held = place not in self._unheld
        back = {
            gate.kind: gate.back(place.call, counted, source) - (0 if is_held else gate.asked(place.call))
            for gate in place.gates
        }
        returns = place.from_reserve and not place.account.ended
        return Settle(
            self._id(place),
            place.account.run.name,
            {name: amount for name, amount in booked.items() if amount},
            {kind: amount for kind, amount in back.items() if amount},
            self._carve_id(place.account) if returns else "",
            max(0, place.call.worst - cost) if returns else 0,
            is_held=is_held,
        )

    def end(self, account: Account) -> None:
        """An agent has ended; what it had carved out is everybody's."""
        if account.started and account.reserve:
            self._release([account])
        super().end(account)

    # ---------------------------------------------------------------- changes for all

    def set_ceiling(self, account: Account, ceiling: int | None) -> None:
        """Change a ceiling; a run's for all processes."""
        if account.kind == "agent":
            super().set_ceiling(account, ceiling)
        else:
            self._post(Change(account.name, ceiling=ceiling))

    def set_paused(self, account: Account, paused: bool) -> None:
        """Pause or go on; a run or the pacer in all processes."""
        if account.kind == "agent":
            super().set_paused(account, paused)
        else:
            self._post(Change("" if account.kind == "pacer" else account.name, paused=paused))

    def set_limits(self, limits: Iterable[Limit], now: float) -> None:
        """Change the rates in all processes."""
        self._post(Change(limits=tuple(limits)))

    def see_limits(self, limits: Iterable[Limit], revision: int, now: float) -> None:
        """The rates have been changed."""
        self.revision = revision
        super().set_limits(limits, now)
        self._delayed.change(self.gates, now)

    # ---------------------------------------------------------------- a store that is away, or has forgotten

    def give_up(self, before: float, why: str, now: float) -> None:
        """The store is away: let those go without it, or refuse them, who have asked ``before`` or wait in line."""
        asked = [posted for posted in self.outbox if posted.ticket is not None and posted.since <= before]
        for posted in asked:
            self.outbox.remove(posted)
            if posted.place is not None:
                self._take_back(posted.place)
        for posted in asked:
            if posted.ticket is not None:
                self._is_answered(posted.ticket)
                if not posted.ticket.is_left:
                    self._go_without(posted.ticket, why, now)
        if not self.passes:
            self._dismiss(self._waiting_below(self.register.root), why, now)

    def _take_back(self, place: Reservation) -> None:
        """The store may have heard of it all the same, or come to hear of it."""
        void = self._end_of(place, Usage(), Usage(), Settlement(0, 0, "void"))
        self._post(replace(void, is_held=False), place=place)
        self._claims.add(place.account.run)
        self._release([node for node in place.starts if node.left])
        ledger.not_start(place.starts)
        place.starts = ()

    def _release(self, accounts: list[Account]) -> None:
        for account in accounts:
            self._post(Release(account.run.name, (self._carve_id(account),)))

    def _go_without(self, ticket: Ticket, why: str, now: float) -> None:
        if not self.passes:
            if ticket.place is not None:
                self._put_back(ticket, now)
            self._refuse(ticket, verdict.store_unavailable(ticket.call, ticket.account, why))
        elif ticket.place is None:
            self._consider(ticket, now)
        else:
            self._pass(ticket.place)
            self._let_in(ticket, ticket.place, now, now - ticket.since)
        self.told.append(ticket)

    def _pass(self, place: Reservation) -> None:
        ledger.not_start(place.starts)  # nothing is carved out there: the next call that is held does that
        place.starts = ()
        self._unheld.add(place)
        self._oddities["unshared"] += 1

    def lose(self, name: str, why: str, now: float) -> bool:
        """The books of a run are gone (of all runs, without a name): nothing of it is let go any more.

        Whether that is news.
        """
        lost = [run for run in self.register.runs() if name in ("", run.name)]
        is_new = not self._lost.keys() >= set(lost)
        self._lost |= dict.fromkeys(lost, why)
        for posted in [posted for posted in self.outbox if name in ("", posted.entry.run)]:
            self.outbox.remove(posted)
            if posted.place is not None:
                self._unwritten.pop(posted.place, None)
            ticket = posted.ticket
            if ticket is None:
                continue
            self._is_answered(ticket)
            if not ticket.is_left:
                if ticket.place is not None:
                    self._put_back(ticket, now)
                self._refuse(ticket, verdict.store_unavailable(ticket.call, ticket.account, why))
                self.told.append(ticket)
        for run in lost:
            self._dismiss(self._waiting_below(run), why, now)
        return is_new

    def stop_waiting(self, name: str = "") -> list[Callable[[], object]]:
        """Whom to tell that nobody knows when what they wait for is written, of that run or of all."""
        return [posted.done for posted in self.outbox if posted.done is not None and name in ("", posted.entry.run)]

    def _dismiss(self, tickets: Iterable[Ticket], why: str, now: float) -> None:
        for ticket in list(tickets):
            self._unqueue(ticket, now)
            self._refuse(ticket, verdict.store_unavailable(ticket.call, ticket.account, why))
            self.told.append(ticket)
        self._withdraw_claims()

    def telling(self, now: float) -> dict[str, Any]:
        """What this process has to show of each run: its agents, who waits for what, what was refused."""
        shows_agents = self.register.agents_known() <= AGENTS_TOLD
        return {
            run.name: {
                "agents": [ledger.row(child) for child in run.children.values()] if shows_agents else [],
                "finished": list(run.finished.values()),
                "waiting": run.waiting,
                "waits": list(itertools.islice(self._waits(run, now), WAITS_TOLD)) if run.waiting else [],
                "waited_seconds": run.waited_seconds,
                "refusals": run.refusals,
            }
            for run in self.register.runs()
        }

    def forget_the_living(self) -> None:
        """After a fork: waiters, open reservations and what is carved out are the parent's."""
        super().forget_the_living()
        self.outbox.clear()
        self.told.clear()
        self._delayed.clear()
        self._unheld.clear()
        self._claims.clear()
        self._asking.clear()
        self._unwritten.clear()
        self._debtor = None
        for run in self.register.runs():
            if run.others:
                living = {"held": 0, "in_flight": 0}
                run.others = tuple(living.get(name, theirs) for name, theirs in zip(SUMS, run.others, strict=True))
            self._keep_nothing_below(run)
        self._share.begin_anew(self.register.runs())

    def _keep_nothing_below(self, account: Account) -> None:
        for child in account.children.values():
            if child.started:
                ledger.not_start([child])
                child.reserve = 0
            self._keep_nothing_below(child)
