"""The pacer as its users hold it: one budget a run, its status and its line for the operator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pacer
import transports
from pacer import Pacer, settings
from pacer import pacer as pacer_module
from pacer.errors import BudgetExceeded, LimitsConflict, SettingsError
from pacer.estimate import measure
from pacer.flow import Park
from pacer.pacer import join
from pacer.ticket import Reservation
from pacer.usage import Estimate, Usage, Word
from tests.engine import Clock

ROOT = Path(__file__).parent.parent


def admitted(budget: Pacer, worst: int, expected: int | None = None) -> Reservation:
    """Admit a call that needs no wait."""
    way = budget.admit(Estimate(expected if expected is not None else worst, 0, worst))
    with pytest.raises(StopIteration) as end:
        next(way)
    place = end.value.value
    assert isinstance(place, Reservation)
    return place


def test_all_who_name_a_run_share_one_pacer():
    first = join(settings.explicit(run="shared", ceiling=100))
    assert join(settings.explicit(run="shared")) is first
    assert join(settings.explicit(run="shared", ceiling=100)) is first
    assert join(settings.explicit(run="other", ceiling=7)) is not first


def test_joining_with_other_limits_is_an_error_that_shows_both():
    join(settings.explicit(run="conflict", ceiling=100))
    with pytest.raises(LimitsConflict, match="run 'conflict' is open with ceiling=100 and was joined with ceiling=200"):
        join(settings.explicit(run="conflict", ceiling=200))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_may_join_though_somebody_was_joining_when_it_was_forked():
    """A store may take seconds to open; whoever opened one is not there in the child."""
    with pacer_module._shared_lock:
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            os._exit(join(settings.explicit(run="forked")).name != "forked")
    assert os.waitpid(child, 0)[1] == 0


def test_the_status_tells_spent_unknown_and_held_apart():
    budget = Pacer(ceiling=1_000)
    open_place = admitted(budget, 300)
    budget.settle(admitted(budget, 200), Usage(50, 30))
    budget.settle_unseen(admitted(budget, 100), "partial", Usage(20), 20)
    status = budget.status()
    assert (status.spent, status.unknown, status.held, status.remaining) == (100, 80, 300, 520)
    assert (status.in_flight, status.waiting, status.calls) == (1, 0, 2)
    budget.void(open_place)
    assert budget.status().held == 0


@pytest.mark.parametrize(
    ("unknown", "sure", "likely_input", "rest"),
    [
        ("worst", Usage(), 60, 500),
        ("worst", Usage(30, 20), 60, 450),
        ("worst", Usage(30, 900), 60, 0),
        ("seen", Usage(), 60, 60),
        ("seen", Usage(30, 20), 60, 30),
        ("seen", Usage(50, 10), 50, 0),
    ],
)
def test_what_nobody_saw_of_a_bill_is_unknown(unknown, sure, likely_input, rest):
    """Spent is what is on it for sure. The rest of the worst case is unknown, or only that of the likely input."""
    budget = Pacer(unknown=unknown)
    with pytest.raises(StopIteration) as end:
        next(budget.admit(Estimate(60, 40, 500)))
    budget.settle_unseen(end.value.value, "partial", sure, likely_input)
    assert (budget.status().spent, budget.status().unknown) == (sure.tokens, rest)


def test_what_was_learned_can_be_looked_at():
    budget = Pacer()
    assert budget.learned() == ()
    budget.estimator.learn("m", "chat", measure(b"hello"), Usage(9, 5))
    (known,) = budget.learned()
    assert (known.model, known.calls, known.outputs["chat"].expected) == ("m", 1, 5)


def test_a_second_settlement_changes_nothing():
    budget = Pacer()
    place = admitted(budget, 100)
    budget.settle(place, Usage(10))
    budget.settle(place, Usage(99))
    assert budget.status().spent == 10


def test_the_pace_between_two_pauses_is_that_of_all_calls_that_passed():
    """Also after the slow start, and of a server that says nothing of its limits."""
    clock = Clock()
    budget = Pacer(clock=clock)

    def is_answered(status: int, word: Word | None = None) -> None:
        place = admitted(budget, 10)
        clock.now += 0.1
        budget.answered(place, status, word)
        budget.void(place)

    is_answered(429, Word(1.0))
    way = budget.admit(Estimate(10, 0, 10))
    parked = next(way)
    assert isinstance(parked, Park)
    clock.now += 2.0
    parked.store.tick()
    assert isinstance(parked.ticket.decision, Reservation)
    budget.answered(parked.ticket.decision, 200, None)
    for _ in range(1_000):
        is_answered(200)
    is_answered(429, Word(1.0))
    clock.now += 2.0
    is_answered(200)
    way = budget.admit(Estimate(10, 0, 10))
    assert isinstance(next(way), Park)
    next_seconds = budget.status().next_seconds
    assert next_seconds is not None
    assert next_seconds < 0.1


def test_the_repr_is_the_operators_line():
    budget = Pacer(tokens_per_second=2_000, burst=4_000, ceiling="500k", run="nightly", clock=Clock())
    budget.settle(admitted(budget, 3_000), Usage(2_500))
    admitted(budget, 1_400)
    waiting = budget.admit(Estimate(2_000, 0, 2_000))
    next(waiting)
    assert repr(budget) == (
        "<Pacer nightly: 2,500 spent + 0 unknown + 1,400 held of 500,000 | 100 tokens at 2,000/s"
        " | 1 in flight, 1 waiting for tokens_per_second, next in 0.9 s>"
    )
    waiting.close()
    assert budget.status().waiting == 0


def test_the_ceiling_can_be_changed_while_the_run_goes_on():
    budget = Pacer(ceiling=100)
    budget.settle(admitted(budget, 100), Usage(90))
    with pytest.raises(BudgetExceeded):
        next(budget.admit(Estimate(50, 0, 50)))
    budget.set_ceiling(1_000)
    assert budget.status().remaining == 910
    admitted(budget, 50)
    with pytest.raises(SettingsError):
        budget.set_ceiling(-1)


def test_the_minute_rates_are_independent_buckets():
    budget = Pacer(requests_per_minute=6, input_tokens_per_minute=6_000, clock=Clock())
    admitted(budget, 10)
    way = budget.admit(Estimate(10, 0, 10))
    next(way)
    assert budget.status().waits_for == "requests_per_minute"
    assert budget.status().next_seconds == pytest.approx(10.0)
    way.close()


def test_the_public_names_are_these():
    assert pacer.__all__ == [
        "Agent",
        "BudgetExceeded",
        "CeilingReached",
        "Limits",
        "LimitsConflict",
        "Pacer",
        "PacerError",
        "Run",
        "SettingsError",
        "Status",
        "StoreError",
        "StoreUnavailable",
        "Threshold",
        "WaitTooLong",
        "Waiting",
        "agent",
        "limit",
        "run",
        "wrap_up",
    ]
    assert transports.__all__ == ["BudgetTransport", "Receipt", "install", "uninstall"]
    assert all(getattr(pacer, name).__doc__ for name in pacer.__all__)
    assert set(pacer.__all__) < set(dir(pacer))
    room = sys.modules["pacer.pacer"]
    assert (pacer.Pacer, pacer.run, pacer.agent) == (Pacer, room.run, room.agent)
    assert not hasattr(pacer, "join")


def test_only_what_is_asked_for_is_loaded():
    code = "import sys, pacer; pacer.SettingsError; print([name for name in sys.modules if name.startswith('pacer.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "['pacer.errors']\n"


def test_the_transports_load_no_library_that_their_user_may_not_need():
    """Neither HTTP library, no store but that of the process, nothing of the commands."""
    code = "import sys, transports; transports.BudgetTransport(ceiling=5); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = done.stdout.split()
    assert "pacer.store.memory" in loaded
    later = ("httpx", "redis", "sqlite3", "rich", "typer", "opentelemetry.sdk", "pacer.cli", "pacer.store.shared")
    assert [name for name in loaded if name.startswith(later)] == []
