"""What a command came to: its sums, what is told of it in a few lines, and what does not add up."""

from __future__ import annotations

import json

import msgspec
import pytest

from pacer import settings
from pacer.cli import receipt, screen, spelling
from pacer.cli.receipt import NOT_THERE, Books, Limited, Standing
from pacer.cli.tally import Tally
from pacer.entry import Hold, Limit, Settle
from pacer.store.opening import vault_of
from tests.records import HOSTILE, NO_BOOKS, TALLY, books_of, call, many, receipt_of, refused


def told(*calls, **more) -> list[str]:
    return list(receipt.lines(receipt_of(calls, **more)))


# -------------------------------------------------------------------- sums


def test_the_parts_add_up_to_the_books():
    """By run and agent, and by model; what is below an agent is in it."""
    calls = list(many(2_000, 600.0))
    made = receipt_of(calls)
    books = books_of(calls)
    for parts in (made.runs, made.models):
        assert sum(part.calls for part in parts) == books.calls == made.calls
        for name in ("spent", "unknown", "input", "output", "cached", "reasoning"):
            assert sum(getattr(part, name) for part in parts) == getattr(books, name), name
    [run] = made.runs
    assert len(run.parts) == 5
    assert sum(agent.spent for agent in run.parts) == run.spent
    assert all(sum(below.spent for below in agent.parts) < agent.spent for agent in run.parts)
    assert made.refused == sum(one.refused for one in made.limited) == sum(bool(one.refused_by) for one in calls)
    assert made.waited_seconds == pytest.approx(sum(one.waited_seconds for one in made.limited))
    assert (made.calls_untold, made.tokens_untold) == (0, 0)


def test_an_agent_is_found_below_those_above_it():
    made = receipt_of([call(agents=("a", "b")), call(agents=("a",)), call(agents=("b",)), refused(agents=("a",))])
    [run] = made.runs
    assert [(part.name, part.calls, part.refused) for part in run.parts] == [("a", 2, 1), ("b", 1, 0)]
    assert [(part.name, part.calls) for part in run.parts[0].parts] == [("b", 1)]


def test_what_a_limit_did_is_told_by_limit():
    made = receipt_of(
        [
            call(waited_for="tokens_per_second", waited_seconds=2.0),
            call(waited_for="tokens_per_second", waited_seconds=1.0),
            call(source=None, waited_for="ceiling", waited_seconds=9.0, spent=0, input=0, output=0),
            refused(limit="ceiling"),
        ]
    )
    assert made.limited == (Limited("ceiling", 1, 9.0, 1), Limited("tokens_per_second", 2, 3.0, 0))
    assert (made.calls, made.given_up, made.refused, made.waits, made.waited_seconds) == (2, 1, 1, 3, 12.0)


def test_budgets_of_the_programs_own_are_in_no_sum():
    made = receipt_of([call(), call(pacer="mine", run="mine"), refused(pacer="mine", run="mine")])
    assert (made.calls, made.refused, made.refused_by_others, made.tokens_untold) == (1, 0, 1, 0)
    assert [(part.name, part.calls, part.refused) for part in made.others] == [("mine", 1, 1)]


def test_shares_and_what_is_over():
    broken = call(source="partial", spent=10, unknown=60, input=10, output=0)
    books = msgspec.structs.replace(books_of([call(), broken]), over=7)
    made = receipt_of([call(), broken], books=books, limits={"ceiling": 93})
    assert made.estimated_share == 0.25
    assert made.unknown_share == 0.6
    assert made.books is not None
    assert made.books.over == 7
    assert made.ceiling_used == 100


def test_what_was_there_before_is_not_told_but_uses_the_ceiling():
    made = receipt_of([call()], before=Books(calls=9, spent=400, unknown=70), limits={"ceiling": 1_000})
    assert made.books == books_of([call()])
    assert made.ceiling_used == 500


def test_it_is_json_of_ascii_whatever_the_names_are():
    made = receipt_of([call(agents=(HOSTILE,) * 200, model=HOSTILE, server=HOSTILE)])
    text = screen.as_json(made, indent=2)
    assert text.isascii()
    assert spelling.plain(text.replace("\n", "")) == text.replace("\n", "")
    again = json.loads(text)
    assert again["models"][0]["name"] == HOSTILE
    assert again["books"]["spent"] == 30


# -------------------------------------------------------------------- the store


