"""How a command went: its calls over time, in steps that are even and not too many, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import msgspec

from pacer.cli.tally import Call

MOST_STEPS = 150
LIMITS_TOLD = 4
"""Waits for so many limits are told apart; the others are one."""
OTHERS = "others"
_MOST_LIMITS = 32
_WIDTHS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400)


class Course(msgspec.Struct, frozen=True):
    """What happened in each step of ``width`` seconds since the start.

    ``tokens`` a second went through (spent and unknown, each call spread from its admission to its end); ``waiting``
    for each limit were so many calls on average; ``spent`` and ``unknown`` are tokens from the start to the end of the
    step, ``refused`` calls in it.
    """

    width: float
    seconds: float
    tokens: list[float]
    waiting: dict[str, list[float]]
    spent: list[int]
    unknown: list[int]
    refused: list[int]


class _Spread:
    """Amounts spread evenly over spans of time; adding one takes the same time however long its span is."""

    def __init__(self, steps: int, width: float) -> None:
        self._width = width
        self._steps = steps
        self._at_edges = [0.0] * steps
        self._inside = [0.0] * (steps + 1)
        self.total = 0.0

    def add(self, amount: float, start: float, end: float) -> None:
        """Spread ``amount`` from ``start`` to ``end``."""
        self.total += amount
        first, last = self._step(start), self._step(end)
        if first == last:
            self._at_edges[first] += amount
            return
        a_second = amount / (end - start)
        self._at_edges[first] += a_second * ((first + 1) * self._width - start)
        self._at_edges[last] += a_second * (end - last * self._width)
        self._inside[first + 1] += a_second * self._width
        self._inside[last] -= a_second * self._width

    def a_second(self) -> list[float]:
        """The amount of each step, by the second."""
        inside = accumulate(self._inside)
        return [max(0.0, edge + whole) / self._width for edge, whole in zip(self._at_edges, inside, strict=False)]

    def _step(self, moment: float) -> int:
        return min(self._steps - 1, int(moment / self._width))


def course(calls: Iterable[Call | None], pacer: str, started_at: float, seconds: float) -> Course:
    """The course of the calls of one pacer."""
    width = _width(seconds)
    steps = max(1, -int(-seconds // width))
    tokens = _Spread(steps, width)
    waits: dict[str, _Spread] = {}
    spent, unknown, refused = [0] * steps, [0] * steps, [0] * steps
    for call in calls:
        if call is None or call.pacer != pacer:
            continue
        asked, admitted, ended = _moments(call, started_at, seconds)
        step = min(steps - 1, int(ended / width))
        spent[step] += call.spent
        unknown[step] += call.unknown
        refused[step] += bool(call.refused_by)
        if call.spent or call.unknown:
            tokens.add(call.spent + call.unknown, admitted, ended)
        if call.waited_for:
            limit = call.waited_for if call.waited_for in waits or len(waits) < _MOST_LIMITS else OTHERS
            waits.setdefault(limit, _Spread(steps, width)).add(admitted - asked, asked, admitted)
    return Course(
        width, seconds, tokens.a_second(), _told(waits), list(accumulate(spent)), list(accumulate(unknown)), refused
    )


def _width(seconds: float) -> float:
    for width in _WIDTHS:
        if seconds <= width * MOST_STEPS:
            return width
    return seconds / MOST_STEPS


def _moments(call: Call, started_at: float, seconds: float) -> tuple[float, float, float]:
    """When it was asked, admitted (or not any more) and ended, in seconds since the start and inside of the command."""
    ended = min(max(0.0, call.ended_at - started_at), seconds)
    admitted = ended if call.admitted_at is None else min(max(0.0, call.admitted_at - started_at), ended)
    asked = min(max(0.0, call.asked_at - started_at), admitted)
    return asked, admitted, ended


def _told(waits: dict[str, _Spread]) -> dict[str, list[float]]:
    ranked = sorted(waits.keys() - {OTHERS}, key=lambda limit: (-waits[limit].total, limit))
    told = {limit: waits[limit].a_second() for limit in ranked[:LIMITS_TOLD]}
    rest = [waits[limit].a_second() for limit in waits.keys() - told.keys()]
    if rest:
        told[OTHERS] = [sum(step) for step in zip(*rest, strict=True)]
    return told
