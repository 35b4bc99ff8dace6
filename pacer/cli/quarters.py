"""The directory of one command: each process of it that is paced is in there, and the last one to leave removes it.

So a process that outlives its command goes on with the books that it had. Who is in there holds a shared lock, which
the system takes back however a process ends.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pacer.errors import StoreError

PATIENCE_SECONDS = 0.5
"""Processes that end because their command did need a moment for it."""


class _Lock:
    """A share in the lock of a directory. Raises: OSError if that is not there any more.

    A program may close all files that it does not know, as daemons do, and open its own in their place: those are not
    to be locked or closed here.
    """

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory, os.O_RDONLY)
        self._made = os.fstat(self._file)
        fcntl.flock(self._file, fcntl.LOCK_SH)
        if not directory.exists():  # the last one was just removing it
            self.close()
            raise FileNotFoundError(directory)

    @property
    def is_held(self) -> bool:
        """Whether the program has not closed it."""
        try:
            return os.path.samestat(os.fstat(self._file), self._made)
        except OSError:
            return False

    def is_last(self) -> bool:
        """Whether nobody else has a share; then nobody gets one any more."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give it back."""
        if self.is_held:
            os.close(self._file)


_held: dict[Path, _Lock] = {}
"""The directories that this process is in."""
_for_child: dict[Path, _Lock] = {}
"""The same for the child of a fork that is just being made, which is in there at once."""


@contextmanager
def opened() -> Iterator[Path]:
    """A new directory, for this user alone; it is still there afterwards if others are in it. Raises: StoreError."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="pacer-"))
    except OSError as error:
        raise StoreError(f"what the command shares has no place: {error.strerror}; set TMPDIR to one") from None
    _held[directory] = _Lock(directory)
    try:
        yield directory
    finally:
        _leave(directory, PATIENCE_SECONDS)


def enter(directory: Path) -> bool:
    """Be in there until this process ends; whether it is still there."""
    if directory not in _held:
        with suppress(OSError):
            _held[directory] = _Lock(directory)
            atexit.register(_leave, directory)
    return directory in _held


def _leave(directory: Path, patience: float = 0.0) -> None:
    try:
        lock = _held.pop(directory)
        lock = lock if lock.is_held else _Lock(directory)
    except (KeyError, OSError):  # somebody else has removed it
        return
    give_up = time.monotonic() + patience
    while not (is_last := lock.is_last()) and time.monotonic() < give_up:
        time.sleep(0.01)
    if is_last:
        shutil.rmtree(directory, ignore_errors=True)
    lock.close()


def _before_fork() -> None:
    for directory in list(_held):
        with suppress(OSError):
            _for_child[directory] = _Lock(directory)


def _after_fork_in_parent() -> None:
    for lock in _for_child.values():
        lock.close()
    _for_child.clear()


def _after_fork_in_child() -> None:
    for lock in _held.values():
        lock.close()
    _held.clear()
    _held.update(_for_child)
    _for_child.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
