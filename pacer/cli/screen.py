"""How runs look on a terminal, 80 columns wide, and as JSON. No text is read as markup."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pacer.cli.spelling import plain, short, span
from pacer.cli.view import Level, Process, RunView, StatusView, ToldAgent, ToldFinished, ToldWait

INDENTED = 10
"""Agents nested deeper than that are shown as deep as this."""
BAR = 20
"""The columns of a bar,"""
SMALL_BAR = 8
"""and of one in the tree of agents."""

_Row = tuple[RenderableType, ...]


def as_json(value: object, indent: int | None = None) -> str:
    """Values as JSON of ASCII letters."""
    return json.dumps(msgspec.to_builtins(value), indent=indent).replace("\x7f", "\\u007f")


def console() -> Console:
    """Where the commands print; a terminal that cannot spell a name gets it escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(highlight=False, markup=False, emoji=False)


# -------------------------------------------------------------------- numbers


def _share(part: float | None) -> str:
    return "" if part is None else f"{part:.0%}"


# -------------------------------------------------------------------- runs


def _table(*names: str, left: Sequence[str] = ()) -> Table:
    """The first column gives way to the others; those that are not ``left`` hold numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(names[0], overflow="fold", min_width=8)
    for name in names[1:]:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _cut(text: str, style: str = "") -> Text:
    """Text that stays on one line, however long it is."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def runs(views: Sequence[RunView], now: float) -> RenderableType:
    """All runs, a row each."""
    table = _table("run", "spent", "unknown", "held", "ceiling", "used", "calls", "in\nflight", "living", "last\nused")
    for view in views:
        table.add_row(
            Text(plain(view.run) + (" (paused)" if view.paused else "")),
            *(short(amount) for amount in (view.spent, view.unknown, view.held, view.ceiling)),
            Text(_share(view.used_share), style="red" if (view.used_share or 0.0) >= 0.8 else ""),
            *(short(amount) for amount in (view.calls, view.in_flight, view.processes)),
            f"{span(now - view.used_at)} ago",
        )
    return table


# -------------------------------------------------------------------- one run


