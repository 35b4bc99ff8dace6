"""The one decision: wait or refuse, in which order, and what it says."""

from __future__ import annotations

import re

import pytest

from pacer.admission import Admission
from pacer.errors import CeilingReached, WaitTooLong
from pacer.ledger import Account
from pacer.ticket import Caller, gate
from pacer.usage import Estimate, Rate, Settlement, Usage
from tests.engine import Engine, call, granted, place_of

pytestmark = pytest.mark.usefixtures("each_store")


def test_a_settlement_lets_the_next_one_in():
    """What a call did not use is there for the next one at once."""
    engine = Engine(ceiling=1_000)
    first, second = engine.offer(call(700)), engine.offer(call(700))
    assert granted(first)
    assert second.decision is None
    engine.settle(first, 300)
    assert granted(second)


def test_what_never_fits_is_refused_at_once():
    engine = Engine(ceiling=1_000)
    assert isinstance(engine.offer(call(1_001)).decision, CeilingReached)
    assert granted(engine.offer(call(1_000)))


def test_nothing_is_admitted_while_the_account_is_overdrawn():
    engine = Engine(ceiling=1_000)
    first = engine.offer(call(900))
    waiting = engine.offer(call(500))
    engine.settle(first, 1_200)
    assert isinstance(waiting.decision, CeilingReached)
    assert isinstance(engine.offer(call(1)).decision, CeilingReached)


def test_a_waiter_without_hope_is_refused_now_and_not_at_its_turn():
    """The second in line learns that its tokens are gone although the first still waits."""
    engine = Engine(ceiling=1_000)
    first = engine.offer(call(600))
    engine.offer(call(400))
    head, second = engine.offer(call(300)), engine.offer(call(700))
    engine.settle(first, 400)
    assert head.decision is None
    assert isinstance(second.decision, CeilingReached)


def test_after_one_was_dismissed_the_next_largest_is_watched():
    engine = Engine(ceiling=1_000)
    opened = [engine.offer(call(250)) for _ in range(4)]
    largest, middle, small = engine.offer(call(700)), engine.offer(call(500)), engine.offer(call(240))
    engine.settle(opened[0], 400)
    assert isinstance(largest.decision, CeilingReached)
    assert middle.decision is None
    engine.settle(opened[1], 250)
    assert isinstance(middle.decision, CeilingReached)
    assert small.decision is None


def test_nobody_overtakes_the_head():
    """A small call that would fit waits behind a large one."""
    engine = Engine(rate=10, burst=100)
    engine.offer(call(100))
    large, small = engine.offer(call(90)), engine.offer(call(1))
    engine.advance(5.0)
    assert large.decision is None
    assert small.decision is None
    engine.advance(4.2)
    assert granted(large)
    assert granted(small)


def test_a_call_whose_own_open_answers_are_in_the_way_is_refused_instead_of_hanging():
    """An agent that calls a tool while its stream is open would wait for itself for ever."""
    engine = Engine(ceiling=1_000)
    engine.offer(call(700), owner="agent")
    refusal = engine.offer(call(700), owner="agent").decision
    assert isinstance(refusal, CeilingReached)
    assert "its own task still holds open" in str(refusal)
    assert engine.offer(call(700), owner="another agent").decision is None


def test_several_buckets_must_all_agree():
    gates = (
        gate("tokens_per_minute", "tokens", Rate(6_000, 60), 1_000, 0.0),
        gate("output_tokens_per_minute", "output", Rate(600, 60), 100, 0.0),
        gate("requests_per_minute", "requests", Rate(60, 60), 10, 0.0),
    )
    admission = Admission(Account("run"), gates)
    one = Estimate(input=10, output=100, worst=200)
    assert admission.offer(one, 1, Caller(admission.account), 0.0).decision is not None
    second = admission.offer(one, 2, Caller(admission.account), 0.0)
    assert second.wait is not None
    assert second.wait.limit == "output_tokens_per_minute"
    assert second.wait.seconds == pytest.approx(10.0)
    assert admission.pump(9.9) == []
    assert admission.pump(10.0) == [second]


