"""The commands as an operator types them: what they show, what they change, and how they say no."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from pacer import Pacer
from pacer.cli import spelling, view
from pacer.cli.main import app
from pacer.entry import Hold, Limit, Look, Settle
from pacer.errors import LimitsConflict
from pacer.store.sqlite import SqliteVault
from tests.servers import URL, Inner, ask, books, ok
from tests.valkey import Valkey, free_port
from transports import BudgetTransport

ROOT = Path(__file__).parent.parent
TOKENS = Limit("tokens_per_second", "tokens", 100.0, 1.0, 1_000.0)
HOSTILE = "evil\x1b[2J\x9b31m\n\r\u202e[red]x[/red]\u2028\x7f:smile:"

# A process that makes calls, tells that it has, and lives until its input ends.
CHILD = """
import sys
import httpx
from pacer import Pacer
from tests.servers import URL, Inner, ask, ok
from transports import BudgetTransport

store, calls = sys.argv[1], int(sys.argv[2])
budget = Pacer(store=store, run="nightly", ceiling=100_000, tokens_per_second=1_000)
with httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client:
    with budget.agent("planner"), budget.agent(sys.argv[3]):
        for _ in range(calls):
            client.post(URL, json=ask())
        print("ready", flush=True)
        sys.stdin.read()
"""


def pacer(*words: str, **variables: str) -> Result:
    """One command, as typed, with variables of the environment."""
    return CliRunner().invoke(app, [*words], env={"COLUMNS": "80", **variables})


def said(result: Result, code: int) -> str:
    """The one line of an error."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Where the books of a test lie."""
    return f"sqlite:{tmp_path / 'books.db'}"


@contextmanager
def vault(store: str, pacer: str = "nightly", *runs: str, ceiling: int | None = 1_000) -> Iterator[SqliteVault]:
    """A process of the pacer that has opened these runs, and holds nothing."""
    with closing(SqliteVault(store.removeprefix("sqlite:"), pacer, 60.0)) as opened:
        for run in runs or (pacer,):
            opened.open(run, ceiling, (TOKENS,))
        yield opened


def book(vault: SqliteVault, run: str, tokens: int, *, id: str = "1") -> None:
    """A call that ended, at this price."""
    booked = {"spent": tokens, "input": tokens - 10, "output": 10, "calls": 1}
    vault.exchange([Hold(id, run, tokens, tokens, {}), Settle(id, run, booked, {})])


def told(**runs: Any) -> str:
    """What a process tells of its runs."""
    return json.dumps({"process": "host:1", "runs": runs})


def agent(name: str, spent: int = 0, *below: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "spent": spent, "agents": list(below), **more}


@contextmanager
def process(store: str, calls: int, agent: str = "worker") -> Iterator[subprocess.Popen[str]]:
    """A process that has made its calls, and lives."""
    words = [sys.executable, "-c", CHILD, store, str(calls), agent]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def until_shown(store: str, check: Any, run: str = "nightly") -> dict[str, Any]:
    """The status of a run as soon as it is as it must become."""
    give_up = time.monotonic() + 30
    while True:
        result = pacer("status", run, "--json", "--store", store)
        seen: dict[str, Any] = json.loads(result.stdout)
        if check(seen):
            return seen
        assert time.monotonic() < give_up, seen
        time.sleep(0.05)


def spent_by_agents(seen: dict[str, Any]) -> int:
    """What the agents of all processes have spent, as these told last."""
    rows = [row for process in seen["living"] for row in [*process["agents"], *process["finished"]]]
    return sum(row["spent"] for row in rows)


# -------------------------------------------------------------------- what is shown


def test_runs_lists_every_run_of_every_pacer(store):
    with vault(store, "nightly", "nightly", "other") as first, vault(store, "daily", ceiling=None):
        book(first, "other", 800)
        result = pacer("runs", "--store", store)
    assert result.exit_code == 0
    rows = {row[0]: row[1:] for row in map(str.split, result.stdout.splitlines()[2:])}
    assert rows["nightly/other"][:8] == ["800", "0", "0", "1,000", "80%", "1", "0", "0"]
    assert re.fullmatch(r"\d+s ago", " ".join(rows["nightly/other"][8:]))
    assert rows["nightly"][:5] == ["0", "0", "0", "1,000", "0%"]
    assert rows["daily"][:4] == ["0", "0", "0", "none"]


