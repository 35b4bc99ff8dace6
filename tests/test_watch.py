"""A store is read by a thread of its own: what it said last is there at once, and why it says nothing any more."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pacer import settings
from pacer.cli.watch import Speed, Watch
from pacer.store.vault import Vault
from tests.test_cli import book, vault

A_LITTLE = 0.01


def spent(vault: Vault) -> int:
    return sum(row.sums()["spent"] for row in vault.rows())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books.db"


def watching(path: Path) -> Watch[int]:
    return Watch(settings.load(store=f"sqlite:{path}", run="nightly"), spent, A_LITTLE)


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(A_LITTLE)


def test_what_the_store_says_is_read_again_and_again(path):
    with vault(f"sqlite:{path}") as opened:
        watch = watching(path)
        assert watch.reading.value is None
        watch.start()
        until(lambda: watch.reading.value == 0)
        book(opened, "nightly", 300)
        until(lambda: watch.reading.value == 300)
        first = watch.reading.at
        until(lambda: watch.reading.at > first)
        watch.stop()


def test_a_store_that_is_away_keeps_what_it_said_and_when(path):
    """Its trouble ends when it is back."""
    with vault(f"sqlite:{path}") as opened:
        book(opened, "nightly", 300)
        watch = watching(path)
        watch.start()
        until(lambda: watch.reading.value == 300)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            until(lambda: "locked" in watch.reading.trouble)
            told = watch.reading
            assert (told.value, told.is_gone) == (300, False)
            until(lambda: watch.reading is not told)
            assert watch.reading.at == told.at
            other.execute("ROLLBACK")
        until(lambda: not watch.reading.trouble)
        assert watch.reading.at > told.at
        watch.stop()


def test_books_that_are_removed_are_gone(path):
    with vault(f"sqlite:{path}") as opened:
        book(opened, "nightly", 300)
        watch = watching(path)
        watch.start()
        until(lambda: watch.reading.value == 300)
    os.remove(path)
    until(lambda: watch.reading.is_gone)
    assert "was removed or replaced" in watch.reading.trouble
    assert watch.reading.value == 300
    watch.stop()


def test_the_speed_is_that_of_the_last_stretch():
    speed = Speed(10.0)
    assert speed.at(0.0, 500) == 0.0
    assert speed.at(2.0, 700) == 100.0
    assert speed.at(10.0, 700) == 20.0
    assert speed.at(12.0, 700) == 0.0
    assert speed.at(13.0, 811) == 111 / 3