def numbers(view: RunView) -> Table:
    """The numbers of a run, exact."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in _numbers(view):
        grid.add_row(name, text)
    return grid


def _numbers(view: RunView) -> Iterator[tuple[str, str]]:
    yield "run", plain(view.run)
    of = "no ceiling" if view.ceiling is None else f"of {view.ceiling:,}"
    used = "" if view.used_share is None else f" ({_share(view.used_share)} used)"
    yield "tokens", f"{view.spent:,} spent + {view.unknown:,} unknown + {view.held:,} held, {of}{used}"
    if view.carved:
        yield "carved", f"{view.carved:,} for wrap-ups"
    if view.remaining is not None:
        yield "remaining", f"{view.remaining:,}"
    yield "input", f"{view.input:,} (of these {view.cached:,} cached, {view.written:,} written to a cache)"
    yield "output", f"{view.output:,} (of these {view.reasoning:,} reasoning)"
    yield "estimated", f"{view.estimated_share:.1%} of what is spent"
    yield "calls", f"{view.calls:,} ended, {view.in_flight:,} in flight"


def status(view: StatusView, now: float) -> RenderableType:
    """Everything about one run."""
    grid = numbers(view)
    for level in view.limits:
        grid.add_row("rate", _level(level))
    grid.add_row("state", _state(view))
    grid.add_row("last used", f"{span(now - view.used_at)} ago, {_count(view.processes, 'living process')}")
    for refused in _refusals(view.living):
        grid.add_row("refused", refused)
    parts: list[RenderableType] = [grid]
    if any(process.waiting for process in view.living):
        parts += ["", _waits(view.living)]
    if view.living:
        parts += ["", _agents(view.living)]
    return Group(*parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _level(level: Level) -> str:
    now = "" if level.level is None else f"{level.level:,.0f} of "
    return f"{plain(level.setting)} {level.amount:,g}, {now}{level.burst:,.0f} there now"


def _state(view: StatusView) -> Text:
    if view.pacer_paused:
        return Text(f"paused, with all runs of pacer {plain(view.pacer)}", style="yellow")
    return Text("paused", style="yellow") if view.paused else Text("running")


def _refusals(living: Iterable[Process]) -> Iterator[str]:
    sums: dict[str, int] = {}
    for process in living:
        for limit, number in process.refusals.items():
            sums[limit] = sums.get(limit, 0) + number
    if sums:
        yield ", ".join(f"{number:,} by {plain(limit)}" for limit, number in sums.items())


def _table_of_waits() -> Table:
    table = _table("waiting", "model", "tokens", "for", "since", "goes in", left=("model", "for"))
    table.columns[1].max_width = 16
    return table


def _wait(wait: ToldWait) -> _Row:
    return (
        _cut(plain(wait.agent) or "(no agent)"),
        _cut(plain(wait.model)),
        short(wait.tokens),
        _cut(plain(wait.limit)),
        f"{wait.since_seconds:.1f}s",
        "not known" if wait.seconds is None else f"{wait.seconds:.1f}s",
    )


def _waits(living: Iterable[Process]) -> Table:
    table = _table_of_waits()
    for process in living:
        for wait in process.waits:
            table.add_row(*_wait(wait))
        if process.waiting > len(process.waits):
            table.add_row(f"and {process.waiting - len(process.waits):,} more")
    return table


def _agents(living: Iterable[Process]) -> Table:
    table = _table("agents", "spent", "unknown", "held", "calls", "in\nflight", "waiting", "refused")
    for process in living:
        name = plain(process.process) or "a process"
        table.add_row(_cut(name if process.is_readable else f"{name} (not readable)", "bold"))
        for depth, agent in _below(process):
            table.add_row(_cut(_indented(depth, agent)), *_of_agent(agent))
    return table


def _below(process: Process) -> Iterator[tuple[int, ToldAgent | ToldFinished]]:
    """All agents with their depth, each followed by those below it."""
    ahead: list[tuple[int, ToldAgent | ToldFinished]] = []
    above: Process | ToldAgent | ToldFinished = process
    depth = 0
    while True:
        if not isinstance(above, ToldFinished):
            ahead += [(depth + 1, agent) for agent in reversed(above.agents)]
            ahead += [(depth + 1, agent) for agent in reversed(above.finished)]
        if not ahead:
            return
        depth, above = ahead.pop()
        yield depth, above


def _indented(depth: int, agent: ToldAgent | ToldFinished) -> str:
    name = "  " * min(depth, INDENTED) + plain(agent.name)
    if isinstance(agent, ToldFinished):
        return f"{name} ({agent.agents:,} ended)"
    return f"{name} (paused)" if agent.paused else name


def _of_agent(agent: ToldAgent | ToldFinished) -> list[str]:
    if isinstance(agent, ToldFinished):
        return [short(agent.spent), short(agent.unknown), "", short(agent.calls), "", "", short(agent.refused)]
    amounts = (agent.spent, agent.unknown, agent.held, agent.calls, agent.in_flight, agent.waiting, agent.refused)
    return [short(amount) for amount in amounts]


# -------------------------------------------------------------------- one run, watched


def watched(view: StatusView, tokens_per_second: float, note: str, height: int) -> RenderableType:
    """A run on exactly the lines that a window has: its bars, who waits, and as many agents as there is room for.

    ``tokens_per_second`` is how fast it spends, ``note`` the last line.
    """
    head = Table.grid(padding=(0, 1, 0, 0))
    head.add_column(no_wrap=True, style="bold")
    head.add_column(width=BAR, no_wrap=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    for row in _head(view, tokens_per_second):
        head.add_row(*row)
    lines: list[RenderableType] = [head]
    room = height - head.row_count - 1
    for part, (table, rows, untold) in ((3, _waiting(view)), (1, _shares(view))):
        if rows and room >= 4:  # a blank line, the head, a row, and how many more there are
            _fill(table, rows, untold, max(4, room // part) - 2)
            lines += ["", table]
            room -= 2 + table.row_count
    lines += [""] * room
    return Group(*lines, Text(note, style="reverse", no_wrap=True, overflow="ellipsis"))


def _head(view: StatusView, tokens_per_second: float) -> Iterator[_Row]:
    of = "no ceiling" if view.ceiling is None else f"of {view.ceiling:,}"
    booked = f"{view.spent:,} spent + {view.unknown:,} unknown + {view.held:,} held, {of}"
    rate = next((level.amount / level.per for level in view.limits if level.setting.startswith("tokens_")), None)
    pace = None if rate is None else tokens_per_second / rate
    waiting = sum(process.waiting for process in view.living)
    refused = "".join(f"; refused {text}" for text in _refusals(view.living))
    yield "run", "", Text(f"{plain(view.run)}, {_count(view.processes, 'living process')}, ").append(_state(view))
    yield "tokens", _bar(view.used_share), f"{_share(view.used_share):>4} {booked}"
    yield "speed", _bar(pace, "green"), f"{_share(pace):>4} {tokens_per_second:,.0f} tokens a second"
    for level in view.limits:
        there = None if level.level is None else max(0.0, level.level / level.burst)
        yield "rate", _bar(there, "green"), f"{_share(there):>4} {_level(level)}"
    yield "calls", "", f"     {view.calls:,} ended, {view.in_flight:,} in flight, {waiting:,} waiting{refused}"


def _bar(share: float | None, nearly_full: str = "red", width: int = BAR) -> RenderableType:
    if share is None:
        return ""
    style = nearly_full if share >= 0.8 else "green"
    return ProgressBar(1.0, min(max(share, 0.0), 1.0), width, complete_style=style, finished_style=style)


def _waiting(view: StatusView) -> tuple[Table, list[_Row], int]:
    waits = [wait for process in view.living for wait in process.waits]
    return _table_of_waits(), [_wait(wait) for wait in waits], sum(p.waiting for p in view.living) - len(waits)


def _shares(view: StatusView) -> tuple[Table, list[_Row], int]:
    """The agents with what they have of their own ceiling, or without one of all that the run has booked."""
    table = _table("agents", "share", "", "ceiling", "spent", "held", "calls", "open", "waiting", "refused")
    rows: list[_Row] = []
    for process in view.living:
        rows.append((_cut(plain(process.process) or "a process", "bold"),))
        rows += [_with_share(view, depth, agent) for depth, agent in _below(process)]
    return table, rows, 0


def _with_share(view: StatusView, depth: int, agent: ToldAgent | ToldFinished) -> _Row:
    ceiling = None if isinstance(agent, ToldFinished) else agent.ceiling
    of = view.spent + view.unknown if ceiling is None else ceiling
    share = (agent.spent + agent.unknown) / of if of else 0.0
    bar = _bar(share, "green" if ceiling is None else "red", SMALL_BAR)
    own = "" if ceiling is None else short(ceiling)
    spent, _, *others = _of_agent(agent)
    return _cut(_indented(depth, agent)), bar, _share(share), own, spent, *others


def _fill(table: Table, rows: Sequence[_Row], untold: int, most: int) -> None:
    """Put in the rows, at most so many, and how many more there are."""
    shown = rows if len(rows) + bool(untold) <= most else rows[: most - 1]
    for row in shown:
        table.add_row(*row)
    if hidden := len(rows) - len(shown) + untold:
        table.add_row(f"and {hidden:,} more")
