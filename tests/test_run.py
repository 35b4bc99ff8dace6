"""``pacer run`` as a person uses it: stock scripts that know nothing of us, against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pacer import Pacer
from pacer.cli import run, supervision
from pacer.cli.model_server import ModelServer
from tests.commands import ROOT, RUN, Terminal, environment, paced
from tests.servers import CHAT, Connection, Server, answer_json, whole

pytestmark = pytest.mark.processes

NUMBERS = re.compile(r"pacer: (\d+) calls, (\d+) tokens spent, (\d+) unknown, (\d+) refused, waited ([\d.]+) s\n", re.M)

OPENAI = """
import sys, openai
client = openai.OpenAI(api_key="k", base_url=URL + "/v1", max_retries=0)
for _ in range(int(sys.argv[1])):
    try:
        answer = client.chat.completions.create(model="m", max_tokens=10, messages=[{"role": "user", "content": "Hi"}])
        print(answer.usage.total_tokens, flush=True)
    except openai.APIStatusError as error:
        print(error.status_code, flush=True)
"""
ANTHROPIC = """
import asyncio, anthropic
async def main():
    async with anthropic.AsyncAnthropic(api_key="k", base_url=URL, max_retries=0) as client:
        answer = await client.messages.create(model="m", max_tokens=10, messages=[{"role": "user", "content": "Hi"}])
        print(answer.usage.input_tokens + answer.usage.output_tokens)
asyncio.run(main())
"""
# A call without an SDK, which takes long to import.
HTTPX = """
import httpx
def call(_=None):
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    return httpx.post(URL + "/v1/chat/completions", json=body, timeout=30).status_code
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A provider that bills 30 tokens a call, in OpenAI's way and Anthropic's."""

    def play(connection: Connection) -> None:
        while (request := connection.read()) is not None:
            bill = None if CHAT in request[0] else {"input_tokens": 20, "output_tokens": 10}
            more = {} if bill is None else {"type": "message", "role": "assistant", "content": []}
            connection.write(whole(answer_json(bill, **more), "content-type: application/json"))

    with Server(play) as provider:
        yield provider


@pytest.fixture
def script(tmp_path: Path, server: Server) -> Any:
    """Writes a program to a file, and gives its path."""

    def write(code: str, name: str = "program.py") -> str:
        path = tmp_path / name
        path.write_text(f"URL = {server.url!r}\n{textwrap.dedent(code)}")
        return str(path)

    return write


def started(*words: str, **pipes: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*RUN, *words], text=True, env=environment(), **pipes)


def numbers(stderr: str) -> tuple[int, int, int, int]:
    """Calls, spent, unknown, refused of the first line."""
    found = NUMBERS.match(stderr)
    assert found is not None, stderr
    return int(found[1]), int(found[2]), int(found[3]), int(found[4])


# -------------------------------------------------------------------- paced


def test_a_stock_openai_script_is_capped_and_the_receipt_is_the_bill(script):
    done = paced("--ceiling", "100", "--", sys.executable, script(OPENAI), "3")
    assert (done.returncode, done.stdout) == (0, "30\n30\n402\n")
    assert numbers(done.stderr) == (2, 60, 0, 1)


def test_a_stock_anthropic_script_is_metered(script):
    done = paced("--", sys.executable, script(ANTHROPIC))
    assert (done.returncode, done.stdout) == (0, "30\n")
    assert numbers(done.stderr) == (1, 30, 0, 0)


def test_a_rate_makes_it_wait_and_the_receipt_says_how_long(script):
    done = paced("--tokens-per-second", "40", "--burst", "1", "--", sys.executable, "-c", HTTPX_TWICE % script(HTTPX))
    found = NUMBERS.match(done.stderr)
    assert found is not None, done.stderr
    assert float(found[5]) > 0
    assert re.search(r"pacer: 1 waited \d\.\d s for tokens_per_second\n", done.stderr)


HTTPX_TWICE = "import runpy; call = runpy.run_path(%r)['call']; print(call(), call())"


def test_without_pacer_run_the_script_is_as_it_was(script):
    """Nothing of ours is in a Python that was not started by ``pacer run``; under it the same bytes come out."""
    program = script(OPENAI)
    plain = subprocess.run([sys.executable, program, "2"], capture_output=True, env=environment(), timeout=60)
    done = paced("--quiet", "--", sys.executable, program, "2")
    assert (done.returncode, done.stdout.encode(), done.stderr.encode()) == (
        plain.returncode,
        plain.stdout,
        plain.stderr,
    )
    code = "import sys; print([name for name in sys.modules if 'pacer' in name or name == 'sitecustomize'])"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert bare.stdout == "[]\n"


def test_nothing_is_loaded_in_a_python_that_makes_no_calls():
    code = "import sys; print([name for name in sys.modules if name.startswith(('pacer', 'transports', 'pydantic'))])"
    assert paced("--", sys.executable, "-c", code).stdout == "[]\n"


LATER = ("httpx", "transports", "rich.console", "typer.rich_utils", "opentelemetry", "tenacity", "aiolimiter", "redis")


def test_the_start_of_a_command_waits_for_nothing_that_it_does_without():
    """Each of these would hold up every command for tens of milliseconds."""
    command = [sys.executable, "-X", "importtime", "-m", "pacer.cli", "run", "--quiet", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    loaded = re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE)
    assert "pacer.cli.main" in loaded
    assert "pacer.store.sqlite" in loaded
    assert [name for name in loaded if name.startswith(LATER)] == []


PLUGIN = """
import os
print("loaded by", os.getpid())
class plugin:
    def new_schema_validator(*_):
        return None, None, None
