"""The rules of the books hold after every step of any history: offers, answers, settlements, departures, time."""

from __future__ import annotations

import math
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from pacer import ledger
from pacer.errors import BudgetExceeded, CeilingReached
from pacer.fair import Turn
from pacer.ledger import Account
from pacer.register import living
from pacer.ticket import Caller, Reservation, Ticket
from pacer.usage import AccountStatus, Source
from tests.engine import Engine, call, granted, place_of

AMOUNTS = st.integers(1, 300)
BURST = 100.0
RATE = 10.0


LIMITS = ("ceiling", "tokens_per_second", "server_pause")


def held(ticket: Ticket) -> int:
    """What a granted ticket's reservation was given to hold."""
    return place_of(ticket).call.worst


class ReferenceBucket:
    """The bucket in one line: refill, cap, add. The latest time it saw is the time."""

    def __init__(self, now: float) -> None:
        self.level, self.stamp = BURST, now

    def at(self, now: float) -> float:
        self.change(0.0, now)
        return self.level

    def change(self, amount: float, now: float) -> None:
        refilled = min(BURST, self.level + max(0.0, now - self.stamp) * RATE)
        self.level, self.stamp = min(BURST, refilled + amount), max(now, self.stamp)


class Books(RuleBasedStateMachine):
    """A model of the books beside the real ones. The model knows sums; the engine has to agree at every moment."""

    tickets = Bundle("tickets")

    @initialize(
        ceiling=st.none() | st.integers(0, 2_000), paced=st.booleans(), max_wait=st.none() | st.floats(0.0, 20.0)
    )
    def open(self, ceiling: int | None, paced: bool, max_wait: float | None) -> None:
        self.engine = Engine(rate=RATE if paced else None, burst=BURST, ceiling=ceiling, max_wait=max_wait)
        self.paced = paced
        self.spent = self.unknown = 0
        self.everyone: list[Ticket] = []
        self.open_places: dict[int, Ticket] = {}
        self.gone: set[int] = set()
        self.answers: dict[int, object] = {}
        self.started = self.engine.clock.now
        self.bucket = ReferenceBucket(self.started)
        self._check_each_grant()

    def _check_each_grant(self) -> None:
        """B2: the ceiling is looked at inside the critical section, where the grant happens."""
        admission, grant = self.engine.admission, self.engine.admission._grant

        def checked(ticket: Ticket, now: float) -> Reservation:
            place = grant(ticket, now)
            assert ticket.call.least <= held(ticket) <= ticket.call.worst
            if self.paced:
                assert self.bucket.at(now) >= min(ticket.call.tokens, BURST) - 1e-3
                self.bucket.change(-ticket.call.tokens, now)
            account = admission.account
            assert account.ceiling is None or account.spent + account.unknown + account.held <= account.ceiling
            return place

        admission._grant = checked  # type: ignore[method-assign]

    @rule(
        target=tickets,
        worst=AMOUNTS,
        share=st.floats(0.1, 1.0),
        owner=st.integers(0, 5),
        least=st.none() | st.floats(0.0, 1.0),
        model=st.sampled_from("ab"),
    )
    def offer(self, worst: int, share: float, owner: int, least: float | None, model: str) -> Ticket:
        own = sum(held(t) for t in self.open_places.values() if t.owner == owner)
        bound = worst if least is None else int(worst * least)
        asked = call(worst, max(1, int(worst * share)), model=model, least=bound)
        ticket = self.engine.offer(asked, owner)
        self.everyone.append(ticket)
        hopeless = self._overdrawn_by(own + bound)
        assert isinstance(ticket.decision, CeilingReached) == hopeless
        self._take_note()
        return ticket

    @rule(ticket=tickets, used=st.floats(0.0, 2.0), source=st.sampled_from(["provider", "partial", "void"]))
    def settle(self, ticket: Ticket, used: float, source: Source) -> None:
        """Up, down, or with a part that nobody saw; a second time changes nothing."""
        if id(ticket) not in self.open_places:
            return
        del self.open_places[id(ticket)]
        spent = 0 if source == "void" else int(held(ticket) * used)
        unknown = max(0, held(ticket) - spent) if source == "partial" else 0
        self.spent += spent
        self.unknown += unknown
        used_of_rate = {"provider": spent, "partial": max(spent, ticket.call.tokens), "void": 0}[source]
        self.bucket.change(ticket.call.tokens - used_of_rate, self.engine.clock.now)
        self.engine.settle(ticket, spent, unknown, source)
        self.engine.settle(ticket, 12_345, 678, "provider")
        self._take_note()

    @rule(ticket=tickets, status=st.sampled_from([200, 429, 529]), pause=st.none() | st.floats(0.0, 20.0))
    def answer(self, ticket: Ticket, status: int, pause: float | None) -> None:
        """A server pauses, or lets its slow start go on; also twice, and after the call has ended."""
        if granted(ticket) and id(ticket) not in self.gone:
            self.engine.answer(ticket, status, pause)
            self._take_note()

    @rule(ticket=tickets)
    def leave(self, ticket: Ticket) -> None:
        """A caller is cancelled: in the lane, or after the grant and before it sent anything."""
        self.gone.add(id(ticket))
        if self.open_places.pop(id(ticket), None) is not None:
            self.bucket.change(ticket.call.tokens, self.engine.clock.now)
        self.engine.leave(ticket)
        self._take_note()

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.engine.advance(seconds)
        self._take_note()

    @rule(seconds=st.floats(0.0, 5.0))
    def the_clock_steps_back(self, seconds: float) -> None:
        """A step back mints nothing and frees nothing; alarms set before stay where they are."""
        self.engine.clock.now -= seconds
        self.engine.store.tick()
        self._take_note()
        self.the_bucket_is_that_of_the_model()
        self.engine.clock.now += seconds

    @rule(ceiling=st.none() | st.integers(0, 2_000))
    def change_the_ceiling(self, ceiling: int | None) -> None:
        self.engine.set_ceiling(ceiling)
        self._take_note()

    def _overdrawn_by(self, amount: int) -> bool:
        """Whether ``amount`` fits under the ceiling not even when all others give back what they hold."""
        ceiling = self.engine.account.ceiling
        return ceiling is not None and self.spent + self.unknown + amount > ceiling

    def _take_note(self) -> None:
        """Take over the decisions made in this step; a decision never changes, and grants keep the order of arrival."""
        for ticket in self.everyone:
            if id(ticket) in self.answers:
                assert self.answers[id(ticket)] is ticket.decision
            elif ticket.decision is not None:
                self.answers[id(ticket)] = ticket.decision
                if granted(ticket) and id(ticket) not in self.gone:
                    self.open_places[id(ticket)] = ticket
        for model in "ab":
            granted_now = [ticket for ticket in self.everyone if granted(ticket) and ticket.call.model == model]
            by_id = sorted(granted_now, key=lambda ticket: place_of(ticket).id)
            assert by_id == granted_now, "granted out of order"

    @invariant()
    def the_numbers_are_those_of_the_model(self) -> None:
        """B1, B3, B4, B5: sums of what is open and of what was settled, at the run and at its parent."""
        held_by_all = sum(held(ticket) for ticket in self.open_places.values())
        account = self.engine.account
        for node in account.path:
            assert (node.spent, node.unknown, node.held) == (self.spent, self.unknown, held_by_all)
            assert node.in_flight == len(self.open_places)
        assert account.ceiling is None or account.remaining == account.ceiling - self.spent - self.unknown - held_by_all

    @invariant()
    def nobody_waits_who_could_go_or_never_can(self) -> None:
        """B7 and decision 2: the head really has to wait, and nobody in line waits for tokens that are spent."""
        waiting = [t for t in self.everyone if t.decision is None and id(t) not in self.gone]
        status = self.engine.admission.status(
            self.engine.account, self.engine.clock.now
        )  # the store's would look after the lane first
        assert status.waiting == len(waiting)
        if not waiting:
            return
        assert status.waits_for in LIMITS
        assert status.next_seconds is None or status.next_seconds > 0
        assert not any(self._overdrawn_by(amount) for ticket in waiting for node, amount in ticket.needs[:1])

    @invariant()
    def every_refusal_was_right_and_says_why(self) -> None:
        for answer in self.answers.values():
            if isinstance(answer, BudgetExceeded):
                assert answer.limit in LIMITS
                assert answer.asked > 0

    @invariant()
    def the_bucket_is_that_of_the_model(self) -> None:
        """B10: every grant left a bucket that could give it, and what came back is capped at the burst."""
        if self.paced:
            level = self.engine.admission.status(self.engine.account, self.engine.clock.now).tokens_available
            assert level is not None
            assert math.isclose(level, self.bucket.at(self.engine.clock.now), abs_tol=1e-3)


