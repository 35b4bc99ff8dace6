"""Shelves of vaults: a store of each kind that processes share, whose clock only goes when it is told."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from unittest.mock import patch

from pacer.store import redis
from pacer.store.redis import RedisVault
from pacer.store.sqlite import SqliteVault
from pacer.store.vault import Vault
from tests.valkey import Clock, Valkey


class Shelf(Protocol):
    """One store, and vaults on it."""

    def open_vault(self, pacer: str = "p", lease: float = 60.0) -> Vault:
        """Another process."""

    def advance(self, seconds: float) -> None:
        """Let the time of the store pass; negative: its clock steps back."""

    def age(self, seconds: float) -> None:
        """Let all runs there be unused for so much longer."""

    def close(self) -> None:
        """Close all vaults."""


class SqliteShelf:
    """A file, and a clock that only goes when it is told."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "books.db")
        self._vaults: list[SqliteVault] = []
        self.now = 1_000.0

    def open_vault(self, pacer: str = "p", lease: float = 60.0) -> Vault:
        self._vaults.append(SqliteVault(self._path, pacer, lease, lambda: self.now))
        return self._vaults[-1]

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def age(self, seconds: float) -> None:
        books = next(vault._books for vault in self._vaults if vault._books is not None)
        books.execute("UPDATE runs SET used_at = used_at - ?", (seconds,))

    def close(self) -> None:
        for vault in self._vaults:
            vault.close()


@contextmanager
def sqlite_shelf() -> Iterator[Shelf]:
    with TemporaryDirectory() as directory:
        shelf = SqliteShelf(Path(directory))
        yield shelf
        shelf.close()


class ValkeyShelf:
    """A real server, whose scripts go by a clock that only goes when it is told."""

    def __init__(self, valkey: Valkey, clock: Clock) -> None:
        self._valkey = valkey
        self._clock = clock
        self._vaults: list[RedisVault] = []

    def open_vault(self, pacer: str = "p", lease: float = 60.0) -> Vault:
        self._vaults.append(RedisVault(self._valkey.url, pacer, lease))
        return self._vaults[-1]

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def age(self, seconds: float) -> None:
        self._valkey.age(seconds)

    def close(self) -> None:
        for vault in self._vaults:
            vault.close()


@cache
def started() -> Valkey:
    """One server for all tests of this process."""
    valkey = Valkey()
    atexit.register(valkey.close)
    return valkey


def patient() -> AbstractContextManager[object]:
    """A server that a busy machine holds up is waited for: it is not away."""
    return patch.multiple(redis, CALL_SECONDS=20.0, ANSWER_SECONDS=20.0, CONNECT_SECONDS=20.0)


@contextmanager
def valkey_shelf() -> Iterator[Shelf]:
    started().ask("FLUSHALL")
    with patient(), started().clock() as clock:
        shelf = ValkeyShelf(started(), clock)
        yield shelf
        shelf.close()


SHELVES: dict[str, Callable[[], AbstractContextManager[Shelf]]] = {"sqlite": sqlite_shelf, "valkey": valkey_shelf}
"""How to put up a shelf of each kind; a context, so that a state machine can have one for each example."""
