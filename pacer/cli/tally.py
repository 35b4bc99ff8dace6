"""What the processes below ``pacer run`` leave behind of their calls, in a directory of the command.

It is written call by call: a process that is killed has told all that it knew. Each line is appended as one piece.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from pacer import settings
from pacer.cli import otel, quarters, uncovered
from pacer.usage import Source

if TYPE_CHECKING:
    from pacer.telemetry import Ended

DIRECTORY = "TOKEN_PACER_TALLY"
"""The variable that names the directory; one that began with ``PACER_`` would be a setting."""
STARTED, MISSING, CALLS = "started", "missing", "calls"
LONGEST_LINE_BYTES = 1 << 20
_LONGEST_NAME = 256

Tokens = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e11)]
Name = Annotated[str, Meta(max_length=_LONGEST_NAME)]
Names = Annotated[tuple[Name, ...], Meta(max_length=_LONGEST_NAME)]


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call at its end; moments in seconds since 1970, all else in tokens unless the name says otherwise.

    ``agents`` are names from the run down. ``source`` is what settled it; without one it was refused (``refused_by``
    the limit), or given up while it waited. ``waited_for`` is the limit that it waited for at first.
    """

    asked_at: Seconds
    ended_at: Seconds
    pacer: Name
    run: Name
    admitted_at: Seconds | None = None
    agents: Names = ()
    provider: Name = ""
    model: Name = ""
    server: Name = ""
    source: Source | None = None
    input: Tokens = 0
    output: Tokens = 0
    cached: Tokens = 0
    written: Tokens = 0
    reasoning: Tokens = 0
    spent: Tokens = 0
    unknown: Tokens = 0
    waited_seconds: Seconds = 0.0
    waited_for: Name = ""
    refused_by: Name = ""
    status: Annotated[int, Meta(ge=0, le=999)] | None = None

    @property
    def is_booked(self) -> bool:
        """Whether it is a call in the books: it was let go, and the provider may have billed it."""
        return self.source not in (None, "void")


_log = logging.getLogger("pacer")


class Tally(msgspec.Struct, frozen=True):
    """What was written beside the calls.

    ``started``: some Python came by; ``missing``: Pythons that import httpx and have no token-pacer; ``uncovered``:
    calls that no transport can see, summed up.
    """

    started: bool
    missing: tuple[str, ...]
    uncovered: tuple[str, ...]


# -------------------------------------------------------------------- in each process


def begin() -> None:
    """Pace this process, as its environment says, and write down its calls."""
    from pacer import telemetry
    from transports import auto

    directory = os.environ.get(DIRECTORY)
    is_over = directory is not None and not quarters.enter(Path(directory))
    chosen = settings.load()
    if is_over and chosen.store.startswith(f"sqlite:{directory}"):
        _begin_too_late(chosen)
    else:
        auto.install()
    otel.begin()
    if directory is not None and not any(isinstance(listener, _Writer) for listener in telemetry.listeners):
        telemetry.listeners.append(_Writer(Path(directory)))


def _begin_too_late(chosen: settings.Settings) -> None:
    """The books are gone with the command: of its ceiling nothing is left, and its rates are for this process alone."""
    from transports import auto

    auto.install(store="memory:", ceiling=None if chosen.ceiling is None else 0)
    becomes = "not in them" if chosen.ceiling is None else "refused"
    _log.warning(
        "run %s: its command is over, and its books with it: calls of this process are %s", chosen.run, becomes
    )


class _Writer:
    """Appends a line for each call that has ended."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CALLS
        self._since = 0.0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._since = time.monotonic()

    def __call__(self, ended: Ended) -> None:
        if ended.since < self._since:  # the copy of a call that is the parent's
            return
        line = msgspec.json.encode(_call_of(ended)) + b"\n"
        with suppress(OSError):  # the command is over
            # Opened each time: a program may close all files that it does not know, and open its own in their place.
            _append(self._path, line)


def _append(path: Path, lines: bytes) -> None:
    """In one piece."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, lines)
    finally:
        os.close(file)


def _call_of(ended: Ended) -> Call:
    place, usage, settlement = ended.place, ended.usage, ended.settlement
    clock, now = time.monotonic(), time.time()  # in this order nothing is told as earlier than it was
    since_seconds = max(0.0, clock - ended.since)
    return Call(
        asked_at=now - since_seconds,
        admitted_at=None if place is None else now - max(0.0, clock - place.granted_at),
        ended_at=now,
        pacer=ended.pacer,
        run=ended.account.run.name,
        agents=tuple(node.name for node in reversed(ended.account.path) if node.kind == "agent"),
        provider=ended.call.provider,
        model=ended.call.model,
        server=ended.call.server[:_LONGEST_NAME],
        source=None if settlement is None else settlement.source,
        input=usage.input,
        output=usage.output,
        cached=usage.cached,
        written=usage.written,
        reasoning=usage.reasoning,
        spent=0 if settlement is None else settlement.spent,
        unknown=0 if settlement is None else settlement.unknown,
        waited_seconds=place.waited_seconds if place is not None else since_seconds if ended.waited_for else 0.0,
        waited_for=ended.waited_for,
        refused_by="" if ended.refusal is None else ended.refusal.limit,
        status=None if place is None else place.status,
    )


# -------------------------------------------------------------------- at the end


def read(directory: Path) -> Tally:
    """What was written beside the calls."""
    return Tally(
        started=(directory / STARTED).exists(),
        missing=tuple(sorted(set(_lines(directory / MISSING)))),
        uncovered=uncovered.read(directory),
    )


def pass_on(directory: Path) -> None:
    """Let the command that we are a part of have all that was written, where there is one: its run is ours, too."""
    above = os.environ.get(DIRECTORY)
    if above is None:
        return
    for name in (CALLS, MISSING, uncovered.FILE):
        with suppress(OSError):  # nothing was written, or that command is over
            _append(Path(above, name), (directory / name).read_bytes())


def calls(directory: Path) -> Iterator[Call | None]:
    """All calls, in the order of their ends; ``None`` for a line that is not one of ours, or broken."""
    decoder = msgspec.json.Decoder(Call)
    with suppress(OSError), (directory / CALLS).open("rb") as file:
        while line := file.readline(LONGEST_LINE_BYTES):
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                yield None


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from filter(None, path.read_text(errors="replace").splitlines())
