"""How what ``pacer doctor`` found looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pacer.cli.doctor import Check, Report
from pacer.cli.sdks import Found
from pacer.cli.spelling import plain

_STYLES = {"yes": "green", "partly": "yellow", "unknown": "yellow", "no": "red", "warning": "yellow", "wrong": "red"}


def shown(report: Report) -> RenderableType:
    """The SDKs, what to do where they are not covered, and how everything else stands."""
    parts: list[RenderableType] = [
        _sdks(report.sdks) if report.sdks else Text("no SDK that is known here is installed")
    ]
    cures = [cure for found in report.sdks for cure in _cures(found)]
    if cures:
        parts += ["", _grid(cures)]
    return Group(*parts, "", _grid(_checks(report)))


def _sdks(found: Sequence[Found]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("SDK", "version"):
        table.add_column(name, no_wrap=True)
    for name in ("sent by", "covered", "a BudgetTransport goes into"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(
            one.name,
            plain(one.version),
            one.library or ", ".join(one.through) or "not known",
            Text("NO" if one.covered == "no" else one.covered, style=_STYLES[one.covered]),
            one.transport,
        )
    return table


def _cures(found: Found) -> Iterator[tuple[str, Text]]:
    if found.cure:
        yield found.name, Text(f"nothing that {found.library or 'it'} sends is seen: {found.cure}")
    for gap in found.gaps:
        yield found.name, Text(f"{gap.calls} go by {gap.library}: {gap.cure}", style="" if gap.counts else "dim")


def _checks(report: Report) -> Iterator[tuple[str, Text]]:
    yield from _told("setting", report.settings, none="none: every call passes and is metered")
    yield from _told("store", report.store, none="not looked at before the settings are right")
    yield from _told("python", report.pythons)
    yield from _told(
        "needs", [one for one in report.dependencies if one.state != "ok"], none="all there and new enough"
    )
    yield from _told("proxy", report.proxies, none="none")


def _told(name: str, checks: Sequence[Check], *, none: str = "") -> Iterator[tuple[str, Text]]:
    for check in checks:
        text = check.text if check.text.startswith(check.name) else f"{check.name.rstrip(':')}: {check.text}"
        yield name, Text(plain(text), style=_STYLES.get(check.state, ""))
    if not checks and none:
        yield name, Text(none, style="dim")


def _grid(rows: Iterator[tuple[str, Text]] | Sequence[tuple[str, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(name, text)
    return grid
