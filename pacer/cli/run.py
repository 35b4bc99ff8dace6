"""``pacer run``: a command whose Python processes, children included, are all paced, by their environment alone.

The command keeps the terminal and gets every signal; its exit code is ours. What its calls came to is told at the end.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from pacer import settings
from pacer.cli import otel, quarters, tally
from pacer.cli import receipt as receipts
from pacer.cli.outfile import Outfile
from pacer.cli.receipt import NO_PROXY, Receipt, Standing
from pacer.errors import SettingsError, StoreError
from pacer.settings import Settings
from pacer.store.opening import books_of, vault_of
from pacer.store.vault import Away, Forgotten

if TYPE_CHECKING:
    from pacer.cli.live import StatusLine

STDERR = 2
SITE = Path(__file__).parent / "site"
"""Stands first on the path of every Python, and has nothing but a ``sitecustomize``."""
REFUSED = 3
"""The exit code of ``--fail-over-ceiling``, where the command succeeded and a call was refused."""
NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a command that cannot be started, as a shell has them."""

_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_OF_KEYS = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP}
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


class NotStarted(Exception):
    """The command cannot be started; ``code`` is what a shell would exit with."""

    def __init__(self, name: str, why: str, code: int) -> None:
        script = f"; did you mean: python {name!r}" if name.endswith(".py") and os.path.exists(name) else ""
        super().__init__(f"{name!r} cannot be started: {why}{script}")
        self.code = code


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
    shows_line: bool = False,
) -> Outcome:
    """Run the command with these settings, beside those of the environment, until it ends. ``exports``: see otel.py.

    ``receipt`` and ``report`` are files that are written then; ``shows_line``: see live.py. Raises: SettingsError,
    LimitsConflict, StoreError; the command has not been started then.
    """
    asked = outfiles(receipt, report)
    with quarters.opened() as directory:
        chosen, variables = _settled(given, directory)
        if exports:
            variables |= otel.variables()
        with closing(vault_of(chosen)) as vault:
            books_of(vault, chosen)  # the run is there, with these limits, before anybody joins it
        before = receipts.standing(chosen)
        started_at, clock = time.time(), time.monotonic()
        line = _line(chosen) if shows_line else None
        try:
            code = _supervised(command, {**os.environ, **variables, **_surroundings(directory)}, line)
        except NotStarted as error:
            return Outcome(error.code, (), (str(error),))
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
    lines = tuple(receipts.lines(made))
    if directory.exists():
        lines += ("processes of this command live on, under its limits; what they spend from now on is not told",)
    return Outcome(made.exit_code, lines, errors)


def foreign(command: Sequence[str]) -> str | None:
    """What is to be said before a command starts whose own calls nobody will see; of others the end tells."""
    name = os.path.basename(command[0])
    return f"{name} is no Python: its calls are NOT PACED, {NO_PROXY}" if name in _FOREIGN else None


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


def _line(chosen: Settings) -> StatusLine | None:
    if not os.isatty(STDERR):
        return None
    from pacer.cli import live  # who has no terminal does not wait for it

    return live.on_terminal(STDERR, chosen)


def _supervised(command: Sequence[str], environment: Mapping[str, str], line: StatusLine | None) -> int:
    """The exit code of the command; what is sent to us meanwhile is passed on to it."""
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored, it would not wake us
    heard = {*_PASSED_ON, signal.SIGCHLD, *(line.signals if line else ())}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        with line or nullcontext():
            # Nothing is lost between the start and the wait: until then all signals are kept back.
            child = subprocess.Popen(  # noqa: S603  # this is what we were asked to run
                list(command),
                env=dict(environment),
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
            )
            code = _waited(child, heard, line)
    except FileNotFoundError:
        raise NotStarted(command[0], "there is no such command", NOT_FOUND) from None
    except OSError as error:
        raise NotStarted(command[0], error.strerror or str(error), NOT_EXECUTABLE) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code if code >= 0 else 128 - code


def _waited(child: subprocess.Popen[bytes], heard: set[signal.Signals], line: StatusLine | None) -> int:
    if line is not None:
        line.start()
    while (code := child.poll()) is None:
        number, is_the_terminals = _next_signal(heard)
        if number == signal.SIGCHLD:
            _bury_others(child)
        elif number != signal.SIGWINCH and not (is_the_terminals and _is_in_our_group(child)):
            child.send_signal(number)
        if line is not None and number == signal.SIGWINCH:
            line.look()
        if line is not None and number == signal.SIGTSTP:
            _stop(line)
            child.send_signal(signal.SIGCONT)  # who continues us alone means both
    while signal.sigpending() & _PASSED_ON:  # too late for the command; nobody else is meant
        signal.sigwait(_PASSED_ON)
    return code


def _bury_others(child: subprocess.Popen[bytes]) -> None:
    """The first process of a container is given all orphans, and nobody else waits for them."""
    if sys.platform != "linux":
        return
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == child.pid:
            return
        os.waitpid(ended.si_pid, 0)


def _is_in_our_group(child: subprocess.Popen[bytes]) -> bool:
    """Some commands leave it, as ``timeout`` does."""
    try:
        return os.getpgid(child.pid) == os.getpgrp()
    except ProcessLookupError:
        return False


def _stop(line: StatusLine) -> None:
    """Stop as it was asked for, with the terminal left as it was, until somebody continues us."""
    line.give_way()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    line.come_back()


def _next_signal(heard: set[signal.Signals]) -> tuple[int, bool]:
    """The next signal, and whether it came from the terminal: then all that are in our process group have got it."""
    if sys.platform == "linux":
        told = signal.sigtimedwait(heard, 1.0)
        if told is None:  # a thread of somebody else's may have got what was meant for us: that the command has ended
            return signal.SIGCHLD, False
        return told.si_signo, told.si_signo in _OF_KEYS and told.si_code == _SI_KERNEL
    number = signal.sigwait(heard)
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
