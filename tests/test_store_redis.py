"""What only Redis and Valkey can do to shared books: lose scripts, freeze, evict, refuse, be a cluster."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis
from redis.crc import key_slot

from pacer.entry import Carve, Change, Held, Hold, Limit, Look, Release, Settle, Short, Withdraw
from pacer.errors import StoreError
from pacer.store.redis import RedisVault
from pacer.store.vault import KEPT_SECONDS, Away, Forgotten
from tests.servers import Connection, Server, self_signed
from tests.shelves import patient
from tests.valkey import Valkey, free_port

RATE = (Limit("tokens_per_second", "tokens", 10.0, 1.0, 1_000.0),)
LEASE = 30.0
SPENT, UNKNOWN, HELD, CARVED, IN_FLIGHT = 0, 1, 2, 3, 11


@pytest.fixture(scope="module")
def shared() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def valkey(shared: Valkey) -> Iterator[Valkey]:
    """An empty server that is not to be stopped or set otherwise."""
    shared.ask("FLUSHALL")
    with patient():
        yield shared


@pytest.fixture
def own() -> Iterator[Valkey]:
    """A server of the test's own, which keeps its books on disk before it answers."""
    with Valkey(appendonly="yes", appendfsync="always") as valkey:
        yield valkey


@pytest.fixture
def make() -> Iterator[Callable[..., RedisVault]]:
    """Makes vaults, and closes them."""
    with contextlib.ExitStack() as vaults:

        def make_one(url: str, pacer: str = "nightly") -> RedisVault:
            vault = RedisVault(url, pacer, LEASE)
            vaults.callback(vault.close)
            return vault

        yield make_one


def hold(name: str, worst: int = 100, **more) -> Hold:
    return Hold(name, "nightly", worst, worst, {"tokens": worst}, **more)


def settle(name: str, spent: int, **more) -> Settle:
    return Settle(name, "nightly", {"spent": spent, "calls": 1}, {}, **more)


def sums(vault: RedisVault) -> tuple[int, ...]:
    return vault.exchange([Look("nightly")]).runs["nightly"].sums


def client_of(valkey: Valkey) -> redis.Redis:
    return redis.Redis(port=valkey.port, decode_responses=True, protocol=2)


# ---------------------------------------------------------------- restarts and freezes


def test_scripts_that_are_gone_are_loaded_again(valkey: Valkey, make):
    """A script flush is not noticed by anybody."""
    vault = make(valkey.url)
    vault.open("nightly", 1_000, RATE)
    vault.exchange([hold("a")])
    valkey.ask("SCRIPT", "FLUSH")
    answer = vault.exchange([settle("a", 40), hold("b", 960), hold("c", 1)])
    assert isinstance(answer.verdicts[1], Held)
    assert answer.verdicts[2] == Short()
    assert answer.runs["nightly"].sums[SPENT] == 40


def test_a_killed_server_keeps_what_it_wrote_down(own: Valkey, make):
    """After a kill -9 and a start the books go on where they were, scripts or none."""
    vault = make(own.url)
    vault.open("nightly", 1_000, RATE)
    vault.exchange([hold("a"), hold("b")])
    own.kill()
    with pytest.raises(Away):
        vault.exchange([settle("a", 70)])
    own.restart()
    answer = vault.exchange([settle("a", 70)])
    assert answer.runs["nightly"].sums[SPENT : CARVED + 1] == (70, 0, 100, 0)


def test_who_is_in_haste_leaves_an_answer_behind_that_nobody_takes_for_another_one(own: Valkey, make):
    """An event loop does not wait for a server that is slow; what it asked is done, and is asked again."""
    vault = make(own.url)
    vault.open("nightly", 1_000, RATE)
    own.freeze()
    for _ in range(2):
        with pytest.raises(Away):
            vault.exchange([hold("a")], patient=False)
    own.cont()
    answer = vault.exchange([Look("nightly"), hold("a")])
    assert answer.verdicts[0] is None
    assert isinstance(answer.verdicts[1], Held)
    assert answer.runs["nightly"].sums[IN_FLIGHT] == 1
    assert own.ask("INFO", "clients").count(b"connected_clients:2\r\n") == 1, "the vault's one, and the one that asks"


