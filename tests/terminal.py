"""A terminal with a person before it: a program in a pseudo-terminal, and a screen that shows what it writes there."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte

ROOT = Path(__file__).parent.parent
PACER = (sys.executable, "-m", "pacer.cli")


OTHER_SCREEN = 1049


class Screen(pyte.HistoryScreen):
    """Two of them, as terminals have them: the other one is for programs that draw on all of it."""

    _first: tuple[Any, Any] | None = None

    def set_mode(self, *modes: int, **more: Any) -> None:
        if OTHER_SCREEN in modes:
            self._first = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **more)

    def reset_mode(self, *modes: int, **more: Any) -> None:
        super().reset_mode(*modes, **more)
        if OTHER_SCREEN in modes and self._first is not None:
            self.buffer, self.cursor = self._first


class Terminal:
    """The screen, and the hands."""

    def __init__(self, *command: str, rows: int = 12, columns: int = 80, **variables: str) -> None:
        self.screen = Screen(columns, rows, history=20_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "LC_ALL": "C.UTF-8", **variables}
        self.child, self.file = pty.fork()
        if self.child == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execvpe(command[0], list(command), environment)

    def read(self, seconds: float = 0.05) -> bool:
        """What has been written, shown; whether more may come."""
        if select.select([self.file], [], [], seconds)[0]:
            try:
                self._stream.feed(os.read(self.file, 65_536))
            except OSError:  # nobody has it open any more
                return False
        return True

    def until(self, holds: Callable[[], bool]) -> None:
        """Show what is written until it is so."""
        give_up = time.monotonic() + 40
        while not holds():
            assert self.read(), self.lines()
            assert time.monotonic() < give_up, self.lines()

    def until_shown(self, text: str) -> None:
        self.until(lambda: any(text in line for line in self.lines()))

    def until_below(self, text: str) -> None:
        """Until it is in the last row."""
        self.until(lambda: text in self.lines()[-1])

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """As a window does it: its picture first, then the size that the kernel tells the programs."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def window(self) -> tuple[int, int]:
        """Rows and columns, as programs see them."""
        rows, columns = struct.unpack("HHHH", fcntl.ioctl(self.file, termios.TIOCGWINSZ, bytes(8)))[:2]
        return rows, columns

    def lines(self) -> list[str]:
        """The rows of the screen."""
        return [line.rstrip() for line in self.screen.display]

    def all_lines(self) -> list[str]:
        """What has left the screen at its top, and what is on it, down to the last that is not blank."""
        columns = range(self.screen.columns)
        past = ["".join(line[column].data for column in columns).rstrip() for line in self.screen.history.top]
        return "\n".join([*past, *self.lines()]).rstrip().split("\n")

    def end(self) -> int:
        """Read to the end; the exit code."""
        give_up = time.monotonic() + 40
        while self.read(0.5):
            assert time.monotonic() < give_up, self.lines()
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


@contextmanager
def terminal(*command: str, rows: int = 12, columns: int = 80, **variables: str) -> Iterator[Terminal]:
    """A terminal that is closed in the end; who is still there is hung up on."""
    shown = Terminal(*command, rows=rows, columns=columns, **variables)
    try:
        yield shown
    finally:
        os.close(shown.file)
