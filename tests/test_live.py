"""The status line of ``pacer run``: what it says, and that a terminal is otherwise as it is without us."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from pacer.cli.live import SILENT_SECONDS, Standing, Window, line, standing_of
from pacer.entry import SUMS, Hold, Limit, RunBooks
from pacer.store.vault import RunRow
from tests.servers import CHAT, Connection, Server, answer_json, whole
from tests.terminal import PACER, Terminal, terminal
from tests.test_cli import HOSTILE, TOKENS, agent, book, told, vault

RUN = (*PACER, "run")
STANDING = Standing(
    booked=12_345,
    ceiling=20_000,
    used_share=0.617,
    in_flight=3,
    waiting=17,
    limit="tokens_per_second",
    seconds=1.8,
    rate=500.0,
)


# -------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (99, "[########..] 412/500 tok/s  12,345/20,000 61%  3 in flight  17 waiting 1.3s for tokens/s"),
        (79, "[####.] 412/500 tok/s  12.3k/20k 61%  3 in flight  17 waiting 1.3s for tokens/s"),
        (59, "412/500 tok/s  12.3k/20k 61%  3 in flight  17 waiting"),
        (39, "412/500 tok/s  61%  17 waiting"),
        (19, "61%  17 waiting"),
        (5, "61%  "),  # of a window too small for a line
    ],
)
def test_the_line_says_as_much_as_fits(columns, text):
    assert line(STANDING, 412.3, 0.5, columns) == text


@pytest.mark.parametrize(
    ("standing", "text"),
    [
        (Standing(), "0 tok/s  0 tokens  0 in flight"),
        (Standing(ceiling=0), "0 tok/s  0/0  0 in flight"),
        (Standing(booked=999, ceiling=1_000, used_share=0.999), "0 tok/s  999/1,000 99%  0 in flight"),
        (Standing(rate=500.0, paused=True), "PAUSED  [..........] 0/500 tok/s  0 tokens  0 in flight"),
        (Standing(waiting=2, limit="ceiling"), "0 tok/s  0 tokens  0 in flight  2 waiting for ceiling"),
        (Standing(waiting=2, limit="x", seconds=0.2), "0 tok/s  0 tokens  0 in flight  2 waiting 0.0s for x"),
        (
            Standing(booked=70, runs=3, fullest="nightly", ceiling=100, used_share=0.5),
            "0 tok/s  70 in 3 runs, nightly 50%  0 in flight",
        ),
    ],
)
def test_the_line_of_runs_of_all_kinds(standing, text):
    assert line(standing, 0.0, 0.5, 120) == text


def test_nothing_is_said_before_the_store_was_read_unless_it_does_not_answer():
    assert line(None, 0.0, SILENT_SECONDS - 0.1, 79) == ""
    assert line(None, 0.0, 12.0, 79) == "the store has not answered for 12s"
    assert line(STANDING, 400.0, 12.0, 79) == "the store has not answered for 12s  12.3k/20k 61% before that"
    assert line(STANDING, 400.0, 12.0, 20) == "store away"


def test_the_line_is_never_wider_than_the_window_and_nothing_in_it_moves_the_cursor():
    hostile = Standing(
        booked=10**17, ceiling=10**18, used_share=0.1, runs=3, fullest=HOSTILE + "漢字", waiting=10**9, limit=HOSTILE
    )
    for columns in range(1, 200):
        text = line(hostile, 1e9, 0.0, columns)
        assert len(text) <= columns
        assert re.fullmatch(r"[ -~]*", text)


def test_the_speed_may_be_above_the_rate_and_the_bar_is_full_then():
    assert line(STANDING, 1_003.0, 0.0, 99).startswith("[##########] 1,003/500 tok/s")


# -------------------------------------------------------------------- what it is told


def row(
    name: str, ceiling: int | None = None, *, limits: tuple[Limit, ...] = (), members: tuple[str, ...] = (), **sums
):
    books = RunBooks(ceiling, False, 0, tuple(sums.get(key, 0) for key in SUMS))
    return RunRow("nightly", name, books, limits, {}, 0.0, members)


def test_a_run_in_its_store_stands_as_its_processes_tell(tmp_path):
    waits = [{"agent": "a", "limit": "ceiling"}, {"agent": "b", "limit": "tokens_per_second", "seconds": 4.0}]
    with vault(f"sqlite:{tmp_path / 'books.db'}") as opened:
        book(opened, "nightly", 300)
        opened.exchange([Hold("2", "nightly", 200, 200, {})])
        opened.renew(told(nightly={"agents": [agent("a")], "waiting": 5, "waits": waits}))
        stands = standing_of(opened.rows())
    assert stands == Standing(
        booked=300,
        ceiling=1_000,
        used_share=0.3,
        fullest="nightly",
        in_flight=1,
        waiting=5,
        limit="tokens_per_second",
        seconds=4.0,
        rate=TOKENS.amount,
    )


def test_runs_in_which_nothing_was_booked_are_not_counted_beside_others():
    stands = standing_of([row("nightly"), row("a", 100, spent=10, unknown=40), row("b", 1_000, spent=100), row("c", 5)])
    assert stands is not None
    assert (stands.booked, stands.runs, stands.fullest, stands.used_share) == (150, 2, "a", 0.5)
    alone = standing_of([row("nightly", 7)])
    assert alone is not None
    assert (alone.booked, alone.runs, alone.ceiling, alone.used_share) == (0, 1, 7, 0.0)
    assert standing_of([]) is None


def test_a_rate_by_the_minute_is_told_by_the_second():
    limits = (
        Limit("requests_per_minute", "requests", 9.0, 60.0, 1.0),
        Limit("tokens_per_minute", "tokens", 600, 60, 1),
    )
    stands = standing_of([row("nightly", limits=limits)])
    assert stands is not None
    assert stands.rate == 10.0


def test_no_terminal_says_by_itself_that_it_has_our_size():
    """Else nobody would be told when a window really becomes one row lower."""
    for window in (Window(24, 80), Window(24, 80, 640, 384), Window(50, 200, 2_000, 1_001)):
        ours = window.without_last_row()
        assert (ours.rows, ours.columns, ours.width) == (window.rows - 1, window.columns, window.width)
        if window.height:
            assert ours.height // ours.rows == window.height // window.rows
        assert ours.height != window.height * ours.rows // window.rows


# -------------------------------------------------------------------- in a terminal


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A provider that bills 30 tokens a call."""

    def play(connection: Connection) -> None:
        while (request := connection.read()) is not None:
            assert CHAT in request[0]
            connection.write(whole(answer_json(None), "content-type: application/json"))

    with Server(play) as provider:
        yield provider


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def wait_for_line(shown: Terminal) -> None:
    shown.until_below("tok/s")