def test_who_waits_longer_for_the_same_answer_does_not_ask_again(own: Valkey, make):
    """A slow server would have twice as much to do."""
    vault = make(own.url)
    vault.open("nightly", 1_000, RATE)
    vault.exchange([hold("a"), settle("a", 5)])
    with client_of(own) as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        own.freeze()
        for _ in range(2):
            with pytest.raises(Away):
                vault.exchange([hold("b"), settle("b", 40)], patient=False)
        own.cont()
        answer = vault.exchange([hold("b"), settle("b", 40)])
        assert answer.verdicts == [Held(100), None]
        assert answer.runs["nightly"].sums[SPENT : CARVED + 1] == (45, 0, 0, 0)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 2
        vault.exchange([settle("b", 40)])
        vault.exchange([settle("b", 40)])
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 4, "who has the answer asks anew"


def test_event_loops_wait_for_a_near_server_only(valkey: Valkey, make):
    vault = make(valkey.url)
    vault.open("nightly", 1_000, RATE)
    busy, moved = (0.001, 20, True), (0.001, 200, False)
    for seconds, times, is_quick in ((0.0001, 1, True), busy, moved, (0.0001, 1, True)):
        for _ in range(times):
            vault._learn(seconds)
        assert vault.is_quick == is_quick


def test_a_frozen_server_is_away_within_a_second_and_books_once(own: Valkey, make):
    """It may work off later what it got while it was frozen: the repeated batch changes nothing more."""
    vault = make(own.url)
    vault.open("nightly", 1_000, RATE)
    vault.exchange([hold("a")])
    batch = [settle("a", 70), hold("b", 200, carves=(Carve("c", 30),)), settle("never", 5, is_held=False)]
    own.freeze()
    for _ in range(2):  # over the old connection, and at opening a new one
        began = time.monotonic()
        with pytest.raises(Away):
            vault.exchange(batch)
        assert time.monotonic() - began < 1
    own.cont()
    answer = vault.exchange(batch)
    assert isinstance(answer.verdicts[1], Held)
    assert sums(vault)[: CARVED + 1] == (75, 0, 200, 30)
    assert sums(vault)[IN_FLIGHT] == 1


def test_a_slow_server_is_away_within_a_second(make):
    """One that answers every single step just in time is too slow in all."""

    def play(connection: Connection) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := connection._file.readline():
                if line.strip() in (b"AUTH", b"SELECT", b"INFO", b"EVALSHA", b"LOAD"):
                    time.sleep(0.25)
                    connection.write(b"+OK\r\n" if line.strip() in (b"AUTH", b"SELECT") else b"-NOSCRIPT no\r\n")

    with Server(play) as server:
        vault = make(f"redis://:secret@127.0.0.1:{server.port}/3")
        began = time.monotonic()
        with pytest.raises((Away, StoreError)):
            vault.open("nightly", 1_000, RATE)
        assert time.monotonic() - began < 1


def test_an_emptied_server_has_forgotten(valkey: Valkey, make):
    """Every call that counts on the books says so, though another process made new ones meanwhile."""
    vault, other = make(valkey.url), make(valkey.url)
    vault.open("nightly", 1_000, RATE)
    vault.exchange([hold("a")])
    valkey.ask("FLUSHALL")
    for entry in (Look("nightly"), settle("a", 5), Change(paused=True), hold("b")):
        with pytest.raises(Forgotten, match=r"127\.0\.0\.1"):
            vault.exchange([entry])
    with pytest.raises(Forgotten):
        vault.limits()
    other.open("nightly", 1_000, RATE)
    with pytest.raises(Forgotten, match="nightly"):
        vault.exchange([hold("b")])
    assert sums(other) == (0,) * 12


def test_a_forked_child_has_a_connection_and_a_name_of_its_own(valkey: Valkey, make):
    """Its holds are not the parent's, and the parent's connection is none the worse."""
    vault = make(valkey.url)
    vault.open("nightly", 1_000, RATE)
    vault.exchange([hold("a", carves=(Carve("p", 10),))])
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            inherited = vault._client
            vault.after_fork()
            vault.exchange([hold("b", carves=(Carve("q", 10),))])
            assert vault._client is not inherited
            vault.leave()
            vault.close()
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    vault.renew("{}")
    assert sums(vault)[UNKNOWN : CARVED + 1] == (100, 100, 10)


# ---------------------------------------------------------------- doors that are shut


