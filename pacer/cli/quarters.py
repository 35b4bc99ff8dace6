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

_held: dict[Path, int] = {}
"""The directories that this process is in, and what it holds their locks with."""
_for_child: dict[Path, int] = {}
"""The same for the child of a fork that is just being made, which is in there at once."""


@contextmanager
def opened() -> Iterator[Path]:
    """A new directory, for this user alone; it is still there afterwards if others are in it. Raises: StoreError."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="pacer-"))
    except OSError as error:
        raise StoreError(f"what the command shares has no place: {error.strerror}; set TMPDIR to one") from None
    _held[directory] = _locked(directory)
    try:
        yield directory
    finally:
        _leave(directory, PATIENCE_SECONDS)


def enter(directory: Path) -> bool:
    """Be in there until this process ends; whether it is still there."""
    if directory not in _held:
        with suppress(OSError):
            _held[directory] = _locked(directory)
            atexit.register(_leave, directory)
    return directory in _held


def _locked(directory: Path) -> int:
    """Raises: OSError if it is not there any more."""
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not directory.exists():  # the last one was just removing it
        os.close(lock)
        raise FileNotFoundError(directory)
    return lock


def _leave(directory: Path, patience: float = 0.0) -> None:
    lock = _held.pop(directory, None)
    if lock is None:
        return
    give_up = time.monotonic() + patience
    while not (is_last := _is_last(lock)) and time.monotonic() < give_up:
        time.sleep(0.01)
    if is_last:
        shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _is_last(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _before_fork() -> None:
    for directory in list(_held):
        with suppress(OSError):
            _for_child[directory] = _locked(directory)


def _after_fork_in_parent() -> None:
    for lock in _for_child.values():
        os.close(lock)
    _for_child.clear()


def _after_fork_in_child() -> None:
    for lock in _held.values():
        os.close(lock)
    _held.clear()
    _held.update(_for_child)
    _for_child.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
