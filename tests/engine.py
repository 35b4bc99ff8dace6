"""What the engine's tests share: a clock that is set by hand, seats that write down what happens to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pacer.admission import Admission
from pacer.entry import Answer, Entry, Limit
from pacer.ledger import Account
from pacer.shared import SharedAdmission
from pacer.store.journal import Journal
from pacer.store.memory import MemoryStore
from pacer.store.shared import SharedStore
from pacer.store.vault import Vault
from pacer.ticket import Caller, Reservation, Ticket, gates_of
from pacer.usage import Estimate, Settlement, Source, Usage, Word
from tests.shelves import SHELVES, Shelf

STORES = ("memory", *SHELVES)
_shelf: Shelf | None = None
_numbers = itertools.count(1)


@contextmanager
def on(store: str) -> Iterator[None]:
    """Engines that are made inside have their books in a store of this kind."""
    global _shelf
    if store == "memory":
        yield
        return
    try:
        with SHELVES[store]() as _shelf:
            yield
    finally:
        _shelf = None


class Clock:
    """Time that moves only when told to, and with it that of the shelf."""

    def __init__(self, now: float = 1_000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self.now

    @property
    def now(self) -> float:
        """Seconds."""
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        if _shelf is not None and now != self._now:
            _shelf.advance(now - self._now)
        self._now = now


class Desk(SharedStore):
    """The process's side of shared books without its clerk: whoever calls does all, whatever the vault."""

    def _ring(self) -> None:
        """Nobody to call."""


class Seat:
    """Counts its wake-ups and remembers the last alarm, as an absolute time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.wakes = 0
        self.due: float | None = None

    def wake(self) -> None:
        self.wakes += 1

    def arm(self, seconds: float) -> None:
        assert seconds >= 0
        self.due = self.clock.now + seconds


class Near:
    """A vault that callers always wait for."""

    is_quick = True

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vault, name)

    def exchange(self, entries: Sequence[Entry], *, patient: bool = True) -> Answer:
        return self._vault.exchange(entries)


class Engine:
    """A memory store on a hand-set clock, with a seat for everybody who waits."""

    def __init__(
        self,
        *,
        rate: float | None = None,
        burst: float = 100.0,
        ceiling: int | None = None,
        max_wait: float | None = None,
        may_wait: bool = True,
        spawn_threshold: int = 0,
        order: Literal["fair", "finish_first"] = "fair",
    ) -> None:
        self.clock = Clock()
        self.limits = () if rate is None else (Limit("tokens_per_second", "tokens", rate, 1.0, burst),)
        self.account = Account("default", ceiling, parent=Account("pacer", kind="pacer"))
        self.caller = Caller(self.account)
        rules: dict[str, Any] = {"max_wait": max_wait, "may_wait": may_wait, "order": order}
        rules["spawn_threshold"] = spawn_threshold
        self.admission, self.store = self._alone(rules) if _shelf is None else self._beside_others(_shelf, rules)
        self.seats: list[Seat] = []

    def _alone(self, rules: dict[str, Any]) -> tuple[Admission, MemoryStore]:
        admission = Admission(self.account, gates_of(self.limits, self.clock.now), **rules)
        return admission, MemoryStore(admission, self.clock)

    def _beside_others(self, shelf: Shelf, rules: dict[str, Any]) -> tuple[Admission, MemoryStore]:
        vault = Near(shelf.open_vault(f"pacer-{next(_numbers)}"))
        opened = vault.open("default", self.account.ceiling, self.limits)
        admission = SharedAdmission(self.account, gates_of(self.limits, self.clock.now), vault.member, **rules)
        store = Desk(
            admission,
            vault,
            self.limits,
            Journal("engine", vault.member),
            lease=60.0,
            failure="refuse",
            grace=2.0,
            clock=self.clock,
        )
        store.see(opened)
        return admission, store

    def offer(self, call: Estimate, owner: object = None, caller: Caller | None = None) -> Ticket:
        """Offer a call; if it has to wait, it gets a seat."""
        ticket = self.store.offer(call, owner if owner is not None else object(), caller or self.caller)
        if ticket.decision is None:
            self.seats.append(Seat(self.clock))
            self.store.sit(ticket, self.seats[-1])
        return ticket

    def agent(
        self,
        name: str,
        *,
        parent: Account | None = None,
        ceiling: int | None = None,
        weight: float = 1.0,
        reserve: int = 0,
    ) -> Account:
        """A new agent, below the run unless said otherwise."""
        return self.admission.register.spawn(parent or self.account, name, ceiling, weight, reserve)

    def end(self, agent: Account) -> None:
        """An agent has ended."""
        self.store.post(lambda admission, now: admission.end(agent))

    def set_ceiling(self, ceiling: int | None, account: Account | None = None) -> None:
        """Change a ceiling, the run's unless said otherwise."""
        self.store.do(lambda admission, now: admission.set_ceiling(account or self.account, ceiling))

    def settle(self, ticket: Ticket, spent: int, unknown: int = 0, source: Source = "provider") -> None:
        """End the reservation of a granted ticket."""
        usage = Usage(tokens=spent)
        self.store.settle(place_of(ticket), usage, usage, Settlement(spent, unknown, source))

    def answer(self, ticket: Ticket, status: int = 200, pause: float | None = None) -> None:
        """The server answers a granted call."""
        self.store.answered(place_of(ticket), status, None if pause is None else Word(pause))

    def leave(self, ticket: Ticket) -> None:
        """The caller is cancelled; its alarm goes with it."""
        if isinstance(ticket.seat, Seat):
            ticket.seat.due = None
        self.store.leave(ticket)

    def advance(self, seconds: float) -> None:
        """Let time pass, firing each alarm when it is due, and nothing else."""
        until = self.clock.now + seconds
        while due := [seat for seat in self.seats if seat.due is not None and seat.due <= until]:
            seat = min(due, key=lambda each: each.due or 0.0)
            self.clock.now, seat.due = max(self.clock.now, seat.due or 0.0), None
            self.store.tick()
        self.clock.now = until


def call(worst: int, expected: int | None = None, *, model: str = "m", least: int = -1) -> Estimate:
    """A call that holds ``worst`` and takes ``expected`` (the same unless said) from the rate."""
    return Estimate(input=worst if expected is None else expected, output=0, worst=worst, model=model, least=least)


def place_of(ticket: Ticket) -> Reservation:
    """The reservation of a ticket that must have been granted."""
    assert isinstance(ticket.decision, Reservation), f"not granted: {ticket.decision!r}"
    return ticket.decision


def granted(ticket: Ticket) -> bool:
    """Whether the ticket got its place."""
    return isinstance(ticket.decision, Reservation)
