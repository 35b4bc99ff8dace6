"""What is SQLite's own of the vault in a file: which files it takes, and what it does when the file is in trouble."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pacer.entry import Change, Held, Hold, Limit, Look, Settle
from pacer.errors import StoreError
from pacer.store import sqlite
from pacer.store.sqlite import SqliteVault
from pacer.store.vault import Away, Busy, Forgotten
from tests.test_vault import look, one, race

LIMITS = (Limit("tokens_per_minute", "tokens", 600.0, 60.0, 100.0),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books.db"


@pytest.fixture
def vault(path: Path) -> Iterator[SqliteVault]:
    """A vault with a run r, ceiling 1,000."""
    vault = opened(path)
    yield vault
    vault.close()


def opened(path: Path, ceiling: int | None = 1_000) -> SqliteVault:
    vault = SqliteVault(str(path), "p", 60.0)
    vault.open("r", ceiling, LIMITS)
    return vault


def hold(name: str, amount: int = 100) -> Hold:
    return Hold(name, "r", amount, amount, {"tokens": 1})


def refusal(path: Path | str) -> str:
    """How a vault refuses to open; it must not change what it refuses."""
    with pytest.raises(StoreError) as caught:
        SqliteVault(str(path), "p", 60.0).open("r", None, ())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def foreign(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as other:
        for statement in statements:
            other.execute(statement)
        other.commit()
    path.chmod(0o600)


# -------------------------------------------------------------------- the file


def test_nobody_else_may_read_the_books(tmp_path):
    """Neither the file, nor what SQLite lays beside it, nor a directory that was made for it; whatever the umask."""
    before = os.umask(0)
    try:
        path = tmp_path / "new" / "deep" / "books.db"
        vault = opened(path)
        vault.exchange([hold("a")])
    finally:
        os.umask(before)
    beside = [path, path.with_name("books.db-wal"), path.with_name("books.db-shm")]
    assert [mode(one) for one in beside] == [0o600] * 3
    assert [mode(path.parent), mode(path.parent.parent)] == [0o700] * 2
    vault.close()


def test_the_books_outlive_the_process(path, vault):
    vault.exchange([hold("a"), Settle("a", "r", {"spent": 60}, {})])
    vault.close()
    again = opened(path, None)
    assert look(again) == {"spent": 60}
    again.close()
    assert look(vault) == {"spent": 60}, "a closed vault opens anew when it is used"


def test_an_empty_file_is_a_new_one(path):
    """Its maker may have died, or be at it just now."""
    path.touch(0o600)
    opened(path).close()


def test_a_strange_name_is_no_address(tmp_path):
    """What would mean something in an address of SQLite is a part of the name."""
    path = tmp_path / "a?mode=memory&x=%41#b.db"
    opened(path).close()
    assert path.exists()


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(StoreError, match="path"):
        SqliteVault(path, "p", 60.0)


def test_a_path_may_be_spelt_as_a_url_is(path):
    """``sqlite://tmp/books.db``: two slashes at its start are those of a path, and no host."""
    opened(Path(f"/{path}")).close()
    assert path.exists()


