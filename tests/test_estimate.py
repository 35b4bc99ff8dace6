"""Token estimates without a vocabulary: safe when cold, close when they have learned, bounded whatever comes."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import estimates
from pacer.estimate import (
    COLD_OUTPUT,
    COLD_OUTPUT_CAP,
    ENDPOINTS_REMEMBERED,
    MODELS_REMEMBERED,
    QUANTILE,
    Estimator,
    Measure,
    measure,
    measure_of_size,
)
from pacer.usage import Usage

ENGLISH = b"The harbour council met on Tuesday and heard the report of the pilot about the tides. " * 20
IMAGE = base64.b64encode(random.Random(1).randbytes(300_000)).decode()


HUNDRED = measure(b"w" * 418)


def expected(body: bytes) -> int:
    return Estimator().input("cold", measure(body)).expected


def with_image(text: str) -> bytes:
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{IMAGE}"}}
    return json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": text}, image]}]}).encode()


def taught(*outputs: float, choices: int = 1) -> Estimator:
    estimator = Estimator()
    for output in outputs:
        estimator.learn("m", "chat", HUNDRED, Usage(100, round(output)), choices)
    return estimator


# ---------------------------------------------------------------- the measure


def test_text_costs_about_a_token_for_four_letters():
    assert len(ENGLISH) / 6 < expected(ENGLISH) < len(ENGLISH) / 3


@given(st.binary(max_size=9_000))
def test_every_byte_is_of_one_class(body):
    counts = measure(body).counts
    assert sum(counts[:-1]) == pytest.approx(len(body))
    assert counts[-1] == 1


def test_a_long_body_is_sampled_and_measures_nearly_the_same():
    rng = random.Random(3)
    words = b" ".join(rng.randbytes(2).hex().encode() * rng.randint(1, 3) for _ in range(20_000))
    parts = [words[start : start + 8_000] for start in range(0, len(words), 8_000)]
    assert expected(words) == pytest.approx(sum(expected(part) - 8 for part in parts), rel=0.05)


def test_a_body_that_cannot_be_read_is_taken_for_a_file_of_text():
    """Nothing of it is sure, and no byte is more than a token."""
    least, usual, safe = Estimator().input("cold", measure_of_size(400))
    assert least == 0
    assert usual == 108
    assert 400 <= safe <= 430


def test_an_image_costs_what_its_rule_says_and_not_its_bytes():
    """400,000 bytes of base64: some thousand tokens, beside the text around."""
    text = Estimator().input("cold", measure(with_image("").replace(f"data:image/jpeg;base64,{IMAGE}".encode(), b"")))
    least, usual, safe = Estimator().input("cold", measure(with_image("")))
    assert usual == pytest.approx(text.expected + 1_100, abs=1)
    assert safe == pytest.approx(text.safe + 4_784, abs=1)
    assert least == text.least


def test_tool_schemas_are_text():
    tool = {"name": "look_up", "input_schema": {"type": "object", "properties": {"url": {"type": "string"}}}}
    body = json.dumps({"tools": [tool] * 20, "messages": []}).encode()
    assert measure(body).media == 0
    assert sum(measure(body).counts[:-1]) == len(body)


# ---------------------------------------------------------------- the input


def test_a_cold_model_gets_margins():
    assert Estimator().input("new", HUNDRED) == (6, 100, 172)


def test_replies_teach_the_factor_and_the_bounds_close_in():
    estimator = Estimator()
    for _ in range(90):
        estimator.learn("m", "chat", HUNDRED, Usage(input=130, output=40))
    least, usual, safe = estimator.input("m", measure(b"w" * 836))
    assert usual == pytest.approx(260, abs=10)
    assert 140 <= least < 190
    assert 260 <= safe <= 320
    assert estimator.input("another", HUNDRED).expected == 100


def test_an_input_below_all_others_lowers_the_least_at_once():
    """And so does one above them lift the safe one."""
    estimator = Estimator()
    for _ in range(200):
        estimator.learn("m", "chat", HUNDRED, Usage(input=100))
    assert estimator.learned()[0].input_least > 0.6
    assert estimator.learned()[0].input_safe < 1.2
    estimator.learn("m", "chat", HUNDRED, Usage(input=40))
    assert estimator.learned()[0].input_least < 0.4
    estimator.learn("m", "chat", HUNDRED, Usage(input=180))
    assert estimator.learned()[0].input_safe > 1.8


def test_absurd_lessons_move_it_only_so_far():
    estimator = Estimator()
    estimator.learn("m", "chat", measure(b""), Usage(input=10**12))
    assert estimator.input("m", measure(b"w")).expected <= 100


def test_each_class_of_bytes_finds_its_own_weight():
    """Letters at three to a token and digits at one: learned from mixtures, right for either alone."""
    estimator, rng = Estimator(), random.Random(5)
    for _ in range(60):
        letters, digits = rng.randint(0, 3_000), rng.randint(0, 3_000)
        body = b"w" * letters + b"7" * digits
        estimator.learn("m", "chat", measure(body), Usage(input=10 + letters // 3 + digits))
    assert estimator.input("m", measure(b"w" * 3_000)).expected == pytest.approx(1_010, rel=0.05)
    assert estimator.input("m", measure(b"7" * 1_000)).expected == pytest.approx(1_010, rel=0.05)


def test_a_model_that_changes_is_learned_anew():
    """Whatever was learned for how long before, and however noisily: no lesson is too late."""
    estimator, rng = Estimator(), random.Random(6)

    def lessons(number: int, letter: float, digit: float) -> None:
        for _ in range(number):
            letters, digits = rng.randint(50, 3_000), rng.randint(50, 3_000)
            given = Measure((letters, 0.0, digits, 0.0, 0.0, 0.0, 1.0))
            true = (letters * letter + digits * digit) * rng.uniform(0.9, 1.1)
            estimator.learn("m", "chat", given, Usage(input=round(true)))

    lessons(2_000, 0.2, 0.8)
    lessons(100, 0.3, 0.4)
    given = Measure((1_000.0, 0.0, 1_000.0, 0.0, 0.0, 0.0, 1.0))
    assert estimator.input("m", given).expected == pytest.approx(700, rel=0.05)


def test_media_teach_their_own_factor_and_nothing_about_text():
    """Nobody knows which of the two was off."""
    estimator = Estimator()
    for _ in range(30):
        estimator.learn("m", "chat", HUNDRED, Usage(input=100))
    text, image = estimator.input("m", HUNDRED), measure(with_image("words " * 50))
    small = estimator.input("m", image).expected
    for _ in range(30):
        estimator.learn("m", "chat", image, Usage(input=small + 7_000))
    assert estimator.input("m", HUNDRED) == text
    learned = estimator.input("m", image)
    assert learned.expected == pytest.approx(small + 7_000, rel=0.02)
    assert learned.safe > small + 7_000


@given(st.lists(st.tuples(st.binary(max_size=200), st.sampled_from([0.0, 900.0]), st.integers(0, 10**15)), max_size=40))
def test_no_lesson_breaks_the_estimates(lessons):
    """They stay finite, in their order, and the expected one at least 1."""
    estimator = Estimator()
    for body, media, tokens in lessons:
        given = Measure(measure(body).counts, media, 2 * media)
        estimator.learn("m", "chat", given, Usage(tokens, tokens))
        least, usual, safe = estimator.input("m", given)
        assert 0 <= least <= usual < safe < 10**12
        assert usual >= 1
        output, cap = estimator.output("m", "chat", None, 1)
        assert 0 <= output <= cap <= 10**16


def test_the_mixed_trace_is_estimated_well():
    """Prose, code, JSON, Chinese and base64, three tokenisers: what ``make bench`` reports."""
    found = estimates.errors()
    percent = statistics.quantiles(found.warm, n=100)
    assert percent[49] <= 0.03
    assert percent[94] <= 0.10
    assert found.above_safe <= 0.01
    assert found.below_least <= 0.001


# ---------------------------------------------------------------- the output


def test_a_cold_output_is_a_stated_one():
    assert Estimator().output("new", "chat", None, 1) == (COLD_OUTPUT, COLD_OUTPUT_CAP)


def test_a_declared_cap_bounds_the_hold_and_choices_multiply_it():
    estimator = Estimator()
    assert estimator.output("m", "chat", 100, 1) == (100, 100)
    assert estimator.output("m", "chat", 100, 4) == (400, 400)
    assert estimator.output("m", "chat", 1_000, 4) == (4 * COLD_OUTPUT, 4_000)


def test_answers_teach_the_usual_output_of_their_endpoint():
    """What the same model does elsewhere says nothing of it."""
    estimator = taught(*[40] * 90)
    usual, cap = estimator.output("m", "chat", None, 1)
    assert usual == 40
    assert 40 <= cap < COLD_OUTPUT_CAP / 4
    assert estimator.output("m", "responses", None, 1) == (COLD_OUTPUT, COLD_OUTPUT_CAP)


def test_the_choices_of_one_answer_are_learned_as_single_ones():
    """The usage counts them together."""
    estimator = taught(*[400] * 50, choices=8)
    assert estimator.output("m", "chat", None, 1)[0] == 50
    assert estimator.output("m", "chat", None, 8)[0] == 400


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 2.0])
def test_the_cap_is_the_upper_quantile_of_the_outputs(spread):
    """Of long-tailed outputs of any width one in fifty is above it, and it is no more than it need be."""
    rng = random.Random(8)
    outputs = [rng.lognormvariate(6, spread) for _ in range(6_000)]
    estimator, above, caps = Estimator(), 0, []
    for number, output in enumerate(outputs):
        cap = estimator.output("m", "chat", None, 1)[1]
        if number >= 1_000:
            above += output > cap
            caps.append(cap)
        estimator.learn("m", "chat", HUNDRED, Usage(100, round(output)))
    assert above / len(caps) == pytest.approx(1 - QUANTILE, abs=0.01)
    exact = sorted(outputs)[int(QUANTILE * len(outputs))]
    assert exact * 0.7 <= statistics.median(caps) <= exact * 2


def test_a_larger_output_lifts_the_cap_at_once_and_it_sinks_slowly():
    estimator = taught(*[40] * 300)
    assert estimator.output("m", "chat", None, 1)[1] < 100
    estimator.learn("m", "chat", HUNDRED, Usage(100, 6_000))
    lifted = estimator.output("m", "chat", None, 1)[1]
    assert lifted >= 6_000
    for _ in range(10):
        estimator.learn("m", "chat", HUNDRED, Usage(100, 40))
    assert estimator.output("m", "chat", None, 1)[1] > lifted / 2


# ---------------------------------------------------------------- what is kept


def test_the_least_recently_used_model_is_forgotten():
    estimator = Estimator()
    for number in range(MODELS_REMEMBERED + 50):
        estimator.learn("kept", "chat", HUNDRED, Usage(input=300))
        estimator.learn(f"model-{number}", "chat", HUNDRED, Usage(input=300))
    known = {each.model: each.calls for each in estimator.learned()}
    assert len(known) == MODELS_REMEMBERED
    assert known["kept"] == MODELS_REMEMBERED + 50
    assert estimator.input("model-0", HUNDRED).expected == 100


def test_a_model_remembers_so_many_endpoints():
    estimator = Estimator()
    for number in range(ENDPOINTS_REMEMBERED + 5):
        estimator.learn("m", f"end-{number}", HUNDRED, Usage(100, 40))
    (known,) = estimator.learned()
    assert list(known.outputs) == [f"end-{number}" for number in range(5, ENDPOINTS_REMEMBERED + 5)]


def test_everything_learned_can_be_looked_at():
    """As values that JSON can carry; the estimates follow from them."""
    estimator = taught(*[40] * 30)
    estimator.learn("other", "chat", measure(with_image("")), Usage(100, 9))
    known, other = estimator.learned()
    assert (known.model, known.calls, other.model, other.calls) == ("m", 30, "other", 1)
    least, usual, safe = estimator.input("m", HUNDRED)
    assert usual == round(known.tokens_per_byte["lower"] * 418 + known.tokens_per_request)
    assert least == pytest.approx(usual * known.input_least, abs=1)
    assert safe == pytest.approx(usual * known.input_safe + 8, abs=2)
    output, cap = estimator.output("m", "chat", None, 1)
    assert output == pytest.approx(known.outputs["chat"].expected, abs=1)
    assert cap == pytest.approx(known.outputs["chat"].cap, abs=1)
    assert other.media < 1 == known.media
    assert json.loads(json.dumps(dataclasses.asdict(known)))["tokens_per_byte"] == known.tokens_per_byte


def test_a_lesson_in_the_middle_of_another_is_missed_and_does_not_hang():
    """As when a garbage collection settles a call in the middle of it, or a fork keeps the lock taken."""
    estimator = Estimator()
    with estimator._learning:
        estimator.learn("m", "chat", HUNDRED, Usage(input=300))
    assert estimator.input("m", HUNDRED).expected == 100
    estimator.learn("m", "chat", HUNDRED, Usage(input=300))
    assert estimator.input("m", HUNDRED).expected == pytest.approx(300, rel=0.02)


def test_a_look_at_what_was_learned_does_not_hang_on_a_lock_that_a_fork_kept():
    estimator = taught(40)
    with estimator._learning:
        assert len(estimator.learned()) == 1