def _told(error: BaseException) -> str:
    """All that a log or an error tracker could show of it, values of variables included."""
    assert error.__traceback__ is not None
    ours = error.__traceback__.tb_next  # the test itself knows the password
    told = traceback.TracebackException(type(error), error, ours, capture_locals=True)
    return "".join(told.format()) + repr(error)


def test_a_server_that_is_not_there_is_named_without_its_password(make):
    """One clear line; the password is in no message, no repr, no context and no variable of the frames."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        vault = make(f"redis://user:s3cret@127.0.0.1:{port}/2")
        with pytest.raises(Away, match=rf"^redis://127\.0\.0\.1:{port}/2 is away: ") as caught:
            vault.open("nightly", 1_000, RATE)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert "s3cret" not in _told(caught.value) + repr(vault)


def test_a_wrong_password_and_a_missing_right_are_no_outage(make):
    """Waiting mends neither, so they are errors of the store; no password is shown, neither the wrong nor the right."""
    with Valkey(requirepass="right") as valkey:
        for url in (f"redis://:s3cret@127.0.0.1:{valkey.port}", f"redis://127.0.0.1:{valkey.port}"):
            with pytest.raises(StoreError, match="does not let us in") as caught:
                make(url).open("nightly", 1_000, RATE)
            assert "s3cret" not in _told(caught.value)
        assert b"OK" in valkey.ask("ACL", "SETUSER", "else", "on", ">s3cret", "~else:*", "+@all")
        with pytest.raises(StoreError, match="does not let us in") as caught:
            make(f"redis://else:s3cret@127.0.0.1:{valkey.port}").open("nightly", 1_000, RATE)
        assert "s3cret" not in _told(caught.value)


WORDS = (
    *("evalsha", "script|load", "type", "time", "hget", "hmget", "hgetall", "hexists", "hset", "hdel", "hincrby"),
    *("zadd", "zrem", "zrange", "zrangebyscore", "pexpire"),
)


@pytest.mark.parametrize("more", [(), ("scan", "info", "select")])
def test_a_user_with_few_rights_suffices(more: tuple[str, ...], make):
    """Those that the docstring of the module names, on keys of ours."""
    with Valkey() as valkey:
        rights = [f"+{word}" for word in (*WORDS, *more)]
        assert b"OK" in valkey.ask("ACL", "SETUSER", "few", "on", ">s3cret", "~pacer:*", *rights)
        vault = make(f"redis://few:s3cret@127.0.0.1:{valkey.port}/{1 if more else 0}")
        vault.open("nightly", 1_000, RATE)
        vault.exchange([hold("a", carves=(Carve("c", 10),)), hold("b", 900), settle("a", 5), Change(limits=())])
        vault.renew("{}")
        assert vault.limits() == ()
        if more:
            assert [row.name for row in vault.rows()] == ["nightly"]
        vault.leave()
        vault.end("nightly")
        assert b"*0\r\n" in valkey.ask("ACL", "LOG") or not more


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@localhost",
        "redis://:s3cret@localhost:port",
        "redis://:s3/cret@localhost:6379",
        "redis://:6379/s3cret@localhost",
        "redis://:s3#cret@localhost",
        "redis://:s3?cret@localhost",
        "redis://:s3cret@",
        "redis://s3cret@localhost",
        "redis://:s3cret@localhost/books",
        "redis://:s3cret@localhost?socket_timeout=60",
        "rediss://:s3cret@localhost?ssl_cert_reqs=none",
        "unix://:s3cret@",
        "s3cret",
        "redis://[s3cret",
    ],
)
def test_a_wrong_url_is_refused_without_a_piece_of_it(url: str):
    """A password in the wrong place looks like a host, a port or a path; so nothing of it is shown."""
    with pytest.raises(StoreError, match="redis://") as caught:
        RedisVault(url, "nightly", LEASE)
    assert "cret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_every_kind_of_url_reaches_the_books(valkey: Valkey, make):
    """TCP under the name of either server, and a socket in the file system; one database is not another."""
    for url in (
        f"valkey://127.0.0.1:{valkey.port}",
        f"unix://{valkey.socket_path}",
        f"redis://127.0.0.1:{valkey.port}",
    ):
        make(url).open("nightly", 1_000, RATE)
        assert [row.name for row in make(url).rows()] == ["nightly"]
    assert make(f"redis://127.0.0.1:{valkey.port}/1").rows() == []
    assert make(f"unix://{valkey.socket_path}?db=1").rows() == []


def test_certificates_are_checked(valkey: Valkey, make, tmp_path):
    """With TLS one that is not trusted is refused for good; named in the url it is trusted."""

    def relay(connection: Connection) -> None:
        outer = connection._raw
        with socket.create_connection(("127.0.0.1", valkey.port)) as inner, contextlib.suppress(OSError, ValueError):
            while ready := select.select([outer, inner], [], [], 5)[0]:
                if outer in ready:
                    if not (request := outer.recv(65536)):
                        return
                    inner.sendall(request)
                if inner in ready:
                    connection.write(inner.recv(65536))

    tls = self_signed(tmp_path)
    with Server(relay, tls) as server:
        for scheme in ("rediss", "valkeys"):
            with pytest.raises(StoreError, match="is not trusted"):
                make(f"{scheme}://localhost:{server.port}").open("nightly", 1_000, RATE)
            vault = make(f"{scheme}://127.0.0.1:{server.port}?ssl_ca_certs={tmp_path / 'both.pem'}")
            assert vault.open("nightly", 1_000, RATE).run.ceiling == 1_000
    assert isinstance(tls, ssl.SSLContext)


def test_without_its_library_the_store_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    """And nobody else imports it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "pacer.store.redis")
    with pytest.raises(StoreError, match=r"pip install token-pacer\[redis\]"):
        importlib.import_module("pacer.store.redis")
    seen = "import sys, pacer, transports; print('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True).stdout == "False\n"


