"""What a fleet gets out of a pacer, in simulated time: who finishes, who waits for whom; and what it costs in CPU."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from pacer import Pacer
from pacer.admission import Admission
from pacer.ledger import Account
from pacer.store import Store
from pacer.store.memory import MemoryStore
from pacer.ticket import Caller, Reservation, Ticket, gate
from pacer.usage import Estimate, Rate, Settlement, Status, Usage

AGENTS = 512
CALLS_OF_A_TASK = 10
CALL = 1_000
"""Tokens that a call holds and is expected to take."""
RATE = 10_000.0
SPEED = 500.0
"""Tokens a second that the model makes of one call."""

PLANNERS, WORKERS = 100, 99
POLLS = 100
CALLS_BETWEEN_POLLS = 1_000
POLLS_A_SECOND = 10

WAITERS = 10_000
FLOWING = 500

Order = Literal["fair", "finish_first"]
Then = Callable[[Ticket], object]


class Simulation:
    """A pacer on a clock that goes from one event to the next."""

    def __init__(
        self, *, rate: float | None = None, burst: float = CALL, ceiling: int | None = None, order: Order = "fair"
    ) -> None:
        self.now = 0.0
        self.alarm = math.inf
        gates = () if rate is None else (gate("tokens_per_second", "tokens", Rate(rate), burst, self.now),)
        self.run = Account("default", ceiling, parent=Account("pacer", kind="pacer"))
        self.admission = Admission(self.run, gates, order=order)
        self.store = MemoryStore(self.admission, lambda: self.now)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def agent(self, name: str, ceiling: int | None = None) -> Account:
        return self.admission.register.spawn(self.run, name, ceiling, 1.0, 0)

    def ask(self, account: Account, tokens: int, then: Then) -> None:
        """Offer a call; ``then`` is given its ticket when it is decided."""
        ticket = self.store.offer(call(tokens), object(), Caller(account))
        seat = Seat(self, partial(then, ticket))
        if ticket.decision is None:
            self.store.sit(ticket, seat)
        else:
            seat.wake()

    def settle(self, ticket: Ticket, used: int = CALL) -> None:
        settle(self.store, ticket, used)

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def play(self) -> None:
        """Let time pass until nothing is to come."""
        while self._events or self.alarm < math.inf:
            if not self._events or self.alarm < self._events[0][0]:
                self.now, self.alarm = max(self.now, self.alarm), math.inf
                self.store.tick()
            else:
                self.now, _, do = heapq.heappop(self._events)
                do()


class Seat:
    """Where a call waits in a simulation. A store has one alarm at a time, that of the last one it armed."""

    def __init__(self, simulation: Simulation, then: Callable[[], object]) -> None:
        self.simulation = simulation
        self.then = then

    def wake(self) -> None:
        self.simulation.after(0.0, self.then)

    def arm(self, seconds: float) -> None:
        self.simulation.alarm = self.simulation.now + seconds


def call(tokens: int) -> Estimate:
    return Estimate(input=tokens, output=0, worst=tokens)


def settle(store: Store, ticket: Ticket, used: int) -> None:
    assert isinstance(ticket.decision, Reservation), f"not granted: {ticket.decision!r}"
    usage = Usage(tokens=used)
    store.settle(ticket.decision, usage, usage, Settlement(used, 0, "provider"))


# ---------------------------------------------------------------- half of the work is funded


class Fleet:
    """Equal agents that start together, each with ten calls in sequence, under a ceiling for half of all that."""

    def __init__(self, order: Order, seed: int = 20) -> None:
        rng = random.Random(seed)
        tasks = [[rng.randint(600, CALL) for _ in range(CALLS_OF_A_TASK)] for _ in range(AGENTS)]
        self.ceiling = sum(map(sum, tasks)) // 2
        self.simulation = Simulation(rate=RATE, burst=RATE, ceiling=self.ceiling, order=order)
        self.completed = self.refused = self.lead = 0
        self.first_completed = "none"
        self.agents = [self.simulation.agent(f"agent {number}") for number in range(AGENTS)]
        for agent, task in zip(self.agents, tasks, strict=True):
            self._go_on(agent, task)
        self.simulation.play()

    def _go_on(self, agent: Account, task: list[int]) -> None:
        if task:
            self.simulation.ask(agent, CALL, partial(self._decided, agent, task))
            return
        if not self.completed:
            self.first_completed = f"{self.simulation.now:.1f}"
        self.completed += 1

    def _decided(self, agent: Account, task: list[int], ticket: Ticket) -> None:
        if not isinstance(ticket.decision, Reservation):
            self.refused += 1
            return
        spent = [each.spent for each in self.agents if each.waiting]
        self.lead = max(self.lead, max(spent, default=0) - min(spent, default=0))
        used, *rest = task
        self.simulation.after(used / SPEED, partial(self._answered, agent, rest, ticket, used))

    def _answered(self, agent: Account, rest: list[int], ticket: Ticket, used: int) -> None:
        self.simulation.settle(ticket, used)
        self._go_on(agent, rest)


def half_of_the_work() -> None:
    fleets = [Fleet("fair"), Fleet("finish_first")]
    table(
        f"{AGENTS} equal agents under a ceiling that funds half of their work, {RATE:,.0f} tokens/s",
        ["order", "fair", "finish_first"],
        ["tasks completed", *(f"{fleet.completed}" for fleet in fleets)],
        ["agents that did at least one call", *(f"{sum(each.calls > 0 for each in f.agents)}" for f in fleets)],
        ["calls answered", *(f"{fleet.simulation.run.calls:,}" for fleet in fleets)],
        ["calls refused", *(f"{fleet.refused}" for fleet in fleets)],
        ["tokens spent of the ceiling", *(f"{f.simulation.run.spent:,} of {f.ceiling:,}" for f in fleets)],
        ["seconds to the first completed task", *(fleet.first_completed for fleet in fleets)],
        ["seconds in all", *(f"{fleet.simulation.now:.1f}" for fleet in fleets)],
        ["largest lead in tokens while both wait", *(f"{fleet.lead:,}" for fleet in fleets)],
    )


# ---------------------------------------------------------------- a flood beside small calls


def flood(*, shared: bool, large: int = 200, small: int = 20) -> tuple[list[float], float]:
    """The waits of the small calls and the time of everything, in turns: seconds, at a rate of one large call each."""
    simulation, waits = Simulation(rate=CALL), list[float]()
    flooding = simulation.agent("flooding")
    asking = flooding if shared else simulation.agent("asking")

    def answered(ticket: Ticket) -> None:
        waits.append(simulation.now - ticket.since)
        simulation.settle(ticket, ticket.call.worst)

    for _ in range(large):
        simulation.ask(flooding, CALL, simulation.settle)
    for _ in range(small):
        simulation.ask(asking, CALL // 20, answered)
    simulation.play()
    return waits, simulation.now


def flood_beside_small_calls() -> None:
    rows = []
    for title, shared in ("fair turns, an agent each", False), ("order of arrival, one account", True):
        waits, total = flood(shared=shared)
        figures = waits[0], statistics.median(waits), waits[-1], total
        rows.append([title, *(f"{figure:.2f}" for figure in figures)])
    table(
        "20 calls of 50 tokens behind 200 of 1,000, in turns of one large call",
        ["wait of the small ones", "first", "median", "last", "all done"],
        *rows,
    )


# ---------------------------------------------------------------- status polling


def polling() -> None:
    """The first status of a run that all have just been opened below, and those after calls of random agents."""
    rng = random.Random(20)
    run = Pacer().run("nightly", ceiling=10**12)
    planners = [run.agent(f"planner {number}") for number in range(PLANNERS)]
    agents = planners + [planner.agent(f"worker {number}") for planner in planners for number in range(WORKERS)]
    accounts = [agent.account for agent in agents]
    cold, polls = polled(run.status), list[tuple[float, float]]()
    for _ in range(POLLS):
        for account in rng.choices(accounts, k=CALLS_BETWEEN_POLLS):
            settle(run.store, run.store.offer(call(CALL), object(), Caller(account)), CALL)
        polls.append(polled(run.status))
    rows, titles = [], ("run.status()", "run.status().json()")
    for title, first, taken in zip(titles, cold, zip(*polls, strict=True), strict=True):
        median, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
        rows.append([title, f"{first:.1f}", f"{median:.1f}", f"{p95:.1f}", f"{median * POLLS_A_SECOND / 1e3:.1%}"])
    megabytes = len(run.status().json()) / 1e6
    table(
        f"{len(agents):,} agents open, {CALLS_BETWEEN_POLLS:,} calls between two polls, {megabytes:.1f} MB of JSON; ms",
        ["poll", "first", "median", "p95", f"of a core at {POLLS_A_SECOND}/s"],
        *rows,
    )


def polled(status: Callable[[], Status]) -> tuple[float, float]:
    """Milliseconds of CPU until the status was there, and until its JSON was."""
    started = time.process_time()
    now = status()
    there = time.process_time()
    now.json()
    return (there - started) * 1e3, (time.process_time() - started) * 1e3


# ---------------------------------------------------------------- what waiters cost


def drained(agents: int) -> tuple[float, float]:
    """Microseconds of CPU per arrival, and per call from its grant to the next one, with so many calls of each."""
    simulation = Simulation(rate=CALL)
    accounts = [simulation.agent(f"agent {number}") for number in range(agents)]
    arriving = time.process_time()
    for account in itertools.islice(itertools.cycle(accounts), WAITERS):
        simulation.ask(account, CALL, simulation.settle)
    draining = time.process_time()
    simulation.play()
    assert simulation.run.calls == WAITERS
    return (draining - arriving) / WAITERS * 1e6, (time.process_time() - draining) / WAITERS * 1e6


def beside_short_ones(short: int) -> float:
    """Microseconds of CPU per call that flows, beside agents that wait for what their own open call holds."""
    simulation = Simulation()
    for number in range(short):
        account = simulation.agent(f"short {number}", ceiling=CALL * 3 // 2)
        simulation.ask(account, CALL, lambda ticket: None)
        simulation.ask(account, CALL, lambda ticket: None)
    flowing = simulation.agent("flowing")
    started = time.process_time()
    for _ in range(FLOWING):
        simulation.ask(flowing, CALL, simulation.settle)
        simulation.play()
    assert (simulation.run.calls, simulation.run.waiting) == (FLOWING, short)
    return (time.process_time() - started) / FLOWING * 1e6


def waiters() -> None:
    table(
        f"{WAITERS:,} calls wait on one rate; us of CPU",
        ["calls", "to arrive", "grant, settle, next"],
        *(
            [title, *(f"{taken:.0f}" for taken in drained(agents))]
            for title, agents in ((f"one of each of {WAITERS:,} agents", WAITERS), ("all of one agent", 1))
        ),
    )
    table(
        "One agent whose calls flow, beside agents short of their own ceilings; us of CPU",
        ["agents that are short", "offer, grant, settle"],
        *([f"{short}", f"{beside_short_ones(short):.0f}"] for short in (0, 50, 500)),
    )


def table(title: str, *rows: list[str]) -> None:
    print(title)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print(f"  {first:{widths[0]}}  " + "  ".join(cells))
    print()


def report() -> None:
    """Print the tables."""
    logging.getLogger("pacer").setLevel(logging.ERROR)  # that a ceiling is booked is what is measured here
    half_of_the_work()
    flood_beside_small_calls()
    polling()
    waiters()
