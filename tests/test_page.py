"""The report as a page: what is in it, that nothing foreign is, and that a browser shows it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pacer.cli import chart
from pacer.cli.chart import amount, even_step, moment, tag, time_step
from pacer.cli.course import MOST_STEPS, OTHERS, course
from pacer.cli.receipt import Books
from pacer.cli.tally import Tally
from tests.records import HOSTILE, RUN, START, books_of, call, many, page_of, receipt_of, refused

LIMITS = {"ceiling": 400_000, "tokens_per_second": 5_000.0, "burst": 50_000.0}
BUSY = list(many(400, 90.0))


def busy() -> str:
    return page_of(BUSY, receipt_of(BUSY, limits=LIMITS, seconds=90.0))


def pictures(text: str) -> dict[str, ElementTree.Element]:
    """The pictures by title; each is well-formed by itself."""
    found = re.findall(r"<h2>([^<]*)</h2>(?:(?!<h2>).)*?(<svg.*?</svg>)", text, re.DOTALL)
    return {title: ElementTree.fromstring(svg) for title, svg in found}


def texts(text: str) -> list[str]:
    """What is to be read, apart from tags."""
    return [part for part in re.sub(r"<style>.*?</style>|<[^>]*>", "\n", text, flags=re.DOTALL).split("\n") if part]


class Tags(HTMLParser):
    """The elements and attributes that a browser sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen = set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.update([tag, *(f"{tag} {name}" for name, _ in attrs)])


# -------------------------------------------------------------------- the page


def test_it_has_a_picture_of_everything():
    text = busy()
    assert text.startswith("<!doctype html>\n<html")
    assert list(pictures(text)) == ["Tokens a second", "Waits", "Spending"]
    for title in ("Tokens by class", "Spending by agent", "Spending by model", "Refusals", "Limits in force"):
        assert f"<h2>{title}</h2>" in text


def test_the_sums_shown_are_those_of_the_books():
    text, books = texts(busy()), books_of(BUSY)
    for number in (books.spent, books.calls, books.unknown, books.spent + books.unknown, books.cached, books.reasoning):
        assert f"{number:,}" in text, number
    assert f"{books.input - books.cached:,}" in text
    assert f"{(books.spent + books.unknown) / 400_000:.1%} of the ceiling of 400,000 used" in text


def test_nothing_comes_from_elsewhere():
    text = busy()
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<iframe|<img|\ssrc=|\shref=|\son\w+=", text)
    assert "default-src 'none'" in text


def test_hostile_names_are_text_and_nothing_else():
    """Wherever a name may come from; what is invisible is spelt out."""
    names: dict[str, Any] = {
        "run": HOSTILE,
        "model": HOSTILE,
        "provider": HOSTILE,
        "server": HOSTILE,
        "agents": (HOSTILE, HOSTILE),
    }
    calls = [
        call(**names, waited_for=HOSTILE, waited_seconds=1.0),
        refused(limit=HOSTILE, **names),
        call(pacer="x", **names),
    ]
    tally = Tally(True, (HOSTILE,), (HOSTILE,))
    text = page_of(calls, receipt_of(calls, tally=tally, limits={HOSTILE: 5}))
    assert len(pictures(text)) == 3
    assert Tags(text).seen <= Tags(busy()).seen | {"td title"}
    assert "&lt;script&gt;alert(1)" in text
    assert not set(text.replace("\n", "")) & set("\x00\x1b\u202e")


@pytest.mark.parametrize(
    ("calls", "shown", "seconds"),
    [
        ([], [], 0.0),
        ([], [], 5.0),
        ([call()], ["Tokens a second", "Spending"], 2.0),
        ([call(lasts=0.0)], ["Tokens a second", "Spending"], 0.0),
        ([refused()], ["Tokens a second", "Spending"], 1.0),
        ([call(at=-50, lasts=5_000)], ["Tokens a second", "Spending"], 3.0),
        ([call(spent=0, input=0, output=0)], ["Tokens a second", "Spending"], 3.0),
        ([call(waited_for="w", waited_seconds=0.0)], ["Tokens a second", "Waits", "Spending"], 3.0),
        ([call(spent=2**53, input=2**53, output=0)], ["Tokens a second", "Spending"], 3.0),
    ],
)
def test_it_is_there_for_few_calls_and_odd_ones(calls, shown, seconds):
    text = page_of(calls, receipt_of(calls, seconds=seconds))
    assert list(pictures(text)) == shown
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