"""


def test_a_plugin_of_pydantic_does_not_hold_up_the_command_and_is_there_in_it(tmp_path):
    there = tmp_path / "theirs-1.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (there / "entry_points.txt").write_text("[pydantic]\ntheirs = theirs:plugin\n")
    (tmp_path / "theirs.py").write_text(PLUGIN)
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    code = "import os, pydantic_settings; print(os.getpid(), os.environ.get('PYDANTIC_DISABLE_PLUGINS'))"
    loaded, own = paced("--", sys.executable, "-c", code, PYTHONPATH=path).stdout.splitlines()
    assert own.split()[1] == "None"
    assert loaded.removeprefix("loaded by ") == own.split()[0]
    kept = paced("--", sys.executable, "-c", code, PYTHONPATH=path, PYDANTIC_DISABLE_PLUGINS="theirs")
    assert kept.stdout.split()[1:] == ["theirs"]


FAMILY = """
import multiprocessing, subprocess, sys
if __name__ == "__main__":
    print(call())
    subprocess.run([sys.executable, "-c", "import runpy; print(runpy.run_path(%r)['call']())" % sys.argv[1]])
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(call, [1, 2]))
"""


def test_children_of_every_kind_share_one_ceiling(script, tmp_path):
    """Also those of a pool, which are ended by a signal: their refusals are told."""
    words = ("--ceiling", "130", "--", sys.executable, script(HTTPX + FAMILY), script(HTTPX, "call.py"))
    done = paced(*words)
    assert done.stdout == "200\n200\n[200, 402]\n[402, 402]\n"
    assert numbers(done.stderr) == (3, 90, 0, 3)


def test_the_run_of_the_environment_goes_on_and_only_what_is_new_is_told(script, tmp_path):
    store = f"sqlite:{tmp_path / 'books.db'}"
    words = ("--ceiling", "1k", "--", sys.executable, "-c", HTTPX_TWICE % script(HTTPX))
    for _ in range(2):
        done = paced(*words, PACER_STORE=store, PACER_RUN="nightly")
        assert numbers(done.stderr) == (2, 60, 0, 0)
    budget = Pacer(store=store, run="nightly")
    assert (budget.status().spent, budget.status().ceiling) == (120, 1_000)
    budget.close()


def test_an_option_wins_over_its_variable(script):
    words = ("--ceiling", "0", "--", sys.executable, "-c", HTTPX_TWICE % script(HTTPX))
    for name in ("PACER_CEILING", "pacer_ceiling"):
        assert paced(*words, **{name: "1M"}).stdout == "402 402\n"


def test_its_own_store_is_private_and_gone_afterwards(tmp_path):
    code = (
        "import os; place = os.environ['PACER_STORE'][7:]; print(oct(os.stat(os.path.dirname(place)).st_mode), place)"
    )
    mode, place = paced("--", sys.executable, "-c", code, TMPDIR=str(tmp_path)).stdout.split()
    assert mode == "0o40700"
    assert Path(place).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------- beside others


def test_an_existing_sitecustomize_is_run_as_if_it_were_the_only_one(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os; 'TOKEN_PACER_TALLY' in os.environ and print('theirs', __name__)"
    )
    code = "import sitecustomize; print(sitecustomize.__file__)"
    done = paced("--quiet", "--", sys.executable, "-c", code, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout == f"theirs sitecustomize\n{tmp_path / 'sitecustomize.py'}\n"


def test_a_sitecustomize_that_fails_fails_as_it_does_without_us(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise RuntimeError('theirs')")
    there = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    plain = subprocess.run([sys.executable, "-c", ""], capture_output=True, text=True, env=environment(**there))
    assert "theirs" in plain.stderr
    with_ours = paced("--quiet", "--", "sh", "-c", 'exec "$0" -c ""', sys.executable, **there)
    assert plain.stderr.strip() in with_ours.stderr


def test_a_script_that_becomes_python_is_covered(script, tmp_path):
    """As ``uv run`` does it."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    done = paced("--", str(wrapper), sys.executable, "-c", HTTPX_TWICE % script(HTTPX), PYTHONSAFEPATH="1")
    assert numbers(done.stderr) == (2, 60, 0, 0)


