"""What could not be written into shared books while their store was away, on the disk of this machine.

One file a process, a JSON object a line, locked as long as the process lives; a power failure may take its last lines.
Whoever opens the same books next writes in what dead processes have left. Every entry has its id, so nothing is booked
twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from pacer.entry import Settle

_log = logging.getLogger("pacer")
_settlements = msgspec.json.Decoder(Settle)


class Journal:
    """The journal of ``member`` for the books ``of`` a store. A file is made when there is something to write.

    It lies in ``token-pacer`` below ``XDG_STATE_HOME``, by default ``~/.local/state``; both are the user's alone.
    """

    def __init__(self, of: str, member: str) -> None:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        self._directory = Path(state) / "token-pacer"
        self._books = hashlib.sha256(of.encode()).hexdigest()[:24]
        self.after_fork(member)

    def after_fork(self, member: str) -> None:
        """That of another member, which does not go on with what was written."""
        self._path = self._directory / f"{self._books}-{member}.jsonl"
        self._file: int | None = None
        self._lock = threading.Lock()  # the clerk may be at it while its process ends

    @property
    def holds_any(self) -> bool:
        """Whether anything was written down that is not known to be in the books."""
        return self._file is not None

    def append(self, settlements: Iterable[Settle]) -> None:
        """Write them down; where that cannot be done they are only in memory, and it is said."""
        # Each begins a line: one that a full disk has cut off spoils none that comes after it.
        lines = b"".join(b"\n" + msgspec.json.encode(settlement) for settlement in settlements)
        if not lines:
            return
        try:
            with self._lock:
                if self._file is None:
                    self._file = self._make()
                while lines:
                    lines = lines[os.write(self._file, lines) :]
        except OSError as error:
            _log.warning("settlements are kept in memory only: %s cannot be written: %s", self._path, error.strerror)

    def _make(self) -> int:
        """The file, which is locked before it can be found."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfound = self._path.with_suffix(".new")
        file = os.open(unfound, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        unfound.rename(self._path)
        return file

    def clear(self) -> None:
        """All of it is in the books."""
        with self._lock:
            if self._file is not None:
                with suppress(OSError):
                    self._path.unlink()
                self._close()

    def leave(self) -> None:
        """Leave it to others, as a process does that dies."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def work_off(self, write: Callable[[list[Settle]], object]) -> None:
        """Let ``write`` write what dead processes have left for these books. Raises: what that raises."""
        with suppress(FileNotFoundError):
            for path in sorted(self._directory.glob(f"{self._books}-*.jsonl")):
                self._work_off(path, write)

    def _work_off(self, path: Path, write: Callable[[list[Settle]], object]) -> None:
        with suppress(FileNotFoundError, BlockingIOError):  # another process was quicker, or its owner lives
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left = _read(path)
                write(left)
                path.unlink()
                _log.warning("%d settlements of a process that has died are booked now", len(left))
            finally:
                os.close(file)


def _read(path: Path) -> list[Settle]:
    """What is written there; a last line that was cut off is none."""
    settlements = []
    for line in path.read_bytes().splitlines():
        with suppress(msgspec.MsgspecError):
            settlements.append(_settlements.decode(line))
    return settlements
