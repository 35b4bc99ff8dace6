"""Where ``pacer run`` finds its Pythons: however they are started, whatever stands between, and when they live on.

Each start of a Python that makes a call takes half a second: that is what is slow here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uv

from pacer.cli import quarters, run
from pacer.errors import StoreError
from tests.commands import RUN, Terminal, environment, paced, told
from tests.servers import Server, answer_json, whole

pytestmark = pytest.mark.processes

CALL = """
import os
import httpx
def call(_=None):
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    return httpx.post(os.environ["URL"] + "/v1/chat/completions", json=body, timeout=30).status_code
if __name__ == "__main__":
    print(call(), flush=True)
"""
BILL = 30


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with ``call.py``, to work in; the provider is in the environment, and a place for what is passing."""
    (tmp_path / "call.py").write_text(CALL)
    monkeypatch.chdir(tmp_path)
    with (
        TemporaryDirectory(prefix="t") as passing,  # of a short name, as sockets in it need one
        Server(whole(answer_json(), "content-type: application/json")) as server,
    ):
        monkeypatch.setenv("TMPDIR", passing)
        monkeypatch.setenv("URL", server.url)
        yield tmp_path


def left() -> list[str]:
    """What lies about where things are only passing."""
    return os.listdir(os.environ["TMPDIR"])


def until(condition: object) -> None:
    """Wait for something that other processes do."""
    assert callable(condition)
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


# -------------------------------------------------------------------- started in many ways

SHELL = f"""
python={sys.executable}
$python call.py
$python - < call.py
$python -m call
nice ./console &
wait
(cd / && PYTHONSAFEPATH=1 $python "$OLDPWD/call.py")
$python -c 'import os, sys; os.execv(sys.executable, [sys.executable, "call.py"])'
$python asks.py
exec $python call.py
"""
ASKS = """
import asyncio, sys
async def main():
    await (await asyncio.create_subprocess_exec(sys.executable, "call.py")).wait()
asyncio.run(main())
"""


def test_every_python_below_a_shell_is_paced(place):
    """From a file, from its input, as a module, by its first line, in the background, by exec, by a loop's children."""
    (place / "console").write_text(f"#!{sys.executable}\n{CALL}")
    (place / "console").chmod(0o755)
    (place / "asks.py").write_text(ASKS)
    starts = 8
    done = paced("--ceiling", "1k", "--", "sh", "-ec", SHELL, PYTHONPATH=f"{environment()['PYTHONPATH']}:{place}")
    assert (done.returncode, done.stdout) == (0, "200\n" * starts), done.stderr
    assert (told(done.stderr, "calls"), told(done.stderr, "tokens spent")) == (starts, starts * BILL)
    assert left() == []


POOLS = """
import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from call import call
if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        print(*pool.map(call, range(4)))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        print(*pool.map(call, range(4)))
    workers = []
    for _ in range(3):  # as servers fork them, once all is loaded
        if (worker := os.fork()) == 0:
            os._exit(call() != 402)
        workers.append(worker)
    print(*(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers))
"""


def test_workers_of_pools_and_servers_share_the_ceiling(place):
    (place / "pools.py").write_text(POOLS)
    room = 8 * BILL + 44  # for eight calls, also where they are a process's first; and not for a ninth
    done = paced("--ceiling", str(room), "--", sys.executable, "pools.py")
    assert done.stdout == "200 200 200 200\n200 200 200 200\n0 0 0\n", done.stderr
    assert (told(done.stderr, "calls"), told(done.stderr, "refused")) == (8, 3)
    assert left() == []


@pytest.mark.parametrize("words", [("--python", sys.executable, "call.py"), ("--active", "python", "call.py")])
def test_uv_run_is_covered(place, words):
    there = {"VIRTUAL_ENV": sys.prefix, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(place / "cache")}
    done = paced("--ceiling", "1k", "--", uv.find_uv_bin(), "run", "--no-project", *words, **there)
    assert (done.returncode, done.stdout, told(done.stderr, "calls")) == (0, "200\n", 1), done.stderr


def test_a_run_inside_a_run_is_the_same_one(place):
    inner = (sys.executable, "-m", "pacer.cli", "run", "--quiet", "--", sys.executable, "call.py")
    limits = ("--ceiling", "90", "--fail-over-ceiling")
    done = paced(*limits, "--", "sh", "-c", f"{' '.join(inner)}; {' '.join(inner)}")
    assert (done.returncode, done.stdout) == (run.REFUSED, "200\n402\n")
    assert (told(done.stderr, "calls"), told(done.stderr, "tokens spent"), told(done.stderr, "refused")) == (1, BILL, 1)
    assert "the books differ" not in done.stderr


# -------------------------------------------------------------------- not reached

NOT_REACHED = {
    "-I": "import subprocess, sys; subprocess.run([sys.executable, '-I', 'call.py'])",
    "-S": "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'print(200)'])",
    "a bare environment": "import os, subprocess, sys; "
    "subprocess.run([sys.executable, 'call.py'], env={'URL': os.environ['URL']})",
}
"""A Python starts another one that does not look at what we have put into its environment."""


