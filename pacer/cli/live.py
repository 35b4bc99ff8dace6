"""The status line that ``pacer run`` keeps at the bottom of a terminal while its command runs.

The command has the terminal itself, nothing stands between. A scroll region leaves the last row to us, and the window
says that it is one row lower, so whatever fits itself to the window fits above the line. The line gives way to a
program that reads single keys (an editor, a pager, a prompt with a history), to other jobs of the shell, and to windows
that are too small; it comes back half a second after.

What it cannot know: a program that is just between the two halves of an escape sequence, or that keeps the cursor saved
while it does other things, may be disturbed by it. A ``kill -9`` of ``pacer run`` leaves the terminal one row short
until it is resized, and with its scroll region until it is ``reset``.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Literal, NamedTuple, Self

import msgspec

from pacer.cli import view
from pacer.cli.spelling import brief, plain, span
from pacer.cli.watch import Reading, Speed, Watch
from pacer.settings import Settings
from pacer.store.vault import RunRow, Vault

READ_SECONDS = 0.5
"""So often the store is read."""
SPEED_SECONDS = 10.0
"""The tokens per second are those that were booked in this last stretch."""
SILENT_SECONDS = 3.0
"""A store that has not answered for so long is told."""
TICK_SECONDS = 0.25
"""So often it is looked whether anything has changed."""
CALM_SECONDS = 0.5
"""Where the line has given way, the terminal must be ours to draw on for so long before it comes back."""
HEAL_SECONDS = 1.0
"""The line is drawn again after this time though nothing has changed: a program may have cleared the screen."""
STUCK_SECONDS = 1.0
"""A terminal that takes nothing any more (Ctrl-S) is waited for no longer than that."""
LEAST_ROWS, LEAST_COLUMNS = 5, 20
NOT_FOR = {"", "dumb", "unknown", "linux"}
"""Terminals without a line: those that know no scroll region, and the console, which would really be resized."""

_Wish = Literal["shown", "away", "over"]


# -------------------------------------------------------------------- what it says


class Standing(msgspec.Struct, frozen=True):
    """How all runs of a pacer stand together, in tokens; ``fullest`` is the run with most of its ceiling used.

    ``limit`` and ``seconds`` are those of the next call that waits; ``rate`` is in tokens per second.
    """

    booked: int = 0
    ceiling: int | None = None
    used_share: float | None = None
    runs: int = 1
    fullest: str = ""
    in_flight: int = 0
    waiting: int = 0
    limit: str = ""
    seconds: float | None = None
    rate: float | None = None
    paused: bool = False


def standing_of(rows: Sequence[RunRow]) -> Standing | None:
    """What the rows of one pacer come to; runs that have booked nothing count where no other one has."""
    runs = [view.run_of(row) for row in rows]
    used = [run for run in runs if run.spent or run.unknown or run.in_flight] or runs[:1]
    if not used:
        return None
    fullest = max(used, key=lambda run: run.used_share or -1.0)
    living = [process for row in rows for process in view.living_of(row)]
    waits = [wait for process in living for wait in process.waits]
    next_one = min(waits, key=lambda wait: math.inf if wait.seconds is None else wait.seconds, default=view.ToldWait())
    rates = [limit for limit in rows[0].limits if limit.kind == "tokens"]
    return Standing(
        booked=sum(run.spent + run.unknown for run in used),
        ceiling=fullest.ceiling,
        used_share=fullest.used_share,
        runs=len(used),
        fullest=fullest.name,
        in_flight=sum(run.in_flight for run in used),
        waiting=sum(process.waiting for process in living),
        limit=next_one.limit,
        seconds=next_one.seconds,
        rate=rates[0].amount / rates[0].per if rates else None,
        paused=any(run.paused for run in used),
    )


def line(standing: Standing | None, speed: float, silent_seconds: float, columns: int) -> str:
    """The status in at most so many columns of ASCII: all there is to say, or as much of it as fits.

    ``speed`` is in tokens per second as they are booked, spent or unknown, when calls end: that is what the bill will
    say. What open calls hold is no part of it, since it is a worst case, several times what they come to. So the speed
    moves in steps where calls are long, and the first burst may lift it above the rate. ``silent_seconds`` is how long
    the store has not answered.
    """
    if silent_seconds >= SILENT_SECONDS:
        away = f"the store has not answered for {span(silent_seconds)}"
        booked = "" if standing is None else f"{_booked(standing, brief)} before that"
        return _fitting([[away, booked], [away], ["store away"]], columns)
    if standing is None:
        return ""
    return _fitting(_variants(standing, speed, silent_seconds), columns)


def _fitting(variants: Sequence[list[str]] | Iterator[list[str]], columns: int) -> str:
    text = ""
    for parts in variants:
        text = "  ".join(part for part in parts if part)
        if len(text) <= columns:
            return text
    return text[:columns]


def _variants(now: Standing, speed: float, age: float) -> Iterator[list[str]]:
    """From all that there is to say to the least."""
    flight = f"{now.in_flight:,} in flight"
    waiting = f"{now.waiting:,} waiting" if now.waiting else ""
    why = waiting + _why(now, age)
    paused = "PAUSED" if now.paused else ""
    for bar, number in ((10, _exact), (5, brief), (0, brief)):
        yield [paused, _speed(now, speed, bar), _booked(now, number), flight, why]
    yield [paused, _speed(now, speed, 0), _booked(now, brief), flight, waiting]
    yield [paused, _speed(now, speed, 0), _used(now) or _booked(now, brief), why]
    yield [paused, _speed(now, speed, 0), _used(now) or _booked(now, brief), waiting]
    yield [paused, _used(now) or _booked(now, brief), waiting]


def _exact(amount: int) -> str:
    return f"{amount:,}"


def _speed(now: Standing, speed: float, bar: int) -> str:
    if now.rate is None:
        return f"{speed:,.0f} tok/s"
    filled = min(bar, math.floor(speed / now.rate * bar + 0.5))
    drawn = f"[{'#' * filled}{'.' * (bar - filled)}] " if bar else ""
    return f"{drawn}{speed:,.0f}/{now.rate:,.4g} tok/s"


def _booked(now: Standing, number: Callable[[int], str]) -> str:
    if now.runs > 1:
        fullest = f", {_ascii(now.fullest)} {_used(now)}" if now.ceiling else ""
        return f"{number(now.booked)} in {now.runs:,} runs{fullest}"
    of = "" if now.ceiling is None else f"/{number(now.ceiling)} {_used(now)}"
    return f"{number(now.booked)}{of or ' tokens'}".rstrip()


def _used(now: Standing) -> str:
    return "" if now.used_share is None else f"{math.floor(now.used_share * 100)}%"


def _why(now: Standing, age: float) -> str:
    if not now.limit:
        return ""
    seconds = "" if now.seconds is None else f" {max(0.0, now.seconds - age):.1f}s"
    return f"{seconds} for {_ascii(now.limit).replace('_per_second', '/s').replace('_per_minute', '/min')}"


def _ascii(name: str) -> str:
    """Every terminal agrees how wide that is."""
    return plain(name).encode("ascii", "backslashreplace").decode()


class Figures:
    """The status of the runs of a pacer, read from its store while it is shown."""

    def __init__(self, chosen: Settings) -> None:
        self._watch = Watch(chosen, partial(_read, chosen.run), READ_SECONDS)
        self._speed = Speed(SPEED_SECONDS)
        self._seen: Reading[Standing | None] | None = None
        self._tokens_per_second = 0.0

    def start(self) -> None:
        """Begin to read."""
        self._watch.start()

    def stop(self) -> None:
        """Read no more."""
        self._watch.stop()

    def text(self, now: float, columns: int) -> str:
        """See :func:`line`."""
        reading = self._watch.reading
        if reading is not self._seen and not reading.trouble and reading.value is not None:
            self._tokens_per_second = self._speed.at(reading.at, reading.value.booked)
        self._seen = reading
        return line(reading.value, self._tokens_per_second, now - reading.at, columns)


def _read(pacer: str, vault: Vault) -> Standing | None:
    return standing_of([row for row in vault.rows() if row.pacer == pacer])


# -------------------------------------------------------------------- how it is drawn


class Window(NamedTuple):
    """The size of a terminal as the kernel keeps it (``struct winsize``)."""

    rows: int
    columns: int
    width: int = 0
    height: int = 0

    def without_last_row(self) -> Window:
        """A row less. A pixel more than that leaves: no terminal says so itself, so its own sizes can be told apart."""
        return self._replace(rows=self.rows - 1, height=self.height * (self.rows - 1) // self.rows + 1)


SCROLL_IF_ON_LAST_ROW = "\x1bD\x1b[A"
ERASE_BELOW = "\x1b[J"


def begun(window: Window) -> str:
    """The cursor, wherever it is, stays above the last row from now on."""
    return SCROLL_IF_ON_LAST_ROW + _aside(f"\x1b[1;{window.rows - 1}r")


def drawn(text: str, window: Window) -> str:
    """The line, and once more the scroll region, which a program may have reset."""
    shown = text.ljust(window.columns - 1)
    return _aside(f"\x1b[1;{window.rows - 1}r\x1b[{window.rows};1H\x1b[0;7m{shown}\x1b[0m\x1b[K")


def ended(window: Window) -> str:
    """The screen as it was, but for the line."""
    return _aside(f"\x1b[r\x1b[{window.rows};1H\x1b[0m\x1b[2K")


def moved() -> str:
    """The window has another size: what is below the cursor is the old line, wherever the terminal has moved it to."""
    return _aside("\x1b[r") + ERASE_BELOW


def _aside(sequence: str) -> str:
    return f"\x1b7{sequence}\x1b8"


class StatusLine:
    """The line on one terminal: within ``with`` its row is kept, and from ``start`` on drawn by a thread of its own.

    The other threads only wake that one up: none of them ever waits for a terminal that is stuck.
    """

    def __init__(self, terminal: int, figures: Figures) -> None:
        self._terminal = terminal
        self._figures = figures
        self._thread = threading.Thread(target=self._run, name="pacer-line", daemon=True)
        self._wish: _Wish = "shown"
        self._is_woken = threading.Event()
        self._is_away = threading.Event()
        self._window: Window | None = None
        self._is_hidden = False
        self._text = ""
        self._drawn_at = -math.inf
        self._disturbed_at = -math.inf
        stops = signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL
        self.signals = {signal.SIGWINCH, signal.SIGTSTP} if stops else {signal.SIGWINCH}
        """What it has to hear of: that the window has another size, and that we are to stop."""

    def __enter__(self) -> Self:
        with suppress(OSError, termios.error):
            if self._is_ours():
                self._reserve()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._figures.stop()
        self._wish = "over"
        self._is_woken.set()
        self.start()
        self._thread.join(STUCK_SECONDS)

    def start(self) -> None:
        """Begin to draw; the command has been started before, for a process with threads is no good one to fork."""
        if self._thread.ident is None:
            self._thread.start()

    def look(self) -> None:
        """The window may have another size."""
        self._is_woken.set()

    def give_way(self) -> None:
        """Leave the terminal as it was; returns when that is done."""
        self._is_away.clear()
        self._wish = "away"
        self._is_woken.set()
        if self._thread.is_alive():
            self._is_away.wait(STUCK_SECONDS)

    def come_back(self) -> None:
        """Be there again."""
        self._wish = "shown"

    # ---------------------------------------------------------------- in the thread

    def _run(self) -> None:
        self._figures.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # to write must never stop us
        try:
            with suppress(OSError, termios.error):  # the terminal is gone
                while (wish := self._wish) != "over":
                    self._tick(wish, time.monotonic())
                    self._is_woken.wait(TICK_SECONDS)
                    self._is_woken.clear()
        finally:
            with suppress(OSError, termios.error):
                self._leave()
            self._is_away.set()
            os.close(self._terminal)

    def _tick(self, wish: _Wish, now: float) -> None:
        if wish == "away":
            self._disturbed_at = now
            self._leave()
            self._is_away.set()
        elif not self._is_ours():
            self._hide(now)
        elif self._window is not None and self._size() != self._window.without_last_row():
            self._window = None
            self._write(moved())
            self._reserve()
        elif self._window is None and now - self._disturbed_at >= CALM_SECONDS:
            self._erase_old()
            self._reserve()
        if self._window is not None:
            self._draw(self._window, now)

    def _is_ours(self) -> bool:
        """Whether no other job has the terminal, and no program reads single keys there."""
        return self._is_foreground() and bool(termios.tcgetattr(self._terminal)[3] & termios.ICANON)

    def _is_foreground(self) -> bool:
        return os.tcgetpgrp(self._terminal) == os.getpgrp()

    def _reserve(self) -> None:
        window = self._size()
        if window.rows >= LEAST_ROWS and window.columns >= LEAST_COLUMNS:
            self._window = window
            self._text = ""
            self._write(begun(window))
            self._resize(window.without_last_row())

    def _draw(self, window: Window, now: float) -> None:
        text = self._figures.text(now, window.columns - 1)
        if text and (text != self._text or now - self._drawn_at >= HEAL_SECONDS):
            self._write(drawn(text, window))
            self._text, self._drawn_at = text, now

    def _hide(self, now: float) -> None:
        self._disturbed_at = now
        self._is_hidden |= self._window is not None
        self._take_down()

    def _leave(self) -> None:
        self._take_down()
        if self._is_foreground():
            self._erase_old()

    def _take_down(self) -> None:
        if self._window is None:
            return
        window, self._window = self._window, None
        if self._size() == window.without_last_row():
            self._write(ended(window))
            self._resize(window)
        else:
            self._write(moved())

    def _erase_old(self) -> None:
        """Where it was erased on a program's other screen, the first one came back with it: nothing else is below."""
        if self._is_hidden:
            self._is_hidden = False
            self._write(ERASE_BELOW)

    def _size(self) -> Window:
        return Window(*struct.unpack("HHHH", fcntl.ioctl(self._terminal, termios.TIOCGWINSZ, bytes(8))))

    def _resize(self, window: Window) -> None:
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *window))

    def _write(self, sequence: str) -> None:
        """In one piece, which the kernel does not mix with what others write."""
        os.write(self._terminal, sequence.encode())


def on_terminal(file: int, chosen: Settings) -> StatusLine | None:
    """The line for the runs of a pacer, if this is a terminal that can have one and has none yet."""
    if os.environ.get("TERM", "") in NOT_FOR:
        return None
    try:
        terminal = os.open(os.ttyname(file), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two lines would push each other up
    except OSError:
        os.close(terminal)
        return None
    return StatusLine(terminal, Figures(chosen))