def test_runs_as_json_is_one_array_with_these_fields(store):
    with vault(store) as opened:
        book(opened, "nightly", 300)
        (row,) = json.loads(pacer("runs", "--json", "--store", store).stdout)
    assert set(row) == set(view.RunView.__struct_fields__)
    assert (row["run"], row["spent"], row["remaining"], row["used_share"], row["calls"]) == (
        "nightly",
        300,
        700,
        0.3,
        1,
    )


def test_a_store_without_runs(store):
    with vault(store) as opened:
        opened.end("nightly")
    assert pacer("runs", "--store", store).stdout == "no runs yet\n"
    assert json.loads(pacer("runs", "--json", "--store", store).stdout) == []
    assert "there are no runs yet" in said(pacer("status", "--store", store), 1)


def test_the_store_is_that_of_the_environment_unless_it_is_named(store, tmp_path):
    with vault(store):
        assert "nightly" in pacer("runs", PACER_STORE=store).stdout
        assert "nightly" in pacer("runs", "--store", store, PACER_STORE="redis://127.0.0.1:1/0").stdout


def test_status_tells_all_numbers_of_a_run(store):
    with vault(store) as opened:
        book(opened, "nightly", 300)
        opened.exchange([Hold("2", "nightly", 200, 200, {"tokens": 1_000})])
        shown = pacer("status", "nightly", "--store", store).stdout
    for line in (
        r"tokens     300 spent \+ 0 unknown \+ 200 held, of 1,000 \(30% used\)",
        r"remaining  500",
        r"input      290 \(of these 0 cached, 0 written to a cache\)",
        r"output     10 \(of these 0 reasoning\)",
        r"estimated  0.0% of what is spent",
        r"calls      1 ended, 1 in flight",
        r"rate       tokens_per_second 100, \d+ of 1,000 there now",
        r"state      running",
        r"last used  0s ago, 0 living processes",
    ):
        assert re.search(rf"^{line} *$", shown, re.MULTILINE), line


def test_status_shows_the_tree_of_agents_and_who_waits_for_what(store):
    waits = [{"agent": "planner/a", "model": "m", "tokens": 70, "limit": "ceiling", "since_seconds": 2.5}]
    ended = {"name": "b", "agents": 3, "spent": 30, "calls": 3}
    tree = agent("planner", 100, agent("a", 40, in_flight=1), finished=[ended], new_field={"x": 1})
    run = {"agents": [tree], "waiting": 3, "waits": waits, "refusals": {"ceiling": 2}}
    with vault(store) as opened:
        opened.renew(told(nightly=run))
        shown = pacer("status", "--store", store).stdout
        seen = json.loads(pacer("status", "--json", "--store", store).stdout)
    assert set(seen) == set(view.StatusView.__struct_fields__)
    assert seen["living"][0]["agents"][0]["agents"][0]["spent"] == 40
    lines = [line.split() for line in shown.splitlines()]
    assert ["refused", "2", "by", "ceiling"] in lines
    assert ["planner/a", "m", "70", "ceiling", "2.5s", "not", "known"] in lines
    assert ["and", "2", "more"] in lines
    tree_shown = shown[shown.index("host:1") :]
    assert re.findall(r"^( *)(\w+)(?: \(3 ended\))? +(\d+)", tree_shown, re.MULTILINE) == [
        ("  ", "planner", "100"),
        ("    ", "b", "30"),
        ("    ", "a", "40"),
    ]


def test_status_without_a_name_shows_the_run_of_the_environment_or_the_one_used_last(store):
    with vault(store, "first"), vault(store, "second", "second", "inner"):
        assert json.loads(pacer("status", "--json", "--store", store).stdout)["run"].startswith("second")
        assert json.loads(pacer("status", "--json", "--store", store, PACER_RUN="first").stdout)["run"] == "first"
        assert "'third'" in said(pacer("status", "--store", store, PACER_RUN="third"), 1)


def test_a_pause_of_the_pacer_is_seen_at_its_runs(store):
    budget = Pacer(store=store, run="nightly")
    budget.pause()
    assert "paused, with all runs of pacer nightly" in pacer("status", "--store", store).stdout
    budget.resume()
    assert "running" in pacer("status", "--store", store).stdout
    budget.close()


