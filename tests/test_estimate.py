"""Token estimates without a vocabulary: safe when cold, close when they have learned, bounded whatever comes."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import estimates
from pacer.estimate import COLD_OUTPUT, COLD_OUTPUT_CAP, MODELS_REMEMBERED, Estimator, measure, measure_of_size
from pacer.usage import Usage

ENGLISH = b"The harbour council met on Tuesday and heard the report of the pilot about the tides. " * 20


HUNDRED = measure(b"w" * 418)


def expected(body: bytes) -> int:
    return Estimator().input("cold", measure(body))[0]


def test_text_costs_about_a_token_for_four_letters():
    assert len(ENGLISH) / 6 < expected(ENGLISH) < len(ENGLISH) / 3


def test_a_long_body_is_sampled_and_measures_nearly_the_same():
    rng = random.Random(3)
    words = b" ".join(rng.randbytes(2).hex().encode() * rng.randint(1, 3) for _ in range(20_000))
    parts = [words[start : start + 10_000] for start in range(0, len(words), 10_000)]
    assert expected(words) == pytest.approx(sum(expected(part) - 8 for part in parts), rel=0.05)


def test_a_body_that_cannot_be_read_is_taken_for_prose():
    assert Estimator().input("cold", measure_of_size(400))[0] == 96


def test_a_cold_model_gets_a_margin():
    usual, safe = Estimator().input("new", HUNDRED)
    assert (usual, safe) == (100, 172)
    assert Estimator().output("new", None, 1) == (COLD_OUTPUT, COLD_OUTPUT_CAP)


def test_replies_teach_the_factor_and_the_usual_output():
    estimator = Estimator()
    for _ in range(90):
        estimator.learn("m", HUNDRED, Usage(input=130, output=40))
    usual, safe = estimator.input("m", measure(b"w" * 836))
    assert usual == pytest.approx(260, abs=10)
    assert 260 <= safe <= 320
    expected_output, cap = estimator.output("m", None, 1)
    assert expected_output == pytest.approx(40, abs=2)
    assert 50 <= cap < COLD_OUTPUT_CAP
    assert estimator.input("another", HUNDRED)[0] == 100


def test_a_declared_cap_bounds_the_hold_and_choices_multiply_it():
    estimator = Estimator()
    assert estimator.output("m", 100, 1) == (100, 100)
    assert estimator.output("m", 100, 4) == (256, 400)


def test_absurd_lessons_move_it_only_so_far():
    estimator = Estimator()
    estimator.learn("m", measure(b""), Usage(input=10**12))
    assert estimator.input("m", measure(b"w"))[0] <= 100


def test_the_least_recently_used_model_is_forgotten():
    estimator = Estimator()
    for number in range(MODELS_REMEMBERED + 50):
        estimator.learn("kept", HUNDRED, Usage(input=300))
        estimator.learn(f"model-{number}", HUNDRED, Usage(input=300))
    assert len(estimator._models) == MODELS_REMEMBERED
    assert estimator.input("kept", HUNDRED)[0] == pytest.approx(300, rel=0.02)
    assert estimator.input("model-0", HUNDRED)[0] == 100


def test_a_lesson_in_the_middle_of_another_is_missed_and_does_not_hang():
    """As when a garbage collection settles a call in the middle of it, or a fork keeps the lock taken."""
    estimator = Estimator()
    with estimator._learning:
        estimator.learn("m", HUNDRED, Usage(input=300))
    assert estimator.input("m", HUNDRED)[0] == 100
    estimator.learn("m", HUNDRED, Usage(input=300))
    assert estimator.input("m", HUNDRED)[0] == pytest.approx(300, rel=0.02)


def test_each_class_of_bytes_finds_its_own_weight():
    """Letters at three to a token and digits at one: learned from mixtures, right for either alone."""
    estimator, rng = Estimator(), random.Random(5)
    for _ in range(60):
        letters, digits = rng.randint(0, 3_000), rng.randint(0, 3_000)
        body = b"w" * letters + b"7" * digits
        estimator.learn("m", measure(body), Usage(input=10 + letters // 3 + digits))
    assert estimator.input("m", measure(b"w" * 3_000))[0] == pytest.approx(1_010, rel=0.05)
    assert estimator.input("m", measure(b"7" * 1_000))[0] == pytest.approx(1_010, rel=0.05)


def test_a_model_that_changes_is_learned_anew():
    """Whatever was learned for how long before: no lesson is too late."""
    estimator = Estimator()
    for number in range(3_000):
        size = 100 + number % 700
        estimator.learn("m", measure(b"w" * size), Usage(input=size // 4 + 8))
    for number in range(100):
        size = 100 + number % 700
        estimator.learn("m", measure(b"w" * size), Usage(input=size // 2 + 8))
    assert estimator.input("m", measure(b"w" * 500))[0] == pytest.approx(258, rel=0.05)


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(0, 10**15)), max_size=40))
def test_no_lesson_breaks_the_estimates(lessons):
    """They stay finite, at least 1, and the safe one above the expected one."""
    estimator = Estimator()
    for body, tokens in lessons:
        estimator.learn("m", measure(body), Usage(input=tokens))
        usual, safe = estimator.input("m", measure(body))
        assert 1 <= usual < safe < 10**12


def test_the_mixed_trace_is_estimated_well():
    """Prose, code, JSON, Chinese and base64, three tokenisers: what ``make bench`` reports."""
    _, warm, _, under = estimates.errors()
    percent = statistics.quantiles(warm, n=100)
    assert percent[49] <= 0.03
    assert percent[94] <= 0.10
    assert under <= 0.01
