"""What a command came to: one value from the books of its store and the records of its processes, and its text.

The books are the truth for the sums; the records tell whose calls they were, what they waited for, what was refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import msgspec

from pacer import settings
from pacer.cli.tally import Call, Tally
from pacer.settings import Settings
from pacer.store.opening import vault_of
from pacer.store.vault import RunRow

NO_PROXY = "and a proxy address that could be given to it is not offered (yet)"
NOT_THERE = "token-pacer is not installed there, or hidden by a module that is called pacer or transports"
NAMED = 3
"""So many models, agents and findings are named in the text; all are in the JSON."""
_NAME = 40
_LIMITS = ("ceiling", "agent_ceiling", *settings.RatesInput.__annotations__, "requests_per_second")
_RULES = (*_LIMITS, "spawn_threshold", "wrap_up_reserve", "max_wait", "on_limit", "profile", "output_cap")


class Books(msgspec.Struct, frozen=True):
    """What the store says of all runs of a pacer; tokens but for ``calls``. The names are those of the store's sums.

    ``over`` is what is booked beyond ceilings.
    """

    calls: int = 0
    spent: int = 0
    unknown: int = 0
    held: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0
    reasoning: int = 0
    estimated: int = 0
    over: int = 0

    def since(self, before: Books) -> Books:
        """What was booked after ``before``; what is held or over is so now."""
        sums = {name: getattr(self, name) - getattr(before, name) for name in self.__struct_fields__}
        return Books(**{**sums, "held": self.held, "over": self.over})


class Standing(msgspec.Struct, frozen=True):
    """The books of a pacer at one instant: its runs, and the limits in force."""

    books: Books
    runs: int
    limits: dict[str, float]


class Part(msgspec.Struct, frozen=True):
    """What some calls came to, by the records; tokens unless the name says otherwise. ``parts`` are parts of it."""

    name: str
    calls: int
    spent: int
    unknown: int
    input: int
    output: int
    cached: int
    written: int
    reasoning: int
    refused: int
    waits: int
    waited_seconds: float
    parts: tuple[Part, ...] = ()

    @property
    def booked(self) -> int:
        """Spent and unknown."""
        return self.spent + self.unknown


class Model(Part, frozen=True, kw_only=True):
    """What the calls of one model came to, and where they went."""

    provider: str
    server: str


class Limited(msgspec.Struct, frozen=True):
    """How many calls a limit made wait, how long all together, and how many it refused."""

    limit: str
    waits: int
    waited_seconds: float
    refused: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a command came to; tokens unless the name says otherwise, moments in seconds since 1970.

    ``command`` is the name of the program alone: arguments may hold keys. ``books`` is what the store booked while it
    ran (``None``, and ``books_error``, where that cannot be told), ``ceiling_used`` what was booked of the ceiling at
    the end, before the command included. ``estimated_share`` is the part of the spent that no provider told,
    ``unknown_share`` the part of all booked whose bill nobody saw. ``failed`` calls cost nothing: they were not sent,
    or the provider said no; ``given_up`` had no place yet. ``runs`` are trees of agents, ``others`` those of budgets
    that the program has of its own: they are in no other number. ``limits`` were in force at the end. What the books
    have and the records have not is ``calls_untold`` and ``tokens_untold`` (below 0: the other way round).
    """

    command: str
    exit_code: int
    started_at: float
    seconds: float
    run: str
    limits: dict[str, float | str]
    books: Books | None
    books_error: str | None
    ceiling_used: int | None
    estimated_share: float
    unknown_share: float
    calls: int
    failed: int
    given_up: int
    refused: int
    refused_by_others: int
    waits: int
    waited_seconds: float
    limited: tuple[Limited, ...]
    models: tuple[Model, ...]
    runs: tuple[Part, ...]
    others: tuple[Part, ...]
    calls_untold: int
    tokens_untold: int
    unreadable: int
    is_python_seen: bool
    missing: tuple[str, ...]
    uncovered: tuple[str, ...]

    @property
    def is_unseen(self) -> bool:
        """Whether limits were set and no model call came by."""
        seen = self.calls or self.failed or self.given_up or self.refused or self.others
        return not seen and not (self.books and self.books.calls) and bool(self.limits.keys() & set(_LIMITS))