@pytest.mark.parametrize("status", ["[]", "x", '{"process": 7}', '{"runs": {"nightly": {"agents": 5}}}', "{" * 100_000])
def test_what_another_release_tells_is_counted_though_it_cannot_be_read(store, status):
    with vault(store) as opened:
        opened.renew(status)
        seen = json.loads(pacer("status", "--json", "--store", store).stdout)
        assert seen["living"][0]["is_readable"] is False
        assert "(not readable)" in pacer("status", "--store", store).stdout


def test_looking_and_setting_leave_no_process_behind(store):
    with vault(store) as opened:
        for command in (("status",), ("set", "nightly", "--pause")):
            assert pacer(*command, "--store", store).exit_code == 0
        opened.rows()
        with closing(sqlite3.connect(store.removeprefix("sqlite:"))) as file:
            assert file.execute("SELECT id FROM members").fetchall() == [(opened.member,)]


# -------------------------------------------------------------------- names from elsewhere


@pytest.mark.parametrize("command", [("runs",), ("status",), ("status", "--json"), ("runs", "--json")])
def test_no_name_can_move_the_cursor_forge_a_line_or_be_markup(store, command):
    """Whatever an agent, a model, a limit or a process calls itself, it is the same number of lines."""

    def shown(name: str) -> str:
        waits = [{"agent": name, "model": name, "limit": name}]
        run = {"agents": [agent(name)], "waiting": 1, "waits": waits, "refusals": {name: 1}}
        opened.renew(json.dumps({"process": name, "runs": {"nightly": run}}))
        return pacer(*command, "--store", store).stdout

    with vault(store) as opened:
        hostile, tame = shown(HOSTILE), shown("tame")
    assert len(hostile.splitlines()) == len(tame.splitlines())
    assert not re.search(r"[^\x20-\x7e\n…]", hostile)
    if command == ("status",):
        assert r"evil\x1b[2J\x9b31m\n\r\u202e[red]x" in hostile


def test_a_long_name_stays_on_its_line(store):
    with vault(store) as opened:
        opened.renew(told(nightly={"agents": [agent("x " * 60 + "forged 1 2 3", 7)]}))
        lines = pacer("status", "--store", store).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert not any("forged" in line for line in lines)
    assert lines[-1].split()[-8:] == ["x…", "7", "0", "0", "0", "0", "0", "0"]


def test_a_run_that_is_asked_for_by_an_odd_name_is_an_odd_name(store):
    with vault(store):
        assert r"'x\\n\x1b" in said(pacer("status", "x\\n\x1b", "--store", store), 1).replace("\\\\\\\\", "\\\\")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (-5, "-5"), (999_999, "999,999"), (1_000_000, "1.00M"), (12_345_678, "12.3M"), (2**53, "9.01P")],
)
def test_short_numbers(amount, text):
    assert spelling.short(amount) == text


# -------------------------------------------------------------------- names of runs


def test_a_run_is_found_by_either_name(store):
    with vault(store, "a", "a", "x"), vault(store, "b", "b", "x", "y"):
        for asked, found in {"a": "a", "a/a": "a", "y": "b/y", "b/x": "b/x"}.items():
            assert json.loads(pacer("status", asked, "--json", "--store", store).stdout)["run"] == found
        assert "several runs are called 'x': a/x, b/x" in said(pacer("status", "x", "--store", store), 1)


@pytest.mark.parametrize("command", [("status",), ("end",), ("set", "--pause")])
def test_who_mistypes_a_run_hears_of_those_that_are_near(store, command):
    with vault(store, "nightly"), vault(store, "daily"):
        assert "there is no run 'nigtly': did you mean nightly?" in said(pacer(*command, "nigtly", "--store", store), 1)
        assert "there is no run 'zzz': there are " in said(pacer(*command, "zzz", "--store", store), 1)
        assert len(json.loads(pacer("runs", "--json", "--store", store).stdout)) == 2


# -------------------------------------------------------------------- end


def test_end_prints_the_final_numbers_and_removes_the_books(store):
    with vault(store) as opened:
        book(opened, "nightly", 300)
    result = pacer("end", "nightly", "--store", store)
    assert result.exit_code == 0
    assert "300 spent + 0 unknown + 0 held, of 1,000" in result.stdout
    assert result.stdout.endswith("ended nightly\n")
    assert json.loads(pacer("runs", "--json", "--store", store).stdout) == []