def test_a_module_is_covered(script, tmp_path):
    script(HTTPX + "print(call())", "agents.py")
    done = paced("--", sys.executable, "-m", "agents", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert numbers(done.stderr) == (1, 30, 0, 0)


def test_a_virtual_environment_without_us_is_named(tmp_path):
    """It has no token-pacer, so its calls are not paced: that is said, and does it no harm."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (tmp_path / "httpx.py").write_text("print('theirs')")
    code = f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}] + [{str(tmp_path)!r}]; import httpx"
    done = paced("--ceiling", "5", "--", str(python), "-c", code)
    assert done.stdout == "theirs\n"
    assert f"calls of {python} were NOT PACED: token-pacer is not installed there" in done.stderr


@pytest.mark.parametrize("name", ["pacer", "transports"])
def test_a_program_with_a_module_of_our_name_goes_on_and_is_told(script, name):
    script("", f"{name}.py")
    done = paced("--ceiling", "0", "--", sys.executable, script(HTTPX + "print(call())"))
    assert (done.returncode, done.stdout) == (0, "200\n")
    assert f"calls of {sys.executable} were NOT PACED: token-pacer is not installed there, or hidden" in done.stderr


# -------------------------------------------------------------------- what is said


def test_a_command_without_python_is_told():
    done = paced("--", "sh", "-c", "exit 5")
    assert done.returncode == 5
    assert done.stderr.startswith("pacer: no Python of this command was paced: ")
    assert "not covered" in done.stderr
    assert paced("--quiet", "--", "true").stderr == ""


@pytest.mark.parametrize("word", ["-E", "-I"])
def test_a_python_that_does_not_look_at_its_environment_is_told(word):
    assert "no Python of this command was paced" in paced("--", sys.executable, word, "-c", "").stderr


def test_limits_that_met_no_call_are_told_in_capitals():
    assert paced("--ceiling", "5k", "--", sys.executable, "-c", "").stderr == "pacer: NO MODEL CALL WAS SEEN\n"
    assert numbers(paced("--", sys.executable, "-c", "").stderr) == (0, 0, 0, 0)


def test_books_that_are_gone_at_the_end_are_told():
    code = "import os; os.remove(os.environ['PACER_STORE'][7:])"
    done = paced("--", sys.executable, "-c", code)
    assert done.returncode == 0
    assert done.stderr.startswith("pacer: what was spent cannot be told: the store ")


def test_a_program_that_has_a_budget_of_ours_shares_the_run(script):
    code = (
        HTTPX
        + """
from transports import BudgetTransport
client = httpx.Client(transport=BudgetTransport())
body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
print(client.post(URL + "/v1/chat/completions", json=body).extensions["pacer"].charged, call())
"""
    )
    done = paced("--ceiling", "1k", "--", sys.executable, script(code))
    assert done.stdout == "30 200\n"
    assert numbers(done.stderr) == (2, 60, 0, 0)


def test_a_refusal_can_fail_a_command_that_succeeded(script):
    ask = ("--", sys.executable, "-c", HTTPX_TWICE % script(HTTPX))
    assert paced("--fail-over-ceiling", "--ceiling", "0", *ask).returncode == run.REFUSED
    assert paced("--fail-over-ceiling", "--ceiling", "1k", *ask).returncode == 0
    failing = HTTPX_TWICE % script(HTTPX) + "; raise SystemExit(9)"
    assert paced("--fail-over-ceiling", "--ceiling", "0", "--", sys.executable, "-c", failing).returncode == 9


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("--celing", "5"), {}, "--ceiling"),
        (("--ceiling", "much"), {}, "ceiling='much' is not accepted: give a whole number of tokens"),
        (("--burst", "5"), {}, "burst=5 (PACER_BURST) needs a rate"),
        ((), {"PACER_CELING": "5"}, "PACER_CELING is unknown: did you mean PACER_CEILING?"),
        (("--store", "redis://127.0.0.1:1/0"), {}, "127.0.0.1:1"),
    ],
)
def test_wrong_settings_are_told_before_the_command_starts(words, variables, message):
    done = paced(*words, "--", sys.executable, "-c", "print('started')", **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_limits_that_the_run_does_not_have_are_told_before_the_command_starts(tmp_path):
    store = f"sqlite:{tmp_path / 'books.db'}"
    Pacer(store=store, run="nightly", ceiling=50).close()
    done = paced("--store", store, "--run", "nightly", "--ceiling", "60", "--", "echo", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is open in its store with ceiling=50" in done.stderr


# -------------------------------------------------------------------- the receipt and the report

OWN = (
    HTTPX
    + """
import sys
from pacer import Pacer
from transports import BudgetTransport
body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
for budget in ({}, {"pacer": Pacer(ceiling=0)}):
    with httpx.Client(transport=BudgetTransport(**budget)) as client:
        print(client.post(URL + "/v1/chat/completions", json=body).status_code)
"""
)


def test_the_receipt_and_the_report_are_written(script, tmp_path):
    files = ("--receipt", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html"))
    done = paced("--quiet", "--ceiling", "100", *files, "--", sys.executable, script(OPENAI), "3", "SECRET")
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads((tmp_path / "r.json").read_text())
    assert made["command"] == os.path.basename(sys.executable)
    assert (made["exit_code"], made["refused"], made["calls_untold"]) == (0, 1, 0)
    assert (made["books"]["calls"], made["books"]["spent"], made["books"]["input"]) == (2, 60, 40)
    assert [(model["name"], model["spent"], model["server"]) for model in made["models"]] == [("m", 60, "127.0.0.1")]
    assert made["limits"] == {"ceiling": 100}
    page = (tmp_path / "r.html").read_text()
    assert "60.0% of the ceiling of 100 used" in page
    assert "SECRET" not in page + (tmp_path / "r.json").read_text()


def test_budgets_of_the_program_are_in_the_receipt_and_their_refusals_can_fail_it(script, tmp_path):
    """One that joins the run is in its sums, one that is a budget of its own stands apart."""
    words = ("--fail-over-ceiling", "--receipt", str(tmp_path / "r.json"), "--", sys.executable, script(OWN))
    done = paced(*words)
    assert (done.returncode, done.stdout) == (run.REFUSED, "200\n402\n")
    assert numbers(done.stderr) == (1, 30, 0, 0)
    made = json.loads((tmp_path / "r.json").read_text())
    assert (made["exit_code"], made["refused"], made["refused_by_others"]) == (run.REFUSED, 0, 1)
    assert [(part["name"], part["refused"]) for part in made["others"]] == [("default", 1)]


DIES = (
    HTTPX
    + """
import os, signal, sys
print(call(), flush=True)
if sys.argv[1] == "crash":
    raise RuntimeError("theirs")
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""
)


