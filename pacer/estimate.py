"""Tokens before the call, learned from the usage of the calls before. No vocabulary, bounded state.

Bytes of text are counted by class (letters, digits, white space, ...), because each class has its own tokens per byte.
How many they are is learned for each model from the usage of its replies, by recursive least squares. Tool schemas are
text; images, audio and files cost what the rules of ``pacer.media`` say, times a factor that is learned beside.
"""

from __future__ import annotations

import math
import string
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from operator import mul
from typing import NamedTuple

import msgspec

from pacer import media
from pacer.usage import Usage

_LOWER = string.ascii_lowercase.encode()
_UPPER = string.ascii_uppercase.encode()
_DIGITS = string.digits.encode()
_SPACE = b" \t\r\n"
_FOREIGN = bytes(range(128, 256))
CLASSES = ("lower", "upper", "digits", "space", "foreign", "other", "request")
"""The classes of bytes; the last one is the request itself, which costs something too."""
_COLD_WEIGHTS = (0.22, 0.40, 0.50, 0.05, 0.45, 0.40, 8.0)
_DOUBT = 0.6
"""How far off, as a share, the weight of a class may be before anything is learned."""
_NOISE = 0.03**2
"""The part of a relative error that no weight can explain, squared."""
_COLD_VARIANCES = tuple((_DOUBT * weight) ** 2 for weight in _COLD_WEIGHTS)
_REOPENING = 0.0003
"""By this share of what it was at first the variance of a weight grows with each lesson: a model that changes is
learned anew, whatever was learned for how long."""
_SAMPLE_BYTES = 1_024
"""Of a text above this size only so many bytes are counted."""

COLD_LEAST = 0.1
"""The least input of a model nobody has heard of yet, as a share of the expected one,"""
COLD_MARGIN = 1.5
"""and its safe input."""
LEAST_MARGIN = 0.3
SAFE_MARGIN = 0.1
"""Kept beyond the smallest and the largest share that were seen. The one below may well be larger: what is not booked
as spent is booked as unknown."""
COLD_OUTPUT = 256
"""Expected output tokens of such a model (less where the call declares less)."""
COLD_OUTPUT_CAP = 4_096
"""Held for the output of such a model when the call declares no cap."""
MODELS_REMEMBERED = 256
ENDPOINTS_REMEMBERED = 8
CLOSE_ENOUGH = 0.01
"""An input estimate that was off by less than this share teaches no weights; the lesson would cost 10 us."""
LEARNING = 0.2
"""Share of the newest call in what is expected."""
FORGETTING = 0.98
"""By this factor a call the bounds of the input come closer, until they are widened again."""
QUANTILE = 0.98
"""The share of outputs that shall not be above the cap held for those that declare none."""
HEADROOM = 1.25
"""An output above its cap lifts the cap to this multiple of it."""


class InputEstimate(NamedTuple):
    """Input tokens of one call: practically never less than ``least``, nor more than ``safe``."""

    least: int
    expected: int
    safe: int


class Measure(msgspec.Struct, frozen=True, gc=False):
    """Bytes of a request's text by class, and what its media cost by their rules: usually, and at most."""

    counts: tuple[float, ...]
    media: float = 0.0
    most_media: float = 0.0


