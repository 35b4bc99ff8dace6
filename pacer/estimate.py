"""Tokens before the call, learned from the usage of the calls before. No vocabulary, bounded state.

Bytes are counted by class (letters, digits, white space, ...), because each class has its own tokens per byte. How many
they are is learned for each model from the usage of its replies, by recursive least squares.
"""

from __future__ import annotations

import string
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

from pacer.usage import Usage

_CLASSES: tuple[tuple[bytes, float], ...] = (
    (string.ascii_lowercase.encode(), 0.22),
    (string.ascii_uppercase.encode(), 0.40),
    (string.digits.encode(), 0.50),
    (b" \t\r\n", 0.05),
    (bytes(range(128, 256)), 0.45),
)
_OTHER = 0.40
_PER_REQUEST = 8.0
_COLD_WEIGHTS = (*(weight for _, weight in _CLASSES), _OTHER, _PER_REQUEST)
_DOUBT = 0.6
"""How far off, as a share, the weight of a class may be before anything is learned."""
_NOISE = 0.03**2
"""The part of a relative error that no weight can explain, squared."""
_GROWTH = 1.01
"""By this factor a call old lessons count less,"""
_WIDEST = sum((_DOUBT * weight) ** 2 for weight in _COLD_WEIGHTS)
"""unless the weights are as open as they were at first."""
_SAMPLE_BYTES = 1_024
_SAMPLES = 8

COLD_INPUT_MARGIN = 1.5
"""The safe input estimate of a model nobody has heard of yet, as a multiple of the expected one."""
COLD_OUTPUT = 256
"""Expected output tokens of such a model (less where the call declares less)."""
COLD_OUTPUT_CAP = 4_096
"""Held for the output of such a model when the call declares no cap."""
MODELS_REMEMBERED = 256
CLOSE_ENOUGH = 0.01
"""An input estimate that was off by less than this share teaches nothing; the lesson would cost 20 us."""
LEARNING = 0.2
"""Share of the newest call in what is expected."""
FORGETTING = 0.98
"""By this factor a call the upper bounds sink, until a larger one lifts them again."""


Measure = tuple[float, ...]
"""Bytes of a body by class, and 1 for the request itself."""


def measure(body: bytes) -> Measure:
    """Count ``body`` by class; above 16 KiB from eight samples of 1 KiB spread over it."""
    size = len(body)
    if size <= 2 * _SAMPLES * _SAMPLE_BYTES:
        return (*_count(body), 1.0)
    step = (size - _SAMPLE_BYTES) // (_SAMPLES - 1)
    sample = b"".join(body[start : start + _SAMPLE_BYTES] for start in range(0, step * _SAMPLES, step))
    scale = size / len(sample)
    return (*(count * scale for count in _count(sample)), 1.0)


def measure_of_size(size: int) -> Measure:
    """What is supposed of a body that nobody can read: prose."""
    return (float(size), *(0.0 for _ in _CLASSES), 1.0)


def _count(text: bytes) -> list[float]:
    rest, counts = text, []
    for members, _ in _CLASSES:
        before = len(rest)
        rest = rest.translate(None, members)
        counts.append(float(before - len(rest)))
    return [*counts, float(len(rest))]


@dataclass(slots=True)
class _Model:
    """The weights of one model, by recursive least squares on the relative error, and its usual output."""

    weights: list[float] = field(default_factory=lambda: list(_COLD_WEIGHTS))
    spread: list[list[float]] = field(default_factory=lambda: _cold_spread())
    error_high: float = COLD_INPUT_MARGIN
    output: float = COLD_OUTPUT
    output_high: float = COLD_OUTPUT_CAP
    calls: int = 0

    def input(self, counts: Measure) -> float:
        return max(1.0, _dot(self.weights, counts))

    def learn(self, counts: Measure, usage: Usage) -> None:
        if usage.input > 0:
            self._learn_input(counts, usage.input)
        pace = max(LEARNING, 1.0 / (self.calls + 1))
        self.output += pace * (usage.output - self.output)
        self.output_high = max(usage.output * 1.25, self.output_high * FORGETTING)
        self.calls += 1

    def _learn_input(self, counts: Measure, tokens: int) -> None:
        expected = self.input(counts)
        ratio = min(max(tokens / expected, 0.1), 10.0)
        self.error_high = max(ratio, 1.0 + (self.error_high - 1.0) * FORGETTING)
        if abs(ratio - 1.0) < CLOSE_ENOUGH:
            return
        share = [count / (expected * ratio) for count in counts]
        pull = [_dot(row, share) for row in self.spread]
        doubt = _dot(pull, share)
        if doubt < 0.0:  # rounding has eaten the spread
            self.spread = _cold_spread()
            return
        gain = [each / (_NOISE + doubt) for each in pull]
        missed = 1.0 - _dot(self.weights, share)
        self.weights = [max(0.0, weight + each * missed) for weight, each in zip(self.weights, gain, strict=True)]
        growth = _GROWTH if sum(self.spread[i][i] for i in range(len(gain))) < _WIDEST else 1.0
        self.spread = [
            [growth * (old - each * other) for old, other in zip(row, pull, strict=True)]
            for row, each in zip(self.spread, gain, strict=True)
        ]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    total: float = sum(map(mul, left, right))
    return total


def _cold_spread() -> list[list[float]]:
    variances = [(_DOUBT * weight) ** 2 for weight in _COLD_WEIGHTS]
    return [[variance if i == j else 0.0 for j in range(len(variances))] for i, variance in enumerate(variances)]


_COLD = _Model()


class Estimator:
    """What each model's calls have cost so far; the least recently used model is forgotten beyond 256."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._learning = threading.Lock()

    def input(self, model: str, counts: Measure) -> tuple[int, int]:
        """Input tokens: the expected number and a safe upper one."""
        known = self._models.get(model) or _COLD
        expected = known.input(counts)
        return round(expected), int(expected * known.error_high * 1.1) + 8

    def output(self, model: str, declared: int | None, choices: int) -> tuple[int, int]:
        """Output tokens of all choices: the expected number and the cap to hold."""
        known = self._models.get(model) or _COLD
        cap = declared if declared is not None else int(known.output_high)
        return min(round(known.output), cap * choices), cap * choices

    def learn(self, model: str, counts: Measure, usage: Usage) -> None:
        """Take a provider's usage as a lesson about ``model``; missed if another one is being learned right now."""
        # Never waited for: a garbage collection may come here in the middle of a lesson, or a fork keep it taken.
        if not self._learning.acquire(blocking=False):
            return
        try:
            known = self._models.setdefault(model, _Model())
            self._models.move_to_end(model)
            known.learn(counts, usage)
            if len(self._models) > MODELS_REMEMBERED:
                self._models.popitem(last=False)
        finally:
            self._learning.release()