CALLS = """
import httpx, sys
body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
for _ in range(2):
    print(httpx.post(sys.argv[1] + "/v1/chat/completions", json=body, timeout=30).status_code)
print(sys.stdin.isatty(), sys.stdout.isatty(), sys.stderr.isatty())
print(input("name? "))
"""


@pytest.mark.processes
def test_the_line_is_in_the_last_row_and_the_screen_is_clean_after_it(server):
    """The command has the terminal: its input, one row less of its window, its output above the line."""
    words = ("--ceiling", "1k", "--tokens-per-second", "500", "--", *python(CALLS), server.url)
    with terminal(*RUN, *words, rows=12) as shown:
        shown.until_below("60/1,000 6%  0 in flight")
        shown.until_shown("name?")
        assert shown.lines()[:5] == ["200", "200", "True True True", "name?", ""]
        assert shown.window() == (11, 80)
        shown.type("Ada\n")
        assert shown.end() == 0
        assert shown.lines()[3:5] == ["name? Ada", "Ada"]
        assert shown.lines()[5].startswith("pacer: 2 calls, 60 tokens spent")
        assert shown.screen.cursor.y == len([text for text in shown.lines() if text])
        assert_clean(shown)


# Each prompt is answered as soon as the status line is to be seen below it.
PROGRAMS = {
    "no newline at the end": "print('one'); input('1? '); print('two' * 100); print('three', end='')",
    "10,000 lines": "input('1? ')\nfor i in range(10_000): print(i, '\\x1b[1;3%dmcolour\\x1b[0m' % (i % 8))",
    "a bar that is drawn again": """
import sys
input('1? ')
for i in range(2_000):
    sys.stdout.write('\\r%4d of 2000 ' % i)
    sys.stdout.flush()
input('2? ')
print('done')
""",
    "lines that are drawn again": """
import sys
print('x' * 1000)
input('1? ')
for i in range(300):
    sys.stdout.write('a %d\\nb %d\\n\\x1b[2A' % (i, i))
    sys.stdout.flush()
print('\\n\\n', end='')
input('2? ')
""",
    "a cleared screen": "print('\\x1b[2J\\x1b[H', end=''); input('1? '); print('\\x1b[2J\\x1b[Hend'); input('2? ')",
}


