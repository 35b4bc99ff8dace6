"""Whose turn it is: fair by weight among siblings, shared among children, in order inside a leaf."""

from __future__ import annotations

from itertools import chain, count

from hypothesis import given
from hypothesis import strategies as st

from pacer.fair import Line, Turn


class Queue:
    """A line with leaves by name; each service goes to the first head."""

    def __init__(self, *, by_rank: bool = False) -> None:
        self.root = Turn()
        self.line: Line[str] = Line(by_rank=by_rank)
        self.numbers = count()
        self.leaves: dict[str, Turn] = {}

    def leaf(self, name: str, weight: float = 1.0, below: Turn | None = None, rank: float = 0.0) -> Turn:
        self.leaves[name] = Turn(below or self.root, weight, rank)
        return self.leaves[name]

    def wait(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            number = next(self.numbers)
            self.line.add(f"{name}{number}", self.leaves[name], number)

    def serve(self, amount: float = 1.0) -> str:
        _, item = next(self.line.heads())
        name = item.rstrip("0123456789")
        self.line.remove(item, self.leaves[name])
        self.leaves[name].charge(amount)
        return name

    def order(self, times: int) -> str:
        return "".join(self.serve() for _ in range(times))


def test_a_flood_delays_itself_only():
    queue = Queue()
    queue.leaf("a"), queue.leaf("b")
    queue.wait("a", 10)
    queue.wait("b", 3)
    assert queue.order(8) == "abababaa"


def test_who_comes_late_has_no_claim_on_the_past():
    queue = Queue()
    queue.leaf("a"), queue.leaf("b")
    queue.wait("a", 100)
    queue.order(50)
    queue.wait("b", 10)
    assert queue.order(6).count("b") == 3


def test_turns_go_by_weight():
    queue = Queue()
    queue.leaf("a", 3.0), queue.leaf("b", 1.0)
    queue.wait("a", 40)
    queue.wait("b", 40)
    assert queue.order(20).count("a") == 15


def test_children_share_what_their_parent_gets():
    queue = Queue()
    parent = Turn(queue.root)
    for name in "abcd":
        queue.leaf(name, below=parent)
        queue.wait(name, 20)
    queue.leaf("x")
    queue.wait("x", 20)
    assert queue.order(16).count("x") == 8
    assert queue.leaves["a"].share() == 0.125
    queue.line.remove(queue.line.at(queue.leaves["x"])[0], queue.leaves["x"])
    assert queue.leaves["a"].share() == 0.125
    for item in queue.line.at(queue.leaves["x"]):
        queue.line.remove(item, queue.leaves["x"])
    assert queue.leaves["a"].share() == 0.25


def test_what_ended_siblings_got_is_not_held_against_who_is_left():
    """A parent of a hundred children that is down to one still takes every other turn."""
    queue = Queue()
    parent = Turn(queue.root)
    children = [chr(ord("A") + number) for number in range(50)]
    for name in children:
        queue.leaf(name, below=parent)
        queue.wait(name)
    queue.leaf("x")
    queue.wait("x", 200)
    queue.order(100)
    queue.wait("A", 10)
    assert queue.order(10).count("A") == 5


def test_the_order_of_ranks_is_that_of_starts():
    queue = Queue(by_rank=True)
    queue.leaf("new", rank=9.0), queue.leaf("old", rank=1.0)
    queue.wait("new", 3)
    queue.wait("old", 3)
    assert queue.order(6) == "oldoldoldnewnewnew"


def test_who_is_late_comes_last_until_it_is_not():
    queue = Queue()
    late = queue.leaf("late")
    late.is_late = True
    queue.leaf("a")
    queue.wait("late", 2)
    queue.wait("a", 2)
    assert queue.serve() == "a"
    late.is_late = False
    late.reorder()
    assert queue.serve() == "late"


def test_service_in_one_line_counts_in_the_others():
    queue, other = Queue(), Line[str]()
    queue.leaf("a"), queue.leaf("b")
    queue.wait("a", 5)
    queue.wait("b", 5)
    other.add("a-there", queue.leaves["a"], 100)
    other.add("b-there", queue.leaves["b"], 101)
    queue.leaves["a"].charge(3.0)
    assert next(other.heads())[1] == "b-there"
    assert queue.order(3) == "bbb"


def test_who_is_passed_over_takes_those_below_along():
    queue = Queue()
    parent = Turn(queue.root)
    queue.leaf("a", below=parent), queue.leaf("b", below=parent), queue.leaf("c")
    for name in "abc":
        queue.wait(name)
    passed_over: set[Turn] = set()
    heads = queue.line.heads(passed_over)
    assert next(heads)[1] == "a0"
    passed_over.add(parent)
    assert [item for _, item in heads] == ["c2"]


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=5),
    amounts=st.lists(st.integers(1, 100), min_size=50, max_size=100),
)
def test_while_all_wait_nobody_leads_by_more_than_one_call_each(weights: list[float], amounts: list[int]):
    """B8: the difference of what was served by weight stays within one largest call each."""
    queue = Queue()
    names = [chr(ord("a") + number) for number in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        queue.leaf(name, weight)
        queue.wait(name, len(amounts))
    served = dict.fromkeys(names, 0.0)
    for amount in amounts:
        served[queue.serve(amount)] += amount
        by_weight = {name: served[name] / weight for name, weight in zip(names, weights, strict=True)}
        for first, first_weight in zip(names, weights, strict=True):
            for second, second_weight in zip(names, weights, strict=True):
                bound = max(amounts) / first_weight + max(amounts) / second_weight
                assert by_weight[first] - by_weight[second] <= bound + 1e-9


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=80))
def test_coming_and_going_keeps_everybody_in_place(steps: list[tuple[str, bool]]):
    """Whoever waits is found, once, and in the order of arrival inside a leaf, whoever else left in between."""
    queue, inside = Queue(), dict[str, list[str]](a=[], b=[], c=[])
    parent = Turn(queue.root)
    queue.leaf("a"), queue.leaf("b", below=parent), queue.leaf("c", below=parent)
    for name, comes in steps:
        if comes:
            number = next(queue.numbers)
            inside[name].append(f"{name}{number}")
            queue.line.add(inside[name][-1], queue.leaves[name], number)
        elif inside[name]:
            queue.line.remove(inside[name].pop(len(inside[name]) // 2), queue.leaves[name])
        heads = {item for _, item in queue.line.heads()}
        assert heads == {waiting[0] for waiting in inside.values() if waiting}
        assert sorted(queue.line.items()) == sorted(chain.from_iterable(inside.values()))
        assert bool(queue.line) == any(inside.values())
