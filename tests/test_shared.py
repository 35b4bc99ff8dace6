"""Several processes book on one run: any history of calls, exchanges that fail before or after they were done, an
outage, a death and a lease that runs out leaves books that are the bill.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pacer.entry import SUMS, Answer, Entry, Limit
from pacer.ledger import Account
from pacer.shared import SharedAdmission
from pacer.store.journal import Journal
from pacer.store.vault import Away, Vault
from pacer.ticket import Caller, Reservation, Ticket, gates_of
from pacer.usage import Settlement, Source, Usage
from tests.engine import Clock, Desk, Seat, call, granted, place_of
from tests.shelves import SHELVES

LEASE = 60.0
LIMITS = (Limit("tokens_per_second", "tokens", 20.0, 1.0, 100.0),)


class Failing:
    """A vault some of whose exchanges fail: before anything is done, or with the answer lost."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.fails: str | None = None
        self.is_quick = vault.is_quick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vault, name)

    def exchange(self, entries: Sequence[Entry], *, patient: bool = True) -> Answer:
        fails, self.fails = self.fails, None
        if fails == "before":
            raise Away("it was not reached")
        answer = self._vault.exchange(entries)  # in its own time: only what is to fail does
        if fails == "after":
            raise Away("its answer was lost")
        return answer


class Process:
    """One process with its open calls; its clerk works when it is told to."""

    def __init__(self, vault: Vault, clock: Clock, ceiling: int | None, failure: Any) -> None:
        opened = vault.open("run", ceiling, LIMITS)
        self.vault = Failing(vault)
        self.account = Account("run", opened.run.ceiling, parent=Account("pacer", kind="pacer"))
        self.admission = SharedAdmission(self.account, gates_of(opened.limits, clock.now), vault.member)
        self.store = Desk(
            self.admission,
            self.vault,
            opened.limits,
            Journal("run", vault.member),
            lease=LEASE,
            failure=failure,
            grace=2.0,
            clock=clock,
        )
        self.store.see(opened)
        self.store.work_off_the_dead()
        self.clock = clock
        self.tickets: list[Ticket] = []
        self.billed = 0

    def offer(self, caller: Account, worst: int, expected: int) -> None:
        ticket = self.store.offer(call(worst, expected), object(), Caller(caller))
        self.tickets.append(ticket)
        if ticket.decision is None:
            self.store.sit(ticket, Seat(self.clock), asks=ticket.is_asking)

    @property
    def open_calls(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets if granted(ticket) and place_of(ticket).settlement is None]

    def settle(self, ticket: Ticket, spent: int, unknown: int) -> None:
        usage = Usage(tokens=spent)
        self.billed += spent
        source: Source = "partial" if unknown else "provider"
        self.store.settle(place_of(ticket), usage, usage, Settlement(spent, unknown, source))

    def work(self) -> bool:
        """One attempt of the clerk; whether it came through."""
        try:
            self.store._exchange(patient=True)
            self.store._look_around()
        except Away as error:
            self.store._fail(error)
            return False
        self.store._come_back()
        return True