@pytest.mark.processes
@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS)
def test_what_a_program_writes_is_there_as_it_is_without_us(code):
    """Slow with 10,000 lines, which the emulated terminal reads twice."""

    def written(*command: str, rows: int, with_line: bool) -> str:
        with terminal(*command, rows=rows) as shown:
            for number in range(code.count("input(")):
                shown.until_shown(f"{number + 1}?")
                if with_line:
                    wait_for_line(shown)
                shown.type("\n")
            assert shown.end() == 0
            return "\n".join(shown.all_lines())

    paced, ending, _ = written(*RUN, "--", *python(code), rows=9, with_line=True).partition("pacer: 0 calls")
    assert ending
    assert paced.rstrip() == written(*python(code), rows=8, with_line=False)


@pytest.mark.processes
def test_what_is_on_the_screen_already_makes_room_for_the_line():
    """The cursor is in the last row, and in the middle of it."""
    words = ("sh", "-c", 'seq 20; printf "a prompt: "; exec "$@"', "sh")
    with terminal(*words, *RUN, "--", *python("input('1? ')"), rows=6) as shown:
        shown.until_shown("1?")
        wait_for_line(shown)
        assert shown.lines()[:5] == ["17", "18", "19", "20", "a prompt: 1?"]
        shown.type("\n")
        assert shown.end() == 0
        assert shown.all_lines()[16:21] == ["17", "18", "19", "20", "a prompt: 1?"]
        assert_clean(shown, 6)


@pytest.mark.processes
def test_a_scroll_region_that_a_program_resets_is_set_again():
    code = "input('1? '); print('\\x1b[r\\x1b[7;1H', end=''); input('2? ')\nfor i in range(30): print(i)\ninput('3? ')"
    with terminal(*RUN, "--", *python(code), rows=8) as shown:
        wait_for_line(shown)
        shown.type("\n")
        shown.until_shown("2?")
        shown.until(lambda: shown.screen.margins is not None)
        shown.type("\n")
        shown.until_shown("3?")
        wait_for_line(shown)
        shown.type("\n")
        assert shown.end() == 0
        assert not any("tok/s" in text for text in shown.all_lines())


# Not by input(), which overlooks a signal that comes just before it begins to read.
WAITS = """
import select
print('ready?', flush=True)
while not select.select([0], [], [], 0.05)[0]:
    pass
"""