def test_settlement_gives_back_to_each_bucket_what_it_took_too_much():
    gates = (
        gate("input_tokens_per_minute", "input", Rate(60, 60), 100, 0.0),
        gate("output_tokens_per_minute", "output", Rate(60, 60), 100, 0.0),
    )
    admission = Admission(Account("run"), gates)
    ticket = admission.offer(Estimate(input=50, output=80, worst=200), 1, Caller(admission.account), 0.0)
    admission.settle(place_of(ticket), Usage(20, 90), Usage(20, 90), Settlement(110, 0, "provider"), 0.0)
    assert [each.bucket.level(0.0) for each in gates] == [80, 10]


def test_where_the_bill_is_unknown_the_rate_keeps_what_was_expected():
    engine = Engine(rate=10, burst=100)
    engine.settle(engine.offer(call(worst=90, expected=60)), 5, 85, "partial")
    assert engine.store.status().tokens_available == pytest.approx(40)


def test_a_wait_longer_than_max_wait_is_refused_at_the_door():
    """Nobody queues for a place that is known to come too late."""
    engine = Engine(rate=10, burst=100, max_wait=5.0)
    engine.offer(call(100))
    refusal = engine.offer(call(60)).decision
    assert isinstance(refusal, WaitTooLong)
    assert refusal.retry_after_seconds == pytest.approx(6.0)
    assert (refusal.limit, refusal.asked, refusal.amount) == ("tokens_per_second", 60, 10)
    assert "at most 5 s" in str(refusal)
    assert "Set a larger PACER_TOKENS_PER_SECOND or a larger PACER_MAX_WAIT, or" in str(refusal)


def test_the_line_counts_into_the_wait():
    engine = Engine(rate=10, burst=100, max_wait=5.0)
    engine.offer(call(100))
    assert engine.offer(call(40)).decision is None
    assert isinstance(engine.offer(call(40)).decision, WaitTooLong)


def test_patience_ends_at_its_moment_when_holds_do_not_come_back():
    engine = Engine(ceiling=1_000, max_wait=5.0)
    engine.offer(call(900))
    waiting = engine.offer(call(500))
    engine.advance(4.9)
    assert waiting.decision is None
    engine.advance(0.2)
    assert isinstance(waiting.decision, WaitTooLong)
    assert "until open calls have settled" in str(waiting.decision)


def test_on_limit_refuse_never_waits():
    paced = Engine(rate=10, burst=100, may_wait=False)
    paced.offer(call(100))
    late = paced.offer(call(10)).decision
    assert isinstance(late, WaitTooLong)
    assert "Set a larger PACER_TOKENS_PER_SECOND or PACER_ON_LIMIT=wait, or" in str(late)
    capped = Engine(ceiling=1_000, may_wait=False)
    capped.offer(call(900))
    refusal = capped.offer(call(500)).decision
    assert isinstance(refusal, CeilingReached)
    assert "on_limit=refuse" in str(refusal)


def test_a_ceiling_of_zero_lets_nothing_through():
    assert isinstance(Engine(ceiling=0).offer(call(1)).decision, CeilingReached)


def test_a_raised_ceiling_wakes_and_a_lowered_one_refuses():
    engine = Engine(ceiling=1_000)
    engine.offer(call(900))
    waiting = engine.offer(call(500))
    engine.set_ceiling(2_000)
    assert granted(waiting)
    third = engine.offer(call(700))
    engine.set_ceiling(600)
    assert isinstance(third.decision, CeilingReached)
    assert engine.account.remaining == 600 - 1_400