# ---------------------------------------------------------------- servers that will not do


def _said(connection: Connection, info: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        while line := connection._file.readline():
            if line.strip() == b"AUTH":
                connection.write(b"+OK\r\n")
            if line.strip() == b"INFO":
                connection.write(b"$%d\r\n%s\r\n" % (len(info), info.encode()))


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ("redis_version:6.0.16\r\n", "Redis 6.0.16"),
        ("redis_version:5.0.14\r\n", "Redis 5.0.14"),
        ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:7.2.11\r\n", "Valkey 7.2.11"),
    ],
)
def test_an_old_server_is_refused(info: str, named: str, make):
    """With its version and those that will do."""
    with (
        Server(lambda connection: _said(connection, info)) as server,
        pytest.raises(StoreError, match=rf"{named}: .*6\.2.* 8") as caught,
    ):
        make(f"redis://:s3cret@127.0.0.1:{server.port}").open("nightly", 1_000, RATE)
    assert "s3cret" not in _told(caught.value)


@pytest.mark.parametrize("part", ["books", "holds", "carves", "members", "claims", "runs"])
def test_a_foreign_key_in_our_place_is_named_and_nothing_is_written(part: str, valkey: Valkey, make):
    """By all that a process does at its beginning, at its end and every few seconds."""
    vault = make(valkey.url)
    vault.open("nightly", 1_000, RATE)
    with foreign(valkey, part):
        for call in (
            lambda: vault.open("nightly", 1, RATE),
            lambda: vault.renew("{}"),
            vault.leave,
            lambda: vault.end("nightly"),
        ):
            with pytest.raises(StoreError, match=rf"{part} is a list"):
                call()


ON_HOLDS = [hold("b"), settle("a", 1), settle("c", 1, is_held=False)]
ON_CARVES = [hold("b", carves=(Carve("k", 1),)), hold("b", reserve="k"), settle("a", 1, reserve="k", returned=5)]


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        *(("books", entry) for entry in (*ON_HOLDS, *ON_CARVES, Look("nightly"), Change(paused=True))),
        *(("holds", entry) for entry in ON_HOLDS),
        *(("carves", entry) for entry in (*ON_CARVES, Release("nightly", ("k",)))),
        *(("claims", entry) for entry in (hold("b", 950), Look("nightly", needs=950))),
        *(("members", entry) for entry in (*ON_HOLDS, *ON_CARVES, Look("nightly"), Withdraw("nightly"))),
    ],
    ids=str,
)
def test_an_entry_that_needs_a_foreign_key_writes_nothing(part: str, entry, valkey: Valkey, make):
    """Scripts do not roll back; so each of them meets such a key before it writes to another one."""
    vault, dead = make(valkey.url), make(valkey.url)
    for each in (vault, dead):
        each.open("nightly", 1_000, RATE)
    vault.exchange([hold("a")])
    dead.exchange([hold("d", carves=(Carve("e", 1),))])
    if part == "claims":
        dead.leave()  # what it held is to be booked by who is short
    vault._lived_at = 0.0
    with foreign(valkey, part, may_live=part != "members"), pytest.raises(StoreError, match="WRONGTYPE"):
        vault.exchange([entry])


