"""``pacer top``: a run as it is now, watched from another terminal until ``q``, Ctrl-C, or the end of its books."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from pacer.cli import screen, view
from pacer.cli.live import SILENT_SECONDS, SPEED_SECONDS
from pacer.cli.spelling import plain, span
from pacer.cli.view import StatusView
from pacer.cli.watch import Reading, Speed, Watch
from pacer.entry import Look
from pacer.settings import Settings
from pacer.store.vault import Away, Forgotten, RunRow, Vault

REFRESH_SECONDS = 1.0
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
OURS = "pacer-*/books.db"
"""Where below the directory for temporary files ``pacer run`` keeps the books of a command."""


def own_store() -> str | None:
    """The store of the ``pacer run`` that was started last and is still there, of those with none that was named."""
    found: list[tuple[float, Path]] = []
    for path in Path(tempfile.gettempdir()).glob(OURS):
        with suppress(OSError):
            made = path.parent.lstat()
            if made.st_uid == os.getuid():
                found.append((made.st_mtime, path))
    return f"sqlite:{max(found)[1]}" if found else None


def is_possible() -> bool:
    """Whether there is a terminal with keys to press and lines to draw."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not screen.console().is_dumb_terminal


def watch(chosen: Settings, row: RunRow) -> None:
    """Show a run until somebody has seen enough; if its books end before that, print what they said last."""
    for size in ("LINES", "COLUMNS"):  # some shells export them; the window counts, whose size may change
        os.environ.pop(size, None)
    console, name = screen.console(), plain(view.label(row))
    watching = Watch(chosen, partial(_read, row), REFRESH_SECONDS)
    watching.start()
    picture = _Picture(watching, name)
    while (number := _drawn(console, picture)) == signal.SIGTSTP:
        os.kill(os.getpid(), signal.SIGTSTP)
    watching.stop()
    if number not in (0, signal.SIGINT):
        raise SystemExit(128 + number)
    last = watching.reading
    if last.is_gone:
        if last.value is not None:
            console.print(screen.numbers(last.value))
        console.print(f"run {name} has ended: {plain(last.trouble)}")


def _read(row: RunRow, vault: Vault) -> StatusView:
    """How the run stands now. Raises: Forgotten, where it is not there any more."""
    now = next((found for found in vault.rows() if (found.pacer, found.name) == (row.pacer, row.name)), None)
    if now is None:
        raise Forgotten("its books were removed", row.name)
    answer = vault.exchange([Look(row.name)])
    with suppress(Away):  # what is left of us there lapses
        vault.leave()
    return view.status_of(now, pacer_paused=answer.paused)


class _Picture:
    """What is to be seen of what was read last."""

    def __init__(self, watching: Watch[StatusView], name: str) -> None:
        self._watching = watching
        self._name = name
        self._speed = Speed(SPEED_SECONDS)
        self._tokens_per_second = 0.0
        self._seen: Reading[StatusView] | None = None
        self._was_alive = False

    @property
    def is_over(self) -> bool:
        return self._watching.reading.is_gone

    def at(self, now: float, height: int) -> RenderableType:
        reading = self._watching.reading
        if reading.value is None:
            return f"reading the books of {self._name} ... {plain(reading.trouble)}"
        if reading is not self._seen and not reading.trouble:
            self._tokens_per_second = self._speed.at(reading.at, reading.value.spent + reading.value.unknown)
            self._was_alive |= reading.value.processes > 0
        self._seen = reading
        note = self._note(reading.value, now - reading.at)
        return screen.watched(reading.value, self._tokens_per_second, note, height)

    def _note(self, seen: StatusView, age: float) -> str:
        if age >= SILENT_SECONDS:
            return f"the store has not answered for {span(age)}: {plain(self._watching.reading.trouble)}"
        if self._was_alive and not seen.processes:
            return "the run has ended, as far as one can see: no process is in it any more; q: quit"
        return "q: quit"


# -------------------------------------------------------------------- the terminal


def _drawn(console: Console, picture: _Picture) -> int:
    """Draw until somebody has seen enough or the books are gone; the signal that asked for it, else 0."""
    with _single_keys(), _signals() as (woken, heard), Live(console=console, screen=True, auto_refresh=False) as live:
        while not picture.is_over:
            live.update(picture.at(time.monotonic(), console.size.height), refresh=True)
            ready, _, _ = select.select([sys.stdin, woken], [], [], REFRESH_SECONDS)
            if woken in ready:
                os.read(woken, 4096)
            if heard:
                return heard[0]
            if sys.stdin in ready:
                keys = os.read(sys.stdin.fileno(), 64)
                if not keys or b"q" in keys.lower():
                    return 0
    return 0


@contextmanager
def _single_keys() -> Iterator[None]:
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """A file that can be read as soon as there is something to look at, and the signals that mean to end it."""
    heard: list[int] = []
    meant = [number for number in ENDS if signal.getsignal(number) != signal.SIG_IGN]
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    file = signal.set_wakeup_fd(wakes)
    kept = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in meant}
    kept[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)  # ignored, it would wake nobody
    try:
        yield woken, heard
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(file)
        os.close(woken)
        os.close(wakes)
