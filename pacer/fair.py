"""Whose turn it is: start-time fair queueing over a tree, and first come, first served inside each leaf.

Every node has a virtual time, which is the start of its child served last. A child that begins to wait starts there,
and each service moves its next start on by amount / weight; the earliest start goes first. So among children that go
on waiting, the amounts served by weight differ by one service each at most, and children share what their parent gets.
Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996, section 2, and its hierarchy in section 3.

Nothing here knows what the amounts are, or what time it is.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Container, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Key = tuple[float, ...]
"""Of two, the smaller one goes first."""


class Turn:
    """One node of the tree, with its place among its siblings.

    ``rank`` orders siblings where the order is not by fairness; who ``is_late`` comes after all who are not. ``queued``
    is the amount that waits in a leaf.
    """

    __slots__ = (
        "_entries",
        "_number",
        "_start",
        "_virtual",
        "_waiting_weight",
        "is_late",
        "parent",
        "queued",
        "rank",
        "weight",
    )

    def __init__(self, parent: Turn | None = None, weight: float = 1.0, rank: float = math.inf) -> None:
        self.parent = parent
        self.weight = weight
        self.rank = rank
        self.is_late = False
        self.queued = 0
        self._start = 0.0
        self._virtual = 0.0
        self._number = 0
        self._waiting_weight = 0.0
        self._entries: dict[Line[Any], _Entry] = {}

    def share(self) -> float:
        """The part of all service that this node gets while everybody who waits now goes on waiting."""
        share, turn = 1.0, self
        while (parent := turn.parent) is not None:
            share *= turn.weight / max(parent._waiting_weight, turn.weight)
            turn = parent
        return share

    def charge(self, amount: float) -> None:
        """A service of ``amount`` was given to this leaf."""
        turn = self
        while (parent := turn.parent) is not None:
            parent._virtual = max(parent._virtual, turn._start)
            turn._start += amount / turn.weight
            turn.reorder()
            turn = parent

    def correct(self, amount: float) -> None:
        """A service of this leaf has turned out to be so much larger (smaller, below 0) than it was charged."""
        turn = self
        while (parent := turn.parent) is not None:
            turn._start += amount / turn.weight
            turn.reorder()
            turn = parent

    def reorder(self) -> None:
        """Take the right place among the siblings after ``rank`` or ``is_late`` was changed."""
        for line in self._entries:
            line._reorder(self)

    def _key(self, by_rank: bool) -> tuple[bool, float, int]:
        return self.is_late, self.rank if by_rank else self._start, self._number


_Entry = tuple[bool, float, int, Turn]


class Line(Generic[T]):
    """Items that wait in the leaves of a tree. One tree may have several lines: service in one counts in all."""

    def __init__(self, *, by_rank: bool = False) -> None:
        self._by_rank = by_rank
        self._orders: dict[Turn, list[_Entry]] = {}
        self._queues: dict[Turn, OrderedDict[T, int]] = {}
        self._root: Turn | None = None

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __contains__(self, place: tuple[Turn, T]) -> bool:
        leaf, item = place
        return item in self._queues.get(leaf, ())

    def items(self) -> Iterator[T]:
        """Everybody who waits, leaf by leaf."""
        for queue in self._queues.values():
            yield from queue

    def at(self, leaf: Turn) -> list[T]:
        """Those who wait in ``leaf``, in order."""
        return list(self._queues.get(leaf, ()))

    def add(self, item: T, leaf: Turn, number: int) -> int:
        """Put ``item`` at the end of its leaf; its place there, from 1. Of equals the smaller ``number`` goes first.

        Who comes back with a number smaller than that of the first goes before it.
        """
        queue = self._queues.get(leaf)
        if queue is None:
            queue = self._queues[leaf] = OrderedDict()
            self._enter(leaf, number)
        goes_first = bool(queue) and number < next(iter(queue.values()))
        queue[item] = number
        if goes_first:
            queue.move_to_end(item, last=False)
            return 1
        return len(queue)

    def remove(self, item: T, leaf: Turn) -> None:
        """Take ``item`` out."""
        queue = self._queues[leaf]
        del queue[item]
        if not queue:
            del self._queues[leaf]
            self._exit(leaf)

    def heads(self, passed_over: Container[Turn] = ()) -> Iterator[tuple[Key, T]]:
        """The first of each leaf in the order of their turns, with keys that compare with those of the tree's other
        lines. Whose turn, or an ancestor's, is in ``passed_over`` when it comes up is left out. Not to be continued
        after a change.
        """
        if self._root in self._orders:
            yield from self._heads_below(self._root, (), passed_over)

    def _heads_below(self, parent: Turn, path: Key, passed_over: Container[Turn]) -> Iterator[tuple[Key, T]]:
        for *key, turn in self._orders[parent]:
            if parent in passed_over:
                return
            if turn in passed_over:
                continue
            queue = self._queues.get(turn)
            if queue is None:
                yield from self._heads_below(turn, (*path, *key), passed_over)
            else:
                item, number = next(iter(queue.items()))
                yield (*path, *key, number), item

    def _enter(self, turn: Turn, number: int) -> None:
        while (parent := turn.parent) is not None and self not in turn._entries:
            if not turn._entries:
                turn._start = max(turn._start, parent._virtual)
                turn._number = number
                parent._waiting_weight += turn.weight
            self._place(turn, parent)
            turn = parent
        if parent is None:
            self._root = turn

    def _exit(self, turn: Turn) -> None:
        while (parent := turn.parent) is not None:
            order = self._orders[parent]
            del order[bisect_left(order, turn._entries.pop(self))]
            if not turn._entries:
                parent._waiting_weight -= turn.weight
            if order:
                return
            del self._orders[parent]
            turn = parent

    def _reorder(self, turn: Turn) -> None:
        assert turn.parent is not None, "the root has no siblings"
        order = self._orders[turn.parent]
        del order[bisect_left(order, turn._entries[self])]
        self._place(turn, turn.parent)

    def _place(self, turn: Turn, parent: Turn) -> None:
        entry = turn._entries[self] = (*turn._key(self._by_rank), turn)
        insort(self._orders.setdefault(parent, []), entry)
