"""A receipt as one page of HTML that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from pacer.cli.chart import Level, Plot, Series, amount, drawn, moment, shown, tag
from pacer.cli.course import OTHERS, Course
from pacer.cli.receipt import NOT_THERE, Books, Part, Receipt, not_paced, remarks

STYLE = Path(__file__).with_name("page.css")
ROWS = 48
"""So many agents, models and findings are shown; the JSON has all of them."""
SIBLINGS = 16
DEEPEST = 8
"""Agents nested deeper than that are shown as deep as this."""
_NAME = 60
_OF_WAITS = ("three", "four", "five", "two", "six")

_RAISE = {
    "ceiling": "What was left under the ceiling could not hold the call. Raise --ceiling, or start another run.",
    "agent_ceiling": "The agent had no room left under its own ceiling. Raise --agent-ceiling or that of the agent.",
    "spawn_threshold": "The run had less room left than an agent needs to start. Raise --ceiling, or lower "
    "--spawn-threshold.",
    "wrap_up_reserve": "The agent's reserve for its wrap-up was spent. Raise --wrap-up-reserve.",
    "call_limit": "The call might have cost more than pacer.limit(tokens=...) allows one call.",
    "store": "The books that the run shares with other processes could not be reached.",
    "paused": "The run or the agent was paused, and the call would have waited longer than it may.",
    "server_pause": "The provider asked for a pause that is longer than a call may wait (--max-wait).",
    "server_remaining": "The provider's own limit was nearly used up, and the wait longer than --max-wait allows.",
}
_TOO_LONG = "The call would have waited longer than --max-wait or --on-limit=refuse allows."


def page(receipt: Receipt, course: Course, before: Books) -> str:
    """The whole page. ``before`` is what was booked before the command began."""
    style = Element("style")
    style.text = STYLE.read_text()
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", f"{receipt.command}: {_spent(receipt):,} tokens"),
        style,
    )
    body = tag("body", tag("main", _head(receipt), *_sections(receipt, course, before), _foot()))
    return "<!doctype html>\n" + tostring(tag("html", head, body, lang="en"), "unicode", "html") + "\n"


def _sections(receipt: Receipt, course: Course, before: Books) -> Iterator[Element]:
    if receipt.is_unseen:
        yield tag("p", "NO MODEL CALL WAS SEEN", class_="loud")
    if notes := [*_notes(receipt)]:
        yield tag("ul", *(tag("li", note) for note in notes), class_="notes")
    yield _tiles(receipt)
    if receipt.books is not None and receipt.books.spent + receipt.books.unknown:
        yield _classes(receipt.books)
    if receipt.calls or receipt.refused or receipt.waits:
        yield from _pictures(receipt, course, before)
    if len(receipt.runs) > 1 or any(run.parts for run in receipt.runs):
        yield _tree("Spending by agent", receipt.runs)
    if receipt.models:
        yield _models(receipt)
    if receipt.refused:
        yield _refusals(receipt)
    if receipt.others:
        yield _tree("Budgets of the program's own", receipt.others)
    if receipt.limits:
        yield _limits(receipt)


def _notes(receipt: Receipt) -> Iterator[str]:
    if not receipt.is_python_seen:
        yield "No Python of this command was paced; a program that is not Python is not covered."
    for python in receipt.missing[:ROWS]:
        yield f"Calls of {python} were NOT PACED: {NOT_THERE}."
    yield from not_paced(receipt)
    if receipt.books is None:
        yield f"What was spent cannot be told: {receipt.books_error}. The numbers are those that processes told."
    if receipt.books is not None and receipt.books.over:
        yield f"Over the ceiling by {receipt.books.over:,} tokens."
    yield from remarks(receipt)


# -------------------------------------------------------------------- at the top


def _spent(receipt: Receipt) -> int:
    return sum(run.spent for run in receipt.runs) if receipt.books is None else receipt.books.spent


def _head(receipt: Receipt) -> Element:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(receipt.started_at))
    code = "ended well" if receipt.exit_code == 0 else f"exit code {receipt.exit_code}"
    return tag(
        "header",
        tag("h1", shown(receipt.command, _NAME)),
        tag("p", f"{when}, {_lasted(receipt.seconds)}, {code}, run ", tag("b", receipt.run)),
    )


def _lasted(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else moment(seconds, seconds)


def _tiles(receipt: Receipt) -> Element:
    return tag("section", *(tag("div", *parts) for parts in _tile_parts(receipt)), class_="tiles")


def _tile_parts(receipt: Receipt) -> Iterator[list[Element]]:
    books = receipt.books
    calls = receipt.calls if books is None else books.calls
    yield _tile("tokens spent", f"{_spent(receipt):,}", *_of_ceiling(receipt))
    yield _tile("calls", f"{calls:,}", f"{receipt.failed:,} more failed, at no cost" if receipt.failed else None)
    rate = (_spent(receipt) + (books.unknown if books else 0)) / receipt.seconds if receipt.seconds else 0.0
    level = _rate(receipt)
    yield _tile("tokens/s on average", amount(rate), None if level is None else f"limit {amount(level)}")
    waits = f"{receipt.waits:,} waits added up" if receipt.waits else None
    yield _tile("waited", _lasted(receipt.waited_seconds), waits)
    limits = [one.limit for one in receipt.limited if one.refused]
    yield _tile("refused", f"{receipt.refused:,}", f"by {shown(', '.join(limits), _NAME)}" if limits else None)
    if books is not None:
        held = f", {books.held:,} still held" if books.held else ""
        yield _tile("unknown", f"{books.unknown:,}", f"{receipt.estimated_share:.1%} of the spent estimated{held}")


def _tile(name: str, value: str, *more: str | Element | None) -> list[Element]:
    small = [part if isinstance(part, Element) else tag("small", part) for part in more if part is not None]
    return [tag("span", name), tag("strong", value), *small]


def _of_ceiling(receipt: Receipt) -> Iterator[str | Element]:
    ceiling = receipt.limits.get("ceiling")
    if receipt.ceiling_used is not None and isinstance(ceiling, int | float) and ceiling:
        share = receipt.ceiling_used / ceiling
        yield tag("div", tag("i", class_="bad" if share > 1 else "one", style=f"width:{_percent(share)}"), class_="bar")
        yield f"{share:.1%} of the ceiling of {ceiling:,} used"


def _rate(receipt: Receipt) -> float | None:
    for name, per in (("tokens_per_second", 1.0), ("tokens_per_minute", 60.0)):
        value = receipt.limits.get(name)
        if isinstance(value, int | float):
            return value / per
    return None


def _percent(share: float) -> str:
    return f"{max(0.0, min(1.0, share)) * 100:.2f}%"


def _classes(books: Books) -> Element:
    """The tokens by class, as one bar: parts of parts are taken out of them."""
    rest = books.spent - books.input - books.output
    parts = (
        ("input", "one", books.input - books.cached - books.written),
        ("input, cached", "two", books.cached),
        ("input, written to a cache", "three", books.written),
        ("output", "four", books.output - books.reasoning),
        ("output, reasoning", "five", books.reasoning),
        ("in the provider's total only", "six", rest),
        ("unknown", "unsure", books.unknown),
    )
    found = [(name, colour, tokens) for name, colour, tokens in parts if tokens > 0]
    whole = sum(tokens for _, _, tokens in found) or 1
    bar = tag("div", class_="bar tall")
    legend = tag("ul", class_="legend")
    for name, colour, tokens in found:
        bar.append(tag("i", class_=colour, style=f"width:{_percent(tokens / whole)}", title=f"{name}: {tokens:,}"))
        legend.append(tag("li", tag("i", class_=colour), f"{name} ", tag("b", f"{tokens:,}"), f" {tokens / whole:.0%}"))
    return tag("section", tag("h2", "Tokens by class"), bar, legend)


# -------------------------------------------------------------------- over time


def _pictures(receipt: Receipt, course: Course, before: Books) -> Iterator[Element]:
    level, burst = _rate(receipt), receipt.limits.get("burst")
    at_once = ""
    if isinstance(burst, int | float):
        at_once = f" After a pause up to {amount(burst)} may go at once, so peaks may stand above the limit."
    yield drawn(
        Plot(
            title="Tokens a second",
            note=f"The tokens of each call, spread from its admission to its end.{at_once}",
            unit="tokens/s",
            seconds=course.seconds,
            width=course.width,
            areas=[Series("tokens a second", "one", course.tokens)],
            level=None if level is None else Level(f"limit {amount(level)}/s", level),
        )
    )
    if course.waiting:
        colours = dict(zip(course.waiting, _OF_WAITS, strict=False))
        yield drawn(
            Plot(
                title="Waits",
                note="Calls that waited for their turn, by the limit that they waited for.",
                unit="waiting",
                grain=1.0,
                seconds=course.seconds,
                width=course.width,
                areas=[Series(_limit(name), colours[name], values) for name, values in course.waiting.items()],
            )
        )
    yield drawn(_spending(receipt, course, before))


def _limit(name: str) -> str:
    return name if name == OTHERS else shown(name, _NAME)


def _spending(receipt: Receipt, course: Course, before: Books) -> Plot:
    ceiling = receipt.limits.get("ceiling")
    areas = [Series("spent", "one", [before.spent + spent for spent in course.spent], before.spent)]
    if before.unknown or any(course.unknown):
        values = [before.unknown + unknown for unknown in course.unknown]
        areas.append(Series("unknown", "unsure", values, before.unknown))
    whose = "ceiling" if len(receipt.runs) < 2 else "ceiling of each run"
    return Plot(
        title="Spending",
        note="All that was booked so far" + (", before this command included." if before.spent else "."),
        unit="tokens",
        grain=1.0,
        seconds=course.seconds,
        width=course.width,
        areas=areas,
        flows=False,
        level=Level(f"{whose} {amount(ceiling)}", ceiling) if isinstance(ceiling, int | float) else None,
        marks=course.refused,
        marked="refused",
    )


# -------------------------------------------------------------------- tables


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Element | str]]) -> Element:
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = tag("tbody", *(tag("tr", *(_cell(cell) for cell in row)) for row in rows))
    return tag("section", tag("h2", title), tag("table", tag("thead", head), body))


def _cell(inside: Element | str) -> Element:
    return inside if isinstance(inside, Element) and inside.tag == "td" else tag("td", inside)


def _tree(title: str, runs: Sequence[Part]) -> Element:
    whole = sum(run.booked for run in runs) or 1
    rows = [_row(part, depth, whole) for depth, part in _rows(runs)]
    return _table(title, ("", "", "tokens", "share", "calls", "waited", "refused"), rows)


def _row(part: Part, depth: int, whole: int) -> list[Element | str]:
    name = shown(part.name, _NAME) if part.name else "(no name)"
    indent = f"padding-left:{min(depth, DEEPEST) * 1.2:g}em"
    named = tag("td", name if depth else tag("b", name), class_="name", style=indent)
    if len(part.name) >= _NAME:
        named.set("title", shown(part.name))
    bar = tag("div", *_bars(part, whole), class_="bar")
    seconds = _lasted(part.waited_seconds) if part.waits else ""
    refused = f"{part.refused:,}" if part.refused else ""
    numbers = (f"{part.booked:,}", f"{part.booked / whole:.1%}", f"{part.calls:,}", seconds, refused)
    return [named, bar, *numbers]


def _bars(part: Part, whole: int) -> Iterator[Element]:
    yield tag("i", class_="one", style=f"width:{_percent(part.spent / whole)}", title=f"{part.spent:,} spent")
    if part.unknown:
        style = f"width:{_percent(part.unknown / whole)}"
        yield tag("i", class_="unsure", style=style, title=f"{part.unknown:,} unknown")


def _rows(runs: Sequence[Part]) -> Iterator[tuple[int, Part]]:
    """The tree from the top down with depths; what is too much is one row at each place."""
    ahead = [(0, part) for part in reversed(_fewer(runs))]
    for _ in range(ROWS):
        if not ahead:
            return
        depth, part = ahead.pop()
        yield depth, part
        ahead += [(depth + 1, below) for below in reversed(_fewer(part.parts))]
    if ahead:
        rest = [part for depth, part in ahead]
        yield min(depth for depth, _ in ahead), _together(rest)


def _fewer(parts: Sequence[Part]) -> list[Part]:
    if len(parts) <= SIBLINGS:
        return list(parts)
    return [*parts[: SIBLINGS - 1], _together(parts[SIBLINGS - 1 :])]


def _together(parts: Sequence[Part]) -> Part:
    numbers = {
        name: sum(getattr(part, name) for part in parts)
        for name in Part.__struct_fields__
        if name not in ("name", "parts")
    }
    return Part(name=f"{len(parts):,} more", **numbers)


def _models(receipt: Receipt) -> Element:
    whole = sum(model.booked for model in receipt.models) or 1
    rows: list[list[Element | str]] = []
    for model in receipt.models[:ROWS]:
        where = " at ".join(filter(None, (model.provider, model.server)))
        named = tag("td", shown(model.name, _NAME) or "(no name)", tag("small", shown(where, _NAME)), class_="name")
        bar = tag("div", *_bars(model, whole), class_="bar")
        numbers = (model.booked, model.input, model.output, model.calls)
        rows.append([named, bar, *(f"{number:,}" for number in numbers)])
    more = f", the first {ROWS} of {len(receipt.models):,}" if len(receipt.models) > ROWS else ""
    return _table(f"Spending by model{more}", ("", "", "tokens", "input", "output", "calls"), rows)


def _refusals(receipt: Receipt) -> Element:
    rows: list[list[Element | str]] = [
        [
            tag("td", shown(one.limit, _NAME), class_="name"),
            tag("td", _RAISE.get(one.limit, _TOO_LONG), class_="text"),
            f"{one.refused:,}",
        ]
        for one in sorted(receipt.limited, key=lambda one: -one.refused)[:ROWS]
        if one.refused
    ]
    return _table("Refusals", ("limit", "why, and the way out", "calls"), rows)


def _limits(receipt: Receipt) -> Element:
    told = tag("ul", class_="legend")
    for name, value in receipt.limits.items():
        told.append(tag("li", f"{name} ", tag("b", value if isinstance(value, str) else f"{value:,g}")))
    return tag("section", tag("h2", "Limits in force"), told)


def _foot() -> Element:
    told = "Made by token-pacer. No prompt, answer, key or argument of the command is in this page."
    return tag("footer", tag("p", told))