# -------------------------------------------------------------------- made


def standing(chosen: Settings) -> Standing:
    """How the pacer of these settings stands in its store. Raises: StoreError, Away, Forgotten."""
    with closing(vault_of(chosen)) as vault:
        rows = [row for row in vault.rows() if row.pacer == chosen.run]
    sums = [{**row.sums(), "over": _over(row)} for row in rows]
    books = Books(**{name: sum(row[name] for row in sums) for name in Books.__struct_fields__})
    return Standing(books, len(rows), _limits_of(rows, chosen.run))


def _over(row: RunRow) -> int:
    booked = row.sums()["spent"] + row.sums()["unknown"]
    return 0 if row.books.ceiling is None else max(0, booked - row.books.ceiling)


def _limits_of(rows: Sequence[RunRow], run: str) -> dict[str, float]:
    limits: dict[str, float] = {}
    for row in rows:
        if row.name == run and row.books.ceiling is not None:
            limits["ceiling"] = row.books.ceiling
        for limit in row.limits:
            limits[limit.setting] = limit.amount
            if limit.kind == "tokens":
                limits["burst"] = limit.burst
    return limits


def in_force(chosen: Settings, there: Standing | None) -> dict[str, float | str]:
    """The limits and their rules: those that the store has, and of the settings those that were named."""
    named = {name: getattr(chosen, name) for name in _RULES if name in chosen.model_fields_set}
    mine = {name: value for name, value in named.items() if value is not None}
    if there is None:
        return mine
    of_the_store = {"ceiling", *settings.RatesInput.__annotations__}
    return {**there.limits, **{name: value for name, value in mine.items() if name not in of_the_store}}


def made(
    calls: Iterable[Call | None],
    tally: Tally,
    chosen: Settings,
    before: Standing,
    after: Standing | str,
    *,
    command: str,
    exit_code: int,
    started_at: float,
    seconds: float,
) -> Receipt:
    """The receipt; ``after`` is how the pacer stands now, or why that cannot be told."""
    seen = _Seen(chosen.run)
    for call in calls:
        seen.add(call)
    there = after if isinstance(after, Standing) else None
    books = there.books.since(before.books) if there is not None else None
    booked = (books.spent + books.unknown) if books is not None else 0
    return Receipt(
        command=command,
        exit_code=exit_code,
        started_at=started_at,
        seconds=seconds,
        run=chosen.run,
        limits=in_force(chosen, there),
        books=books,
        books_error=None if there is not None else str(after),
        ceiling_used=there.books.spent + there.books.unknown if there is not None and there.runs == 1 else None,
        estimated_share=books.estimated / books.spent if books is not None and books.spent else 0.0,
        unknown_share=books.unknown / booked if books is not None and booked else 0.0,
        calls_untold=books.calls - seen.total.calls if books is not None else 0,
        tokens_untold=booked - seen.total.booked if books is not None else 0,
        is_python_seen=tally.started,
        missing=tally.missing,
        uncovered=tally.uncovered,
        **seen.numbers(),
    )


