"""``pacer top``: what a watched run looks like, and that the terminal is as it was afterwards."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pacer.cli import screen, top, view
from pacer.entry import Hold
from tests.terminal import PACER, Terminal, terminal
from tests.test_cli import HOSTILE, agent, book, pacer, process, said, told, vault

WAIT = {"agent": "planner/a", "model": "m", "tokens": 70, "limit": "ceiling", "since_seconds": 2.5}


def seen(store: str, run: dict[str, Any], name: str = "host:1") -> view.StatusView:
    """A run of which one process tells this, and which has spent 400 of 1,000 tokens."""
    with vault(store) as opened:
        book(opened, "nightly", 400)
        opened.exchange([Hold("2", "nightly", 200, 200, {"tokens": 700})])
        opened.renew(json.dumps({"process": name, "runs": {"nightly": run}}))
        (row,) = opened.rows()
        return view.status_of(row, pacer_paused=False)


def drawn(shown: view.StatusView, width: int = 100, height: int = 24) -> list[str]:
    """The lines that it takes."""
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    console.print(screen.watched(shown, 50.0, "q: quit", height))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'books.db'}"


# -------------------------------------------------------------------- the picture


def test_it_shows_the_numbers_the_rates_who_waits_and_the_agents_with_their_shares(store):
    """An agent's share is that of its own ceiling, or else of what the run has booked."""
    tree = agent("planner", 300, agent("a", 100, ceiling=125), finished=[{"name": "b", "agents": 3, "spent": 40}])
    lines = drawn(seen(store, {"agents": [tree], "waiting": 1, "waits": [WAIT], "refusals": {"ceiling": 2}}))
    words = [line.split() for line in lines]
    bars = {line[0]: line.count("━") + line.count("╸") for line in lines if "━" in line}
    assert words[0] == ["run", "nightly,", "1", "living", "process,", "running"]
    assert " 40% 400 spent + 0 unknown + 200 held, of 1,000" in lines[1]
    assert " 50% 50 tokens a second" in lines[2]
    assert re.search(r" 3\d% tokens_per_second 100, 3\d\d of 1,000 there now$", lines[3])
    assert lines[4].endswith(" 1 ended, 1 in flight, 1 waiting; refused 2 by ceiling")
    assert ["planner/a", "m", "70", "ceiling", "2.5s", "not", "known"] in words
    shares = {row[0]: row[2:4] for row in words if len(row) > 8 and row[0] in ("planner", "a", "b")}
    assert shares["planner"] == ["75%", "300"]
    assert shares["a"] == ["80%", "125"]
    assert any(re.match(r" +b \(3 ended\) +\S+ +10% +40 ", line) for line in lines)
    assert bars
    assert lines[-1] == "q: quit"


@pytest.mark.parametrize("height", range(1, 40))
def test_it_never_takes_more_lines_than_there_are_and_says_what_is_left_out(store, height):
    tree = [agent(f"agent-{number}", number) for number in range(50)]
    run = {"agents": tree, "waiting": 30, "waits": [WAIT] * 20}
    lines = drawn(seen(store, run), width=80, height=height)
    assert len(lines) == max(height, 6)  # of a window of five lines the last ones are cut off by the terminal
    if height >= 24:
        agents = sum(line.startswith("  agent-") for line in lines)
        waits = sum(line.startswith("planner/a") for line in lines)
        rest = [int(line.split()[1]) for line in lines if line.startswith("and ")]
        assert rest == [30 - waits, 51 - agents - 1]


def test_all_agents_are_shown_where_there_is_room(store):
    lines = drawn(seen(store, {"agents": [agent(f"agent-{number}") for number in range(5)]}), height=30)
    assert sum("agent-" in line for line in lines) == 5
    assert not any("more" in line for line in lines)
    assert len(lines) == 30


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_name_breaks_a_line_or_moves_the_cursor(store, width):
    wait = {**WAIT, "agent": HOSTILE, "model": HOSTILE, "limit": HOSTILE}
    run = {"agents": [agent(HOSTILE)], "waiting": 1, "waits": [wait], "refusals": {HOSTILE: 1}}
    lines = drawn(seen(store, run, HOSTILE), width=width)
    assert len(lines) == 24
    assert all(len(line) <= width for line in lines)
    assert not re.search(r"[^\x20-\x7e…━╸╺]", "".join(lines))


# -------------------------------------------------------------------- where it is asked for


def test_without_a_terminal_it_names_the_command_that_needs_none(store):
    with vault(store):
        assert "top needs a terminal: elsewhere, use pacer status --json" in said(pacer("top", "--store", store), 2)