@pytest.mark.parametrize("code", NOT_REACHED.values(), ids=NOT_REACHED)
def test_who_leaves_our_environment_is_not_paced_and_the_end_of_a_limited_run_says_so(place, code):
    done = paced("--ceiling", "5", "--", sys.executable, "-c", code)
    assert done.stdout == "200\n"
    assert "NO MODEL CALL WAS SEEN" in done.stderr


def test_a_library_that_is_looked_for_and_not_there_makes_no_calls(place):
    """Only a Python that has httpx and no token-pacer is named as one that was not paced."""
    code = "import sys; sys.path[:] = [p for p in sys.path if 'packages' not in p and p != sys.argv[1]]; import httpx"
    done = paced("--", sys.executable, "-c", code, environment()["PYTHONPATH"])
    assert "No module named 'httpx'" in done.stderr
    assert "NOT PACED" not in done.stderr


@pytest.mark.parametrize("name", ["call.py", "./call.py", "no-such-command"])
def test_a_command_that_cannot_be_started_is_all_that_is_told(place, name):
    done = paced("--ceiling", "5", "--quiet", "--", name)
    assert done.returncode in (126, 127)
    assert done.stderr.count("\n") == 1
    assert "cannot be started" in done.stderr
    assert ("did you mean: python" in done.stderr) == name.endswith(".py")
    assert left() == []


def test_a_machine_without_a_place_for_temporary_files_is_told(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    with pytest.raises(StoreError, match="set TMPDIR"), quarters.opened():
        pass


# -------------------------------------------------------------------- in a terminal


def test_what_is_typed_into_an_interactive_python_is_paced(place):
    """With the person's own start-up file; the numbers come when it is left."""
    (place / "start.py").write_text("from call import call; import sys; sys.ps1 = 'me: '")
    terminal = Terminal("--ceiling", "100", "--", sys.executable, "-q", PYTHONSTARTUP=str(place / "start.py"))
    terminal.until("me: ")
    terminal.type("print(*(call() for _ in range(3)))\n")
    terminal.until("200 200 402")
    terminal.type("exit()\n")
    terminal.until("1 refused")
    assert terminal.end() == 0


SLEEPS = "from call import call; import time; print('said', call(), flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("end", "code"),
    [("\x03", 128 + signal.SIGINT), ("\x1c", 128 + signal.SIGQUIT), (signal.SIGTERM, 128 + signal.SIGTERM)],
    ids=["interrupt", "quit", "terminated"],
)
def test_a_program_that_is_ended_early_is_told_of(place, end, code):
    terminal = Terminal("--ceiling", "1k", "--", sys.executable, "-c", SLEEPS)
    terminal.until("said 200")
    if isinstance(end, str):
        terminal.type(end)
    else:
        os.kill(terminal.child, end)
    terminal.until("1 calls, 30 tokens spent")
    assert terminal.end() == code
    assert left() == []


def test_who_is_ended_before_the_command_starts_leaves_nothing_behind(place):
    """It waits for a store that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        store.settimeout(30)
        named = f"redis://127.0.0.1:{store.getsockname()[1]}"
        words = [*RUN, "--store", named, "--store-grace", "30", "--", "true"]
        with subprocess.Popen(words, env=environment()) as wrapper:
            connection, _ = store.accept()
            wrapper.terminate()
            wrapper.wait(timeout=30)
        connection.close()
    assert (wrapper.returncode, left()) == (128 + signal.SIGTERM, [])


LEAVES_A_CHILD = """
import os
import call
if os.fork() == 0:
    os.closerange(1, 3)
    os.read(0, 1)  # its end
    os._exit(0)
print(os.getpid(), call.call(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_impatient_second_signal_takes_nobody_the_receipt(place, number):
    """The command has ended; what it left behind is given a moment."""
    words = [*RUN, "--", sys.executable, "-c", LEAVES_A_CHILD]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, env=environment(), text=True, **pipes) as wrapper:
        assert wrapper.stdout is not None
        command = wrapper.stdout.readline().split()[0]
        until(lambda: not is_there(int(command)))
        wrapper.send_signal(number)
        err = wrapper.communicate(timeout=30)[1]
    assert (wrapper.returncode, told(err, "calls")) == (0, 1)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupt_reaches_a_command_that_has_left_the_foreground(place):
    """As ``timeout`` does, which makes a group of its own; it then gets the interrupt from us alone."""
    terminal = Terminal("--ceiling", "1k", "--", "timeout", "60", sys.executable, "-c", SLEEPS)
    terminal.until("said 200")
    terminal.type("\x03")
    terminal.until("KeyboardInterrupt")
    terminal.until("1 calls, 30 tokens spent")
    assert terminal.end() != 0


# -------------------------------------------------------------------- first in a container

FIRST = """
import ctypes, os, sys
ADOPTS_ORPHANS = 36  # as the first process of a container does
ctypes.CDLL(None).prctl(ADOPTS_ORPHANS, 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
ORPHANS = """
import os, pathlib, subprocess, sys, time
for _ in range(3):
    subprocess.run(["sh", "-c", "sleep 0.1 &"])
children = pathlib.Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
give_up = time.monotonic() + 30
while children.read_text().split() != [str(os.getpid())] and time.monotonic() < give_up:
    time.sleep(0.02)
print(children.read_text() == f"{os.getpid()} ")
raise SystemExit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="containers are Linux")
def test_orphans_do_not_pile_up_as_zombies():
    words = [sys.executable, "-c", FIRST, *RUN[1:], "--quiet", "--", sys.executable, "-c", ORPHANS]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "True\n", "")