class _Sum:
    """Adds up calls, by name and by what is below that."""

    def __init__(self) -> None:
        self.calls = self.spent = self.unknown = 0
        self.input = self.output = self.cached = self.written = self.reasoning = 0
        self.refused = self.waits = 0
        self.waited_seconds = 0.0
        self.parts: dict[str, _Sum] = {}

    @property
    def booked(self) -> int:
        return self.spent + self.unknown

    def add(self, call: Call, path: Sequence[str] = ()) -> None:
        self.calls += call.is_booked
        self.spent += call.spent
        self.unknown += call.unknown
        self.input += call.input
        self.output += call.output
        self.cached += call.cached
        self.written += call.written
        self.reasoning += call.reasoning
        self.refused += bool(call.refused_by)
        self.waits += bool(call.waited_for)
        self.waited_seconds += call.waited_seconds
        if path:
            self.parts.setdefault(path[0], _Sum()).add(call, path[1:])

    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "parts"}

    def as_parts(self) -> tuple[Part, ...]:
        """The parts, the largest first."""
        found = (Part(name=name, parts=part.as_parts(), **part.fields()) for name, part in self.parts.items())
        return tuple(sorted(found, key=lambda part: (-part.booked, -part.calls, -part.refused, part.name)))


class _Seen:
    """Adds up the records of the calls of one pacer, and those of others apart."""

    def __init__(self, pacer: str) -> None:
        self._pacer = pacer
        self.total = _Sum()
        self._others = _Sum()
        self._models: dict[tuple[str, str, str], _Sum] = {}
        self._waits: dict[str, _Sum] = {}
        self._refusals: dict[str, _Sum] = {}
        self._failed = self._given_up = self._unreadable = 0

    def add(self, call: Call | None) -> None:
        """Add a record; ``None`` stands for one that cannot be read."""
        if call is None:
            self._unreadable += 1
        elif call.pacer != self._pacer:
            self._others.add(call, (call.run, *call.agents))
        else:
            self._add(call)

    def _add(self, call: Call) -> None:
        self.total.add(call, (call.run, *call.agents))
        self._models.setdefault((call.model, call.provider, call.server), _Sum()).add(call)
        self._failed += call.source == "void"
        self._given_up += call.source is None and not call.refused_by
        if call.waited_for:
            self._waits.setdefault(call.waited_for, _Sum()).add(call)
        if call.refused_by:
            self._refusals.setdefault(call.refused_by, _Sum()).add(call)

    def numbers(self) -> dict[str, Any]:
        """What the receipt has of the records."""
        total = self.total
        return {
            "calls": total.calls,
            "failed": self._failed,
            "given_up": self._given_up,
            "refused": total.refused,
            "refused_by_others": self._others.refused,
            "waits": total.waits,
            "waited_seconds": total.waited_seconds,
            "limited": self._limited(),
            "models": self._by_model(),
            "runs": total.as_parts(),
            "others": self._others.as_parts(),
            "unreadable": self._unreadable,
        }

    def _limited(self) -> tuple[Limited, ...]:
        none = _Sum()
        limits = sorted({*self._waits, *self._refusals})
        found = (
            Limited(
                limit,
                self._waits.get(limit, none).waits,
                self._waits.get(limit, none).waited_seconds,
                self._refusals.get(limit, none).refused,
            )
            for limit in limits
        )
        return tuple(sorted(found, key=lambda one: (-one.waited_seconds, -one.refused)))

    def _by_model(self) -> tuple[Model, ...]:
        found = (
            Model(name=name, provider=provider, server=server, **part.fields())
            for (name, provider, server), part in self._models.items()
        )
        return tuple(sorted(found, key=lambda model: (-model.booked, -model.calls, model.name)))


# -------------------------------------------------------------------- told


def lines(receipt: Receipt) -> Iterator[str]:
    """The receipt in a few lines. Nothing in it is fit for a terminal yet."""
    if not receipt.is_python_seen:
        yield (
            "no Python of this command was paced: it started none, or one that does not look at PYTHONPATH (-E, -I, "
            f"-S); a program that is not Python is not covered, {NO_PROXY}"
        )
    for python in receipt.missing:
        yield f"calls of {python} were NOT PACED: {NOT_THERE}"
    yield from not_paced(receipt)
    if receipt.books is None:
        yield f"what was spent cannot be told: {receipt.books_error}"
    if receipt.is_unseen:
        yield "NO MODEL CALL WAS SEEN"
        return
    yield from _numbers(receipt)