def test_without_a_store_it_looks_for_the_command_that_was_started_last(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert top.own_store() is None
    (tmp_path / "pacer-empty").mkdir()
    assert top.own_store() is None
    for name, age in (("pacer-a", 50), ("pacer-b", 5), ("pacer-c", 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "books.db").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert top.own_store() == f"sqlite:{tmp_path / 'pacer-b' / 'books.db'}"


# -------------------------------------------------------------------- in a terminal


@contextmanager
def watched(store: str, *words: str, rows: int = 20, **variables: Any) -> Iterator[Terminal]:
    with terminal(*PACER, "top", *words, "--store", store, rows=rows, **variables) as shown:
        yield shown


def modes(shown: Terminal) -> Any:
    return termios.tcgetattr(shown.file)


@pytest.mark.processes
@pytest.mark.parametrize("keys", ["q", "\x03", signal.SIGTERM, signal.SIGHUP])
def test_it_follows_a_run_until_it_is_ended_and_leaves_the_terminal_as_it_was(store, keys):
    with vault(store) as opened, watched(store, "nightly") as shown:
        before = modes(shown)
        shown.until_shown("0 spent")
        shown.until_below("q: quit")
        book(opened, "nightly", 300)
        opened.renew(told(nightly={"agents": [agent("planner", 300)]}))
        shown.until_shown("300 spent")
        shown.until_shown("planner")
        if isinstance(keys, str):
            shown.type(keys)
        else:
            os.kill(shown.child, keys)
        assert shown.end() == (0 if isinstance(keys, str) else 128 + keys)
        assert modes(shown) == before
        assert not shown.screen.cursor.hidden


@pytest.mark.processes
def test_it_follows_the_size_of_the_window(store):
    tree = [agent(f"agent-{number}") for number in range(30)]
    with vault(store) as opened:
        opened.renew(told(nightly={"agents": tree}))
        with watched(store, rows=16, LINES="24", COLUMNS="80") as shown:  # as some shells export them
            shown.until_shown("and 2")
            for rows in (24, 12):
                shown.resize(rows, 80)
                shown.until_below("q: quit")
                shown.until_shown(f"and {31 - (rows - 9)} more")
            shown.type("q")
            assert shown.end() == 0


@pytest.mark.processes
def test_a_run_that_ends_while_it_is_watched_says_so(store):
    with process(store, 2), watched(store) as shown:
        shown.until_shown("1 living process,")
        shown.until_shown("60 spent")
        assert pacer("end", "nightly", "--force", "--store", store).exit_code == 0
        assert shown.end() == 0
        assert any(text.startswith("run nightly has ended: ") for text in shown.lines())
        assert any("60 spent" in text for text in shown.lines())


@pytest.mark.processes
def test_a_run_whose_processes_are_gone_is_told_to_have_ended(store):
    with vault(store) as opened, watched(store) as shown:
        opened.renew(told(nightly={}))
        shown.until_shown("1 living process,")
        opened.leave()
        shown.until_below("the run has ended, as far as one can see: no process is in it any more")
        shown.type("q")
        assert shown.end() == 0


@pytest.mark.processes
def test_a_command_that_was_given_no_store_is_found(tmp_path):
    words = ("run", "--ceiling", "777", "--", sys.executable, "-c", "input()")
    with terminal(*PACER, *words, TMPDIR=str(tmp_path)) as paced:
        paced.until_below("0/777")
        with terminal(*PACER, "top", TMPDIR=str(tmp_path)) as shown:
            shown.until_shown("0 held, of 777")
            paced.type("\n")
            assert paced.end() == 0
            assert shown.end() == 0
            assert any("has ended: the store" in text for text in shown.lines())


@pytest.mark.processes
def test_with_nothing_to_watch_it_says_how_to_come_by_something(tmp_path):
    with terminal(*PACER, "top", TMPDIR=str(tmp_path)) as shown:
        assert shown.end() == 2
        assert shown.lines()[0].startswith("pacer: nothing to watch: start a command with pacer run, or name a store")


@pytest.mark.processes
def test_it_can_be_stopped_and_continued(store):
    command = " ".join([*PACER, "top", "--store", store])
    with vault(store), terminal("bash", "--norc", "-i", rows=20, PS1="PROMPT ") as shown:
        shown.until_shown("PROMPT")
        before = modes(shown)
        shown.type(f"{command}\n")
        shown.until_below("q: quit")
        shown.type("\x1a")
        shown.until_shown("Stopped")
        shown.until(lambda: modes(shown)[3] & termios.ECHO == before[3] & termios.ECHO)
        shown.type("clear; fg\n")
        shown.until_below("q: quit")
        shown.type("q")
        shown.until_shown("PROMPT")
        assert modes(shown)[3] & (termios.ICANON | termios.ECHO) == before[3] & (termios.ICANON | termios.ECHO)
