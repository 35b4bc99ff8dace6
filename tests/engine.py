"""What the engine's tests share: a clock that is set by hand, seats that write down what happens to them."""

from __future__ import annotations

from typing import Literal

from pacer.admission import Admission
from pacer.ledger import Account
from pacer.store.memory import MemoryStore
from pacer.ticket import Caller, Gate, Reservation, Ticket, gate
from pacer.usage import Estimate, Rate, Settlement, Source, Usage, Word


class Clock:
    """Time that moves only when told to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


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
        gates: tuple[Gate, ...] = ()
        if rate is not None:
            gates = (gate("tokens_per_second", "tokens", Rate(rate), burst, self.clock.now),)
        self.account = Account("default", ceiling, parent=Account("pacer", kind="pacer"))
        self.caller = Caller(self.account)
        self.admission = Admission(
            self.account, gates, max_wait=max_wait, may_wait=may_wait, spawn_threshold=spawn_threshold, order=order
        )
        self.store = MemoryStore(self.admission, self.clock)
        self.seats: list[Seat] = []

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