@pytest.mark.parametrize(("how", "code"), [("crash", 1), ("SIGKILL", 137), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_command_that_dies_has_a_receipt(script, tmp_path, how, code):
    done = paced("--receipt", str(tmp_path / "r.json"), "--", sys.executable, script(DIES), how)
    assert (done.returncode, done.stdout) == (code, "200\n")
    assert "pacer: 1 calls, 30 tokens spent, 0 unknown, 0 refused, waited 0.0 s\n" in done.stderr
    made = json.loads((tmp_path / "r.json").read_text())
    assert (made["exit_code"], made["books"]["spent"]) == (code, 30)


LEAVES_OPEN = """
import os, signal, httpx
body = {"model": "m", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
with httpx.Client() as client, client.stream("POST", URL + "/v1/chat/completions", json=body) as answer:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_open_is_told_as_held(script):
    done = paced("--", sys.executable, script(LEAVES_OPEN))
    assert re.match(r"pacer: 0 calls, 0 tokens spent, 0 unknown, \d+ still held, 0 refused", done.stderr), done.stderr


def test_what_is_written_among_the_records_by_others_breaks_nothing(script, tmp_path):
    code = "import os; open(os.environ['TOKEN_PACER_TALLY'] + '/calls', 'ab').write(b'\\xff\\n{\\n'); "
    code += "open(os.environ['TOKEN_PACER_TALLY'] + '/uncovered', 'a').write('boto3 \\x1b[2Ja\\n'); "
    done = paced("--", sys.executable, "-c", code + HTTPX_TWICE % script(HTTPX))
    assert "pacer: 1 call to ?[2ja by boto3 was NOT PACED\n" in done.stderr
    assert "pacer: 2 calls, 60 tokens spent, 0 unknown, 0 refused, waited 0.0 s\n" in done.stderr
    assert "pacer: records of calls that could not be read: 2\n" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--receipt", "no/such/r.json"), "--receipt='no/such/r.json' is not accepted: give a file in a directory"),
        (("--report", os.devnull), f"--report={os.devnull!r} is not accepted: give a file in a directory"),
        (("--receipt", "r", "--report", "./r"), "--report='./r' is not accepted: give another file than that of"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_command_starts(words, message):
    done = paced(*words, "--", sys.executable, "-c", "print('started')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pacer: {message}")


def test_a_file_that_cannot_be_written_in_the_end_is_told_even_if_nothing_else_is(tmp_path):
    path = tmp_path / "r.json"
    done = paced("--quiet", "--receipt", str(path), "--", sys.executable, "-c", f"import os; os.mkdir({str(path)!r})")
    assert done.returncode == 0
    assert done.stderr == f"pacer: {str(path)!r} cannot be written: Is a directory\n"


FLEET = """
import asyncio, httpx2, openai
async def agent(client, number):
    text = f"You are agent number {number} of a fleet. Tell the weather at the harbour in one word, please."
    for _ in range(2):
        try:
            await client.chat.completions.create(
                model="gemma", max_tokens=8, messages=[{"role": "user", "content": text}],
                extra_headers={"x-pacer-agent": f"agent-{number}"},
            )
        except openai.APIStatusError as error:
            print(error.status_code)
async def main():
    http = openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_keepalive_connections=0))  # see ModelServer
    async with openai.AsyncOpenAI(api_key="k", base_url=URL + "/v1", max_retries=0, http_client=http) as client:
        await asyncio.gather(*(agent(client, number) for number in range(20)))
