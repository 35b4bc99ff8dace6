"""``pacer run``: a command whose Python processes, children included, are all paced, by their environment alone.

The command keeps the terminal and gets every signal; its exit code is ours. What its calls came to is told at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from pacer import settings
from pacer.cli import otel, tally
from pacer.cli import receipt as receipts
from pacer.cli.outfile import Outfile
from pacer.cli.receipt import NO_PROXY, Receipt, Standing
from pacer.errors import SettingsError, StoreError
from pacer.settings import Settings
from pacer.store.opening import books_of, vault_of
from pacer.store.vault import Away, Forgotten

SITE = Path(__file__).parent / "site"
"""Stands first on the path of every Python, and has nothing but a ``sitecustomize``."""
REFUSED = 3
"""The exit code of ``--fail-over-ceiling``, where the command succeeded and a call was refused."""
NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a command that cannot be started, as a shell has them."""

_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_OF_KEYS = {signal.SIGINT, signal.SIGQUIT}
"""What a terminal sends to all in its foreground; a hangup goes to its first process alone."""
_SI_KERNEL = 0x80
_FOREIGN = (
    *("bun", "cargo", "curl", "deno", "dotnet", "go", "java", "node", "npm"),
    *("npx", "perl", "php", "pnpm", "ruby", "tsx", "wget", "yarn"),
)
"""Programs that are sure to be no Python, and seldom start one."""


class Outcome(msgspec.Struct, frozen=True):
    """How the command ended: its exit code, the lines to be told, and what went wrong with the files asked for."""

    code: int
    lines: tuple[str, ...]
    errors: tuple[str, ...]


class Outfiles(msgspec.Struct, frozen=True):
    """Where the receipt goes as JSON and the report as a page, if anywhere."""

    receipt: Outfile | None = None
    report: Outfile | None = None


def outfiles(receipt: str | None, report: str | None) -> Outfiles:
    """The files of these options, seen to be writable. Raises: SettingsError."""
    found = Outfiles(
        None if receipt is None else Outfile("--receipt", receipt),
        None if report is None else Outfile("--report", report),
    )
    if found.receipt is not None and found.report is not None and found.receipt.path == found.report.path:
        raise SettingsError(f"--report={report!r} is not accepted: give another file than that of --receipt")
    return found


def run(
    command: Sequence[str],
    given: Mapping[str, str],
    *,
    fails_over_ceiling: bool = False,
    exports: bool = False,
    receipt: str | None = None,
    report: str | None = None,
) -> Outcome:
    """Run the command with these settings, beside those of the environment, until it ends. ``exports``: see otel.py.

    ``receipt`` and ``report`` are files that are written then. Raises: SettingsError, LimitsConflict, StoreError; the
    command has not been started then.
    """
    asked = outfiles(receipt, report)
    with _private_directory() as directory:
        chosen, variables = _settled(given, directory)
        if exports:
            variables |= otel.variables()
        with closing(vault_of(chosen)) as vault:
            books_of(vault, chosen)  # the run is there, with these limits, before anybody joins it
        before = receipts.standing(chosen)
        started_at, clock = time.time(), time.monotonic()
        code = _supervised(command, {**os.environ, **variables, **_surroundings(directory)})
        seconds = time.monotonic() - clock
        made = receipts.made(
            tally.calls(directory),
            tally.read(directory),
            chosen,
            before,
            _standing_now(chosen),
            command=os.path.basename(command[0]),
            exit_code=code,
            started_at=started_at,
            seconds=seconds,
        )
        if fails_over_ceiling and code == 0 and made.refused + made.refused_by_others:
            made = replace(made, exit_code=REFUSED)
        errors = tuple(_written(made, directory, before, asked))
    return Outcome(made.exit_code, tuple(receipts.lines(made)), errors)


