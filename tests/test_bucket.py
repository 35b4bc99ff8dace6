"""A level that refills, is capped, and may stand in debt."""

from __future__ import annotations

import pytest

from pacer.bucket import Bucket
from pacer.usage import Rate


def full_bucket() -> Bucket:
    return Bucket(Rate(10.0), burst=100.0, now=0.0)


def test_what_was_taken_comes_back_with_time_up_to_the_burst():
    bucket = full_bucket()
    bucket.take(60, 0.0)
    assert bucket.level(3.0) == pytest.approx(70)
    assert bucket.level(1_000.0) == 100


def test_the_wait_is_the_time_until_the_amount_is_there():
    bucket = full_bucket()
    bucket.take(100, 0.0)
    assert bucket.wait_seconds(50, 0.0) == pytest.approx(5.0)
    assert bucket.wait_seconds(50, 5.0) == 0.0


def test_more_than_the_burst_waits_for_a_full_bucket_and_leaves_debt():
    bucket = full_bucket()
    bucket.take(10, 0.0)
    assert bucket.wait_seconds(500, 0.0) == pytest.approx(1.0)
    bucket.take(500, 1.0)
    assert bucket.level(1.0) == pytest.approx(-400)
    assert bucket.wait_seconds(1, 1.0) == pytest.approx(40.1)


def test_a_debt_is_paid_when_what_was_taken_last_would_have_been_there():
    bucket = full_bucket()
    bucket.take(100, 0.0)
    due = bucket.wait_seconds(50, 0.0)
    bucket.take(50, 0.0)
    assert bucket.paid_at(50) == due == 5.0
    due = bucket.wait_seconds(300, 0.0)
    bucket.take(300, 0.0)
    assert bucket.paid_at(300) == due == 15.0
    assert full_bucket().paid_at(50) == 0.0


def test_what_is_given_back_never_lifts_the_level_above_the_burst():
    bucket = full_bucket()
    bucket.give_back(50, 0.0)
    assert bucket.level(0.0) == 100
    bucket.give_back(-150, 0.0)
    assert bucket.level(0.0) == -50


def test_a_clock_that_steps_back_changes_nothing():
    bucket = full_bucket()
    bucket.take(100, 10.0)
    assert bucket.level(4.0) == 0
    assert bucket.level(11.0) == pytest.approx(10)


def test_a_rate_by_the_minute_is_the_same_rate():
    assert Rate(600.0, 60.0).per_second == Rate(10.0).per_second
