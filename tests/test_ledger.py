"""The tree of accounts: a parent is the sum of its children and its own calls."""

from __future__ import annotations

from pacer.ledger import Account, fit, hold, release, settle
from pacer.usage import Estimate, Settlement, Usage


def test_a_hold_and_its_settlement_are_seen_at_every_ancestor():
    root = Account("pacer")
    run = Account("run", 1_000, parent=root)
    agent, other = Account("agent", 500, parent=run), Account("other", parent=run)
    hold(agent, 400)
    hold(other, 100)
    assert (agent.remaining, other.remaining, run.remaining, root.remaining) == (100, None, 500, None)
    settle(agent, 400, Usage(tokens=120), Settlement(120, 30, "partial"))
    assert (agent.spent, agent.unknown, agent.held) == (120, 30, 0)
    assert (run.spent, run.unknown, run.held, run.in_flight, run.calls) == (120, 30, 100, 1, 1)
    assert run.remaining == 750


def test_more_than_was_held_is_booked_all_the_same():
    """An overshoot must stay visible: the account goes into debt and closes."""
    run = Account("run", 1_000)
    hold(run, 900)
    settle(run, 900, Usage(tokens=1_500), Settlement(1_500, 0, "provider"))
    assert run.remaining == -500
    assert fit(run, Estimate(0, 0, 0), 0) is run


def test_a_released_hold_leaves_no_trace():
    run = Account("run", 1_000)
    hold(run, 900)
    release(run, 900)
    assert (run.remaining, run.in_flight, run.calls) == (1_000, 0, 0)


def test_a_void_call_is_not_counted_as_a_call():
    run = Account("run")
    hold(run, 10)
    settle(run, 10, Usage(tokens=0), Settlement(0, 0, "void"))
    assert (run.calls, run.spent) == (0, 0)


def test_what_is_only_held_may_come_back_what_is_spent_never_does():
    run = Account("run", 1_000)
    hold(run, 900)
    assert fit(run, Estimate(0, 0, 200), 0) is run
    assert not run.never_fits(200)
    settle(run, 900, Usage(tokens=900), Settlement(900, 0, "provider"))
    assert run.never_fits(200)
    assert fit(run, Estimate(0, 0, 100), 0) == 100