@contextlib.contextmanager
def foreign(valkey: Valkey, part: str, may_live: bool = False) -> Iterator[None]:
    """A list in place of one of our keys, while nothing may be written (but perhaps who lives)."""
    key, members = f"pacer:1:{{nightly}}:{part}", "pacer:1:{nightly}:members"
    with client_of(valkey) as client:
        client.delete(key)
        client.lpush(key, "foreign")
        before = {name: client.dump(name) for name in _keys(client) if not may_live or name != members}
        yield
        assert {name: client.dump(name) for name in before} == before


def _keys(client: redis.Redis) -> list[str]:
    return sorted(client.scan_iter("*"))


@pytest.mark.parametrize(
    ("policy", "memory", "warnings"), [("allkeys-lru", "100mb", 1), ("noeviction", "100mb", 0), ("allkeys-lru", "0", 0)]
)
def test_who_may_evict_budgets_is_warned_of(policy, memory, warnings, make, caplog: pytest.LogCaptureFixture):
    """Once a vault, and only where memory is limited at all."""
    options = {"maxmemory-policy": policy, "maxmemory": memory}
    with Valkey(**options) as valkey, caplog.at_level(logging.WARNING, "pacer"):
        vault = make(valkey.url)
        vault.open("nightly", 1_000, RATE)
        vault.close()
        vault.open("nightly", 1_000, RATE)
    assert [policy in message and "evict" in message for message in caplog.messages] == [True] * warnings


def test_a_server_that_may_not_write_is_away_and_writes_nothing(make):
    """Full memory and a replica both may be over in a minute. What frees memory may be written all the same."""
    with Valkey() as valkey, client_of(valkey) as client:
        vault = make(valkey.url)
        vault.open("nightly", 1_000, RATE)
        vault.exchange([hold("a"), hold("b")])
        for wrong, right, entries in (
            (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0), [hold("c")]),
            (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE"), [hold("c"), settle("a", 5)]),
        ):
            before = {name: client.dump(name) for name in _keys(client)}
            assert b"OK" in valkey.ask(*wrong)
            for entry in entries:
                with pytest.raises(Away):
                    vault.exchange([entry])
            assert b"OK" in valkey.ask(*right)
            assert {name: client.dump(name) for name in _keys(client)} == before
        valkey.ask("CONFIG", "SET", "maxmemory", 1)
        vault.exchange([settle("a", 5)])
        assert sums(vault)[SPENT : CARVED + 1] == (5, 0, 100, 0)


# ---------------------------------------------------------------- keys and numbers


def test_keys_lie_in_one_slot_and_are_kept_for_a_month(valkey: Valkey, make):
    """Every key that was ever made, however it came; and a life sign prolongs them all."""
    vault, other = make(valkey.url), make(valkey.url)
    for each in (vault, other):
        each.open("nightly", 1_000, RATE)
    vault.exchange([hold("a", 100, carves=(Carve("c", 10),))])
    other.exchange([hold("b", 900)])
    with client_of(valkey) as client:
        keys = _keys(client)
        assert len(keys) == 6
        assert len({key_slot(key.encode()) for key in keys}) == 1
        assert all(KEPT_SECONDS - 10 < client.ttl(key) <= KEPT_SECONDS for key in keys)
        for key in keys:
            client.expire(key, 1_000)
        vault.renew("{}")
        assert all(KEPT_SECONDS - 10 < client.ttl(key) <= KEPT_SECONDS for key in keys)


def test_a_key_that_comes_again_is_kept_for_a_month(valkey: Valkey, make):
    """A hash goes with its last field."""
    vault = make(valkey.url)
    vault.open("nightly", 1_000, RATE)
    with client_of(valkey) as client:
        for name in ("a", "b"):
            vault.exchange([hold(name, carves=(Carve(name, 10),)), Look("nightly", needs=950)])
            assert all(KEPT_SECONDS - 10 < client.ttl(key) <= KEPT_SECONDS for key in _keys(client))
            assert len(_keys(client)) == 6
            vault.exchange([settle(name, 1), Release("nightly", (name,)), Withdraw("nightly")])
            assert len(_keys(client)) == 3
        vault.exchange([settle("c", 1, is_held=False)])
        assert KEPT_SECONDS - 10 < client.ttl("pacer:1:{nightly}:holds") <= KEPT_SECONDS


