"""Records of calls, and receipts made from them, for the tests of what ``pacer run`` leaves behind."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from pacer import settings
from pacer.cli import course, page, receipt
from pacer.cli.receipt import Books, Receipt, Standing
from pacer.cli.tally import Call, Tally

START = 1_800_000_000.0
RUN = "nightly"
TALLY = Tally(True, (), ())
NO_BOOKS = Books()
NOTHING = Standing(NO_BOOKS, 1, {})
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=y>\x1b[2J\x00\u202e\ud7ff&amp;'\"]]>{{7*7}}" + "x" * 120


def call(at: float = 0.0, lasts: float = 1.0, **more: Any) -> Call:
    """A call that was asked ``at`` so many seconds after the start, and answered: 30 tokens."""
    waited = more.get("waited_seconds", 0.0)
    fields: dict[str, Any] = {
        "asked_at": START + at,
        "admitted_at": START + at + waited,
        "ended_at": START + at + waited + lasts,
        "pacer": RUN,
        "run": RUN,
        "provider": "openai",
        "model": "m",
        "server": "api.test",
        "source": "provider",
        "input": 20,
        "output": 10,
        "spent": 30,
        "status": 200,
    }
    return Call(**{**fields, **more})


def refused(at: float = 0.0, limit: str = "ceiling", **more: Any) -> Call:
    """A call that was refused at once."""
    none = {"admitted_at": None, "source": None, "input": 0, "output": 0, "spent": 0, "status": None}
    return call(at, 0.0, refused_by=limit, **{**none, **more})


def books_of(calls: Sequence[Call | None]) -> Books:
    """What a store would have booked of these calls."""
    booked = [one for one in calls if one is not None and one.is_booked and one.pacer == RUN]
    sums = {name: sum(getattr(one, name) for one in booked) for name in ("spent", "unknown", "input", "output")}
    more = {name: sum(getattr(one, name) for one in booked) for name in ("cached", "written", "reasoning")}
    estimated = sum(one.spent for one in booked if one.source != "provider")
    return Books(calls=len(booked), estimated=estimated, **sums, **more)


def receipt_of(
    calls: Sequence[Call | None],
    *,
    books: Books | None = None,
    before: Books = NO_BOOKS,
    limits: dict[str, float] | None = None,
    tally: Tally = TALLY,
    seconds: float = 60.0,
    **more: Any,
) -> Receipt:
    """The receipt of these calls; the books agree with them unless given."""
    new = books_of(calls) if books is None else books
    sums = {name: getattr(new, name) + getattr(before, name) for name in Books.__struct_fields__}
    return receipt.made(
        calls,
        tally,
        settings.explicit(run=RUN),
        replace(NOTHING, books=before),
        Standing(Books(**{**sums, "held": new.held, "over": new.over}), 1, limits or {}),
        command="python",
        exit_code=0,
        started_at=START,
        seconds=seconds,
        **more,
    )


def page_of(calls: Sequence[Call | None], receipt: Receipt, before: Books = NO_BOOKS) -> str:
    """The page of these calls."""
    return page.page(receipt, course.course(calls, RUN, START, receipt.seconds), before)


def many(number: int, seconds: float, seed: int = 7) -> Iterator[Call]:
    """A busy day: agents in teams, three models, waits for two limits, some refusals, some broken answers."""
    chance = random.Random(seed)
    models = (("gpt-x", "openai", "api.openai.test"), ("claude-y", "anthropic", "api.anthropic.test"), ("m", "", ""))
    for place in range(number):
        at = seconds * (place / number) * 0.97
        team = f"team-{chance.randrange(5)}"
        agents = (team, chance.choice(("planner", "writer", "critic")))[: chance.randrange(1, 3)]
        model, provider, server = chance.choice(models)
        where: dict[str, Any] = {"agents": agents, "model": model, "provider": provider, "server": server}
        if chance.random() < 0.03:
            yield refused(at, chance.choice(("ceiling", "tokens_per_second")), **where)
            continue
        input, output, kind = chance.randrange(100, 900), chance.randrange(10, 400), chance.random()
        cached, reasoning = chance.randrange(0, input // 2), chance.randrange(0, output // 2)
        waited = chance.expovariate(1) * seconds / 60 if chance.random() < 0.4 else 0.0
        yield call(
            at,
            chance.uniform(0.3, 4.0),
            source="provider" if kind < 0.95 else "partial",
            input=input,
            output=output,
            cached=cached,
            reasoning=reasoning,
            spent=input + output,
            unknown=0 if kind < 0.95 else 300,
            waited_seconds=waited,
            waited_for=chance.choice(("tokens_per_second", "ceiling")) if waited else "",
            **where,
        )
