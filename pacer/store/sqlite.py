"""The vault in a SQLite file: the books of all processes of one machine, and the only room that knows SQLite.

Every exchange is one transaction that holds the write lock from its start; what is done in it is the ``Sheet``'s.

The database file is never opened by anything but SQLite once it is there: closing any other descriptor of it would drop
the locks that SQLite holds on it for this process. Nor may a connection live through a fork: SQLite in the child takes
the locks of the parent for its own and loses what it commits. So all connections are closed before one.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import secrets
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from pacer.entry import Answer, Entry, Limit
from pacer.errors import StoreError
from pacer.store.sheet import TABLES, Sheet
from pacer.store.vault import Away, Busy, Forgotten, Opened, RunRow

__all__ = ["SqliteVault"]

APPLICATION_ID = 0x70616372
"""Marks a SQLite file as ours ("pacr")."""

VERSION = 1
"""Of the tables below."""

PATIENCE_SECONDS = 0.8
"""How long a call goes on trying while other processes have the file; with its last try it stays below a second."""

LONGEST_PAUSE_SECONDS = 0.004
"""Between two tries: who waits for a turn must not lose each of them to those who come later."""

HASTE_SECONDS = 0.002
"""How long an exchange that is not patient goes on trying: an event loop waits, but a thread would take longer."""

LOG_PAGES = 4_000
"""So much an exchange writes before it waits for the disk itself; up to there, renewals move the log into the file."""

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"}
"""File systems whose locks, or whose shared memory, cannot be relied on."""

MOUNTS = "/proc/self/mountinfo"

_Place = tuple[int, int]
T = TypeVar("T")


class SqliteVault:
    """See :class:`pacer.store.vault.Vault`. The books are in the file ``path``, which is made if it is not there.

    ``lease`` is in seconds. ``clock`` gives monotonic seconds which all processes of the machine must share.

    Raises: StoreError if the file, or where it lies, cannot be used or is not safe.
    """

    is_quick = True

    def __init__(self, path: str, pacer: str, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not path or "\0" in path:
            raise StoreError("a store needs the path of a file, not an empty one")
        self._path = os.path.abspath(path)
        self._pacer = pacer
        self._lease = lease
        self._clock = clock
        self.member = secrets.token_hex(8)
        self._epochs: dict[str, int] = {}
        self._status = ""
        self._lived_at = -math.inf
        self._books: sqlite3.Connection | None = None
        self._closing: weakref.finalize[..., SqliteVault] | None = None
        self._place: _Place | None = None
        self._lock = threading.Lock()  # tells a fork that it would hit a transaction
        _vaults.add(self)

    def open(self, run: str, ceiling: int | None, limits: tuple[Limit, ...]) -> Opened:
        """The run as it is there, made first if there is none."""

        def work(sheet: Sheet) -> tuple[int, Opened]:
            sheet.clear_out()
            epoch = sheet.create(run, ceiling, limits)
            sheet.use([epoch])
            sheet.live(self._lease, self._status)
            rates = sheet.rates()
            return epoch, Opened(rates.limits, rates.paused, rates.revision, sheet.run_of(epoch).books())

        self._epochs[run], opened = self._within(work, creates=True)
        return opened

    def exchange(self, entries: Sequence[Entry], *, patient: bool = True) -> Answer:
        """Write the entries, all of them in one transaction."""

        def work(sheet: Sheet) -> Answer:
            if not 0 <= sheet.now - self._lived_at < self._lease / 6:
                sheet.live(self._lease, self._status)
                self._lived_at = sheet.now
            return sheet.answer([sheet.enter(entry) for entry in entries])

        return self._within(work, patient=patient)

    def renew(self, status: str) -> None:
        """Prolong the lease, and book what others let lapse."""
        self._status = status

        def work(sheet: Sheet) -> None:
            sheet.live(self._lease, status)
            sheet.use(self._epochs.values())
            sheet.sweep()

        self._move_log()
        self._within(work)

    def limits(self) -> tuple[Limit, ...]:
        """The limits of the pacer as they are now."""
        return self._within(lambda sheet: sheet.rates().limits)

    def leave(self) -> None:
        """Drop carves and claims; the holds lapse."""
        self._lived_at = -math.inf
        self._within(Sheet.leave)

    def rows(self) -> list[RunRow]:
        """Every run in the file, the one used last at the end."""

        def work(sheet: Sheet) -> list[RunRow]:
            sheet.sweep()
            return sheet.rows()

        return self._within(work)

    def end(self, run: str) -> None:
        """Remove a run of this pacer, if it is there."""
        self._within(lambda sheet: sheet.remove(sheet.epoch_of(run), self._pacer))

    def after_fork(self) -> None:
        """Be another member, with a connection of its own."""
        self._lock = threading.Lock()
        self.member = secrets.token_hex(8)
        self._status = ""
        self._lived_at = -math.inf
        if self._books is not None:  # a fork that Python was not told of before
            _inherited.append(self._books)
            self._books = None
            if self._closing is not None:
                self._closing.detach()

    def close(self) -> None:
        """Close the connection; a further call opens another one."""
        with self._lock:
            self._disconnect()

    def _move_log(self) -> None:
        """Let the disk catch up now, and not in an exchange that an event loop waits for."""
        with self._lock, contextlib.suppress(sqlite3.Error):  # the log can be moved another time
            if self._books is not None:
                self._books.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    # ---------------------------------------------------------------- transactions

    def _within(self, work: Callable[[Sheet], T], *, patient: bool = True, creates: bool = False) -> T:
        """Do something in a transaction, again while others are at it and there is time for it."""
        give_up = time.monotonic() + (PATIENCE_SECONDS if patient else HASTE_SECONDS)
        pause = 0.0001
        while True:
            try:
                with self._lock:
                    return self._try(work, creates)
            except Busy:
                if time.monotonic() + pause > give_up:
                    if not patient:
                        raise
                    raise Away(f"the store {self._path!r} is locked by another process") from None
            time.sleep(random.uniform(0.3, 1.0) * pause)  # noqa: S311  # spreads load, hides nothing
            pause = min(LONGEST_PAUSE_SECONDS, 1.6 * pause)

    def _try(self, work: Callable[[Sheet], T], creates: bool) -> T:
        lived_at = self._lived_at
        try:
            books = self._connected(creates)
            books.execute("BEGIN IMMEDIATE")
            sheet = Sheet(books.execute, self._pacer, self.member, self._epochs, self._clock())
            result = work(sheet)
            sheet.write()
            books.execute("COMMIT")
        except BaseException as error:
            self._lived_at = lived_at
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise self._meaning(error) from error
            if isinstance(error, msgspec.MsgspecError | ValueError):
                raise self._unusable(f"holds what cannot be read ({error})") from error
            raise
        return result

    def _roll_back(self) -> None:
        books = self._books
        if books is not None and books.in_transaction:
            try:
                books.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()

    def _meaning(self, error: sqlite3.Error) -> Exception:
        """What an error of SQLite is to the owner of the vault."""
        code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return Busy(f"the store {self._path!r} is locked by another process")
            case _ if code == sqlite3.SQLITE_READONLY_DBMOVED or (self._books is not None and not self._is_in_place()):
                self._disconnect()
                return self._replaced()
            case sqlite3.SQLITE_FULL:
                return Away(f"no room for the store {self._path!r}: {error}")
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PROTOCOL:
                self._disconnect()
                return Away(f"the store {self._path!r} cannot be reached: {error}")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return self._unusable("is read-only")
            case sqlite3.SQLITE_NOTADB:
                return self._unusable("is no SQLite file")
        return self._unusable(f"is damaged ({error}): put back a copy, or remove the file")

    def _unusable(self, why: str) -> StoreError:
        return StoreError(f"the store {self._path!r} {why}")

    def _replaced(self) -> Forgotten:
        return Forgotten(f"the store {self._path!r} was removed or replaced")

    # ---------------------------------------------------------------- the connection

    def _connected(self, creates: bool) -> sqlite3.Connection:
        if self._books is not None:
            if self._is_in_place():
                return self._books
            self._disconnect()
        with _door:
            place = self._find(creates)
            if self._place not in (None, place) and not creates:
                raise self._replaced()
            self._place = place
            address = f"file://{quote(self._path)}?mode=rw"  # "file:" alone takes two slashes of a path for a host's
            self._books = sqlite3.connect(address, timeout=0, isolation_level=None, check_same_thread=False, uri=True)
            self._closing = weakref.finalize(self, self._books.close)  # who drops a vault closes it
            self._closing.atexit = False  # then a store may still have something to write
        try:
            self._set_up(self._books)
        except BaseException:
            self._disconnect()
            raise
        return self._books

    def _disconnect(self) -> None:
        if self._books is not None and self._closing is not None:
            self._books = None
            self._closing()

    def _is_in_place(self) -> bool:
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._place

    def _set_up(self, books: sqlite3.Connection) -> None:
        books.execute("PRAGMA page_size = 2048")  # of a new file; each page that an entry touches is written whole
        books.execute("PRAGMA synchronous = NORMAL")
        books.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES:d}")
        books.execute("BEGIN")  # one look at the file, which another process may be making just now
        is_blank = self._is_blank(books)
        books.execute("COMMIT")
        self._write_ahead(books)
        if is_blank:
            books.execute("BEGIN IMMEDIATE")
            if self._is_blank(books):
                for table in TABLES:
                    books.execute(table)
                books.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
                books.execute(f"PRAGMA user_version = {VERSION:d}")
            books.execute("COMMIT")

    def _write_ahead(self, books: sqlite3.Connection) -> None:
        (mode,) = books.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise self._unusable("lies where SQLite cannot keep a write-ahead log")

    def _is_blank(self, books: sqlite3.Connection) -> bool:
        """Whether nothing is in the file yet; raises StoreError if it is not ours."""
        (mark,) = books.execute("PRAGMA application_id").fetchone()
        (version,) = books.execute("PRAGMA user_version").fetchone()
        (count,) = books.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if (mark, version, count) == (0, 0, 0):
            return True
        if mark != APPLICATION_ID:
            raise self._unusable("is a SQLite file of another program")
        if version != VERSION:
            age = "an older" if version < VERSION else "a newer"
            raise self._unusable(f"was written by {age} release (version {version}, not {VERSION})")
        return False

    def _find(self, creates: bool) -> _Place:
        """Where the file is, made if it is to be made; raises StoreError if it is not safe to use."""
        parent = os.path.dirname(self._path)
        try:
            if creates:
                _make_directory(Path(parent))
            self._check_directory(parent)
            if creates and not os.path.lexists(self._path):
                self._make_file()
            found = os.lstat(self._path)
        except FileNotFoundError:
            if self._place is None:
                raise self._unusable("is not there") from None
            raise self._replaced() from None
        except OSError as error:
            raise self._unusable(f"cannot be opened: {error.strerror}") from None
        self._check_file(found)
        return found.st_dev, found.st_ino

    def _make_file(self) -> None:
        with contextlib.suppress(FileExistsError):  # another process makes it just now
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600))

    def _check_directory(self, parent: str) -> None:
        found = os.stat(parent)
        if not stat.S_ISDIR(found.st_mode):
            raise self._unusable("lies in what is no directory")
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise self._unusable("lies in a directory that others may write to: take that right from them")
        kind = _file_system(os.path.realpath(parent))
        if kind in NETWORK:
            raise self._unusable(f"lies on a network file system ({kind}): name a local one, or use Redis")
        if not _may(parent, os.R_OK | os.W_OK | os.X_OK):
            raise self._unusable("lies in a directory that may not be written to")

    def _check_file(self, found: os.stat_result) -> None:
        if stat.S_ISLNK(found.st_mode):
            raise self._unusable("is a symbolic link: name the file itself")
        if not stat.S_ISREG(found.st_mode):
            raise self._unusable("is no regular file")
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            raise self._unusable("belongs to another user")
        if not _may(self._path, os.R_OK | os.W_OK):
            raise self._unusable("is read-only")


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _make_directory(path: Path) -> None:
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _file_system(directory: str) -> str:
    """The type of the file system that a directory is on; "" where the system does not tell."""
    try:
        lines = Path(MOUNTS).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = before.split()[4].replace("\\040", " ")
        if len(mount) >= len(best) and (directory + "/").startswith(mount.rstrip("/") + "/"):
            best, kind = mount, after.split()[0]
    return kind


# -------------------------------------------------------------------- forks

_vaults: weakref.WeakSet[SqliteVault] = weakref.WeakSet()
_door = threading.Lock()  # who makes the file must have closed it before anybody here connects to it
_inherited: list[sqlite3.Connection] = []  # never closed: that would drop locks, or the log that the parent writes
_forking: list[threading.Lock] = []


def _before_fork() -> None:
    """Wait for transactions to end and close all connections: they open anew on either side."""
    for vault in list(_vaults):
        vault._lock.acquire()
        _forking.append(vault._lock)
        vault._disconnect()
    _door.acquire()


def _after_fork() -> None:
    _door.release()
    while _forking:
        _forking.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