def test_a_symbolic_link_is_refused(path, tmp_path):
    """It could lead anybody's books, or anybody's file, into ours."""
    opened(tmp_path / "real.db").close()
    path.symlink_to(tmp_path / "real.db")
    assert f"{str(path)!r} is a symbolic link" in refusal(path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere.db")
    assert f"{str(path)!r} is a symbolic link" in refusal(path)
    assert not (tmp_path / "nowhere.db").exists()


def test_what_is_no_regular_file_is_refused(path, tmp_path):
    os.mkfifo(path)
    assert f"{str(path)!r} is no regular file" in refusal(path)
    assert "is no regular file" in refusal(tmp_path)


def test_a_file_of_another_user_is_refused(path, vault, monkeypatch):
    vault.close()
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert f"{str(path)!r} belongs to another user" in refusal(path)


def test_a_directory_that_others_may_write_to_is_refused_unless_it_is_sticky(tmp_path):
    """Otherwise they could put another file in the place of ours."""
    directory = tmp_path / "open"
    directory.mkdir()
    for bad in (0o777, 0o770, 0o702):
        directory.chmod(bad)
        assert "others may write" in refusal(directory / "books.db")
    assert list(directory.iterdir()) == []
    directory.chmod(0o1777)
    opened(directory / "books.db").close()


def test_a_directory_that_is_none_is_refused(path):
    path.touch()
    assert "directory" in refusal(path / "books.db")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_refused(path, tmp_path, monkeypatch, kind):
    """Their locks, or the memory that a write-ahead log shares, cannot be relied on."""
    mounts = tmp_path / "mounts"
    top = str(tmp_path.resolve())
    mounts.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"30 22 0:40 / {top}/remote\\040one rw,relatime - {kind} host:/x rw\n"
        f"31 22 0:41 / {top}/remote rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(sqlite, "MOUNTS", str(mounts))
    remote = tmp_path / "remote one" / "deep" / "books.db"
    assert f"network file system ({kind})" in refusal(remote)
    assert not remote.exists()
    opened(path).close()
    opened(tmp_path / "remote" / "books.db").close()
    monkeypatch.setattr(sqlite, "MOUNTS", str(tmp_path / "none"))
    opened(remote).close()


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path):
    path.write_bytes(b"my diary, which is quite long" * 300)
    path.chmod(0o600)
    before = path.read_bytes()
    assert f"{str(path)!r} is no SQLite file" in refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("statements", [["CREATE TABLE notes (a)"], ["PRAGMA application_id = 7"]])
def test_a_database_of_another_program_is_refused_and_left_as_it_is(path, statements):
    foreign(path, "VACUUM", *statements)
    before = path.read_bytes()
    assert f"{str(path)!r} is a SQLite file of another program" in refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (sqlite.VERSION + 1, "a newer")])
def test_another_version_is_refused(path, vault, version, age):
    vault.close()
    foreign(path, f"PRAGMA user_version = {version}")
    assert f"{str(path)!r} was written by {age} release" in refusal(path)


def test_a_file_without_its_tables_is_refused_and_not_made_anew(path, vault):
    vault.close()
    foreign(path, "DROP TABLE runs")
    assert f"{str(path)!r} is damaged" in refusal(path)


def test_a_cut_file_is_refused_and_not_made_anew(path, vault):
    vault.close()
    os.truncate(path, 6_000)
    assert f"{str(path)!r} is damaged" in refusal(path)


def test_a_file_that_is_not_there_is_made_by_opening_a_run_only(path):
    """Who mistypes a path to look at shall hear so, and not find an empty file."""
    vault = SqliteVault(str(path), "p", 60.0)
    for call in (vault.rows, vault.limits, lambda: vault.end("r"), lambda: vault.exchange([Look("r")])):
        with pytest.raises(StoreError, match="is not there"):
            call()
    assert not path.exists()