def test_where_nobody_claims_anything_nobody_looks_for_claims(valkey: Valkey, make):
    """Their number in the row of the run says so, however they ended."""
    vault, other = make(valkey.url), make(valkey.url)
    for each in (vault, other):
        each.open("nightly", 1_000, RATE)
    vault.exchange([hold("a", 900)])
    for end in (
        lambda: other.exchange([Withdraw("nightly")]),
        lambda: other.exchange([hold("b", 50), settle("b", 0)]),
        lambda: other.exchange([hold("hopeless", 1_001)]),
        other.leave,
    ):
        for _ in range(2):
            other.exchange([hold("c", 500)])
            assert row_of(valkey)[4] == 1
        for _ in range(2):
            end()
            assert row_of(valkey)[4] == 0


def row_of(valkey: Valkey) -> list:
    """The row of a run as it is stored."""
    with redis.Redis(port=valkey.port, protocol=2) as client:
        return msgspec.msgpack.decode(client.hget("pacer:1:{nightly}:books", "run/nightly"))


def test_runs_that_nobody_used_for_a_month_go(valkey: Valkey, make):
    """Not those in which something is open."""
    vault = make(valkey.url)
    for run in ("old", "open", "nightly"):
        vault.open(run, 1_000, RATE)
    vault.exchange([Hold("a", "open", 10, 10, {})])
    with client_of(valkey) as client:
        long_ago = time.time() - KEPT_SECONDS - 10
        client.zadd("pacer:1:{nightly}:runs", {"old": long_ago, "open": long_ago})
        vault.open("nightly", 1_000, RATE)
        assert sorted(client.hkeys("pacer:1:{nightly}:books")) == ["pacer", "run/nightly", "run/open"]
    assert {row.name for row in vault.rows()} == {"open", "nightly"}


def test_a_renewal_tells_which_runs_were_used(valkey: Valkey, make):
    """Since the last one, and once a day all of them: the names of thousands of runs would be most of the traffic."""
    vault = make(valkey.url)
    runs = "pacer:1:{nightly}:runs"
    for run in ("used", "idle"):
        vault.open(run, None, RATE)
    vault.renew("{}")
    with client_of(valkey) as client:
        for all_used_at, renewed in ((vault._all_used_at, {"used"}), (-math.inf, {"used", "idle"})):
            vault._all_used_at = all_used_at
            client.zadd(runs, {"used": 1, "idle": 1})
            vault.exchange([Look("used")])
            vault.renew("{}")
            assert {run for run, at in client.zrange(runs, 0, -1, withscores=True) if at > 1} == renewed
        client.zadd(runs, {"used": 1, "idle": 1})
        vault.renew("{}")
        assert client.zscore(runs, "used") == 1, "not used since"


def test_what_is_left_of_books_that_were_evicted_hurts_nobody(valkey: Valkey, make):
    """Holds, carves and claims of runs that are not there any more lapse without a trace."""
    dead, vault = make(valkey.url), make(valkey.url)
    dead.open("old", 1_000, RATE)
    dead.exchange([Hold("a", "old", 900, 900, {}, carves=(Carve("k", 50),)), Look("old", needs=500)])
    dead.leave()
    with client_of(valkey) as client:
        client.delete("pacer:1:{nightly}:books")
    vault.open("nightly", 1_000, RATE)
    vault.renew("{}")
    assert sums(vault) == (0,) * 12
    assert [row.name for row in vault.rows()] == ["nightly"]


def test_large_sums_lose_no_digit(valkey: Valkey, make):
    """A number of Lua has 53 bits."""
    vault = make(valkey.url)
    vault.open("nightly", None, RATE)
    big = 2**53 - 1
    for name in ("a", "b", "c"):
        vault.exchange([settle(name, big, is_held=False)])
    vault.exchange([hold("d", big), hold("e", big), hold("f", 2)])
    assert (sums(vault)[SPENT], sums(vault)[HELD]) == (3 * big, 2 * big + 2)
    vault.exchange([settle("d", 1), settle("f", 1)])
    assert (sums(vault)[SPENT], sums(vault)[HELD]) == (3 * big + 2, big)
    assert row_of(valkey)[5][SPENT : HELD + 1] == [str(3 * big + 2), 0, big], "text only where it has to be"
    assert vault.rows()[0].sums()["spent"] == 3 * big + 2
    with client_of(valkey) as client:
        assert sorted(client.hkeys("pacer:1:{nightly}:books")) == ["pacer", "run/nightly"]


