"""What the processes below ``pacer run`` leave behind of their calls, in a directory of the command.

It is written call by call: a process that is killed has told all that it knew. Each line is appended as one piece.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from pacer import settings
from pacer.cli import quarters

DIRECTORY = "TOKEN_PACER_TALLY"
"""The variable that names the directory; one that began with ``PACER_`` would be a setting."""
STARTED, MISSING, CALLS = "started", "missing", "calls"

_log = logging.getLogger("pacer")


class Tally(msgspec.Struct, frozen=True):
    """``started``: some Python came by; ``missing``: Pythons that import httpx and have no token-pacer."""

    started: bool
    missing: tuple[str, ...]
    seen: int
    refused: int
    waited_seconds: float


def begin() -> None:
    """Pace this process, as its environment says, and write down its calls."""
    directory = os.environ.get(DIRECTORY)
    is_over = directory is not None and not quarters.enter(Path(directory))
    from transports import auto

    chosen = settings.load()
    if is_over and chosen.store.startswith(f"sqlite:{directory}"):
        _begin_too_late(chosen)
    else:
        auto.install()
    if directory is not None and _write not in auto.listeners:
        auto.listeners.append(_write)


def _begin_too_late(chosen: settings.Settings) -> None:
    """The books are gone with the command: of its ceiling nothing is left, and its rates are for this process alone."""
    from transports import auto

    auto.install(store="memory:", ceiling=None if chosen.ceiling is None else 0)
    becomes = "not in them" if chosen.ceiling is None else "refused"
    _log.warning(
        "run %s: its command is over, and its books with it: calls of this process are %s", chosen.run, becomes
    )


def _write(waited_seconds: float, refused: bool) -> None:
    line = f"refused {waited_seconds:.6f}\n" if refused else f"went {waited_seconds:.6f}\n"
    with suppress(OSError, KeyError):  # the command is over, or the program has cleared its environment
        file = os.open(Path(os.environ[DIRECTORY]) / CALLS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def read(directory: Path) -> Tally:
    """All that was written there."""
    lines = [line.split() for line in _lines(directory / CALLS)]
    return Tally(
        started=(directory / STARTED).exists(),
        missing=tuple(sorted(set(_lines(directory / MISSING)))),
        seen=len(lines),
        refused=sum(word == "refused" for word, _ in lines),
        waited_seconds=sum(float(seconds) for _, seconds in lines),
    )


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from path.read_text(errors="replace").splitlines()