# -------------------------------------------------------------------- living on

STARTS = """
import subprocess, sys
with open("said", "wb") as said:
    subprocess.Popen([sys.executable, "lives_on.py", *sys.argv[1:]], stdout=said, stderr=said, stdin=subprocess.DEVNULL,
                     start_new_session=True)
open("begun").read()  # until it says so
"""
LIVES_ON = """
import sys
def begin():
    from call import call
    return call
early = begin() if sys.argv[1:] else None
print("early", early and early(), flush=True)
open("begun", "w").close()
open("go").read()
call = early or begin()
print("late", call(), call(), flush=True)
"""


@pytest.fixture
def lives_on(place: Path) -> Iterator[Path]:
    """A program that starts another one and ends; the other one goes on when somebody has opened ``go``."""
    os.mkfifo(place / "begun")
    os.mkfifo(place / "go")
    (place / "starts.py").write_text(STARTS)
    (place / "lives_on.py").write_text(LIVES_ON)
    yield place
    with suppress(OSError):  # nobody waits any more
        os.close(os.open(place / "go", os.O_WRONLY | os.O_NONBLOCK))


def said_after_all(place: Path) -> str:
    """Let the one that lives on go on, and wait until it has ended."""
    (place / "go").write_bytes(b"")
    until(lambda: "late" in (place / "said").read_text() and not left())
    return (place / "said").read_text()


def test_who_lives_on_keeps_the_budget_and_the_last_one_clears_up(lives_on):
    done = paced("--ceiling", "100", "--", sys.executable, "starts.py", "early")
    assert told(done.stderr, "calls") == 1
    assert "processes of this command live on, under its limits" in done.stderr
    assert len(left()) == 1
    assert said_after_all(lives_on) == "early 200\nlate 200 402\n"


@pytest.mark.parametrize(
    ("limits", "becomes", "said"), [((), "not in them", 200), (("--ceiling", "100"), "refused", 402)]
)
def test_who_begins_after_the_end_finds_no_budget_any_more(lives_on, limits, becomes, said):
    """Neither a new one of the same size, nor an error where a library is imported."""
    done = paced(*limits, "--", sys.executable, "starts.py")
    assert "live on" not in done.stderr
    assert left() == []
    early, line, late = said_after_all(lives_on).splitlines()
    assert line.endswith(f"its command is over, and its books with it: calls of this process are {becomes}")
    assert (early, late) == ("early None", f"late {said} {said}")


def test_after_a_wrapper_that_was_killed_its_command_clears_up(lives_on):
    words = [*RUN, "--ceiling", "100", "--", sys.executable, "lives_on.py", "early"]
    with (lives_on / "said").open("wb") as said, subprocess.Popen(words, env=environment(), stdout=said) as wrapper:
        (lives_on / "begun").read_text()
        wrapper.kill()
    assert said_after_all(lives_on) == "early 200\nlate 200 402\n"


def test_who_ends_with_the_command_does_not_live_on(place):
    """A process that hears of the end by the end of its input, a moment after the command itself."""
    hears = "import call, sys; print('ready', flush=True); sys.stdin.read()"
    starts = """
import subprocess, sys
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], **pipes)
child.stdout.readline()
"""
    done = paced("--", sys.executable, "-c", starts, hears)
    assert "live on" not in done.stderr
    assert left() == []


def test_a_forked_child_stays_when_its_parent_leaves(place):
    into, out = os.pipe()
    with quarters.opened() as directory:
        if (child := os.fork()) == 0:
            os.close(out)
            os.read(into, 1)
            os._exit(not directory.exists())
    os.close(out)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(into)


CLOSES = """
import os
from call import call
print(call(), flush=True)
os.closerange(3, 256)
theirs = [open(os.devnull) for _ in range(64)]
"""


def test_a_program_that_closes_all_files_takes_the_books_from_nobody(place):
    """As daemons do."""
    done = paced("--ceiling", "1k", "--", "sh", "-c", f"{sys.executable} -c '{CLOSES}'; {sys.executable} call.py")
    assert done.stdout == "200\n200\n"
    assert "pacer: 2 calls, 60 tokens spent, 0 unknown, 0 refused" in done.stderr
    assert "Error" not in done.stderr
    assert left() == []


def is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


def test_what_a_program_opens_in_the_place_of_ours_is_left_alone(place):
    with quarters.opened():
        if (child := os.fork()) == 0:
            os.closerange(3, 256)
            theirs = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
            if (grandchild := os.fork()) == 0:
                os._exit(not all(is_open(file) for file in theirs))
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