@contextmanager
def as_plain_user() -> Iterator[Path]:
    """Root may write everywhere: be nobody, in a directory of nobody's."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if os.geteuid() != 0:
            yield directory
            return
        os.chown(directory, 65_534, 65_534)
        os.seteuid(65_534)
        try:
            yield directory
        finally:
            os.seteuid(0)


def test_a_read_only_file_or_directory_is_refused():
    with as_plain_user() as directory:
        path = directory / "books.db"
        directory.chmod(0o500)
        assert f"{str(path)!r} lies in a directory that may not be written to" in refusal(path)
        assert "Permission denied" in refusal(directory / "new" / "books.db")
        directory.chmod(0o700)
        opened(path).close()
        path.chmod(0o400)
        assert f"{str(path)!r} is read-only" in refusal(path)


# -------------------------------------------------------------------- trouble on the way


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process writes, for as long as this lasts."""
    ready, done = threading.Event(), threading.Event()

    def work() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ready.set()
            done.wait()
            other.execute("ROLLBACK")

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Pauses:
    """A time that passes only while somebody pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_locked_file_is_away_within_a_second_and_there_again_after(path, vault, monkeypatch):
    monkeypatch.setattr(sqlite, "time", pauses := Pauses())
    with locked(path):
        with pytest.raises(Busy):
            vault.exchange([hold("a")], patient=False)
        assert pauses.now < 0.01
        with pytest.raises(Away, match="locked") as caught:
            vault.exchange([hold("a")])
        assert not isinstance(caught.value, Busy)
        assert 0.5 < pauses.now < 0.9
    assert one(vault, hold("a")) == Held(100)


def test_a_new_connection_waits_for_a_locked_file_too(path, vault):
    with locked(path), pytest.raises(Away, match="locked"):
        opened(path)
    opened(path).close()


def test_a_full_disk_is_away_and_writes_nothing(vault):
    """A settlement that finds no room is kept by its owner and comes again."""
    vault.exchange([hold("first")])
    books = vault._books
    assert books is not None
    (pages,) = books.execute("PRAGMA page_count").fetchone()
    books.execute(f"PRAGMA max_page_count = {pages}")
    names = [f"{'x' * 900}{number}" for number in range(20)]
    with pytest.raises(Away, match="no room"):
        vault.exchange([hold(name, 1) for name in names])
    assert look(vault) == {"held": 100, "in_flight": 1}
    books.execute("PRAGMA max_page_count = 100000")
    vault.exchange([hold(name, 1) for name in names])
    assert look(vault) == {"held": 120, "in_flight": 21}


def remove(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_was_removed_or_replaced_is_forgotten(path, vault, is_replaced):
    """What was counted in it is lost; nothing is admitted on the strength of an empty book."""
    vault.exchange([hold("a")])
    remove(path)
    if is_replaced:
        opened(path).close()
    for _ in range(2):
        with pytest.raises(Forgotten, match="removed or replaced"):
            vault.exchange([hold("b")])
        with pytest.raises(Forgotten, match="removed or replaced"):
            vault.renew("{}")
    assert path.exists() == is_replaced
    vault.open("r", 1_000, ())
    assert look(vault) == {}


def test_a_file_that_is_damaged_on_the_way_is_an_error(path, vault):
    """Neither emptied nor made anew."""
    vault.exchange([hold("a")])
    vault.close()
    size = path.stat().st_size
    with path.open("r+b") as file:  # nobody has it open
        file.seek(4_096)
        file.write(b"\xff" * (size - 4_096))
    with pytest.raises(StoreError, match="is damaged"):
        vault.exchange([hold("b")])
    assert path.stat().st_size == size


def test_books_that_make_no_sense_are_an_error(path, vault):
    vault.close()
    foreign(path, "UPDATE runs SET sums = '[1, \"many\"]'")
    with pytest.raises(StoreError, match="cannot be read"):
        vault.exchange([Look("r")])


def test_names_are_never_part_of_a_statement(path, vault):
    """They come from outside: quotes in them are letters."""
    name = "'); DROP TABLE runs; --\""
    other = SqliteVault(str(path), name, 60.0)
    other.open(name, 5, ())
    other.exchange([Hold(name, name, 1, 1, {}), Settle(name, name, {"spent": 1}, {}), Change(name, ceiling=3)])
    assert look(other, name) == {"spent": 1}
    assert {row.name for row in vault.rows()} == {"r", name}
    other.end(name)
    assert {row.name for row in vault.rows()} == {"r"}
    other.close()


def test_the_error_of_a_hold_in_a_batch_undoes_the_whole_batch(vault):
    with pytest.raises(Forgotten):
        vault.exchange([hold("a"), Look("never opened")])
    assert look(vault) == {}


# -------------------------------------------------------------------- processes


def child(work: object) -> int:
    """Fork, do the work there, and tell how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_writes_books_of_its_own_and_leaves_those_of_its_parent(path, vault):
    """The child holds as another member; what its parent held is its parent's still, and both see the same sums."""
    vault.exchange([hold("a")])

    def work() -> None:
        vault.after_fork()
        assert one(vault, hold("b", 50)) == Held(50)
        vault.leave()

    assert child(work) == 0
    vault.renew("{}")
    assert look(vault) == {"held": 100, "unknown": 50, "in_flight": 1, "calls": 1}


