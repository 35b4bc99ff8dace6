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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from pacer import settings
from pacer.cli import tally
from pacer.errors import StoreError
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
_LIMITS = ("ceiling", "agent_ceiling", *settings.RatesInput.__annotations__, "requests_per_second")


class Booked(msgspec.Struct, frozen=True):
    """What the books of all runs of a pacer say, tokens but for ``calls``."""

    calls: int = 0
    spent: int = 0
    unknown: int = 0
    held: int = 0

    def since(self, before: Booked) -> Booked:
        """What was booked after ``before``; what is held is held now."""
        return Booked(self.calls - before.calls, self.spent - before.spent, self.unknown - before.unknown, self.held)


class Outcome(msgspec.Struct, frozen=True):
    """How the command ended: its exit code, and the lines to be told."""

    code: int
    lines: tuple[str, ...]


def run(command: Sequence[str], given: Mapping[str, str], *, fails_over_ceiling: bool = False) -> Outcome:
    """Run the command with these settings, beside those of the environment, until it ends.

    Raises: SettingsError, LimitsConflict, StoreError; the command has not been started then.
    """
    with _private_directory() as directory:
        chosen, variables = _settled(given, directory)
        with closing(vault_of(chosen)) as vault:
            books_of(vault, chosen)  # the run is there, with these limits, before anybody joins it
        before = booked(chosen)
        code = _supervised(command, {**os.environ, **variables, **_surroundings(directory)})
        seen = tally.read(directory)
        lines = tuple(_told(chosen, before, seen))
    if fails_over_ceiling and code == 0 and seen.refused:
        code = REFUSED
    return Outcome(code, lines)


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


def booked(chosen: Settings) -> Booked:
    """What the store says of all runs of the pacer. Raises: StoreError, Away."""
    with closing(vault_of(chosen)) as vault:
        sums = [row.sums() for row in vault.rows() if row.pacer == chosen.run]
    return Booked(*(sum(row[name] for row in sums) for name in Booked.__struct_fields__))


def _told(chosen: Settings, before: Booked, seen: tally.Tally) -> Iterator[str]:
    if not seen.started:
        yield (
            "no Python of this command was paced: it started none, or one that does not look at PYTHONPATH (-E, -I, "
            "-S); a program that is not Python is not covered"
        )
    for python in seen.missing:
        yield f"calls of {python} were NOT PACED: token-pacer is not installed there"
    try:
        now = booked(chosen).since(before)
    except (Away, Forgotten, StoreError) as error:
        yield f"what was spent cannot be told: {error}"
        return
    if not (seen.seen or now.calls) and any(getattr(chosen, name) is not None for name in _LIMITS):
        yield "NO MODEL CALL WAS SEEN"
        return
    held = f", {now.held:,} still held" if now.held else ""
    yield (
        f"{now.calls:,} calls, {now.spent:,} tokens spent, {now.unknown:,} unknown{held}, {seen.refused:,} refused, "
        f"waited {seen.waited_seconds:.1f} s"
    )
