"""The way of one call to its place, driven by hand: no loop, no thread, no clock but the test's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pacer import Pacer, telemetry
from pacer.errors import CeilingReached
from pacer.flow import Park, Space
from pacer.ticket import Reservation
from pacer.usage import Estimate, Threshold, Usage
from tests.engine import Clock

CALL = Estimate(60, 20, 100)


def admitted_elsewhere(budget: Pacer) -> Reservation:
    """A place that another thread has: one's own would never come back while one waits."""

    def admit() -> Reservation:
        way = budget.admit(CALL)
        try:
            raise AssertionError(next(way))
        except StopIteration as end:
            place = end.value
            assert isinstance(place, Reservation)
            return place

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(admit).result()


def test_a_call_that_fits_goes_at_once():
    with pytest.raises(StopIteration) as end:
        next(Pacer(ceiling=100).admit(CALL))
    assert isinstance(end.value.value, Reservation)


def test_a_refusal_is_raised_before_anything_is_held():
    budget = Pacer(ceiling=99)
    with pytest.raises(CeilingReached):
        next(budget.admit(CALL))
    assert (budget.status().held, budget.status().refused) == (0, 1)


def test_a_parked_call_goes_on_when_it_is_decided():
    budget = Pacer(ceiling=150, clock=Clock())
    place = admitted_elsewhere(budget)
    way = budget.admit(CALL)
    assert isinstance(next(way), Park)
    budget.settle(place, Usage(10, 10))
    with pytest.raises(StopIteration):
        next(way)
    assert budget.status().held == 100


def test_a_parked_call_may_be_refused_in_the_end():
    budget = Pacer(ceiling=150, clock=Clock())
    place = admitted_elsewhere(budget)
    way = budget.admit(CALL)
    next(way)
    budget.settle(place, Usage(60, 40))
    with pytest.raises(CeilingReached):
        next(way)
    assert budget.status().waiting == 0


@pytest.mark.parametrize("granted_meanwhile", [False, True])
def test_cancelled_while_parked_leaves_no_trace(granted_meanwhile: bool):
    """In the line, or with a place that was given a moment ago: all of it comes back."""
    budget = Pacer(ceiling=150, tokens_per_second=100, burst=1_000, clock=Clock())
    place = admitted_elsewhere(budget)
    way = budget.admit(CALL)
    next(way)
    if granted_meanwhile:
        budget.settle(place, Usage(10, 10))
    with pytest.raises(KeyboardInterrupt):
        way.throw(KeyboardInterrupt())
    if not granted_meanwhile:
        budget.settle(place, Usage(10, 10))
    status = budget.status()
    assert (status.spent, status.held, status.waiting, status.in_flight) == (20, 0, 0, 0)
    assert status.tokens_available == 980


def test_spacing_comes_after_admission_and_cancelling_there_gives_all_back():
    budget = Pacer(requests_per_second=5, ceiling=1_000)
    way = budget.admit(CALL)
    assert isinstance(next(way), Space)
    assert budget.status().held == 100
    with pytest.raises(KeyboardInterrupt):
        way.throw(KeyboardInterrupt())
    assert budget.status().held == 0


def test_whoever_is_interrupted_after_its_admission_gives_all_back():
    """Listeners that a garbage collection had to put off are told by the next one who is admitted."""

    def tell(threshold: Threshold) -> None:
        raise KeyboardInterrupt

    budget = Pacer(ceiling=1_000)
    with telemetry.in_finalizer():
        telemetry.crossed(Threshold("run", "", 0.8, 80, 0, 100), tell)
    with pytest.raises(KeyboardInterrupt):
        next(budget.admit(CALL))
    assert budget.status().held == 0