def test_a_standing_is_that_of_all_runs_of_the_pacer(tmp_path):
    chosen = settings.explicit(run="nightly", store=f"sqlite:{tmp_path / 'books.db'}")
    tokens = Limit("tokens_per_second", "tokens", 50.0, 1.0, 500.0)
    for name, run, spent in (("nightly", "nightly", 120), ("nightly", "b", 60), ("other", "other", 9)):
        vault = vault_of(chosen.model_copy(update={"run": name}))
        vault.open(run, 100, (tokens,))
        vault.exchange([Hold(f"{run}.1", run, 200, 0, {}), Settle(f"{run}.1", run, {"spent": spent, "calls": 1}, {})])
        vault.close()
    assert receipt.standing(chosen) == Standing(
        Books(calls=2, spent=180, over=20), 2, {"ceiling": 100, "tokens_per_second": 50.0, "burst": 500.0}
    )


def test_limits_in_force_are_those_of_the_store_and_the_rules_that_were_named():
    chosen = settings.explicit(run="r", ceiling="5k", max_wait=3, agent_ceiling=None, tokens_per_second=10)
    there = Standing(NO_BOOKS, 1, {"ceiling": 7_000})
    assert receipt.in_force(chosen, there) == {"ceiling": 7_000, "max_wait": 3.0}
    assert receipt.in_force(chosen, None) == {"ceiling": 5_000, "max_wait": 3.0, "tokens_per_second": 10.0}


# -------------------------------------------------------------------- its text


def test_a_command_without_calls_is_told_in_a_line():
    assert told() == ["0 calls, 0 tokens spent, 0 unknown, 0 refused, waited 0.0 s"]
    assert told(limits={"ceiling": 5}) == ["NO MODEL CALL WAS SEEN"]


def test_a_call_is_told_in_two_lines():
    assert told(call(), limits={"ceiling": 120}) == [
        "1 calls, 30 tokens spent, 0 unknown, 0 refused, waited 0.0 s",
        "input 20, output 10; 25.0% of the ceiling of 120 used",
    ]


def test_a_busy_command_is_told_in_a_few_lines():
    calls = [
        call(model="big", agents=("a",), cached=5, written=2, reasoning=3),
        call(model="small", agents=("b",), waited_for="tokens_per_second", waited_seconds=1_234.5),
        call(agents=("c",), source="partial", output=0, spent=20, unknown=80),
        refused(agents=("d",)),
    ]
    books = msgspec.structs.replace(books_of(calls), held=50, over=9)
    assert told(*calls, books=books, limits={"ceiling": 90}) == [
        "3 calls, 80 tokens spent, 80 unknown, 50 still held, 1 refused, waited 1,234.5 s",
        "input 60 (5 cached, 2 written to a cache), output 20 (3 reasoning); 25.0% of the spent estimated; "
        "50.0% of all unknown; OVER THE CEILING by 9",
        "models: m 100, big 30, small 30",
        "agents: c 100, a 30, b 30 and 1 more",
        "1 waited 1,234.5 s for tokens_per_second; 1 refused by ceiling",
    ]


def test_what_does_not_add_up_is_told():
    lines = told(
        call(),
        call(source="void", spent=0),
        None,
        call(pacer="x", run="x"),
        books=Books(calls=3, spent=30, unknown=500),
    )
    assert lines[2:] == [
        "calls that failed and cost nothing (not sent, or the provider said no): 1",
        "a budget of the program's own, run x, in no other number: calls 1, spent 30, unknown 0, refused 0",
        "the books differ from what the processes told by +2 calls and +500 tokens: one was killed, or others use the "
        "run",
        "records of calls that could not be read: 1",
    ]


def test_books_that_cannot_be_read_are_told_and_the_records_are():
    chosen, before = settings.explicit(run="nightly", ceiling=50), Standing(NO_BOOKS, 0, {})
    gone = {"command": "python", "exit_code": 0, "started_at": 0.0, "seconds": 1.0}
    made = receipt.made([call(), refused()], TALLY, chosen, before, "the store is gone", **gone)  # type: ignore[arg-type]
    assert list(receipt.lines(made)) == [
        "what was spent cannot be told: the store is gone",
        "its processes told of 1 calls, 30 tokens spent, 1 refused, waited 0.0 s",
    ]
    assert (made.books, made.limits) == (None, {"ceiling": 50})


def test_what_is_not_covered_comes_first():
    lines = told(call(), tally=Tally(False, ("/a/python",), ("one", "two", "three", "four", "five")))
    assert lines[0].startswith("no Python of this command was paced")
    assert lines[1] == f"calls of /a/python were NOT PACED: {NOT_THERE}"
    assert lines[2:6] == [f"{one} were NOT PACED" for one in ("one", "two", "three")] + [
        "and 2 more that no transport can see"
    ]


def test_long_names_are_cut():
    lines = told(call(model="m" * 200), call(agents=("a" * 128,), waited_for="w" * 200, waited_seconds=1.0))
    assert max(map(len, lines)) < 120
