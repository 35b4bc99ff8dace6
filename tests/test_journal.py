"""What could not be booked is on the disk, belongs to the user alone, and is booked by who comes next."""

from __future__ import annotations

import resource
import stat
from pathlib import Path

import pytest

from pacer.entry import Settle
from pacer.store.journal import Journal


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals lie."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "token-pacer"


def settlement(number: int) -> Settle:
    return Settle(f"m.{number}", "run", {"spent": number}, {"tokens": 1})


def left_by_the_dead(of: str = "books") -> list[Settle]:
    found: list[Settle] = []
    Journal(of, "another").work_off(found.extend)
    return found


def test_what_a_dead_process_wrote_is_worked_off_once(state: Path):
    journal = Journal("books", "m")
    journal.append([settlement(1)])
    journal.append([settlement(2)])
    journal.leave()
    assert left_by_the_dead() == [settlement(1), settlement(2)]
    assert left_by_the_dead() == []


def test_that_of_a_living_process_is_its_own(state: Path):
    journal = Journal("books", "m")
    journal.append([settlement(1)])
    assert left_by_the_dead() == []
    journal.clear()
    assert list(state.iterdir()) == []


def test_that_of_other_books_is_left_alone(state: Path):
    journal = Journal("other books", "m")
    journal.append([settlement(1)])
    journal.leave()
    assert left_by_the_dead() == []


def test_what_cannot_be_booked_stays(state: Path):
    journal = Journal("books", "m")
    journal.append([settlement(1)])
    journal.leave()

    def fail(settlements: list[Settle]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Journal("books", "another").work_off(fail)
    assert left_by_the_dead() == [settlement(1)]


def test_a_line_that_was_cut_off_is_none(state: Path):
    journal = Journal("books", "m")
    journal.append([settlement(1), settlement(2)])
    journal.leave()
    (path,) = state.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert left_by_the_dead() == [settlement(1)]


def test_it_belongs_to_the_user_alone_and_names_no_place(state: Path):
    journal = Journal("redis://example:6379/0 ../../run", "m")
    journal.append([settlement(1)])
    (path,) = state.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert "run" not in path.name
    journal.leave()


def test_where_nothing_can_be_written_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    Journal("books", "m").append([settlement(1)])
    assert "memory only" in caplog.text


def test_a_full_disk_is_told_of_and_spoils_no_more_than_it_must(state: Path, caplog: pytest.LogCaptureFixture):
    journal = Journal("books", "m")
    journal.append([settlement(1)])
    (path,) = state.iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        journal.append([settlement(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "memory only" in caplog.text
    journal.append([settlement(3)])
    journal.leave()
    assert left_by_the_dead() == [settlement(1), settlement(3)]


def test_nothing_to_write_makes_no_file(state: Path):
    Journal("books", "m").append([])
    assert not state.exists()