asyncio.run(main())
"""


@pytest.mark.model
@pytest.mark.xdist_group("model")
def test_the_receipt_of_twenty_agents_is_the_bill_of_a_real_model(tmp_path):
    """Slow: a real model answers twenty agents. What is in none of the sums has cost nothing."""
    with ModelServer() as model:
        (tmp_path / "fleet.py").write_text(f"URL = {model.url!r}\n{FLEET}")
        files = ("--receipt", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html"))
        limits = ("--ceiling", "1k", "--tokens-per-second", "300", "--burst", "200")
        done = paced(*limits, *files, "--", sys.executable, str(tmp_path / "fleet.py"))
        bill = model.tokens_served()
    made = json.loads((tmp_path / "r.json").read_text())
    assert (made["books"]["spent"], made["books"]["unknown"], made["books"]["held"]) == (bill, 0, 0), done.stderr
    assert 750 < bill <= 1_000
    assert made["refused"] == done.stdout.count("402") > 0
    assert made["books"]["calls"] + made["refused"] == 40
    [booked] = made["runs"]
    assert (booked["spent"], sum(agent["spent"] for agent in booked["parts"])) == (bill, bill)
    assert {limit["limit"] for limit in made["limited"]} >= {"ceiling", "tokens_per_second"}
    assert f"<strong>{bill:,}</strong>" in (tmp_path / "r.html").read_text()


# -------------------------------------------------------------------- the end of the command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL),
        (("no-such-command-anywhere",), supervision.NOT_FOUND),
        (("/etc/hostname",), supervision.NOT_EXECUTABLE),
    ],
)
def test_its_exit_code_is_ours(command, code):
    assert paced("--quiet", "--", *command).returncode == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it is Linux that has it")
@pytest.mark.parametrize("code", [0, 42])
def test_its_exit_code_is_ours_also_where_nothing_can_be_told(code):
    with open("/dev/full", "wb") as full, started("--", "sh", "-c", f"exit {code}", stderr=full) as child:
        assert child.wait(timeout=30) == code


WAITS = """
import signal, sys
def heard(number, frame):
    print("got", number, flush=True)
    sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, heard)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_command_decides_what_becomes_of_it(number):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with started("--ceiling", "5", "--", sys.executable, "-c", WAITS, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        out = child.stdout.readline()  # its input stays open until then
        err = child.communicate(timeout=30)[1]
    assert (child.returncode, out, err) == (7, f"got {int(number)}\n", "pacer: NO MODEL CALL WAS SEEN\n")


def test_a_signal_that_ends_the_command_is_in_the_exit_code():
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with started("--", "sh", "-c", "echo ready; exec sleep 60", **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM


# -------------------------------------------------------------------- a terminal

TALKS = """
import os, select, signal, sys
heard = []
def interrupted(number, frame):
    heard.append(number)
    print("heard one", flush=True)
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGUSR1, lambda number, frame: print("heard all", flush=True))
print("tty", sys.stdin.isatty(), os.tcgetpgrp(0) == os.getpgrp(), flush=True)
print("hello", input("name? "), flush=True)
print("again? ", end="", flush=True)
while not select.select([0], [], [], 0.05)[0]:  # input() may hear of a signal only after the next line
    pass
sys.stdin.readline()
print("interrupts", len(heard), flush=True)
"""


def test_an_interactive_program_has_the_terminal_and_hears_an_interrupt_once():
    terminal = Terminal("--ceiling", "5", "--", sys.executable, "-c", TALKS)
    terminal.until("name? ")
    assert "tty True True" in terminal.seen
    terminal.type("Ada\n")
    terminal.until("hello Ada")
    terminal.until("again? ")
    os.kill(terminal.child, signal.SIGSTOP)  # two interrupts at the same time would look like one
    terminal.type("\x03")
    terminal.until("heard one")
    os.kill(terminal.child, signal.SIGUSR1)  # is passed on after whatever else would be
    os.kill(terminal.child, signal.SIGCONT)
    terminal.until("heard all")
    terminal.type("\n")
    terminal.until("interrupts 1")
    terminal.until("NO MODEL CALL WAS SEEN")
    assert terminal.end() == 0