def test_no_call_under_limits_is_told_in_capitals():
    assert ">NO MODEL CALL WAS SEEN<" in page_of([], receipt_of([], limits={"ceiling": 5}))
    assert "NO MODEL CALL" not in page_of([], receipt_of([]))


def test_it_stays_small_however_many_calls_and_names_there_are():
    calls = list(many(20_000, 86_400.0))
    calls += [call(k, agents=(f"{k % 900}" + "n" * 100, "deep"), model=f"m{k}", run=f"r{k % 99}") for k in range(3_000)]
    calls += [call(k, pacer="o", run=f"o{k}", waited_for=f"w{k}") for k in range(300)]
    tally = Tally(True, tuple(map(str, range(999))), tuple(map(str, range(999))))
    text = page_of(calls, receipt_of(calls, tally=tally, limits=LIMITS, seconds=86_400.0))
    assert len(text.encode()) < 300_000


def test_what_is_too_much_is_one_row():
    calls = [call(agents=(f"a{number:03}",)) for number in range(100)]
    text = texts(page_of(calls, receipt_of(calls)))
    assert "a014" in text
    assert "a015" not in text
    row = text.index("85 more")
    assert text[row + 1 : row + 4] == ["2,550", "85.0%", "85"]


def test_a_limit_far_above_is_told_but_not_drawn():
    for ceiling, drawn in ((100, True), (100_000, False)):
        text = page_of([call()], receipt_of([call()], limits={"ceiling": ceiling}))
        assert ("far above this picture" in text) is not drawn
        assert (pictures(text)["Spending"].find("line[@class='level']") is not None) is drawn


# -------------------------------------------------------------------- over time


def test_a_call_is_spread_from_its_admission_to_its_end():
    calls = [call(1.5, 4.0, input=40, output=0, spent=40), call(4.0, 0.25, spent=8)]
    steps = course(calls, RUN, START, 100.0)
    assert steps.width == 1.0
    assert steps.tokens[:7] == pytest.approx([0.0, 5.0, 10.0, 10.0, 18.0, 5.0, 0.0])
    assert steps.spent[3:7] == [0, 8, 48, 48]


def test_whatever_is_spread_is_all_there_in_the_end():
    calls = list(many(3_000, 1_000.0))
    steps = course(calls, RUN, START, 1_000.0)
    books = books_of(calls)
    assert len(steps.tokens) <= MOST_STEPS
    assert sum(steps.tokens) * steps.width == pytest.approx(books.spent + books.unknown)
    assert (steps.spent[-1], steps.unknown[-1]) == (books.spent, books.unknown)
    waited = sum(sum(values) for values in steps.waiting.values()) * steps.width
    assert waited == pytest.approx(sum(min(one.waited_seconds, 1_000.0) for one in calls), rel=0.05)
    assert sum(steps.refused) == sum(bool(one.refused_by) for one in calls)


def test_waits_for_many_limits_are_told_together():
    calls = [call(waited_for=f"w{number:02}", waited_seconds=1.0 + number) for number in range(50)]
    steps = course(calls, RUN, START, 100.0)
    assert len(steps.waiting) <= 5 + 1
    assert OTHERS in steps.waiting
    assert sum(map(sum, steps.waiting.values())) == pytest.approx(sum(1.0 + number for number in range(50)))


def test_spending_begins_where_it_stood():
    before = Books(spent=100, unknown=20)
    text = page_of([call()], receipt_of([call()], before=before), before)
    areas = [path.get("d", "") for path in pictures(text)["Spending"].findall("path")]
    assert len(areas) == 2
    assert all(not area.startswith("M0 100V100") for area in areas)


# -------------------------------------------------------------------- axes


@pytest.mark.parametrize(
    ("top", "step"), [(1, 0.25), (7, 2), (500, 200), (540, 200), (1e6, 250_000), (2**53, 2.5e15), (0.02, 0.005)]
)
def test_steps_of_an_axis_are_even(top, step):
    assert even_step(top) == pytest.approx(step)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 44.9, 60.0, 100.0, 3_599.0, 7_200.0, 86_400.0, 3e6, 1e9])
