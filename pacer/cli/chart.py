"""Elements of a page, and pictures of courses over time as SVG that stretches with the page while its text does not.

Elements are a tree, so that whatever text comes into it is escaped when it is written; nothing is spelt by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, SubElement

import msgspec

from pacer.cli.spelling import plain

WIDE, HIGH = 1_000, 100
"""The units of a plot, whatever its size on the screen."""
MOST_TICKS = 7
LONGEST_TEXT = 400
_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1_440)
_TIMES = (*(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30), *(60 * minutes for minutes in _MINUTES))
_HIDDEN_ABOVE = 4
"""A limit that is so many times higher than all that came is told, but not drawn."""


def tag(name: str, /, *inside: Element | str | None, **attributes: str) -> Element:
    """An element. Attributes are spelt ``class_``, ``aria_label``; text is made fit to be seen, and is cut."""
    element = Element(name, {key.strip("_").replace("_", "-"): shown(text) for key, text in attributes.items()})
    for part in inside:
        if isinstance(part, Element):
            element.append(part)
        elif part is not None:
            _add_text(element, shown(part))
    return element


def shown(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text on one line, with nothing invisible in it, and not longer than that."""
    text = plain(text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _add_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


# -------------------------------------------------------------------- numbers


def amount(number: float) -> str:
    """A number with three digits that count, as short as it can be: 0.5, 12.5, 980, 1.25k, 4M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1_000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:.3g}" if number < 999.5 else "1k"


def moment(seconds: float, of: float, step: float = 1.0) -> str:
    """A time since the start, in the unit that fits the whole time ``of`` which it is a part: 12 s, 2:30 min, 3 h."""
    if step < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if of <= 120:
        return f"{whole} s"
    unit, size = ("min", 60) if of < 7_200 else ("h", 3_600)
    rest = whole % size * 60 // size
    return f"{whole // size:,} {unit}" if step % size == 0 else f"{whole // size:,}:{rest:02} {unit}"


def even_step(top: float, ticks: int = 4) -> float:
    """The step between ``ticks`` even numbers up to ``top``: 1, 2, 2.5 or 5 times a power of ten."""
    rough = top / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def time_step(seconds: float) -> float:
    """The step between even times, few enough to be read."""
    for step in _TIMES:
        if seconds / step <= MOST_TICKS:
            return step
    return 86_400.0 * math.ceil(seconds / MOST_TICKS / 86_400)


# -------------------------------------------------------------------- a picture


class Series(msgspec.Struct, frozen=True):
    """One area of a picture: what the legend calls it, its colour, a value for each step, and that before the first."""

    name: str
    colour: str
    values: Sequence[float]
    base: float = 0.0


class Level(msgspec.Struct, frozen=True):
    """A level that is not to be passed."""

    name: str
    value: float


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """A picture: areas on top of each other over time, in steps of ``width`` seconds; ``unit`` follows a value.

    ``flows`` says that values belong to the whole of their step, else to its end; ``grain`` is the least step of the
    axis. ``marks`` are numbers of what happened in the steps, called ``marked``.
    """

    title: str
    note: str
    unit: str
    seconds: float
    width: float
    areas: Sequence[Series]
    flows: bool = True
    grain: float = 0.0
    level: Level | None = None
    marks: Sequence[int] = ()
    marked: str = ""


def drawn(plot: Plot) -> Element:
    """The picture with its axes and its legend."""
    sums = [sum(values) for values in zip(*(area.values for area in plot.areas), strict=True)]
    highest = max(sum(area.base for area in plot.areas), *sums)
    level = plot.level if plot.level is not None and plot.level.value <= _HIDDEN_ABOVE * highest else None
    most = max(highest, level.value if level is not None else 0.0) or 1.0
    step = max(even_step(most), plot.grain)
    top = step * math.ceil(most * 1.04 / step)
    svg = tag(
        "svg", class_="plot", viewBox=f"0 0 {WIDE} {HIGH}", preserveAspectRatio="none", role="img",
        aria_label=f"{plot.title}: at most {amount(highest)} {plot.unit}",
    )  # fmt: skip
    frame = tag("div", svg, class_="frame")
    _add_heights(svg, frame, step, top)
    _add_times(svg, frame, plot.seconds)
    _add_areas(svg, plot, top)
    if level is not None:
        y = _y(level.value, top)
        SubElement(svg, "line", {"class": "level", "x1": "0", "x2": str(WIDE), "y1": y, "y2": y})
        frame.append(tag("span", level.name, class_="mark", style=f"top:{y}%"))
    _add_marks(svg, plot)
    _add_tips(svg, plot, sums)
    return tag("figure", tag("figcaption", tag("h2", plot.title), tag("p", plot.note)), frame, _legend(plot, level))


def _legend(plot: Plot, level: Level | None) -> Element:
    legend = tag("ul", class_="legend")
    for area in plot.areas:
        legend.append(tag("li", tag("i", class_=area.colour), area.name))
    if plot.level is not None:
        text = plot.level.name if level is not None else f"{plot.level.name}, far above this picture"
        legend.append(tag("li", tag("i", class_="level"), text))
    if any(plot.marks):
        legend.append(tag("li", tag("i", class_="bad"), plot.marked))
    return legend


def _y(value: float, top: float) -> str:
    return _short(HIGH - HIGH * value / top)


def _x(plot: Plot, step: int) -> float:
    return min(WIDE, WIDE * step * plot.width / plot.seconds) if plot.seconds else WIDE * min(step, 1)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _add_heights(svg: Element, frame: Element, step: float, top: float) -> None:
    for number in range(round(top / step) + 1):
        y = _y(number * step, top)
        SubElement(svg, "line", {"class": "grid", "x1": "0", "x2": str(WIDE), "y1": y, "y2": y})
        frame.append(tag("span", amount(number * step), class_="height", style=f"top:{y}%"))


def _add_times(svg: Element, frame: Element, seconds: float) -> None:
    step = time_step(seconds)
    axis = tag("div", class_="times")
    for number in range(int(seconds / step + 1e-9) + 1 if seconds else 1):
        x = WIDE * number * step / seconds if seconds else 0.0
        SubElement(svg, "line", {"class": "grid", "x1": _short(x), "x2": _short(x), "y1": "0", "y2": str(HIGH)})
        told = tag("span", moment(number * step, seconds, step), style=f"left:{_short(x / WIDE * 100)}%")
        if x > 0.96 * WIDE:
            told.set("class", "last")
        axis.append(told)
    frame.append(axis)


def _add_areas(svg: Element, plot: Plot, top: float) -> None:
    base, sums = 0.0, [0.0] * len(plot.areas[0].values)
    areas = []
    for area in plot.areas:
        base += area.base
        sums = [below + value for below, value in zip(sums, area.values, strict=True)]
        path = "".join(_steps(plot, sums, top) if plot.flows else _slopes(plot, sums, base, top))
        areas.append({"class": f"area {area.colour}", "d": path})
    for attributes in reversed(areas):  # each covers what is below it, too
        SubElement(svg, "path", attributes)


def _steps(plot: Plot, values: Sequence[float], top: float) -> Iterator[str]:
    yield f"M0 {HIGH}"
    before = None
    for step, value in enumerate(values):
        if value != before:
            yield f"{f'H{_short(_x(plot, step))}' if step else ''}V{_y(value, top)}"
            before = value
    yield f"H{WIDE}V{HIGH}Z"


def _slopes(plot: Plot, values: Sequence[float], base: float, top: float) -> Iterator[str]:
    yield f"M0 {HIGH}V{_y(base, top)}"
    for step, value in enumerate(values, 1):
        yield f"L{_short(_x(plot, step))} {_y(value, top)}"
    yield f"V{HIGH}Z"


def _add_marks(svg: Element, plot: Plot) -> None:
    for step, number in enumerate(plot.marks):
        if number:
            x, end = _x(plot, step), _x(plot, step + 1)
            wide = _short(max(4.0, end - x))
            SubElement(svg, "rect", {"class": "bad", "x": _short(x), "y": "97", "width": wide, "height": "3"})


def _add_tips(svg: Element, plot: Plot, sums: Sequence[float]) -> None:
    """What a pointer is told above each step in which there is something."""
    for step, value in enumerate(sums):
        marks = plot.marks[step] if plot.marks else 0
        if value or marks:
            x, end = _x(plot, step), _x(plot, step + 1)
            tip = tag("rect", class_="tip", x=_short(x), y="0", width=_short(end - x), height=str(HIGH))
            told = f"{moment(step * plot.width, plot.seconds, plot.width)}: {amount(value)} {plot.unit}"
            tip.append(tag("title", told + (f", {marks:,} {plot.marked}" if marks else "")))
            svg.append(tip)
