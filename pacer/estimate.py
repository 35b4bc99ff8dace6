"""Tokens before the call, learned from the usage of the calls before. No vocabulary, bounded state.

Bytes are counted by class (letters, digits, white space, ...), because each class has its own tokens per byte; a factor
per model, learned from its replies, corrects the sum.
"""

from __future__ import annotations

import string
import threading
from collections import OrderedDict
from dataclasses import dataclass

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
_SAMPLE_BYTES = 1_024
_SAMPLES = 8

COLD_INPUT_MARGIN = 1.5
"""The safe input estimate of a model nobody has heard of yet, as a multiple of the expected one."""
COLD_OUTPUT = 256
"""Expected output tokens of such a model (less where the call declares less)."""
COLD_OUTPUT_CAP = 4_096
"""Held for the output of such a model when the call declares no cap."""
MODELS_REMEMBERED = 256
LEARNING = 0.2
"""Share of the newest call in what is expected."""
FORGETTING = 0.98
"""By this factor a call the upper bounds sink, until a larger one lifts them again."""


def units(body: bytes) -> float:
    """A rough token count of ``body``; above 16 KiB from eight samples of 1 KiB spread over it."""
    size = len(body)
    if size <= 2 * _SAMPLES * _SAMPLE_BYTES:
        return _PER_REQUEST + _weigh(body)
    step = (size - _SAMPLE_BYTES) // (_SAMPLES - 1)
    sample = b"".join(body[start : start + _SAMPLE_BYTES] for start in range(0, step * _SAMPLES, step))
    return _PER_REQUEST + _weigh(sample) * size / len(sample)


def _weigh(text: bytes) -> float:
    rest, total = text, 0.0
    for members, weight in _CLASSES:
        before = len(rest)
        rest = rest.translate(None, members)
        total += (before - len(rest)) * weight
    return total + len(rest) * _OTHER


@dataclass(slots=True)
class _Model:
    factor: float = 1.0
    factor_high: float = COLD_INPUT_MARGIN
    output: float = COLD_OUTPUT
    output_high: float = COLD_OUTPUT_CAP
    calls: int = 0

    def learn(self, factor: float, output: int) -> None:
        factor = min(max(factor, 0.1), 10.0)
        pace = max(LEARNING, 1.0 / (self.calls + 1))
        self.factor += pace * (factor - self.factor)
        self.factor_high = max(factor, self.factor_high * FORGETTING)
        self.output += pace * (output - self.output)
        self.output_high = max(output * 1.25, self.output_high * FORGETTING)
        self.calls += 1


class Estimator:
    """What each model's calls have cost so far; the least recently used model is forgotten beyond 256."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._learning = threading.Lock()

    def input(self, model: str, units: float) -> tuple[int, int]:
        """Input tokens: the expected number and a safe upper one."""
        known = self._models.get(model) or _Model()
        return round(units * known.factor), int(units * max(known.factor_high, known.factor) * 1.1) + 8

    def output(self, model: str, declared: int | None, choices: int) -> tuple[int, int]:
        """Output tokens of all choices: the expected number and the cap to hold."""
        known = self._models.get(model) or _Model()
        cap = declared if declared is not None else int(known.output_high)
        return min(round(known.output), cap * choices), cap * choices

    def learn(self, model: str, units: float, usage: Usage) -> None:
        """Take a provider's usage as a lesson about ``model``; missed if another one is being learned right now."""
        # Never waited for: a garbage collection may come here in the middle of a lesson, or a fork keep it taken.
        if not self._learning.acquire(blocking=False):
            return
        try:
            known = self._models.setdefault(model, _Model())
            self._models.move_to_end(model)
            known.learn(usage.input / max(units, 1.0), usage.output)
            if len(self._models) > MODELS_REMEMBERED:
                self._models.popitem(last=False)
        finally:
            self._learning.release()