def not_paced(receipt: Receipt) -> Iterator[str]:
    """The calls that no transport can see."""
    for seen in receipt.uncovered[:NAMED]:
        yield f"{seen} {'was' if seen.startswith('1 ') else 'were'} NOT PACED"
    if len(receipt.uncovered) > NAMED:
        yield f"and {len(receipt.uncovered) - NAMED:,} more that no transport can see"


def _numbers(receipt: Receipt) -> Iterator[str]:
    books = receipt.books
    waited = f"{receipt.refused:,} refused, waited {receipt.waited_seconds:,.1f} s"
    if books is None:
        told = sum(part.spent for part in receipt.runs)
        yield f"its processes told of {receipt.calls:,} calls, {told:,} tokens spent, {waited}"
        return
    held = f", {books.held:,} still held" if books.held else ""
    yield f"{books.calls:,} calls, {books.spent:,} tokens spent, {books.unknown:,} unknown{held}, {waited}"
    if books.calls:
        yield "; ".join(_tokens(receipt, books))
    if len(receipt.models) > 1:
        yield f"models: {_named(receipt.models)}"
    if agents := [agent for run in receipt.runs for agent in run.parts]:
        yield f"agents: {_named(agents)}"
    if receipt.limited:
        yield "; ".join(_limited(receipt.limited))
    yield from remarks(receipt)


def _tokens(receipt: Receipt, books: Books) -> Iterator[str]:
    parts = {"cached": books.cached, "written to a cache": books.written}
    yield f"input {books.input:,}{_among(parts)}, output {books.output:,}{_among({'reasoning': books.reasoning})}"
    if receipt.estimated_share:
        yield f"{receipt.estimated_share:.1%} of the spent estimated"
    if receipt.unknown_share:
        yield f"{receipt.unknown_share:.1%} of all unknown"
    ceiling = receipt.limits.get("ceiling")
    if books.over:
        yield f"OVER THE CEILING by {books.over:,}"
    elif receipt.ceiling_used is not None and isinstance(ceiling, int | float) and ceiling:
        yield f"{receipt.ceiling_used / ceiling:.1%} of the ceiling of {ceiling:,} used"


def _among(parts: dict[str, int]) -> str:
    told = ", ".join(f"{amount:,} {name}" for name, amount in parts.items() if amount)
    return f" ({told})" if told else ""


def _named(parts: Sequence[Part]) -> str:
    more = f" and {len(parts) - NAMED:,} more" if len(parts) > NAMED else ""
    return ", ".join(f"{_cut(part.name)} {part.booked:,}" for part in parts[:NAMED]) + more


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[:_NAME]}..."


def _limited(limited: Iterable[Limited]) -> Iterator[str]:
    for one in limited:
        if one.waits:
            yield f"{one.waits:,} waited {one.waited_seconds:,.1f} s for {_cut(one.limit)}"
        if one.refused:
            yield f"{one.refused:,} refused by {_cut(one.limit)}"


def remarks(receipt: Receipt) -> Iterator[str]:
    """What does not add up, and what is in no sum."""
    if receipt.failed:
        yield f"calls that failed and cost nothing (not sent, or the provider said no): {receipt.failed:,}"
    if receipt.given_up:
        yield f"calls that were given up while they waited: {receipt.given_up:,}"
    for part in receipt.others[:NAMED]:
        yield (
            f"a budget of the program's own, run {_cut(part.name)}, in no other number: calls {part.calls:,}, spent "
            f"{part.spent:,}, unknown {part.unknown:,}, refused {part.refused:,}"
        )
    if len(receipt.others) > NAMED:
        yield f"and {len(receipt.others) - NAMED:,} more budgets of the program's own"
    if receipt.calls_untold or receipt.tokens_untold:
        yield (
            f"the books differ from what the processes told by {receipt.calls_untold:+,} calls and "
            f"{receipt.tokens_untold:+,} tokens: one was killed, or others use the run"
        )
    if receipt.unreadable:
        yield f"records of calls that could not be read: {receipt.unreadable:,}"