def test_the_refusal_carries_the_numbers_and_none_of_the_words_that_retry_loops_look_for():
    engine = Engine(ceiling=1_000)
    engine.settle(engine.offer(call(900)), 800, 50, "partial")
    refusal = engine.offer(call(200)).decision
    assert isinstance(refusal, CeilingReached)
    assert (refusal.asked, refusal.amount, refusal.spent, refusal.unknown) == (200, 1_000, 800, 50)
    assert (refusal.held, refusal.remaining, refusal.retry_after_seconds) == (0, 150, None)
    assert "run 'default'" in str(refusal)
    assert "PACER_CEILING" in str(refusal)
    assert not re.search(r"\d|rate|limit|quota|too many", str(refusal), re.IGNORECASE)


def test_those_who_left_count_no_longer_into_the_wait():
    engine = Engine(rate=10, burst=100, max_wait=5.0)
    engine.offer(call(100))
    engine.leave(engine.offer(call(40)))
    assert engine.offer(call(30)).decision is None
    assert engine.offer(call(20)).decision is None


def test_a_void_call_gives_the_rate_back_whatever_was_counted():
    engine = Engine(rate=10, burst=100)
    engine.settle(engine.offer(call(60)), 50, source="void")
    assert engine.store.status().tokens_available == 100


def test_who_will_come_too_late_is_refused_as_soon_as_that_is_known():
    """The head learns from a settlement's debt that it cannot make it, and does not sit out its patience."""
    engine = Engine(rate=10, burst=100, max_wait=5.0)
    first = engine.offer(call(worst=100))
    waiting = engine.offer(call(40))
    assert waiting.decision is None
    engine.settle(first, 200)
    assert isinstance(waiting.decision, WaitTooLong)


# ---------------------------------------------------------------- a lower output cap


def test_a_call_that_could_never_have_its_worst_case_goes_with_what_is_left():
    engine = Engine(ceiling=1_000)
    engine.settle(engine.offer(call(700)), 700)
    last = engine.offer(call(500, least=200))
    assert place_of(last).call.worst == 300
    assert engine.account.held == 300
    hopeful = engine.offer(call(500, least=200))
    assert hopeful.decision is None
    engine.settle(last, 250)
    assert (engine.account.spent, engine.account.held) == (950, 0)
    assert isinstance(hopeful.decision, CeilingReached)
    assert isinstance(engine.offer(call(500, least=200)).decision, CeilingReached)
    assert granted(engine.offer(call(500, least=50)))


def test_it_waits_for_its_worst_case_as_long_as_open_calls_may_give_it_back():
    engine = Engine(ceiling=1_000)
    first = engine.offer(call(700))
    second = engine.offer(call(500, least=200))
    assert second.decision is None
    engine.settle(first, 400)
    assert place_of(second).call.worst == 500


def test_what_is_left_beside_open_calls_must_be_enough_for_it():
    """700 spent, 200 held: 100 are not enough for 150, so it waits for the rest."""
    engine = Engine(ceiling=1_000)
    first, second = engine.offer(call(700)), engine.offer(call(200))
    engine.settle(first, 700)
    third = engine.offer(call(500, least=150))
    assert third.decision is None
    engine.settle(second, 20)
    assert place_of(third).call.worst == 280


def test_a_lowered_call_that_is_cancelled_gives_back_what_it_held():
    engine = Engine(rate=10, burst=1_000, ceiling=1_000)
    engine.settle(engine.offer(call(700)), 700)
    engine.leave(engine.offer(call(500, 200, least=200)))
    assert engine.account.held == 0
    assert place_of(engine.offer(call(500, 200, least=200))).call.worst == 300


# ---------------------------------------------------------------- what servers ask for


def test_a_pause_holds_everybody_who_calls_that_model():
    """The first refused call speaks for all; afterwards they go one by one, then ever more."""
    engine = Engine()
    first = engine.offer(call(1))
    engine.answer(first, 429, pause=5.0)
    waiting = [engine.offer(call(1)) for _ in range(3)]
    status = engine.store.status()
    assert (status.waits_for, status.waiting) == ("server_pause", 3)
    assert 5.0 <= status.server_pause_seconds <= 5.5
    engine.advance(4.9)
    assert not any(granted(ticket) for ticket in waiting)
    engine.advance(0.6)
    assert [granted(ticket) for ticket in waiting] == [True, False, False]
    engine.answer(waiting[0])
    assert [granted(ticket) for ticket in waiting] == [True, True, True]
    assert engine.store.status().server_pause_seconds == 0.0