def test_end_of_one_run_leaves_the_others_of_its_pacer(store):
    with vault(store, "nightly", "nightly", "other"):
        assert pacer("end", "nightly/other", "--store", store).exit_code == 0
    assert [row["run"] for row in json.loads(pacer("runs", "--json", "--store", store).stdout)] == ["nightly"]


def test_end_refuses_while_calls_are_in_flight_or_processes_live(store):
    with vault(store) as opened:
        opened.exchange([Hold("1", "nightly", 50, 50, {})])
        assert "calls in flight: 1, living processes: 0;" in said(pacer("end", "nightly", "--store", store), 1)
        opened.renew(told(nightly={}))
        assert "calls in flight: 1, living processes: 1;" in said(pacer("end", "nightly", "--store", store), 1)
        assert pacer("end", "nightly", "--force", "--store", store).exit_code == 0
        assert opened.rows() == []


# -------------------------------------------------------------------- set


def test_set_changes_a_run_for_all_who_are_in_it(store):
    with vault(store) as opened:
        words = ("--ceiling", "1.5k", "--tokens-per-minute", "600", "--requests-per-minute", "60", "--pause")
        result = pacer("set", "nightly", *words, "--store", store)
        assert (result.exit_code, result.stdout) == (0, "set nightly\n")
        answer = opened.exchange([Look("nightly")])
        assert (answer.runs["nightly"].ceiling, answer.runs["nightly"].paused) == (1_500, True)
        assert [(limit.setting, limit.amount, limit.burst) for limit in opened.limits()] == [
            ("tokens_per_minute", 600.0, 100.0),
            ("requests_per_minute", 60.0, 10.0),
        ]
        assert pacer("set", "nightly", "--ceiling", "none", "--resume", "--store", store).exit_code == 0
        found = opened.exchange([Look("nightly")]).runs["nightly"]
        assert (found.ceiling, found.paused) == (None, False)


def test_a_rate_that_is_not_named_stays_and_none_takes_one_away(store):
    with vault(store) as opened:
        pacer("set", "nightly", "--requests-per-minute", "60", "--store", store)
        assert opened.limits()[0] == TOKENS
        pacer("set", "nightly", "--burst", "50", "--store", store)
        assert [limit.burst for limit in opened.limits()] == [50.0, 10.0]
        pacer("set", "nightly", "--tokens-per-second", "none", "--store", store)
        assert [limit.setting for limit in opened.limits()] == ["requests_per_minute"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ceiling", "-1"), "ceiling='-1' is not accepted: give a whole number of tokens from 0"),
        (("--ceiling", "1e3"), "ceiling='1e3' is not accepted"),
        (("--ceiling", "5", "--tokens-per-second", "0"), "tokens_per_second='0' is not accepted"),
        (("--tokens-per-second", "5", "--tokens-per-minute", "5"), "give one of them"),
        ((), "nothing to set: give --ceiling"),
    ],
)
def test_set_takes_nothing_that_the_settings_do_not_take(store, words, message):
    with vault(store) as opened:
        assert message in said(pacer("set", "nightly", *words, "--store", store), 2)
        assert opened.limits() == (TOKENS,)
        assert opened.exchange([Look("nightly")]).runs["nightly"].ceiling == 1_000


# -------------------------------------------------------------------- wrong stores and settings


@pytest.mark.parametrize("command", [("runs",), ("status",), ("end", "x"), ("set", "x", "--pause")])
def test_the_memory_of_a_process_is_no_store_to_look_into(command):
    assert "name a shared one with --store or PACER_STORE" in said(pacer(*command), 2)


def test_a_store_that_is_not_there_is_an_error_and_is_not_made(tmp_path):
    path = tmp_path / "no.db"
    assert f"the store '{path}' is not there" in said(pacer("runs", "--store", f"sqlite:{path}"), 2)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("--store", "postgres:x"), {}, "store='postgres:x' is not accepted: give memory:, sqlite:PATH"),
        ((), {"PACER_STORE": "file"}, "PACER_STORE='file' is not accepted"),
        ((), {"PACER_CEILING": "much"}, "PACER_CEILING='much' is not accepted"),
        ((), {"PACER_SOTRE": "sqlite:x"}, "PACER_SOTRE is unknown: did you mean PACER_STORE?"),
        (("--store", "redis://:secret@h:x/0"), {}, "the url of the store cannot be read"),
    ],
)
def test_wrong_settings_are_named_with_their_values(words, variables, message):
    line = said(pacer("runs", *words, **variables), 2)
    assert message in line
    assert "secret" not in line