@dataclass(frozen=True, slots=True)
class LearnedOutput:
    """What the calls of a model to one endpoint answer with, in tokens of one choice."""

    expected: float
    cap: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What the calls of one model have taught. ``input_least`` and ``input_safe`` are shares of the expected input,
    ``media`` is the factor on the rules for media.
    """

    model: str
    calls: int
    tokens_per_byte: dict[str, float]
    tokens_per_request: float
    input_least: float
    input_safe: float
    media: float
    outputs: dict[str, LearnedOutput]


def measure(body: bytes) -> Measure:
    """Count ``body`` by class, its media apart; a text above 1 KiB by as many of its bytes, evenly spread over it."""
    text, pieces = media.apart(body)
    counts = _count(text) if len(text) <= _SAMPLE_BYTES else _sampled(text)
    if not pieces:
        return Measure(counts)
    return Measure(counts, sum(piece.tokens for piece in pieces), sum(piece.most_tokens for piece in pieces))


def measure_of_size(size: int) -> Measure:
    """What is supposed of a body that nobody can read: a file of text, of which nothing is sure to be billed."""
    supposed = media.Piece("text", size)
    return Measure((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), supposed.tokens, supposed.most_tokens)


def _sampled(text: bytes) -> tuple[float, ...]:
    # An odd step, so that it does not keep time with records of a fixed length.
    sample = text[:: len(text) // _SAMPLE_BYTES | 1]
    scale = len(text) / len(sample)
    *counts, request = _count(sample)
    return (*[count * scale for count in counts], request)


def _count(text: bytes) -> tuple[float, ...]:
    no_lower = text.translate(None, _LOWER)
    no_space = no_lower.translate(None, _SPACE)
    no_digits = no_space.translate(None, _DIGITS)
    no_upper = no_digits.translate(None, _UPPER)
    letters, digits_on, foreign_on = len(no_lower), len(no_space), len(no_upper)
    upper_on, other = len(no_digits), len(no_upper.translate(None, _FOREIGN))
    return (
        len(text) - letters,
        upper_on - foreign_on,
        digits_on - upper_on,
        letters - digits_on,
        foreign_on - other,
        other,
        1.0,
    )


@dataclass(slots=True)
class _Output:
    """The usual output of one choice, and a bound that ``QUANTILE`` of the outputs keep.

    A larger output lifts the bound at once. Each other one lowers it by so much that the bound stands still where
    ``1 - QUANTILE`` of the outputs are above it.
    """

    expected: float = COLD_OUTPUT
    cap: float = COLD_OUTPUT_CAP
    lift: float = 1.0  # the logarithm of what a usual lift multiplies by
    calls: int = 0

    def learn(self, tokens: float) -> None:
        self.calls += 1
        self.expected += max(LEARNING, 1.0 / self.calls) * (tokens - self.expected)
        if tokens > self.cap:
            lifted = HEADROOM * tokens
            self.lift += LEARNING * (math.log(lifted / self.cap) - self.lift)
            self.cap = lifted
        else:
            self.cap = max(1.0, self.cap * (1.0 - self.lift * (1.0 - QUANTILE) / QUANTILE))


@dataclass(slots=True)
class _Model:
    """The weights of one model, by recursive least squares on the relative error, and its usual outputs."""

    weights: list[float] = field(default_factory=lambda: list(_COLD_WEIGHTS))
    spread: list[list[float]] = field(default_factory=lambda: _cold_spread())
    low: float = COLD_LEAST
    high: float = COLD_MARGIN
    media: float = 1.0
    media_high: float = 1.0
    calls: int = 0
    outputs: dict[str, _Output] = field(default_factory=dict)

    def input(self, given: Measure) -> InputEstimate:
        text = max(1.0, sum(map(mul, self.weights, given.counts)))
        expected, safe = text, text * self.high * (1.0 + SAFE_MARGIN) + 8.0
        if given.media:
            expected += given.media * self.media
            safe += max(given.most_media, given.media * self.media_high * (1.0 + SAFE_MARGIN))
        return InputEstimate(int(text * self.low * (1.0 - LEAST_MARGIN)), round(expected), int(safe))

    def learn_input(self, given: Measure, tokens: int) -> None:
        expected = max(1.0, sum(map(mul, self.weights, given.counts)))
        if given.media:  # teaches nothing of text: nobody knows which of the two was off
            self._learn_media((tokens - expected) / given.media)
            return
        ratio = min(tokens / expected, 10.0)
        self.low = min(ratio, 1.0 - (1.0 - self.low) * FORGETTING)
        self.high = max(ratio, 1.0 + (self.high - 1.0) * FORGETTING)
        if abs(ratio - 1.0) >= CLOSE_ENOUGH:
            self._learn_weights(given.counts, expected * max(ratio, 0.1))

    def _learn_media(self, ratio: float) -> None:
        ratio = min(max(ratio, 0.0), 10.0)
        self.media += LEARNING * (ratio - self.media)
        self.media_high = max(ratio, self.media, 1.0 + (self.media_high - 1.0) * FORGETTING)

    def _learn_weights(self, counts: tuple[float, ...], tokens: float) -> None:
        share = [count / tokens for count in counts]
        a, b, c, d, e, f, g = share  # unrolled: half the time of a loop
        pull = [p * a + q * b + r * c + s * d + t * e + u * f + v * g for p, q, r, s, t, u, v in self.spread]
        doubt = sum(map(mul, pull, share))
        if doubt < 0.0:  # rounding has eaten the spread
            self.spread = _cold_spread()
            return
        step = 1.0 / (_NOISE + doubt)
        missed = step * (1.0 - sum(map(mul, self.weights, share)))
        self.weights = [max(0.0, weight + each * missed) for weight, each in zip(self.weights, pull, strict=True)]
        a, b, c, d, e, f, g = [each * step for each in pull]
        self.spread = spread = [
            [p - k * a, q - k * b, r - k * c, s - k * d, t - k * e, u - k * f, v - k * g]
            for (p, q, r, s, t, u, v), k in zip(self.spread, pull, strict=True)
        ]
        for i, first in enumerate(_COLD_VARIANCES):
            if spread[i][i] < first:
                spread[i][i] += first * _REOPENING

    def learn_output(self, endpoint: str, tokens: float) -> None:
        known = self.outputs.get(endpoint)
        if known is None:
            if len(self.outputs) >= ENDPOINTS_REMEMBERED:
                self.outputs.pop(next(iter(self.outputs)))
            known = self.outputs[endpoint] = _Output()
        known.learn(tokens)

    def learned(self, name: str) -> Learned:
        weights = dict(zip(CLASSES, self.weights, strict=True))
        return Learned(
            name,
            self.calls,
            tokens_per_request=weights.pop("request"),
            tokens_per_byte=weights,
            input_least=self.low * (1.0 - LEAST_MARGIN),
            input_safe=self.high * (1.0 + SAFE_MARGIN),
            media=self.media,
            outputs={end: LearnedOutput(output.expected, output.cap) for end, output in self.outputs.items()},
        )


def _cold_spread() -> list[list[float]]:
    size = range(len(_COLD_VARIANCES))
    return [[_COLD_VARIANCES[i] if i == j else 0.0 for j in size] for i in size]


_COLD = _Model()
_COLD_OUTPUT = _Output()


class Estimator:
    """What each model's calls have cost so far; the least recently used model is forgotten beyond 256."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._learning = threading.Lock()

    def input(self, model: str, given: Measure) -> InputEstimate:
        """Input tokens of a call."""
        return (self._models.get(model) or _COLD).input(given)

    def output(self, model: str, endpoint: str, declared: int | None, choices: int) -> tuple[int, int]:
        """Output tokens of all choices: the expected number and the cap to hold."""
        known = (self._models.get(model) or _COLD).outputs.get(endpoint, _COLD_OUTPUT)
        cap = (declared if declared is not None else math.ceil(known.cap)) * choices
        return min(round(known.expected * choices), cap), cap

    def learn(self, model: str, endpoint: str, given: Measure, usage: Usage, choices: int = 1) -> None:
        """Take a provider's usage as a lesson about ``model``; missed if another one is being learned right now."""
        # Never waited for: a garbage collection may come here in the middle of a lesson, or a fork keep it taken.
        if not self._learning.acquire(blocking=False):
            return
        try:
            known = self._models.get(model)
            if known is None:
                known = self._models[model] = _Model()
                if len(self._models) > MODELS_REMEMBERED:
                    self._models.popitem(last=False)
            else:
                self._models.move_to_end(model)
            known.calls += 1
            if usage.input > 0:
                known.learn_input(given, usage.input)
            known.learn_output(endpoint, usage.output / choices)
        finally:
            self._learning.release()

    def learned(self) -> tuple[Learned, ...]:
        """What was learned of each model, the one heard of last at the end."""
        # A lesson takes microseconds; one that takes longer is another process's, kept by a fork, and goes on no more.
        held = self._learning.acquire(timeout=0.1)
        try:
            return tuple([known.learned(name) for name, known in self._models.items()])
        finally:
            if held:
                self._learning.release()