def foreign(command: Sequence[str]) -> str | None:
    """What is to be said before a command starts whose own calls nobody will see; of others the end tells."""
    name = os.path.basename(command[0])
    return f"{name} is no Python: its calls are NOT PACED, {NO_PROXY}" if name in _FOREIGN else None


@contextmanager
def _private_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="pacer-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _settled(given: Mapping[str, str], directory: Path) -> tuple[Settings, dict[str, str]]:
    """The settings, checked, and the variables that tell them to every process of the command."""
    asked = dict(given)
    found = settings.load(**asked)  # type: ignore[arg-type]  # the names are those of settings
    if found.store == "memory:":
        asked["store"] = f"sqlite:{directory / 'books.db'}"
    elif found.store.startswith("sqlite:"):  # a child may work in another directory
        asked["store"] = f"sqlite:{os.path.abspath(found.store.removeprefix('sqlite:'))}"
    if "run" not in found.model_fields_set:
        asked["run"] = f"run-{secrets.token_hex(4)}"
    chosen = found.model_copy(update={name: asked[name] for name in ("store", "run") if name in asked})
    return chosen, {f"PACER_{name.upper()}": text for name, text in asked.items()}


def _surroundings(directory: Path) -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(SITE), path] if path else [str(SITE)]),
        tally.DIRECTORY: str(directory),
    }


# -------------------------------------------------------------------- the command


def _supervised(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code of the command; what is sent to us meanwhile is passed on to it."""
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored, it would not wake us
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    try:
        # Nothing is lost between the start and the wait: until then all signals are kept back.
        child = subprocess.Popen(  # noqa: S603  # this is what we were asked to run
            list(command),
            env=dict(environment),
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
        )
        code = _waited(child)
    except FileNotFoundError:
        return _not_started(command[0], "there is no such command", NOT_FOUND)
    except OSError as error:
        return _not_started(command[0], error.strerror or str(error), NOT_EXECUTABLE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code if code >= 0 else 128 - code


def _not_started(name: str, why: str, code: int) -> int:
    print(f"pacer: {name!r} cannot be started: {why}", file=sys.stderr)
    return code


def _waited(child: subprocess.Popen[bytes]) -> int:
    while (code := child.poll()) is None:
        number, is_the_terminals = _next_signal()
        if number != signal.SIGCHLD and not is_the_terminals:
            child.send_signal(number)
    while signal.sigpending() & _PASSED_ON:  # too late for the command; nobody else is meant
        signal.sigwait(_PASSED_ON)
    return code


def _next_signal() -> tuple[int, bool]:
    """The next signal, and whether it came from the terminal: then the command has got it as well."""
    if sys.platform == "linux":
        told = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        return told.si_signo, told.si_signo in _OF_KEYS and told.si_code == _SI_KERNEL
    number = signal.sigwait({*_PASSED_ON, signal.SIGCHLD})
    return number, number in _OF_KEYS and _has_the_terminal()


def _has_the_terminal() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


# -------------------------------------------------------------------- what it came to


def _standing_now(chosen: Settings) -> Standing | str:
    try:
        return receipts.standing(chosen)
    except (Away, Forgotten, StoreError) as error:
        return str(error)


def _written(made: Receipt, directory: Path, before: Standing, outfiles: Outfiles) -> Iterator[str]:
    """Write the files that were asked for; what could not be written is told."""
    if outfiles.receipt is not None:
        from pacer.cli import screen

        yield from _put(outfiles.receipt, lambda: screen.as_json(made, indent=2) + "\n")
    if outfiles.report is not None:
        from pacer.cli import course, page  # only where there is a page to be made

        def text() -> str:
            steps = course.course(tally.calls(directory), made.run, made.started_at, made.seconds)
            return page.page(made, steps, before.books)

        yield from _put(outfiles.report, text)


def _put(outfile: Outfile, text: Callable[[], str]) -> Iterator[str]:
    try:
        outfile.write(text())
    except OSError as error:
        yield f"{str(outfile.path)!r} cannot be written: {error.strerror or error}"