def test_a_store_that_is_away_is_named_without_its_password():
    port = free_port()
    line = said(pacer("runs", "--store", f"redis://user:secret@127.0.0.1:{port}/0"), 2)
    assert f"redis://127.0.0.1:{port}/0 is away" in line
    assert "secret" not in line
    assert "user" not in line


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_how_to_install_it(missing):
    code = f"import sys; sys.modules['{missing}'] = None; from pacer.cli.main import app; app()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    expected = "pacer: the commands need typer and rich: pip install token-pacer[cli]\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


# -------------------------------------------------------------------- real processes


def typed(*words: str, store: str, **variables: str) -> tuple[int, str]:
    """One command in a terminal of 80 columns: its exit code, and all that the terminal got."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PACER_STORE": store, "TERM": "xterm-256color", "COLUMNS": "80", **variables}
    words = (sys.executable, "-m", "pacer.cli", *words)
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT) as child:
        os.close(theirs)
        seen = b""
        while piece := _read(ours):
            seen += piece
    os.close(ours)
    return child.returncode, seen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # nobody writes any more
        return b""


def call(budget: Pacer) -> None:
    """One call of 30 tokens."""
    with httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client:
        client.post(URL, json=ask())


@contextmanager
def a_store(kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:{directory / 'books.db'}"
    else:
        with Valkey(requirepass="secret") as server:
            yield server.url


@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_processes_that_share_a_run_are_seen_from_a_terminal(kind, tmp_path):
    """Both trees are there, the run goes on when its processes are gone, and ends when it is ended."""
    with a_store(kind, tmp_path) as store:
        with process(store, 2, HOSTILE), process(store, 3, "quiet"):
            until_shown(store, lambda seen: seen["spent"] == spent_by_agents(seen) == 150 and seen["processes"] == 2)
            code, shown = typed("status", store=store)
            assert (code, "150 spent + 0 unknown + 0 held, of 100,000" in shown) == (0, True)
            assert re.search(r"quiet +90 ", shown)
            assert re.search(r"evil\\x1b\S* +60 ", shown)
            assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in shown.split("\r\n")) <= 80
            code, shown = typed("end", "nightly", store=store)
            assert (code, shown.count("\r\n") <= 2, "living processes: 2" in shown) == (1, True, True)
        with closing(Pacer(store=store, run="nightly")) as resumed:
            assert books(resumed) == (150, 0, 0, 0)
            assert resumed.status().ceiling == 100_000
            call(resumed)
        assert "secret" not in typed("set", "nightly", "--ceiling", "7k", store=store)[1]
        assert json.loads(pacer("status", "--json", "--store", store).stdout)["ceiling"] == 7_000
        code, shown = typed("end", "nightly", "--force", store=store)
        assert (code, "180 spent" in shown) == (0, True)
        assert typed("runs", store=store) == (0, "no runs yet\r\n")


def test_colours_are_for_terminals_that_want_them(store):
    with vault(store) as opened:
        book(opened, "nightly", 900)
        assert "\x1b[31m" in typed("runs", store=store)[1]
        assert "\x1b[3" not in typed("runs", store=store, NO_COLOR="1")[1]
        assert "\x1b" not in pacer("runs", "--store", store).stdout


def test_what_a_killed_process_has_spent_stays(store):
    with process(store, 2) as child:
        until_shown(store, lambda seen: seen["processes"] == 1)
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen = json.loads(pacer("status", "--json", "--store", store).stdout)
    assert (seen["spent"], seen["calls"]) == (60, 2)


def test_other_limits_conflict_across_processes_until_they_are_to_change_it_for_all(store):
    with process(store, 1):
        with pytest.raises(LimitsConflict, match="ceiling=100000 and was joined with ceiling=5"):
            Pacer(store=store, run="nightly", ceiling=5)
        with closing(Pacer(store=store, run="nightly", ceiling=5, update_limits=True)):
            assert until_shown(store, lambda seen: seen["ceiling"] == 5)["remaining"] == -25
