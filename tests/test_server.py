"""What a server's answers allow: pauses with a cap, a slow start after them, a pace while little remains."""

from __future__ import annotations

import math

import pytest

from pacer.server import (
    FORGOTTEN_AFTER_SECONDS,
    LEEWAY,
    LONGEST_INTERVAL_SECONDS,
    LONGEST_PAUSE_SECONDS,
    QUICKENING,
    Server,
)
from pacer.usage import Allowance, Estimate, Wait, Word

NOW = 1_000.0
CALL = Estimate(60, 40, 500)
PLEASE_WAIT = Word(5.0)


def struck(*words: Word | None, status: int = 429, jitter: float = 0.0) -> Server:
    """A server that has answered these at ``NOW``, to calls granted one after the other."""
    server = Server()
    for number, word in enumerate(words):
        server.answered(status, word, NOW + number, NOW + number, jitter)
    return server


@pytest.mark.parametrize("status", [429, 503, 529])
def test_the_wait_that_was_asked_for_is_kept(status):
    server = struck(PLEASE_WAIT, status=status)
    assert server.wait(NOW) == Wait("server_pause", 5.0)
    assert server.wait(NOW + 4.0) == Wait("server_pause", 1.0)
    assert server.wait(NOW + 5.0) is None


@pytest.mark.parametrize("status", [200, 302, 400, 404, 500])
def test_other_answers_pause_nobody(status):
    assert struck(None, PLEASE_WAIT, status=status).wait(NOW) is None


def test_a_503_without_a_wait_pauses_nobody():
    """It may be one broken machine of many."""
    assert struck(None, status=503).wait(NOW) is None


