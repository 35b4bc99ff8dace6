"""What a store says of its runs, as values to be shown: the books of each, and what its living processes tell.

What other processes tell is read with patience: they may be of another release. Nothing here is fit for a terminal yet.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from pacer.store.vault import RunRow

NAMES_LISTED = 8
"""An error names no more runs than that."""


class UnknownRun(LookupError):
    """No run of the store has that name, or several have; the message lists those that are near."""


class ToldFinished(msgspec.Struct, frozen=True):
    """What the ended agents of one name came to."""

    name: str = ""
    agents: int = 0
    calls: int = 0
    spent: int = 0
    unknown: int = 0
    refused: int = 0
    wrap_ups: int = 0


class ToldAgent(msgspec.Struct, frozen=True):
    """How one agent stands, all below it included."""

    name: str = ""
    ceiling: int | None = None
    spent: int = 0
    unknown: int = 0
    held: int = 0
    carved: int = 0
    calls: int = 0
    in_flight: int = 0
    waiting: int = 0
    refused: int = 0
    paused: bool = False
    agents: tuple[ToldAgent, ...] = ()
    finished: tuple[ToldFinished, ...] = ()


class ToldWait(msgspec.Struct, frozen=True):
    """One call that waits for ``limit``; ``seconds`` until it goes, ``None`` where no time tells."""

    agent: str = ""
    model: str = ""
    tokens: int = 0
    limit: str = ""
    since_seconds: float = 0.0
    seconds: float | None = None


class Process(msgspec.Struct, frozen=True):
    """What one living process tells of a run; ``is_readable`` is false where another release tells it otherwise."""

    process: str = ""
    is_readable: bool = True
    waiting: int = 0
    waited_seconds: float = 0.0
    refusals: dict[str, int] = {}
    waits: tuple[ToldWait, ...] = ()
    agents: tuple[ToldAgent, ...] = ()
    finished: tuple[ToldFinished, ...] = ()


class _Telling(msgspec.Struct, frozen=True):
    process: str = ""
    runs: dict[str, msgspec.Raw] = {}


class Level(msgspec.Struct, frozen=True):
    """One rate: ``amount`` every ``per`` seconds, and what of its ``burst`` is there now (negative: it pays back)."""

    setting: str
    amount: float
    per: float
    burst: float
    level: float | None


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands over all processes; tokens unless the name says otherwise.

    ``run`` is what the commands call it. ``used_share`` is what of the ceiling is spent or unknown, ``estimated_share``
    what of the spent no provider told. ``processes`` are those that live and know the run; ``used_at`` is in seconds
    since 1970.
    """

    run: str
    pacer: str
    name: str
    ceiling: int | None
    remaining: int | None
    used_share: float | None
    spent: int
    unknown: int
    held: int
    carved: int
    input: int
    output: int
    cached: int
    written: int
    reasoning: int
    estimated: int
    estimated_share: float
    calls: int
    in_flight: int
    paused: bool
    processes: int
    used_at: float


class StatusView(RunView, frozen=True, kw_only=True):
    """A run, the rates of its pacer, whether all runs of that are paused, and what its processes tell."""

    pacer_paused: bool
    limits: tuple[Level, ...]
    living: tuple[Process, ...]


def label(row: RunRow) -> str:
    """What a run is called: by its own name where its pacer has the same, else by both."""
    return row.name if row.pacer == row.name else f"{row.pacer}/{row.name}"


def find(rows: Sequence[RunRow], asked: str) -> RunRow:
    """The run of that name, or of that pacer and name. Raises: UnknownRun."""
    found = [row for row in rows if asked in (label(row), f"{row.pacer}/{row.name}")]
    found = found or [row for row in rows if row.name == asked]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownRun(f"several runs are called {asked!r}: {_listed([label(row) for row in found])}")
    labels = [label(row) for row in rows]
    if near := _near(rows, asked):
        raise UnknownRun(f"there is no run {asked!r}: did you mean {_listed(near)}?")
    there = f"there are {_listed(labels[::-1])}" if labels else "there are no runs at all"
    raise UnknownRun(f"there is no run {asked!r}: {there}")


def _near(rows: Sequence[RunRow], asked: str) -> list[str]:
    names = {name for row in rows for name in (label(row), row.name, row.pacer)}
    close = {*difflib.get_close_matches(asked, sorted(names), n=NAMES_LISTED), asked}
    return [label(row) for row in rows if close & {label(row), row.name, row.pacer}]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(names[:NAMES_LISTED]) + more


def run_of(row: RunRow) -> RunView:
    """A run as one of many."""
    return RunView(**_fields(row, len(living_of(row))))


def status_of(row: RunRow, *, pacer_paused: bool) -> StatusView:
    """All there is to know of a run."""
    living = living_of(row)
    limits = tuple(
        Level(limit.setting, limit.amount, limit.per, limit.burst, row.levels.get(limit.kind)) for limit in row.limits
    )
    return StatusView(**_fields(row, len(living)), pacer_paused=pacer_paused, limits=limits, living=living)


def _fields(row: RunRow, processes: int) -> dict[str, Any]:
    sums, ceiling = row.sums(), row.books.ceiling
    booked = sums["spent"] + sums["unknown"]
    return {
        "run": label(row),
        "pacer": row.pacer,
        "name": row.name,
        "ceiling": ceiling,
        "remaining": None if ceiling is None else ceiling - booked - sums["held"] - sums["carved"],
        "used_share": booked / ceiling if ceiling else None,
        "estimated_share": sums["estimated"] / sums["spent"] if sums["spent"] else 0.0,
        "paused": row.books.paused,
        "processes": processes,
        "used_at": row.used_at,
        **sums,
    }


def living_of(row: RunRow) -> tuple[Process, ...]:
    """What each living process tells of the run; one that cannot be read at all may be in it."""
    return tuple(found for member in row.members if (found := _process_of(member, row.name)) is not None)


def _process_of(member: str, run: str) -> Process | None:
    try:
        telling = msgspec.json.decode(member, type=_Telling)
    except (msgspec.MsgspecError, RecursionError):
        return Process(is_readable=False)
    if run not in telling.runs:
        return None
    try:
        told = msgspec.json.decode(telling.runs[run], type=Process)
    except (msgspec.MsgspecError, RecursionError):
        return Process(telling.process, is_readable=False)
    return replace(told, process=telling.process, is_readable=True)
