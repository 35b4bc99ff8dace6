"""``pacer run``: a command whose Python processes, children included, are all paced, by their environment alone.

Its exit code is ours. What its calls came to is told at the end.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from pacer import settings
from pacer.cli import otel, quarters, tally
from pacer.cli import receipt as receipts
from pacer.cli.outfile import Outfile
from pacer.cli.receipt import NO_PROXY, Receipt, Standing
from pacer.cli.supervision import NotStarted, orderly, supervised
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
    shows_line: bool = False,
) -> Outcome:
    """Run the command with these settings, beside those of the environment, until it ends. ``exports``: see otel.py.

    ``receipt`` and ``report`` are files that are written then; ``shows_line``: see live.py. Raises: SettingsError,
    LimitsConflict, StoreError; the command has not been started then.
    """
    asked = outfiles(receipt, report)
    with orderly(), quarters.opened() as directory:
        chosen, variables = _settled(given, directory)
        if exports:
            variables |= otel.variables()
        with closing(vault_of(chosen)) as vault:
            books_of(vault, chosen)  # the run is there, with these limits, before anybody joins it
        before = receipts.standing(chosen)
        started_at, clock = time.time(), time.monotonic()
        line = _line(chosen) if shows_line else None
        try:
            code = supervised(command, {**os.environ, **variables, **_surroundings(directory)}, line)
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
        tally.pass_on(directory)
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


def _line(chosen: Settings) -> StatusLine | None:
    if not os.isatty(STDERR):
        return None
    from pacer.cli import live  # who has no terminal does not wait for it

    return live.on_terminal(STDERR, chosen)


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