def test_nothing_that_a_forked_child_commits_is_lost_when_its_parent_closes(path, vault):
    """SQLite in the child would think that it has the locks of its parent, and write on into a log that was removed."""
    vault.exchange([hold("a")])
    to_child, to_parent = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            vault.after_fork()
            vault.exchange([hold("b", 50)])
            os.write(to_parent[1], b"x")
            os.read(to_child[0], 1)
            vault.exchange([hold("c", 7)])
        finally:
            os._exit(0)
    os.read(to_parent[0], 1)
    look(vault)
    vault.close()
    os.write(to_child[1], b"x")
    os.waitpid(pid, 0)
    assert look(vault) == {"held": 157, "in_flight": 3}
    for end in (*to_child, *to_parent):
        os.close(end)


def test_a_fork_waits_for_the_end_of_a_transaction(path, vault):
    """A child that was forked inside of one would find the file locked for ever."""
    other = opened(path)
    is_over = threading.Event()

    def work() -> None:
        vault.after_fork()
        other.after_fork()
        assert one(vault, Look("r")) is None
        assert one(other, Look("r")) is None

    def write() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            other.exchange([hold(str(number), 0)])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert [child(work) for _ in range(5)] == [0] * 5
    finally:
        is_over.set()
        thread.join()
        other.close()


RACER = """
import sys
from pacer.entry import Held, Hold, Settle
from pacer.store.sqlite import SqliteVault
path, number = sys.argv[1:]
vault = SqliteVault(path, "p", 60.0)
print("ready", flush=True)
sys.stdin.readline()
vault.open("r", 20_000, ())
index = 0
while True:
    index += 1
    name = f"{number}-{index}"
    (verdict,) = vault.exchange([Hold(name, "r", 50, 50, {})]).verdicts
    if not isinstance(verdict, Held):
        break
    vault.exchange([Settle(name, "r", {"spent": 20, "calls": 1}, {})])
    print(20, flush=True)
"""


def test_eight_processes_never_exceed_a_ceiling_though_some_are_killed(path):
    """What was acknowledged is in the books; what a killed process had open is unknown after its lease, not free."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for number in range(8)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    acknowledged = 0
    for racer in racers[:3]:  # in the middle of it
        assert racer.stdout is not None
        acknowledged += 20 * (racer.stdout.readline() == "20\n")
        racer.kill()
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stderr is not None
        with racer, racer.stdout, racer.stderr:
            acknowledged += 20 * racer.stdout.read().count("20\n")
            assert racer.stderr.read() == ""
    now = time.monotonic() + 61.0
    vault = SqliteVault(str(path), "p", 60.0, lambda: now)
    (row,) = vault.rows()
    sums = row.sums()
    assert acknowledged <= sums["spent"] <= acknowledged + 3 * 20  # settled, and killed before it could say so
    assert sums["spent"] + sums["unknown"] <= 20_000
    assert sums["spent"] + sums["unknown"] > 20_000 - 50 - 8 * 50
    assert sums["unknown"] in (0, 50, 100, 150)
    assert (sums["held"], sums["in_flight"]) == (0, 0)
    vault.close()


def test_processes_may_make_the_file_at_the_same_moment(tmp_path):
    """Nobody finds it half made."""
    for number in range(10):
        path = tmp_path / f"{number}.db"
        vaults = [SqliteVault(str(path), "p", 60.0) for _ in range(4)]
        race([*vaults], lambda vault, _: vault.open("r", 5, LIMITS))
        assert {vault._epochs["r"] for vault in vaults} == {vaults[0]._epochs["r"]}
        for vault in vaults:
            vault.close()