class Fleet(RuleBasedStateMachine):
    """Two or three processes on one run, and all that may come between them."""

    kind = "sqlite"

    @initialize(
        ceiling=st.none() | st.integers(0, 3_000),
        failure=st.sampled_from(["refuse", "pass"]),
        number=st.integers(2, 3),
        is_quick=st.booleans(),
    )
    def open(self, ceiling: int | None, failure: str, number: int, is_quick: bool) -> None:
        self.directory = TemporaryDirectory()
        self.environment = patch.dict(os.environ, {"XDG_STATE_HOME": self.directory.name})
        self.environment.start()
        self.context = SHELVES[self.kind]()
        self.shelf = self.context.__enter__()
        self.ceiling, self.failure, self.is_quick = ceiling, failure, is_quick
        self.clock = Clock()
        self.passed = 0
        self.dead: list[Process] = []
        self.processes: list[Process] = []
        for _ in range(number):
            self._start()

    def _start(self) -> None:
        vault = self.shelf.open_vault("pacer", LEASE)
        vault.is_quick = self.is_quick
        self.processes.append(Process(vault, self.clock, self.ceiling, self.failure))

    def teardown(self) -> None:
        if hasattr(self, "context"):
            try:
                self._check_the_end()
            finally:
                for process in [*self.processes, *self.dead]:
                    process.store._is_closed = True  # the dead have nothing to say at the end of the tests
                self.context.__exit__(None, None, None)
                self.environment.stop()
                self.directory.cleanup()

    def _pick(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    @rule(number=st.integers(0, 2), worst=st.integers(1, 400), share=st.integers(1, 4))
    def offer(self, number: int, worst: int, share: int) -> None:
        process = self._pick(number)
        process.offer(process.account, worst, max(1, worst // share))

    @rule(number=st.integers(0, 2), reserve=st.integers(0, 100), worst=st.integers(1, 200))
    def start_an_agent(self, number: int, reserve: int, worst: int) -> None:
        process = self._pick(number)
        agent = process.admission.register.spawn(process.account, "agent", None, 1.0, reserve)
        process.offer(agent, worst, worst)

    @rule(number=st.integers(0, 2))
    def end_an_agent(self, number: int) -> None:
        process = self._pick(number)
        agents = list(process.account.children.values())
        if agents:
            process.store.post(lambda admission, now: admission.end(agents[0]))

    @rule(number=st.integers(0, 2), which=st.integers(0, 50), part=st.integers(0, 4), seen=st.booleans())
    def settle(self, number: int, which: int, part: int, seen: bool) -> None:
        process = self._pick(number)
        if calls := process.open_calls:
            ticket = calls[which % len(calls)]
            worst = place_of(ticket).call.worst
            spent = worst * part // 4
            process.settle(ticket, spent, 0 if seen else worst - spent)

    @rule(number=st.integers(0, 2), which=st.integers(0, 50))
    def leave(self, number: int, which: int) -> None:
        process = self._pick(number)
        if process.tickets:
            ticket = process.tickets[which % len(process.tickets)]
            if not isinstance(ticket.decision, Reservation) or ticket.decision.settlement is None:
                process.store.leave(ticket)

    @rule(number=st.integers(0, 2))
    def work(self, number: int) -> None:
        self._pick(number).work()

    @rule(number=st.integers(0, 2), fails=st.sampled_from(["before", "after"]))
    def fail_next(self, number: int, fails: str) -> None:
        self._pick(number).vault.fails = fails

    @rule(number=st.integers(0, 2), fails=st.sampled_from(["before", "after"]))
    def be_away(self, number: int, fails: str) -> None:
        """Two attempts fail, longer apart than the grace."""
        process = self._pick(number)
        for _ in range(2):
            process.vault.fails = fails
            process.store._admission.outbox and process.work()
            self._pass(2.5)

    @rule(seconds=st.floats(0.01, 15.0))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.clock.now += seconds
        self.shelf.advance(seconds)
        for process in self.processes:
            process.store.tick()

    @rule(number=st.integers(0, 2))
    def renew(self, number: int) -> None:
        self._pick(number).vault.renew("{}")

    @rule(number=st.integers(0, 2))
    def die(self, number: int) -> None:
        """Killed; another process takes its place."""
        self.dead.append(self.processes.pop(number % len(self.processes)))
        self.dead[-1].store._journal.leave()
        self._start()

    @rule(ceiling=st.none() | st.integers(0, 4_000), number=st.integers(0, 2))
    def change_the_ceiling(self, ceiling: int | None, number: int) -> None:
        process = self._pick(number)
        process.store.post(lambda admission, now: admission.set_ceiling(process.account, ceiling))
        self.ceiling = None  # no bound of what was let go before

    def _vault_sums(self) -> dict[str, int]:
        (row,) = (row for row in self.processes[0].vault.rows() if row.name == "run")
        return row.sums()

    @invariant()
    def nothing_is_over_the_ceiling(self) -> None:
        """As long as everything is let go by the store."""
        if not hasattr(self, "processes"):
            return
        sums = self._vault_sums()
        assert min(sums.values()) >= 0, sums
        passed = sum(process.admission._oddities["unshared"] for process in [*self.processes, *self.dead])
        if self.ceiling is not None and not passed:
            assert sums["spent"] + sums["unknown"] + sums["held"] + sums["carved"] <= self.ceiling, sums

    def _check_the_end(self) -> None:
        """The dead are booked as unknown, the living as they say; whoever waits can only wait for what is held."""
        for _ in range(3):
            for process in self.processes:
                process.vault.fails = None
                while not process.work():
                    pass
        self._pass(LEASE / 2)
        for process in self.processes:
            process.store._renew()  # who has nothing to write learns by it that the store is back
        self._pass(LEASE / 2 + 1)
        for _ in range(40):  # all who can go
            for process in self.processes:
                process.store._renew()
                process.work()
                for ticket in process.open_calls:
                    process.settle(ticket, place_of(ticket).call.worst, 0)
                process.work()
            if not any(process.admission.waiting or process.open_calls for process in self.processes):
                break
            self._pass(30.0)
        sums = self._vault_sums()
        bills = sum(process.billed for process in [*self.processes, *self.dead])
        assert (sums["held"], sums["in_flight"]) == (0, 0), sums
        assert sums["spent"] <= bills <= sums["spent"] + sums["unknown"], (sums, bills)
        self._pass(1.0)
        for process in self.processes:
            process.vault.is_quick = True
            process.store.status()
            assert not process.admission.outbox
            assert process.admission.waiting == 0, process.tickets
            assert {name: getattr(process.account, name) for name in SUMS} == sums


@pytest.mark.parametrize("kind", SHELVES)
def test_books_of_several_processes_are_the_bill(kind: str):
    """Whatever comes between processes that share a run."""
    machine = type("Fleet", (Fleet,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40))
