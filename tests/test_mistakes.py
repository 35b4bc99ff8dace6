"""What people type wrong: each is told what would be right, before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pacer.cli import run
from pacer.cli.main import app

TOUCH = ("--", sys.executable, "-c", "open('started', 'w')")
COMMANDS = {
    "run": ("run", *TOUCH),
    "runs": ("runs",),
    "status": ("status",),
    "end": ("end", "nightly"),
    "set": ("set", "nightly", "--ceiling", "5"),
    "doctor": ("doctor",),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever is started leaves a file here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(app, [*words], env={"COLUMNS": "200", **variables})


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_option_of_each_command_is_told_with_the_right_one(name: str, here: Path):
    wrong, right = {"run": ("--celing", "--ceiling"), "set": ("--resum", "--resume")}.get(name, ("--stor", "--store"))
    for word in (wrong, f"{wrong}=5"):
        result = typed(name, word, *COMMANDS[name][1:])
        assert result.exit_code == 2
        assert f"Error: {wrong} is unknown: did you mean {right}?\n" in result.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "-celing", "5k"), "-celing is unknown: did you mean --ceiling?"),
        (("run", "--tokens_per_second", "5k"), "did you mean --tokens-per-second?"),
        (("run", "--fail-over-celing"), "did you mean --fail-over-ceiling?"),
        (("run", "--xyzzy", "5k"), "--xyzzy is unknown: there is no such option"),
        (("run", "--ceiling"), "ceiling='--' is not accepted"),
        (("--celing", "5k", "run"), "--celing is unknown: did you mean pacer run --ceiling?"),
        (("rnu", "--ceiling", "5k"), "Did you mean 'run'?"),
    ],
)
def test_other_ways_to_miss_an_option(words: tuple[str, ...], message: str, here: Path):
    result = typed(*words, *TOUCH)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("variable", ["PACER_CELING", "pacer_celing"])
def test_a_misspelt_variable_is_told_by_each_command(name: str, variable: str, here: Path):
    result = typed(*COMMANDS[name], **{variable: "5"})
    right = "PACER_CEILING" if variable.isupper() else "pacer_ceiling"
    assert result.exit_code == 2
    assert f"{variable} is unknown: did you mean {right}?" in " ".join(result.output.split())
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_variable_that_is_no_number_is_told_by_each_command(name: str, here: Path):
    result = typed(*COMMANDS[name], PACER_CEILING="much")
    assert result.exit_code == 2
    assert "ceiling='much' is not accepted: give a whole number of tokens" in " ".join(result.output.lower().split())
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("words", [("run",), ("run", "--ceiling", "5"), ("run", "--")])
def test_a_run_without_a_command_is_told_what_one_looks_like(words: tuple[str, ...]):
    result = typed(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "pacer: there is no command to run: pacer run [OPTIONS] -- python their_agents.py\n"


# -------------------------------------------------------------------- what is to be run


def started(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pacer.cli", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)


PRINT = "import sys; print(sys.argv[1:])"


@pytest.mark.processes
@pytest.mark.parametrize("dashes", [("--",), ()])
def test_options_behind_the_command_are_its_own_with_and_without_dashes(dashes: tuple[str, ...]):
    done = started("--ceiling", "5", *dashes, sys.executable, "-c", PRINT, "--ceiling", "much", "--quiet", "--")
    assert (done.returncode, done.stdout) == (0, "['--ceiling', 'much', '--quiet', '--']\n")
    assert done.stderr == "pacer: NO MODEL CALL WAS SEEN\n"


NO_PYTHON = "pacer: no Python of this command was paced: "
NO_PROXY = "a proxy address that could be given to it is not offered (yet)\n"


@pytest.mark.processes
@pytest.mark.parametrize("command", [("/bin/true",), ("sh", "-c", "true")])
def test_a_program_that_is_no_python_is_told_that_it_was_not_paced(command: tuple[str, ...]):
    done = started("--", *command)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(NO_PYTHON)
    assert NO_PROXY in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("wrapper", [("/usr/bin/env",), ("timeout", "50"), ("sh", "-c", '"$0" "$@" && true')])
def test_a_program_that_starts_a_python_is_told_nothing(wrapper: tuple[str, ...]):
    done = started("--ceiling", "5", "--", *wrapper, sys.executable, "-c", PRINT)
    assert (done.stdout, done.stderr) == ("[]\n", "pacer: NO MODEL CALL WAS SEEN\n")


@pytest.mark.processes
def test_what_is_sure_to_be_no_python_is_told_before_it_starts(here: Path):
    node = here / "node"
    node.write_text("#!/bin/sh\necho started >&2\n")
    node.chmod(0o755)
    first, second, third, *_ = started("--", str(node)).stderr.splitlines(keepends=True)
    assert first == f"pacer: node is no Python: its calls are NOT PACED, and {NO_PROXY}"
    assert second == "started\n"
    assert third.startswith(NO_PYTHON)
    assert started("--quiet", "--", str(node)).stderr == "started\n"
    assert run.foreign(["/usr/bin/python3.12", "node"]) is None
