"""Hours of load in simulated time: the rate is kept over every window, nothing is wasted, large calls get a turn."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from pacer.bucket import Bucket
from pacer.ticket import Ticket
from pacer.usage import Rate
from tests.engine import Engine, call, place_of

RATE = 1_000.0
BURST = 5_000.0
CALLS = 4_000
LARGEST = 5 * int(BURST)

Arrival = tuple[float, int]


def poisson(rng: random.Random, load: float) -> Iterator[Arrival]:
    """Independent callers; sizes around 400 tokens."""
    now = 0.0
    for _ in range(CALLS):
        now += rng.expovariate(load * RATE / 400)
        yield now, max(1, round(rng.gauss(400, 100)))


def bursty(rng: random.Random, load: float) -> Iterator[Arrival]:
    """Fan-outs of forty at once, with pauses between them."""
    now = 0.0
    for _ in range(CALLS // 40):
        now += rng.expovariate(load * RATE / (400 * 40))
        for _ in range(40):
            yield now, rng.randint(200, 600)


def heavy_tailed(rng: random.Random, load: float) -> Iterator[Arrival]:
    """Most calls are small, a few are larger than the burst."""
    now = 0.0
    sizes = [min(LARGEST, round(150 * rng.paretovariate(1.3))) for _ in range(CALLS)]
    mean = sum(sizes) / len(sizes)
    for size in sizes:
        now += rng.expovariate(load * RATE / mean)
        yield now, size


class Run:
    """What came of a load: the tickets in order of arrival, and their grants as (moment, tokens)."""

    def __init__(self, arrivals: Iterator[Arrival]) -> None:
        self.engine = Engine(rate=RATE, burst=BURST)
        self.tickets: list[Ticket] = []
        start = self.engine.clock.now
        for moment, size in arrivals:
            self.engine.advance(start + moment - self.engine.clock.now)
            self.tickets.append(self.engine.offer(call(size)))
        while self.tickets[-1].decision is None:
            self.engine.advance(60.0)
        self.grants = [(place_of(ticket).granted_at, ticket.call.tokens) for ticket in self.tickets]


def largest_in_any_window(grants: list[tuple[float, int]], seconds: float) -> int:
    """The most tokens granted in a window of that length, wherever it begins."""
    inside: deque[tuple[float, int]] = deque()
    total = most = 0
    for moment, tokens in grants:
        inside.append((moment, tokens))
        total += tokens
        while inside[0][0] < moment - seconds:
            total -= inside.popleft()[1]
        most = max(most, total)
    return most


@pytest.mark.parametrize("load", [0.8, 1.3])
@pytest.mark.parametrize("kind", [poisson, bursty, heavy_tailed])
def test_no_window_admits_more_than_burst_and_refill(
    kind: Callable[[random.Random, float], Iterator[Arrival]], load: float
):
    """Over any 1, 10 or 60 s at most burst + rate x T and one call larger than the burst; in order of arrival."""
    run = Run(kind(random.Random(7), load))
    assert [moment for moment, _ in run.grants] == sorted(moment for moment, _ in run.grants)
    oversized = max(0, max(tokens for _, tokens in run.grants) - BURST)
    for seconds in (1.0, 10.0, 60.0):
        assert largest_in_any_window(run.grants, seconds) <= BURST + RATE * seconds + oversized + 1e-6


@pytest.mark.parametrize("kind", [poisson, bursty, heavy_tailed])
def test_what_the_rate_gives_is_used(kind: Callable[[random.Random, float], Iterator[Arrival]]):
    """While somebody waits no refill is wasted: from the first wait to the last grant at least 99 % is handed out."""
    run = Run(kind(random.Random(7), 1.3))
    waited = [ticket for ticket in run.tickets if place_of(ticket).waited_seconds > 0]
    begin, end = waited[0].since, place_of(waited[-1]).granted_at
    busy = end - begin - idle_seconds(run.tickets, begin, end)
    used = sum(tokens for moment, tokens in run.grants if begin < moment <= end)
    assert used >= 0.99 * RATE * busy


def idle_seconds(tickets: list[Ticket], begin: float, end: float) -> float:
    """How long nobody waited between ``begin`` and ``end``."""
    changes: list[tuple[float, int]] = []
    for ticket in tickets:
        heapq.heappush(changes, (ticket.since, 1))
        heapq.heappush(changes, (place_of(ticket).granted_at, -1))
    waiting, last, idle = 0, begin, 0.0
    while changes:
        moment, change = heapq.heappop(changes)
        if waiting == 0 and begin < moment <= end:
            idle += moment - max(last, begin)
        waiting, last = waiting + change, moment
    return idle


def test_a_call_of_five_bursts_gets_its_turn():
    """Small calls that keep coming do not overtake it; it goes when the bucket is full, and its debt is paid back."""

    def arrivals() -> Iterator[Arrival]:
        for number in range(2_000):
            yield number * 0.1, LARGEST if number == 500 else 120

    run = Run(arrivals())
    large = run.tickets[500]
    moments = [moment for moment, _ in run.grants]
    assert moments == sorted(moments)
    assert place_of(large).waited_seconds < 60
    next_one = place_of(run.tickets[501]).granted_at
    assert next_one - place_of(large).granted_at >= (LARGEST - BURST) / RATE


def test_each_waiter_is_woken_once():
    """However long the line: one wake-up for each who waited, and no alarm but the head's."""
    engine = Engine(rate=RATE, burst=BURST)
    tickets = [engine.offer(call(500)) for _ in range(1_000)]
    assert sum(seat.due is not None for seat in engine.seats) == 1
    engine.advance(1_000.0)
    assert all(place_of(ticket) for ticket in tickets)
    assert {seat.wakes for seat in engine.seats} == {1}


class Provider:
    """Takes five requests at once and two a second; the others get a 429."""

    def __init__(self, engine: Engine) -> None:
        self.bucket = Bucket(Rate(2.0), 5.0, engine.clock.now)
        self.refused = self.answered = 0

    def answer(self, now: float) -> int:
        if self.bucket.wait_seconds(1.0, now):
            self.refused += 1
            return 429
        self.bucket.take(1.0, now)
        self.answered += 1
        return 200


@pytest.mark.parametrize("pause", [None, 1.0, 5.0])
def test_a_fan_out_without_limits_runs_into_a_providers_limit_once(pause):
    """Fifty callers with an SDK's three tries each all get answers; only the first round hits the wall together."""
    engine = Engine()
    provider = Provider(engine)
    tries = {engine.offer(call(10)): 1 for _ in range(50)}
    under_way: list[tuple[float, Ticket, int]] = []
    sent: set[Ticket] = set()
    for _ in range(12_000):
        now = engine.clock.now
        for ticket in [each for each in tries if each not in sent and each.decision is not None]:
            sent.add(ticket)
            under_way.append((now + 0.2, ticket, provider.answer(now)))
        for answer in [each for each in under_way if each[0] <= now]:
            under_way.remove(answer)
            _, ticket, status = answer
            engine.answer(ticket, status, pause if status == 429 else None)
            engine.settle(ticket, 10 if status == 200 else 0, source="provider" if status == 200 else "void")
            number = tries.pop(ticket)
            if status == 429:
                assert number < 3, "a caller has used up its tries"
                tries[engine.offer(call(10))] = number + 1
        if not tries:
            break
        engine.advance(0.01)
    assert provider.answered == 50
    assert provider.refused <= 45 + 10, "after the first round hardly anybody is refused"