def test_without_a_wait_the_pause_doubles_with_each_further_refusal():
    pauses = [struck(*[None] * number).paused_until - (NOW + number - 1) for number in range(1, 10)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_calls_under_way_when_it_struck_do_not_double_it():
    """Forty refusals of one burst are one refusal."""
    server = Server()
    for _ in range(40):
        server.answered(429, None, NOW - 1.0, NOW, 0.0)
    assert server.wait(NOW) == Wait("server_pause", 1.0)


def test_a_silly_wait_is_capped_and_jitter_only_adds():
    assert struck(Word(10.0**9)).paused_until == NOW + LONGEST_PAUSE_SECONDS
    assert struck(PLEASE_WAIT, jitter=1.0).paused_until == NOW + 5.5


def test_a_shorter_pause_does_not_end_a_longer_one():
    server = struck(PLEASE_WAIT)
    server.answered(429, Word(0.1), NOW + 1.0, NOW + 1.0, 0.0)
    assert server.wait(NOW + 1.0) == Wait("server_pause", 4.0)


def test_after_a_pause_one_goes_and_each_answer_lets_one_more_go():
    """So their number doubles with each round of answers, until it ends as many as there can be."""
    server, now, rounds = struck(PLEASE_WAIT), NOW + 5.0, []
    while server.granted(CALL, now, waited=True):
        while server.wait(now) is None and server.granted(CALL, now, waited=True):
            pass
        rounds.append(server.probing)
        for _ in range(server.probing):
            server.probing -= 1
            server.answered(200, None, now, now, 0.0)
    assert rounds == [1, 2, 4, 8, 16, 32, 64]
    assert server.wait(now) is None


def test_a_refusal_in_the_slow_start_begins_it_anew():
    server = struck(PLEASE_WAIT)
    assert server.granted(CALL, NOW + 5.0, waited=True)
    server.probing -= 1
    server.answered(429, None, NOW + 5.0, NOW + 6.0, 0.0)
    assert server.wait(NOW + 6.0) == Wait("server_pause", 2.0)
    assert server.granted(CALL, NOW + 8.0, waited=True)
    assert server.wait(NOW + 8.0) == Wait("server_pause", None)


def test_an_answer_to_a_call_from_before_the_pause_proves_nothing():
    server = struck(PLEASE_WAIT)
    server.answered(200, None, NOW - 1.0, NOW + 1.0, 0.0)
    server.granted(CALL, NOW + 5.0, waited=True)
    assert server.wait(NOW + 5.0) == Wait("server_pause", None)


def left(remaining: int, limit: int | None, reset: float = 30.0, kind: str = "requests") -> Word:
    return Word(None, (Allowance(kind, remaining, limit, reset),))  # type: ignore[arg-type]


def starts(server: Server, count: int) -> list[float]:
    """When the next calls may start, one right after the other."""
    now, found = NOW, []
    for _ in range(count):
        while (wait := server.wait(now)) is not None:
            assert wait.limit == "server_remaining"
            now += wait.seconds or math.inf
        found.append(now - NOW)
        server.granted(CALL, now, waited=True)
    return found


def test_what_little_remains_is_spread_until_it_is_full_again():
    """10 requests for 30 s: one every three seconds, and after that as before."""
    assert starts(struck(left(10, None), status=200), 14) == pytest.approx([*range(0, 31, 3), 30, 30, 30])


def test_plenty_slows_nobody_and_lifts_a_pace():
    server = struck(left(10, 60), status=200)
    server.granted(CALL, NOW, waited=True)
    assert server.wait(NOW) is not None
    server.answered(200, left(50, 60), NOW, NOW, 0.0)
    assert server.wait(NOW) is None
    assert starts(server, 3) == [0, 0, 0]


@pytest.mark.parametrize(("kind", "asked"), [("tokens", 100), ("input", 60), ("output", 40), ("requests", 1)])
def test_each_counter_is_paced_by_what_a_call_takes_of_it(kind, asked):
    server = struck(left(asked * 10, None, kind=kind), status=200)
    assert starts(server, 3) == pytest.approx([0, 3, 6])


def test_a_counter_that_refills_is_waited_for_at_half_its_refill_at_most():
    """900 of 1,000 tokens are gone and back in 30 s: 100 come back in 3.3 s, so two calls are 6.7 s apart at most."""
    assert starts(struck(left(1, 901, kind="tokens"), status=200), 3) == pytest.approx([0, 6.667, 13.333], abs=0.01)


def test_nobody_waits_longer_than_a_minute_for_a_counter():
    assert starts(struck(left(0, None, 10.0**6), status=200), 2) == pytest.approx([0, LONGEST_PAUSE_SECONDS])


def test_it_is_forgotten_when_it_says_nothing_any_more():
    assert Server().is_forgettable(NOW)
    assert not struck(PLEASE_WAIT).is_forgettable(NOW + 5.0)
    assert struck(PLEASE_WAIT).is_forgettable(NOW + 5.0 + FORGOTTEN_AFTER_SECONDS)
    assert not struck(left(10, 60), status=200).is_forgettable(NOW + 29.0)
    assert struck(left(10, 60), status=200).is_forgettable(NOW + 30.0)
    assert struck(left(50, 60), status=200).is_forgettable(NOW)


def test_what_passed_between_two_pauses_is_the_pace_after_them():
    """Four answers in ten seconds, and a little slower; each further answer quickens it."""
    server = struck(Word(1.0))
    server.granted(CALL, NOW + 2.0, waited=True)
    server.probing -= 1
    for number in range(4):
        server.answered(200, None, NOW + 2.0, NOW + 2.0 + number, 0.0)
    server.answered(429, Word(1.0), NOW + 9.0, NOW + 10.0, 0.0)
    assert server.wait(NOW + 11.0) is None
    server.granted(CALL, NOW + 11.0, waited=True)
    server.answered(200, None, NOW + 11.0, NOW + 11.0, 0.0)
    wait = server.wait(NOW + 11.0)
    assert wait is not None
    assert wait.limit == "server_pause"
    assert wait.seconds == pytest.approx(QUICKENING * LEEWAY * 10.0 / 4)
    assert server.wait(NOW + 11.0 + LEEWAY * 10.0 / 4) is None
    server.granted(CALL, NOW + 20.0, waited=True)
    server.answered(200, None, NOW + 20.0, NOW + 20.0, 0.0)
    wait = server.wait(NOW + 20.0)
    assert wait is not None
    assert wait.seconds == pytest.approx(QUICKENING**2 * LEEWAY * 10.0 / 4)


def test_where_nobody_had_to_wait_no_pace_is_learned():
    """One call a minute that is refused now and then is no sign that a call a minute is all there is."""
    server = struck(Word(1.0))
    for number in range(1, 5):
        server.granted(CALL, NOW + 60.0 * number, waited=False)
        server.probing -= 1
        server.answered(200, None, NOW + 60.0 * number, NOW + 60.0 * number, 0.0)
    server.answered(429, Word(1.0), NOW + 250.0, NOW + 251.0, 0.0)
    server.granted(CALL, NOW + 260.0, waited=False)
    server.probing -= 1
    server.answered(200, None, NOW + 260.0, NOW + 260.0, 0.0)
    assert server.wait(NOW + 260.0) is None


def test_an_outage_does_not_leave_a_crawl_behind():
    server = struck(Word(60.0))
    server.granted(CALL, NOW + 61.0, waited=True)
    server.probing -= 1
    server.answered(200, None, NOW + 61.0, NOW + 61.0, 0.0)
    server.answered(429, None, NOW + 62.0, NOW + 600.0, 0.0)
    server.granted(CALL, NOW + 700.0, waited=True)
    server.answered(200, None, NOW + 700.0, NOW + 700.0, 0.0)
    wait = server.wait(NOW + 700.0)
    assert wait is not None
    assert wait.seconds == pytest.approx(QUICKENING * LONGEST_INTERVAL_SECONDS)