def test_times_of_an_axis_are_few(seconds):
    assert 1 <= seconds / time_step(seconds) <= chart.MOST_TICKS


def test_numbers_are_short():
    assert [amount(number) for number in (0, 0.25, 1, 12.5, 980, 999.6, 1_000, 1_250, 4e6, 2.5e9, 9e15)] == [
        "0", "0.25", "1", "12.5", "980", "1k", "1k", "1.25k", "4M", "2.5G", "9,000,000G",
    ]  # fmt: skip
    assert moment(0.5, 3, 0.5) == "0.5 s"
    assert [moment(seconds, 60) for seconds in (0, 59.6)] == ["0 s", "60 s"]
    assert [moment(seconds, 600) for seconds in (90, 600)] == ["1:30 min", "10:00 min"]
    assert [moment(seconds, 7_199, 1_800) for seconds in (1_800, 5_400)] == ["30 min", "90 min"]
    assert [moment(seconds, 36_000, 3_600) for seconds in (3_600, 36_000)] == ["1 h", "10 h"]
    assert moment(5_400, 36_000) == "1:30 h"


def test_text_between_elements_stays_in_its_place():
    made = tag("p", "a<", tag("b", "&"), "c", "d", tag("i", class_="x_y", data_z='"'))
    assert ElementTree.tostring(made, "unicode") == '<p>a&lt;<b>&amp;</b>cd<i class="x_y" data-z="&quot;" /></p>'


# -------------------------------------------------------------------- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.processes
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(tmp_path: Path, scheme: str):
    """The areas are there in their colours, on the ground that the scheme has."""
    assert BROWSER is not None
    (tmp_path / "r.html").write_text(busy())
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'home'}"]
    words += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    words += ["--window-size=640,1250", f"--screenshot={tmp_path / 'r.png'}", (tmp_path / "r.html").as_uri()]
    subprocess.run([BROWSER, *words], check=True, capture_output=True, timeout=60)
    colours = colours_of((tmp_path / "r.png").read_bytes())
    page, one, three = ((0xF6, 0xF7, 0xF9), (0x2F, 0x6F, 0xDE), (0x14, 0xA3, 0x8B))
    if scheme == "dark":
        page, one, three = ((0x10, 0x15, 0x1C), (0x5B, 0x95, 0xF5), (0x35, 0xC2, 0xA8))
    assert colours[page] > 10_000
    assert colours[one] > 10_000
    assert colours[three] > 1_000


def colours_of(png: bytes) -> dict[tuple[int, int, int], int]:
    """How many pixels of each colour a picture has; of PNG only what browsers write."""
    wide, high, _, kind = struct.unpack(">IIBB", png[16:26])
    size = {2: 3, 6: 4}[kind]
    packed, place = b"", 8
    while place < len(png):
        length, name = struct.unpack(">I4s", png[place : place + 8])
        packed += png[place + 8 : place + 8 + length] if name == b"IDAT" else b""
        place += length + 12
    rows, above, found = zlib.decompress(packed), bytearray(wide * size), dict[tuple[int, int, int], int]()
    for row in range(high):
        start = row * (wide * size + 1)
        line = unfiltered(rows[start], bytearray(rows[start + 1 : start + 1 + wide * size]), above, size)
        for x in range(0, wide * size, size):
            colour = (line[x], line[x + 1], line[x + 2])
            found[colour] = found.get(colour, 0) + 1
        above = line
    return found


def unfiltered(kind: int, line: bytearray, above: bytearray, size: int) -> bytearray:
    for x in range(len(line)):
        left, up = line[x - size] if x >= size else 0, above[x]
        corner = above[x - size] if x >= size else 0
        if kind == 1:
            line[x] = (line[x] + left) & 255
        elif kind == 2:
            line[x] = (line[x] + up) & 255
        elif kind == 3:
            line[x] = (line[x] + (left + up) // 2) & 255
        elif kind == 4:
            near = left + up - corner
            best = min((left, up, corner), key=lambda one: abs(near - one))
            line[x] = (line[x] + best) & 255
    return line