def test_a_sum_that_cannot_be_written_changes_nothing(valkey: Valkey, make):
    """Scripts do not roll back, so it is seen before the first write."""
    vault = make(valkey.url)
    vault.open("nightly", None, RATE)
    vault.exchange([hold("a")])
    before = sums(vault)
    for booked in ({"calls": 1, "spent": 10**19}, {"calls": 1, "spend": 1}):
        with pytest.raises(StoreError, match=r"nightly/spen"):
            vault.exchange([Settle("a", "nightly", booked, {})])
    assert sums(vault) == before
    with client_of(valkey) as client:
        client.hset("pacer:1:{nightly}:books", "run/nightly", "some")
    with pytest.raises(StoreError, match="run/nightly"):
        vault.exchange([hold("b")])


def test_processes_that_race_stay_under_the_ceiling(valkey: Valkey, make):
    """Two vaults, each in a thread of its own, and never more held than there is."""
    vaults = [make(valkey.url), make(valkey.url)]
    for vault in vaults:
        vault.open("nightly", 1_000, ())
    granted: list[int] = []

    def ask(vault: RedisVault, side: int) -> None:
        for turn in range(100):
            (verdict,) = vault.exchange([Hold(f"{side}.{turn}", "nightly", 17, 17, {})]).verdicts
            if isinstance(verdict, Held):
                granted.append(verdict.amount)

    threads = [threading.Thread(target=ask, args=(vault, side)) for side, vault in enumerate(vaults)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 58 * 17 == sums(vaults[0])[HELD]


def test_rows_show_all_pacers_and_nothing_foreign(valkey: Valkey, make):
    """Whatever else is in the database."""
    valkey.ask("SET", "pacer:1:foreign:books", "x")
    valkey.ask("SET", "pacer:2:{nightly}:books", "x")
    for pacer, run in (("nightly", "nightly"), ("a.b:c-d_e", "run:1"), ("nightly", "later")):
        make(valkey.url, pacer).open(run, 5, RATE)
    assert [(row.pacer, row.name) for row in make(valkey.url).rows()] == [
        ("nightly", "nightly"),
        ("a.b:c-d_e", "run:1"),
        ("nightly", "later"),
    ]


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Valkey, Valkey]]:
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
    ports = [str(free_port()) for _ in range(2)]
    first, second = ({**options, "cluster-port": port} for port in ports)
    with Valkey(**first) as low, Valkey(**second) as high:
        low.ask("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        high.ask("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        low.ask("CLUSTER", "MEET", "127.0.0.1", high.port, ports[1])
        until = time.monotonic() + 20
        while not all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in (low, high)):
            assert time.monotonic() < until
            time.sleep(0.02)
        yield low, high


PACERS = ("nightly", "daily", "a")  # of both halves of the slots


def test_in_a_cluster_each_pacer_is_found_where_it_lies(cluster: tuple[Valkey, Valkey], make):
    """Whichever node the url names; and an operator sees the pacers of all nodes."""
    for node in cluster:
        for pacer in PACERS:
            assert make(node.url, pacer).open("nightly", 1_000, RATE).run.ceiling == 1_000
        assert {row.pacer for row in make(node.url).rows()} == set(PACERS)
        vault = make(node.url)
        vault.open("nightly", 1_000, RATE)
        assert isinstance(vault.exchange([hold(f"at-{node.port}")]).verdicts[0], Held)
    assert {key_slot(pacer.encode()) > 8191 for pacer in PACERS} == {True, False}


def test_a_node_that_sends_us_elsewhere_is_followed(cluster: tuple[Valkey, Valkey], make):
    """Within the same call, for a user who may not ask what kind of server it is."""
    rights = [f"+{word}" for word in (*WORDS, "cluster|slots")]
    for node in cluster:
        assert b"OK" in node.ask("ACL", "SETUSER", "few", "on", ">s3cret", "~pacer:*", *rights)
    for node in cluster:
        for pacer in PACERS:
            assert make(f"redis://few:s3cret@127.0.0.1:{node.port}", pacer).open("nightly", 1_000, RATE)
