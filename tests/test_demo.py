"""The demo's own judgement: it must notice books that differ, a ceiling that broke and a second that got too much."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pacer import Pacer
from pacer.admission import Reservation
from pacer.cli import demo
from pacer.usage import Estimate, Usage
from tests.engine import Clock
from transports import Receipt

EVENT = b'data: {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}}\n\n'


def spent(pacer: Pacer, tokens: int) -> Receipt:
    """A call that took and used that many tokens."""
    with pytest.raises(StopIteration) as end:
        next(pacer.admit(Estimate(tokens, 0, tokens)))
    place = end.value.value
    assert isinstance(place, Reservation)
    pacer.settle(place, Usage(tokens), "provider")
    return Receipt(place)


def run_of(*tokens: int) -> demo.Run:
    run = demo.Run("paced")
    run.witness.seen = [demo.Seen(0.0, amount) for amount in tokens]
    return run


def test_equal_books_are_fine():
    pacer = Pacer(ceiling=100)
    spent(pacer, 60)
    assert demo.failures(run_of(40, 20), pacer, 100.0, 100.0) == []


def test_books_that_differ_from_the_server_are_noticed():
    pacer = Pacer(ceiling=100)
    spent(pacer, 60)
    assert "the books say 60" in demo.failures(run_of(40, 21), pacer, 100.0, 100.0)[0]


def test_a_bill_over_the_ceiling_is_noticed():
    pacer = Pacer(ceiling=100)
    spent(pacer, 60)
    pacer.set_ceiling(50)
    assert "over the ceiling of 50" in demo.failures(run_of(60), pacer, 100.0, 100.0)[0]


def test_a_second_that_admitted_too_much_is_noticed():
    pacer = Pacer(clock=Clock())
    run = run_of(*[100] * 10)
    run.receipts = [spent(pacer, 100) for _ in range(10)]
    assert demo.failures(run, pacer, rate=500.0, burst=500.0) == []
    assert "one second admitted 1,000 tokens, the rules allow 900" in demo.failures(run, pacer, 400.0, 500.0)[0]


def test_what_came_back_may_go_out_again():
    """A call that took 100 and used 10 leaves 90 for others in the same second."""
    clock = Clock()
    pacer = Pacer(clock=clock)
    with pytest.raises(StopIteration) as end:
        next(pacer.admit(Estimate(100, 0, 100)))
    pacer.settle(end.value.value, Usage(10), "provider")
    receipts = [Receipt(end.value.value), spent(pacer, 90)]
    assert demo.window_allowed(receipts, rate=0.0, burst=100.0) == (100, 100.0)


def test_the_largest_window_is_found_wherever_it_begins():
    assert demo.largest_window([(0.0, 5), (0.9, 5), (1.8, 7), (1.85, 1), (4.0, 2)]) == 13


@pytest.mark.parametrize("cut", range(0, len(EVENT), 7))
def test_the_witness_reads_usage_at_any_split(cut: int):
    before = demo.reported_tokens(EVENT[:cut])
    assert before in (0, 24)
    assert demo.reported_tokens(EVENT) == 24
    assert demo.reported_tokens(b'data: {"usage": null}\n\n') == 0


@pytest.mark.model
def test_the_demo_itself():
    """A small one, as a user starts it: books equal, limits kept, exit code 0."""
    words = ["--agents", "4", "--tokens-per-second", "2000", "--ceiling", "700"]
    done = subprocess.run([sys.executable, "-m", "pacer.cli.demo", *words], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The books equal the server's usage" in done.stdout