@pytest.mark.parametrize("end", ["settled", "left"])
def test_a_slow_start_goes_on_when_its_call_ends_without_an_answer(end):
    """A broken connection or a cancelled task must not hold the others for ever."""
    engine = Engine()
    engine.answer(engine.offer(call(1)), 429, pause=1.0)
    first, second = engine.offer(call(1)), engine.offer(call(1))
    engine.advance(2.0)
    assert (granted(first), granted(second)) == (True, False)
    if end == "settled":
        engine.settle(first, 0, 1, "partial")
    else:
        engine.leave(first)
    assert granted(second)


def test_a_paused_server_holds_up_no_other():
    """Not even newcomers behind those who wait for it; and what it refused is not overtaken for the rate."""
    engine = Engine(rate=10, burst=100)
    engine.answer(engine.offer(call(50, model="a")), 429, pause=5.0)
    paused = engine.offer(call(50, model="a"))
    other = engine.offer(call(50, model="b"))
    assert (granted(paused), granted(other)) == (False, True)
    behind = engine.offer(call(30, model="b"))
    engine.advance(2.9)
    assert not granted(behind)
    engine.advance(0.2)
    assert granted(behind)
    engine.advance(6.0)
    assert granted(paused)


def test_after_a_pause_the_oldest_goes_first():
    """Tokens are short when the pause ends: who came first has the next ones."""
    engine = Engine(rate=10, burst=100)
    engine.answer(engine.offer(call(100, model="a")), 429, pause=1.0)
    first = engine.offer(call(60, model="a"))
    engine.offer(call(20, model="b"))  # a call that others share a rate with has its place when it comes to the head
    second = engine.offer(call(50, model="b"))
    engine.advance(5.9)
    assert (granted(first), granted(second)) == (False, False)
    engine.advance(2.2)
    assert (granted(first), granted(second)) == (True, False)
    engine.advance(5.0)
    assert granted(second)


def test_a_pause_longer_than_anybody_may_wait_is_a_refusal():
    engine = Engine(max_wait=3.0)
    first, early = engine.offer(call(1)), engine.offer(call(1))
    engine.answer(early, 429, pause=2.0)
    patient = engine.offer(call(1))
    assert patient.decision is None
    engine.answer(first, 429, pause=10.0)
    for ticket in (patient, engine.offer(call(1))):
        assert isinstance(ticket.decision, WaitTooLong)
        assert ticket.decision.limit == "server_pause"
        assert "PACER_MAX_WAIT" in str(ticket.decision)


def test_where_no_wait_is_allowed_a_pause_is_a_refusal_with_its_seconds():
    engine = Engine(may_wait=False)
    engine.answer(engine.offer(call(1)), 429, pause=5.0)
    refusal = engine.offer(call(1)).decision
    assert isinstance(refusal, WaitTooLong)
    assert 5.0 <= (refusal.retry_after_seconds or 0) <= 5.5
    assert "Set PACER_ON_LIMIT=wait, or" in str(refusal)


def test_lanes_of_servers_that_say_nothing_are_not_kept():
    engine = Engine(rate=10, burst=100)
    for number in range(50):
        ticket = engine.offer(call(10, model=f"m{number}"))
        if number < 10:
            engine.answer(ticket)
    engine.advance(100.0)
    assert not engine.admission._lanes


def test_a_forked_child_is_not_paused_by_answers_to_its_parent():
    engine = Engine()
    first = engine.offer(call(1))
    engine.admission.forget_the_living()
    engine.answer(first, 429, pause=5.0)
    assert granted(engine.offer(call(1)))