@pytest.mark.processes
@pytest.mark.parametrize("how", ["typed", signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_screen_is_clean_after_a_signal(how):
    with terminal(*RUN, "--", *python(WAITS)) as shown:
        shown.until_shown("ready?")
        wait_for_line(shown)
        if how == "typed":
            shown.type("\x03")
        else:
            os.kill(shown.child, how)
        assert shown.end() != 0
        assert_clean(shown)


def assert_clean(shown: Terminal, rows: int = 12, columns: int = 80) -> None:
    """Nothing of the line is left, and the window is what it was."""
    assert not any("tok/s" in text for text in shown.all_lines())
    assert (shown.window(), shown.screen.margins) == ((rows, columns), None)


@pytest.mark.processes
def test_the_line_follows_the_window_and_leaves_nothing_behind():
    """Larger, smaller, by a single row, too narrow for all there is to say, too small for a line at all."""
    with terminal(*RUN, "--ceiling", "20k", "--", *python("print(*'abc', sep='\\n')\ninput('ready? ')")) as shown:
        shown.until_shown("ready?")
        wait_for_line(shown)
        for rows, columns in ((20, 90), (10, 80), (9, 80), (8, 80), (9, 40), (3, 40), (24, 80)):
            shown.resize(rows, columns)
            below = [False] * (rows - 1) + [rows > 3]
            size = (rows - 1 if rows > 3 else rows, columns)
            shown.until(lambda size=size: shown.window() == size)  # type: ignore[misc]
            shown.until(lambda below=below: ["tok/s" in text for text in shown.lines()] == below)  # type: ignore[misc]
        shown.type("\n")
        assert shown.end() == 0
        assert_clean(shown, 24, 80)


FULL_SCREEN = """
import os, sys, termios, tty
input('1? ')
before = termios.tcgetattr(0)
tty.setcbreak(0)
sys.stdout.write('\\x1b[?1049h\\x1b[2J\\x1b[HFULL')
sys.stdout.flush()
os.read(0, 1)
rows = os.get_terminal_size().lines
sys.stdout.write('\\x1b[%d;1HLAST' % rows)
sys.stdout.flush()
os.read(0, 1)
sys.stdout.write('\\x1b[?1049l')
sys.stdout.flush()
termios.tcsetattr(0, termios.TCSANOW, before)
"""


@pytest.mark.processes
@pytest.mark.parametrize("then", ["", "input('2? ')"])
def test_the_line_gives_way_to_a_program_that_has_the_screen_to_itself(then):
    with terminal(*RUN, "--", *python(FULL_SCREEN + then)) as shown:
        shown.until_shown("1?")
        wait_for_line(shown)
        shown.type("\n")
        shown.until_shown("FULL")
        shown.until(lambda: shown.window() == (12, 80))
        shown.type("x")
        shown.until_below("LAST")
        assert shown.screen.margins is None
        shown.type("x")
        if then:
            shown.until_shown("2?")
            shown.until(lambda: shown.window() == (11, 80))
            wait_for_line(shown)
            shown.type("\n")
        assert shown.end() == 0
        assert_clean(shown)


@pytest.mark.processes
def test_a_command_that_is_stopped_leaves_the_terminal_to_the_shell_and_comes_back_with_its_line():
    """Ctrl-Z and fg, as typed to a shell; in the background there is no line."""
    with terminal("bash", "--norc", "-i", PS1="PROMPT ") as shown:
        shown.until_shown("PROMPT")
        shown.type(f"{' '.join(RUN)} -- {sys.executable} -c \"input('1? '); input('2? ')\"\n")
        shown.until_shown("1?")
        wait_for_line(shown)
        shown.type("\x1a")
        shown.until_shown("Stopped")
        assert (shown.window(), shown.screen.margins) == ((12, 80), None)
        assert not any("tok/s" in text for text in shown.all_lines())
        shown.type("clear; fg\n")
        wait_for_line(shown)
        assert shown.window() == (11, 80)
        shown.type("\n")
        shown.until_shown("2?")
        shown.type("\n")
        shown.until_shown("pacer: 0 calls")
        shown.type("clear; exit\n")
        shown.end()
        assert_clean(shown)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "variables"),
    [
        ((*RUN, "--quiet", "--"), {}),
        ((*RUN, "--"), {"TERM": "dumb"}),
        (("sh", "-c", '"$@" 2>/dev/null', "sh", *RUN, "--"), {}),
    ],
)
def test_there_is_no_line_where_none_is_wanted(words, variables):
    """Nor is the window another one."""
    code = "import os; print('1?', flush=True); input(); print(os.get_terminal_size().lines)"
    with terminal(*words, *python(code), **variables) as shown:
        shown.until_shown("1?")
        shown.type("\n")
        assert shown.end() == 0
        assert shown.lines()[:3] == ["1?", "", "12"]


@pytest.mark.processes
def test_a_command_below_another_one_has_no_line_of_its_own():
    with terminal(*RUN, "--tokens-per-second", "700", "--", *RUN, "--", *python("input('1? ')")) as shown:
        shown.until_shown("1?")
        shown.until_below("0/700 tok/s")
        assert shown.window() == (11, 80)
        shown.type("\n")
        assert shown.end() == 0
        assert_clean(shown)


@pytest.mark.processes
def test_a_store_that_does_not_answer_holds_up_neither_the_command_nor_its_end(tmp_path):
    """Slow: it takes seconds until a store counts as silent."""
    path = tmp_path / "books.db"
    with terminal(*RUN, "--store", f"sqlite:{path}", "--", *python("input('1? '); print('end')")) as shown:
        wait_for_line(shown)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            shown.until_below("the store has not answered for 3s")
            shown.type("\n")
            shown.until_shown("what was spent cannot be told: the store")
        assert shown.end() == 0
        assert "end" in shown.lines()
        assert_clean(shown)
