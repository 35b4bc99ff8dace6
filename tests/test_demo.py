"""The demo's own judgement: it must notice books that differ, a ceiling that broke and a stretch that got too much."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from pacer import Pacer
from pacer.bucket import Bucket
from pacer.cli import demo
from pacer.cli.demo import Call, Outcome
from pacer.ticket import Reservation
from pacer.usage import Estimate, Rate, Usage


def spent(pacer: Pacer, tokens: int) -> None:
    """A call that took and used that many tokens."""
    with pytest.raises(StopIteration) as end:
        next(pacer.admit(Estimate(tokens, 0, tokens)))
    place = end.value.value
    assert isinstance(place, Reservation)
    pacer.settle(place, Usage(tokens))


def outcome(*calls: Call, booked: int = 60, served: int = 60) -> Outcome:
    return Outcome(list(calls), 0, 1.0, booked, served)


def test_equal_books_are_fine_and_others_are_noticed():
    pacer = Pacer(ceiling=100)
    spent(pacer, 60)
    assert demo.check_books(outcome(), pacer).holds
    assert not demo.check_books(outcome(served=61), pacer).holds


def test_what_is_still_held_or_unknown_is_noticed():
    pacer = Pacer(ceiling=100)
    spent(pacer, 60)
    next(pacer.admit(Estimate(10, 0, 10)), None)
    assert not demo.check_books(outcome(), pacer).holds


def test_a_bill_over_the_ceiling_is_noticed():
    assert demo.check_ceiling(outcome(), Pacer(ceiling=60)).holds
    assert not demo.check_ceiling(outcome(), Pacer(ceiling=59)).holds


def test_a_second_that_admitted_too_much_is_noticed():
    calls = [Call(started, 100, started + 5.0, 100) for started in (0.0, 0.1, 0.2, 0.3, 0.4)]
    assert demo.check_rate(outcome(*calls), Pacer(tokens_per_second=100, burst=500)).holds
    assert not demo.check_rate(outcome(*calls), Pacer(tokens_per_second=100, burst=400)).holds


def test_what_came_back_may_go_out_again():
    """A call that took 100 and used 10 leaves 90 for others in the same second."""
    calls = [Call(0.0, 100, 0.1, 10), Call(0.2, 90, 0.3, 90)]
    assert demo.largest_draw(calls, rate=0.0) == 100


@pytest.mark.parametrize("seed", range(20))
def test_a_real_bucket_passes_and_a_faster_one_does_not(seed: int):
    """Histories of a bucket with debt, refunds and calls larger than its burst."""
    rng = random.Random(seed)
    rate, burst, now = 10.0, 100.0, 0.0
    bucket, calls, refunds = Bucket(Rate(rate), burst, now), list[Call](), list[tuple[float, int]]()
    for _ in range(200):
        taken, used = rng.randint(1, 150), rng.randint(1, 150)
        while refunds and refunds[0][0] <= now + bucket.wait_seconds(taken, now):
            now, back = max(now, refunds[0][0]), refunds.pop(0)[1]
            bucket.give_back(back, now)
        now += bucket.wait_seconds(taken, now)
        bucket.take(taken, now)
        calls.append(Call(now, taken, now + 3.0, used))
        refunds.append((now + 3.0, taken - used))
    allowed = max(burst, *(call.taken for call in calls))
    assert demo.largest_draw(calls, rate) <= allowed + 1e-6
    assert demo.largest_draw(calls, rate * 0.8) > allowed


def test_the_largest_second_is_found_wherever_it_begins():
    calls = [Call(at, 0, at, used) for at, used in ((0.0, 5), (0.9, 5), (1.8, 7), (1.85, 1), (4.0, 2))]
    assert demo.largest_second(calls) == 13


@pytest.mark.model
@pytest.mark.xdist_group("model")
def test_the_demo_itself():
    """A small one, as a user starts it: books equal, limits kept, exit code 0."""
    words = ["--agents", "4", "--tokens-per-second", "2000", "--ceiling", "700"]
    done = subprocess.run([sys.executable, "-m", "pacer.cli.demo", *words], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert done.stdout.count("ok ") == 3


@pytest.mark.parametrize("words", [["--ceiling", "-1"], ["--tokens-per-second", "0"]])
def test_limits_that_cannot_be_used_are_named(words: list[str]):
    done = subprocess.run([sys.executable, "-m", "pacer.cli.demo", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is not accepted" in done.stderr
