"""Token estimates without a vocabulary: safe when cold, close when they have learned, bounded whatever comes."""

from __future__ import annotations

import random

import pytest

from pacer.estimate import COLD_OUTPUT, COLD_OUTPUT_CAP, MODELS_REMEMBERED, Estimator, units
from pacer.usage import Usage

ENGLISH = b"The harbour council met on Tuesday and heard the report of the pilot about the tides. " * 20


def test_text_costs_about_a_token_for_four_letters():
    assert len(ENGLISH) / 6 < units(ENGLISH) < len(ENGLISH) / 3


def test_a_long_body_is_sampled_and_measures_nearly_the_same():
    rng = random.Random(3)
    words = b" ".join(rng.randbytes(2).hex().encode() * rng.randint(1, 3) for _ in range(20_000))
    parts = [words[start : start + 10_000] for start in range(0, len(words), 10_000)]
    assert units(words) == pytest.approx(sum(units(part) - 8 for part in parts), rel=0.05)


def test_a_cold_model_gets_a_margin():
    expected, safe = Estimator().input("new", 100.0)
    assert (expected, safe) == (100, 173)
    assert Estimator().output("new", None, 1) == (COLD_OUTPUT, COLD_OUTPUT_CAP)


def test_replies_teach_the_factor_and_the_usual_output():
    estimator = Estimator()
    for _ in range(50):
        estimator.learn("m", 100.0, Usage(input=130, output=40))
    expected, safe = estimator.input("m", 200.0)
    assert expected == pytest.approx(260, abs=2)
    assert 260 <= safe <= 300
    expected_output, cap = estimator.output("m", None, 1)
    assert expected_output == pytest.approx(40, abs=2)
    assert 50 <= cap < COLD_OUTPUT_CAP
    assert estimator.input("another", 200.0)[0] == 200


def test_a_declared_cap_bounds_the_hold_and_choices_multiply_it():
    estimator = Estimator()
    assert estimator.output("m", 100, 1) == (100, 100)
    assert estimator.output("m", 100, 4) == (256, 400)


def test_absurd_lessons_move_it_only_so_far():
    estimator = Estimator()
    estimator.learn("m", 8.0, Usage(input=10**12))
    assert estimator.input("m", 10.0)[0] <= 100


def test_the_least_recently_used_model_is_forgotten():
    estimator = Estimator()
    for number in range(MODELS_REMEMBERED + 50):
        estimator.learn("kept", 100.0, Usage(input=300))
        estimator.learn(f"model-{number}", 100.0, Usage(input=300))
    assert len(estimator._models) == MODELS_REMEMBERED
    assert estimator.input("kept", 100.0)[0] == 300
    assert estimator.input("model-0", 100.0)[0] == 100


def test_a_lesson_in_the_middle_of_another_is_missed_and_does_not_hang():
    """As when a garbage collection settles a call in the middle of it, or a fork keeps the lock taken."""
    estimator = Estimator()
    with estimator._learning:
        estimator.learn("m", 100.0, Usage(input=300))
    assert estimator.input("m", 100.0)[0] == 100
    estimator.learn("m", 100.0, Usage(input=300))
    assert estimator.input("m", 100.0)[0] == 300