class Tree(RuleBasedStateMachine):
    """The same for a tree of agents, with ceilings, reserves, wrap-ups, pauses and ends anywhere in it."""

    agents = Bundle("agents")
    tickets = Bundle("tickets")

    @initialize(
        ceiling=st.none() | st.integers(100, 3_000),
        paced=st.booleans(),
        threshold=st.sampled_from([0, 200]),
        order=st.sampled_from(["fair", "finish_first"]),
    )
    def open(self, ceiling: int | None, paced: bool, threshold: int, order: Literal["fair", "finish_first"]) -> None:
        rate = RATE if paced else None
        self.engine = Engine(rate=rate, burst=BURST, ceiling=ceiling, spawn_threshold=threshold, order=order)
        self.accounts = [self.engine.account, self.engine.admission.register.root]
        self.booked: dict[Account, tuple[int, int]] = {}
        self.everyone: list[Ticket] = []
        self.gone: set[int] = set()
        self._check_each_grant()

    def _check_each_grant(self) -> None:
        """B2: at every grant, for every ancestor, whatever was asked; a wrap-up takes no room that was not its own."""
        admission, grant = self.engine.admission, self.engine.admission._grant

        def checked(ticket: Ticket, now: float) -> Reservation:
            before = {node: node.remaining for node in ticket.account.path}
            left = ticket.account.left
            place = grant(ticket, now)
            assert ticket.call.least <= place.call.worst <= ticket.call.worst
            assert not any(node.paused for node in ticket.account.path)
            if place.from_reserve:
                assert ticket.caller.wraps_up
                assert ticket.account.left == left - place.call.worst >= 0
                assert {node: node.remaining for node in ticket.account.path} == before
            else:
                assert all(node.remaining is None or node.remaining >= 0 for node in ticket.account.path)
            return place

        admission._grant = checked  # type: ignore[method-assign]

    @rule(
        target=agents,
        parent=st.none() | agents,
        ceiling=st.none() | st.integers(200, 2_000),
        reserve=st.sampled_from([0, 0, 50, 200]),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
    )
    def spawn(self, parent: Account | None, ceiling: int | None, reserve: int, weight: float) -> Account:
        agent = self.engine.agent(
            f"{len(self.accounts)}", parent=parent, ceiling=ceiling, reserve=reserve, weight=weight
        )
        assert agent.parent is not None
        assert not agent.parent.ended
        self.accounts.append(agent)
        return agent

    @rule(
        target=tickets,
        agent=st.none() | agents,
        worst=AMOUNTS,
        least=st.floats(0.0, 1.0),
        owner=st.integers(0, 5),
        wraps_up=st.booleans(),
    )
    def offer(self, agent: Account | None, worst: int, least: float, owner: int, wraps_up: bool) -> Ticket:
        caller = Caller(living(agent or self.engine.account), wraps_up=wraps_up)
        ticket = self.engine.offer(call(worst, least=int(worst * least)), owner, caller)
        self.everyone.append(ticket)
        return ticket

    @rule(ticket=tickets, used=st.floats(0.0, 1.5), source=st.sampled_from(["provider", "partial", "void"]))
    def settle(self, ticket: Ticket, used: float, source: Source) -> None:
        if not self._is_open(ticket):
            return
        spent = 0 if source == "void" else int(held(ticket) * used)
        unknown = max(0, held(ticket) - spent) if source == "partial" else 0
        for node in ticket.account.path:
            before = self.booked.get(node, (0, 0))
            self.booked[node] = (before[0] + spent, before[1] + unknown)
        self.engine.settle(ticket, spent, unknown, source)

    @rule(ticket=tickets)
    def leave(self, ticket: Ticket) -> None:
        self.gone.add(id(ticket))
        self.engine.leave(ticket)

    @rule(agent=agents)
    def end(self, agent: Account) -> None:
        """Also twice, and with open calls and children."""
        self.engine.end(agent)

    @rule(agent=st.none() | agents, ceiling=st.none() | st.integers(0, 2_000))
    def change_a_ceiling(self, agent: Account | None, ceiling: int | None) -> None:
        self.engine.set_ceiling(ceiling, agent)

    @rule(agent=st.none() | agents, paused=st.booleans())
    def pause(self, agent: Account | None, paused: bool) -> None:
        self.engine.store.do(lambda admission, now: admission.set_paused(agent or self.engine.account, paused))

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.engine.advance(seconds)

    def _is_open(self, ticket: Ticket) -> bool:
        return granted(ticket) and place_of(ticket).settlement is None

    @invariant()
    def every_account_is_the_sum_of_what_is_below_it(self) -> None:
        """B1: spent and unknown by settlements, held by open calls, carved out by reserves of those that started."""
        open_ones = [ticket for ticket in self.everyone if self._is_open(ticket)]
        waiting = [ticket for ticket in self.everyone if ticket.decision is None and id(ticket) not in self.gone]
        for node in self.accounts:
            assert (node.spent, node.unknown) == self.booked.get(node, (0, 0))
            below = [ticket for ticket in open_ones if node in ticket.account.path]
            assert node.held == sum(held(ticket) for ticket in below)
            assert node.in_flight == len(below)
            assert node.waiting == sum(node in ticket.account.path for ticket in waiting)
            assert node.carved == sum(each.left for each in self.accounts if node in each.path)
            assert node.left >= 0
            assert not (node.ended and node.left)
            assert node.lent == sum(
                held(ticket) for ticket in below if ticket.account is node and place_of(ticket).from_reserve
            )

    @invariant()
    def nobody_waits_who_could_go_or_never_can(self) -> None:
        """B7: whoever may go by turn really has to wait, and nobody waits for tokens that are gone."""
        admission, now, held_up = self.engine.admission, self.engine.clock.now, set[Turn]()
        for _, ticket in admission._heads(list(admission._lanes.values()), held_up):
            wait, turn = admission._decide(ticket, now)
            assert wait is not None
            if wait.seconds is not None:
                break
            if turn is not None:
                held_up.add(turn)
        for ticket in self.everyone:
            account = ticket.account
            if ticket.decision is not None or id(ticket) in self.gone:
                continue
            if ticket.caller.wraps_up and ticket.call.least <= account.left + account.lent:
                continue
            needs = ledger.needs(account, ticket.call, admission.spawn_threshold)
            assert not any(node.never_fits(amount) for node, amount in [*needs, *ticket.needs])

    @invariant()
    def calls_of_one_agent_go_in_the_order_of_their_arrival(self) -> None:
        for account in self.accounts:
            for wraps_up in (False, True):
                mine = [t for t in self.everyone if t.account is account and t.caller.wraps_up == wraps_up]
                ids = [place_of(ticket).id for ticket in mine if granted(ticket)]
                assert ids == sorted(ids)

    @invariant()
    def the_status_is_made_of_the_same_numbers(self) -> None:
        """Rows that were kept from before are as good as new ones; agents are gone when they have ended."""
        run = self.engine.account
        status = self.engine.admission.status(run, self.engine.clock.now)
        assert (status.spent, status.held, status.carved, status.waiting) == (
            run.spent,
            run.held,
            run.carved,
            run.waiting,
        )
        for account in self.accounts:
            if account.row is not None:
                assert account.row == AccountStatus(**ledger.fields(account))
            gone = account.parent is not None and account.id not in account.parent.children
            assert gone == (account.ended and account.is_idle())

    def teardown(self) -> None:
        """When all is settled and ended, nothing is held or carved out, and the summary has everything."""
        for account in self.accounts:
            self.engine.store.do(lambda admission, now, account=account: admission.set_paused(account, False))  # type: ignore[misc]
        for ticket in self.everyone:
            self.engine.leave(ticket)
        for account in self.accounts[2:]:
            self.engine.end(account)
        run = self.engine.account
        assert (run.held, run.carved, run.in_flight, run.waiting, run.children) == (0, 0, 0, 0, {})
        assert not self.engine.admission._lanes
        assert not self.engine.admission._open_by


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=100, stateful_step_count=40)
TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=300, stateful_step_count=50)
