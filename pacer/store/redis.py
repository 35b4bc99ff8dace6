"""Books in Redis (6.2 or newer) or Valkey (8 or newer): the only room that knows redis-py.

What must be one step is one script of ``pacer/store/lua``, run by the server on its own clock. All keys of a pacer
begin with ``pacer:1:{NAME}:`` and lie in one slot. A user with ``~pacer:*`` suffices, and these commands: EVALSHA,
SCRIPT|LOAD, TYPE, TIME, HGET, HMGET, HGETALL, HEXISTS, HSET, HDEL, HINCRBY, ZADD, ZREM, ZRANGE, ZRANGEBYSCORE, PEXPIRE;
SCAN for ``rows``; CLUSTER|SLOTS in a cluster; SELECT for another database than 0; and INFO, without which neither the
server's version nor its eviction policy is looked at.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec
from msgspec.structs import astuple

from pacer.entry import Answer, Change, Entry, Held, Late, Limit, Look, Missing, RunBooks, Short, Verdict
from pacer.errors import StoreError
from pacer.store.vault import KEPT_SECONDS, Away, Forgotten, Opened, RunRow
from pacer.usage import Kind

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.crc import key_slot
    from redis.exceptions import (
        AskError,
        AuthenticationError,
        AuthorizationError,
        ClusterDownError,
        MovedError,
        NoPermissionError,
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
        ResponseError,
        TryAgainError,
    )
    from redis.retry import Retry
except ImportError as missing:
    raise StoreError("a store in Redis or Valkey needs redis-py: pip install token-pacer[redis]") from missing

_log = logging.getLogger("pacer")
T = TypeVar("T")

CALL_SECONDS = 0.65
"""After this no further reply is waited for in one call; with the last one it takes less than a second."""
ANSWER_SECONDS = 0.3
CONNECT_SECONDS = 0.2

QUICK_SECONDS = 0.0004
"""A server that can answer sooner is worth that an event loop waits for it; further away there are threads."""
HASTE_SECONDS = 0.0006
"""So long an exchange that is not patient waits for its answer."""

USED_SECONDS = 24 * 3600.0
"""So often all runs that were opened are noted to be in use; in between only those that were used."""

_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss", "unix": "unix"}
_FILES = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
_PARTS = ("books", "holds", "carves", "members", "claims", "runs")
_BOOKS = re.compile(r"pacer:1:\{([A-Za-z0-9._:-]{1,128})\}:books")
_PASSING = (
    *(redis.ConnectionError, redis.TimeoutError, ReadOnlyError, OutOfMemoryError),
    *(AskError, ClusterDownError, TryAgainError),
)
# What the server says when waiting may help. Redis before 7 hides its word inside of the message of a failed script.
_TRANSIENT = re.compile(
    r"\b(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|ASK|OOM|BUSY|MISCONF|NOREPLICAS|MOVED"
    r"|max number of clients reached)\b"
)

# Round trips of each new connection, for an operator's list of clients. redis-py 7.2 gave the setting another name.
_NAMELESS: dict[str, Any] = (
    {"driver_info": None} if hasattr(redis, "driver_info") else {"lib_name": None, "lib_version": None}
)
_inherited: list[Any] = []  # connections of the parent of a fork: closing one here would end the parent's

_KEPT = int(KEPT_SECONDS * 1000)
_AFTER = re.compile(r"-- after (.*)\n")
_PLACE = re.compile(r"^local ([A-Z_]+) = (\d+)\n", re.MULTILINE)


def _read_scripts() -> dict[str, str]:
    """Each script, after the files that it names, and with the numbers of the places in place of their names."""
    folder = files("pacer.store") / "lua"
    texts = {file.name.removesuffix(".lua"): file.read_text("utf-8") for file in folder.iterdir()}
    places = dict(_PLACE.findall(texts["books"]))
    named = re.compile(rf"\b({'|'.join(places)})\b")
    texts = {name: named.sub(lambda found: places[found[1]], _PLACE.sub("", text)) for name, text in texts.items()}
    after = {name: found[1].split(", ") for name, text in texts.items() if (found := _AFTER.match(text))}
    return {name: "".join(texts[each] for each in (*before, name)) for name, before in after.items()}


_SCRIPTS = _read_scripts()
_SHAS = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in _SCRIPTS.items()}


class _Rate(msgspec.Struct, array_like=True, frozen=True):
    kind: Kind
    setting: str
    amount: float
    per: float
    burst: float
    level: float
    refunds: int


class _Pacer(msgspec.Struct, array_like=True, frozen=True):
    stamp: float
    revision: int
    paused: bool
    rates: list[_Rate]

    def limits(self) -> tuple[Limit, ...]:
        return tuple(Limit(rate.setting, rate.kind, rate.amount, rate.per, rate.burst) for rate in self.rates)


class _Row(msgspec.Struct, array_like=True, frozen=True):
    epoch: str
    ceiling: int | bool
    """``False`` is none."""
    paused: bool
    number: int
    claims: int
    sums: tuple[int, ...]

    def books(self, claimed: int) -> RunBooks:
        return RunBooks(None if self.ceiling is False else self.ceiling, self.paused, claimed, self.sums)


class _Run(msgspec.Struct, array_like=True, frozen=True):
    name: str
    claimed: int
    row: _Row
    used_at: float = 0.0


class _Told(msgspec.Struct, array_like=True, frozen=True):
    verdict: list[Any]
    lived_at: float = 0.0
    others: list[_Run] = []
    claimed: int = 0
    pacer: _Pacer = _Pacer(0.0, 0, False, [])
    run: _Row | None = None


class _PacerRows(msgspec.Struct, array_like=True, frozen=True):
    pacer: _Pacer
    runs: list[_Run]
    members: tuple[str, ...]


_encode = msgspec.msgpack.Encoder().encode
# Not strict: a sum that has too many digits for Lua comes as text.
_told = msgspec.msgpack.Decoder(_Told, strict=False).decode
_opening = msgspec.msgpack.Decoder(tuple[_Pacer, _Run], strict=False).decode
_pacer_rows = msgspec.msgpack.Decoder(_PacerRows, strict=False).decode
_pacer_row = msgspec.msgpack.Decoder(_Pacer).decode
_time = msgspec.msgpack.Decoder(float).decode


class RedisVault:
    """See :class:`pacer.store.vault.Vault`. ``url`` is redis://, rediss://, valkey://, valkeys:// or unix://.

    ``lease`` is in seconds. :meth:`rows` alone may take longer than a second, for it goes through all keys.

    Raises: StoreError for an url that cannot be read.
    """

    def __init__(self, url: str, pacer: str, lease: float) -> None:
        self._place, self._settings = _read_url(url)
        self._pacer = pacer
        self._keys = _keys(pacer)
        self._lease = lease
        self.member = secrets.token_hex(8)
        self._heads = {script: _head(script, self._keys) for script in _SCRIPTS}
        self._epochs: dict[str, str] = {}
        self._used: set[str] = set()
        self._all_used_at = time.monotonic()
        self._lived_at = -math.inf
        self._client: _Client | None = None
        self._is_cluster = False
        self._is_checked = False
        self._deadline = _Deadline()
        self._nearest_seconds = QUICK_SECONDS
        self.is_quick = False

    def __repr__(self) -> str:
        return f"<RedisVault {self._pacer} at {self._place}>"

    # ------------------------------------------------------------ the protocol

    def open(self, run: str, ceiling: int | None, limits: tuple[Limit, ...]) -> Opened:
        """Make what is missing, and return what is there."""
        asked = {
            "ceiling": False if ceiling is None else ceiling,
            "limits": limits,
            "epoch": secrets.token_hex(8),
        }
        pacer, found = self._read(_opening, self._one("open", run, asked))
        self._epochs[run] = found.row.epoch
        self._used.add(run)
        return Opened(pacer.limits(), pacer.paused, pacer.revision, found.row.books(found.claimed))

    def exchange(self, entries: Sequence[Entry], *, patient: bool = True) -> Answer:
        """Each entry is one script, all of them one round trip; without patience for the answer it is Away."""
        batch = entries or (Look(""),)
        epochs = {entry.run: self._epochs.get(entry.run, "") for entry in batch if entry.run}
        *before, last = batch
        commands = [self._enter(entry, {entry.run: epochs.get(entry.run, "")}, tells=False) for entry in before]
        commands.append(self._enter(last, epochs, tells=True))
        started = time.monotonic()
        try:
            told = [self._read(_told, reply) for reply in self._talk(commands, patient=patient)]
        finally:
            self._learn((time.monotonic() - started) / len(commands))
        end = told[-1]
        self._lived_at = end.lived_at
        self._used |= epochs.keys()
        runs = {other.name: other.row.books(other.claimed) for other in end.others}
        if end.run is not None:
            runs[last.run] = end.run.books(end.claimed)
        return Answer(
            [_verdict(one.verdict) for one in told[: len(entries)]],
            runs,
            {rate.kind: rate.level for rate in end.pacer.rates},
            {rate.kind: rate.refunds for rate in end.pacer.rates},
            end.pacer.paused,
            end.pacer.revision,
        )

    def _learn(self, seconds: float) -> None:
        """The quickest answers of late, by the entry, tell how near the server is: a near one is busy now and then."""
        slower = (min(seconds, HASTE_SECONDS) - self._nearest_seconds) / 64
        self._nearest_seconds = min(seconds, self._nearest_seconds + slower)
        self.is_quick = self._nearest_seconds < QUICK_SECONDS

    def renew(self, status: str) -> None:
        """Prolong the lease, and book what others have lost theirs with."""
        now = time.monotonic()
        is_due = now - self._all_used_at > USED_SECONDS
        used = self._epochs if is_due else {run: self._epochs.get(run, "") for run in self._used}
        self._lived_at = self._read(_time, self._one("renew", "", status, used))
        self._used.clear()
        self._all_used_at = now if is_due else self._all_used_at

    def limits(self) -> tuple[Limit, ...]:
        """The limits of the pacer as they are now."""
        (text,) = self._talk([_packed("HGET", self._keys[0], "pacer")])
        if text is None:
            raise Forgotten(f"the pacer {self._pacer} is not in {self._place} any more")
        return self._read(_pacer_row, text).limits()

    def _read(self, decode: Callable[[bytes], T], text: bytes) -> T:
        try:
            return decode(text)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self._keys[0]} at {self._place} holds no books of ours: {error}") from None

    def told(self) -> dict[str, str]:
        """What the server tells of itself. Raises: StoreError, Away."""
        (text,) = self._talk([_packed("INFO")])
        return dict(line.partition(":")[::2] for line in text.decode(errors="replace").splitlines() if ":" in line)

    def leave(self) -> None:
        """Give up what is carved out and claimed; the holds are left to the next one that looks at leases."""
        self._lived_at = -math.inf
        self._one("leave")

    def after_fork(self) -> None:
        """Be another member, with a connection of its own."""
        _inherited.append(self._client)
        self._client = None
        self._lived_at = -math.inf
        self.member = secrets.token_hex(8)

    def rows(self) -> list[RunRow]:
        """Every run of every pacer, the one used last at the end."""
        found, trouble = self._attempt_rows()
        if trouble is not None:
            raise trouble.with_traceback(None)
        return sorted(found, key=lambda row: row.used_at)

    def end(self, run: str) -> None:
        """Remove the books of a run."""
        self._one("end", run)

    def close(self) -> None:
        """Close the connection; another call would open it again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # ------------------------------------------------------------ commands

    def _enter(self, entry: Entry, epochs: dict[str, str], *, tells: bool) -> bytes:
        asked = _spell(entry) if isinstance(entry, Change) else astuple(entry)
        return self._command(self._heads[type(entry).__name__.lower()], entry.run, asked, epochs, tells)

    def _one(self, script: str, run: str = "", asked: Any = None, epochs: dict[str, str] | None = None) -> Any:
        return self._talk([self._command(self._heads[script], run, asked, epochs)])[0]

    def _command(
        self, head: bytes, run: str = "", asked: Any = None, epochs: dict[str, str] | None = None, tells: bool = False
    ) -> bytes:
        text = _encode((self.member, self._lease, _KEPT, self._lived_at, tells, epochs or {}, run, asked))
        return b"%b$%d\r\n%b\r\n" % (head, len(text), text)

    def _talk(self, commands: Sequence[bytes], *, patient: bool = True) -> list[Any]:
        """Replies to commands in one round trip, or what is the trouble.

        Raised here, where no frame and no context of the exception knows the password.
        """
        self._deadline.start()
        replies, trouble = self._attempt(commands, patient)
        if self._is_cluster and self._client is None and not self._deadline.is_over:
            replies, trouble = self._attempt(commands, patient)  # sent elsewhere: at its right node now
        if trouble is not None:
            raise trouble.with_traceback(None)
        return replies

    def _attempt(self, commands: Sequence[bytes], patient: bool) -> tuple[list[Any], Exception | None]:
        try:
            if self._client is None:
                self._client = self._connect()
            return self._client.send(commands, None if patient else HASTE_SECONDS), None
        except _Slow as slow:
            return [], slow
        except RedisError as error:
            self._drop(error)
            return [], self._trouble(error)
        except (Away, StoreError) as trouble:
            self._drop(trouble)
            return [], trouble
        except BaseException:  # an interrupt: the replies are still to come
            self.close()
            raise

    def _attempt_rows(self) -> tuple[list[RunRow], Exception | None]:
        nodes: list[_Client] = []
        self._deadline.start()
        try:
            first = self._client = self._client or self._connect()
            nodes = self._primaries(first) if self._is_cluster else [first]
            return [row for node in nodes for row in self._rows_of(node)], None
        except RedisError as error:
            self._drop(error)
            return [], self._trouble(error)
        except (Away, StoreError) as trouble:
            return [], trouble
        finally:
            for node in nodes:
                if node is not self._client:
                    node.close()

    def _rows_of(self, node: _Client) -> Iterator[RunRow]:
        for key in node.scan_iter(match="pacer:1:*:books", count=1000):
            self._deadline.start()
            named = _BOOKS.fullmatch(key.decode(errors="replace"))
            if named is not None:
                name = named[1]
                command = self._command(_head("rows", _keys(name)))
                (reply,) = node.send([command])
                if reply:
                    found = self._read(_pacer_rows, reply)
                    limits = found.pacer.limits()
                    levels: dict[str, float] = {rate.kind: rate.level for rate in found.pacer.rates}
                    for run in found.runs:
                        books = run.row.books(run.claimed)
                        yield RunRow(name, run.name, books, limits, levels, run.used_at, found.members)

    # ------------------------------------------------------------ the connection

    def _connect(self) -> _Client:
        client = _client(self._settings, self._deadline)
        if not self._is_checked:
            self._check(client)
            self._is_checked = True
        if self._is_cluster:
            client = self._owner(client, key_slot(self._keys[0].encode()))
        client.connection_pool.disconnect()
        return client

    def _check(self, client: redis.Redis) -> None:
        pipe = client.pipeline(transaction=False)
        pipe.info("server")
        pipe.info("memory")
        server, memory = pipe.execute(raise_on_error=False)
        for reply in (server, memory):
            if isinstance(reply, NoPermissionError):
                return
            if isinstance(reply, RedisError):
                raise reply
        self._is_cluster = "cluster" in (server.get("redis_mode"), server.get("server_mode"))
        self._check_version(server)
        policy = memory.get("maxmemory_policy")
        if memory.get("maxmemory") and policy != "noeviction":
            _log.warning("%s may evict budgets: its maxmemory-policy is %s, not noeviction", self._place, policy)

    def _check_version(self, server: dict[str, Any]) -> None:
        name, least = ("Valkey", (8,)) if "valkey_version" in server else ("Redis", (6, 2))
        version = str(server.get("valkey_version") or server.get("redis_version"))
        numbers = re.findall(r"\d+", version)
        if tuple(map(int, numbers)) < least:
            raise StoreError(f"{self._place} is {name} {version}: shared books need Redis >= 6.2 or Valkey >= 8")

    def _nodes(self, client: redis.Redis) -> list[tuple[int, int, str, int]]:
        slots = client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]  # redis-py types it no better
        return [(low, high, (host or b"").decode(), port) for low, high, (host, port, *_), *_ in slots]

    def _node(self, host: str, port: int) -> _Client:
        return _client(self._settings | {"host": host or self._settings["host"], "port": int(port)}, self._deadline)

    def _owner(self, client: redis.Redis, slot: int) -> _Client:
        for low, high, host, port in self._nodes(client):
            if low <= slot <= high:
                client.close()
                return self._node(host, port)
        raise Away(f"nobody in the cluster at {self._place} has slot {slot}")

    def _primaries(self, client: redis.Redis) -> list[_Client]:
        return [self._node(host, port) for host, port in {node[2:] for node in self._nodes(client)}]

    def _drop(self, error: Exception) -> None:
        """After a failed round trip nobody knows what still comes on its connection."""
        if isinstance(error, MovedError) or str(error).startswith("MOVED "):  # plain text before redis-py 6
            self._is_cluster = True
        self.close()

    def _trouble(self, error: RedisError) -> Exception:
        text = str(error)
        if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
            return StoreError(f"{self._place} does not let us in: {text}")
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return StoreError(f"{self._place} is not trusted (ssl_ca_certs names further certificates): {text}")
        if isinstance(error, _PASSING):
            return Away(f"{self._place} is away: {text}")
        if text.startswith("FORGOTTEN"):
            name = text.removeprefix("FORGOTTEN ")
            return Forgotten(f"{self._place} does not know {name} any more", name.partition("run ")[2])
        if _TRANSIENT.search(text):
            return Away(f"{self._place} is away: {text}")
        return StoreError(f"{self._place} cannot hold the books of {self._pacer}: {text.removeprefix('SPOILT ')}")


# ---------------------------------------------------------------- round trips


class _Deadline:
    """When a call of a vault has to be over."""

    def __init__(self) -> None:
        self._until = 0.0

    def start(self) -> None:
        self._until = time.monotonic() + CALL_SECONDS

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._until


class _InTime:
    """A connection of redis-py, whose timeout is for one reply, under a deadline for all replies of a call."""

    def __init__(self, *, deadline: _Deadline, **settings: Any) -> None:
        super().__init__(**settings)
        self._deadline = deadline

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self._deadline.is_over:
            raise redis.TimeoutError("it is slow")
        return super().read_response(*args, **options)  # type: ignore[misc]  # of the class beside this one


class _Plain(_InTime, redis.Connection):
    pass


class _Tls(_InTime, redis.SSLConnection):
    def can_read(self, timeout: float = 0) -> bool:
        """What hiredis takes for an answer may be the tickets of TLS 1.3, and a pool gives up a connection for that."""
        return timeout > 0 and super().can_read(timeout)


class _Unix(_InTime, redis.UnixDomainSocketConnection):
    pass


class _Slow(Away):
    """The answer is still to come."""


class _Client(redis.Redis):
    """A client of redis-py, and one connection beside its pool: pools and pipelines cost more than the round trip."""

    line: Any
    owed = 0
    """Replies that nobody has waited for, which come before all others."""
    asked: Sequence[bytes] = ()
    """The commands sent last."""

    def send(self, commands: Sequence[bytes], haste: float | None = None) -> list[Any]:
        """Replies to commands in one round trip, the scripts loaded first where the server has lost them.

        Raises: _Slow if none comes in ``haste`` seconds.
        """
        replies = self._round_trip(commands, haste)
        lost = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if lost:  # a server that was started anew, or that never heard of us
            self._round_trip([_packed("SCRIPT", "LOAD", text) for text in _SCRIPTS.values()])
            for place, reply in zip(lost, self._round_trip([commands[p] for p in lost]), strict=True):
                replies[place] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _round_trip(self, commands: Sequence[bytes], haste: float | None = None) -> list[Any]:
        line = self.line
        if not self.owed or commands != self.asked:  # a server that is slow need not hear it twice
            line.send_packed_command([b"".join(commands)])
            self.owed += len(commands)
            self.asked = commands
        if haste is not None and not line.can_read(haste):
            raise _Slow("the answer of the store is still to come")
        replies = []
        while self.owed:
            replies.append(self._reply())
            self.owed -= 1
        return replies[-len(commands) :]

    def _reply(self) -> Any:
        try:
            return self.line.read_response()
        except ResponseError as error:
            return error

    def close(self) -> None:
        """Close all connections."""
        super().close()
        self.line.disconnect()


def _client(settings: dict[str, Any], deadline: _Deadline) -> _Client:
    pool = redis.ConnectionPool(
        **settings,
        **_NAMELESS,
        deadline=deadline,
        protocol=2,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    client = _Client(connection_pool=pool)
    client.auto_close_connection_pool = True
    client.line = pool.make_connection()
    return client


def _keys(pacer: str) -> list[str]:
    return [f"pacer:1:{{{pacer}}}:{part}" for part in _PARTS]


_packer: Any = redis.Connection()  # type: ignore[no-untyped-call]  # it is never connected


def _packed(*words: str | int | bytes) -> bytes:
    return b"".join(_packer.pack_command(*words))


def _head(script: str, keys: list[str]) -> bytes:
    """The command of a script, but for its last word: packing the words that are always the same takes longest."""
    return _packed("EVALSHA", _SHAS[script], len(keys), *keys, b"").removesuffix(b"$0\r\n\r\n")


def _spell(change: Change) -> dict[str, Any]:
    """What is not there and what is nothing are the same in Lua, so to have no ceiling is ``False``."""
    asked: dict[str, Any] = msgspec.to_builtins(change)
    if asked.get("ceiling", 0) is None:
        asked["ceiling"] = False
    return asked


def _verdict(told: list[Any]) -> Verdict | None:
    match told[0] if told else None:
        case "held":
            return Held(told[1], float(told[2]), told[3])
        case "late":
            return Late(told[1], float(told[2]))
        case "short":
            return Short()
        case "missing":
            return Missing()
        case _:
            return None


# ---------------------------------------------------------------- urls


def _read_url(url: str) -> tuple[str, dict[str, Any]]:
    """How to show the place without a password, and what redis-py is to be told of it."""
    try:
        parts = urlsplit(url)
        scheme = _SCHEMES[parts.scheme]
        settings = _read_unix(parts) if scheme == "unix" else _read_host(parts, scheme)
    except (KeyError, ValueError):
        settings = None
    if settings is None:  # told outside of the except, and without a piece of what may be a password
        raise StoreError(
            "the url of the store cannot be read: it has to be redis://[[user]:password@]host[:port][/database], the "
            "same with rediss, valkey or valkeys, or unix://[[user]:password@]/path[?db=database]; characters like "
            "/ and # in a password are written as %2F and %23; with TLS "
            f"{', '.join(sorted(_FILES))} may stand after a ?"
        )
    if scheme == "unix":
        return f"unix://{settings['path']}", settings
    host = f"[{settings['host']}]" if ":" in settings["host"] else settings["host"]
    return f"{scheme}://{host}:{settings['port']}/{settings['db']}", settings


def _read_user(parts: SplitResult) -> dict[str, Any]:
    username, password = unquote(parts.username or "") or None, unquote(parts.password or "") or None
    if parts.fragment or (username and not password):
        raise ValueError
    return {"username": username, "password": password}


def _read_host(parts: SplitResult, scheme: str) -> dict[str, Any]:
    settings = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if not settings.keys() <= (_FILES if scheme == "rediss" else set()) or not parts.hostname:
        raise ValueError
    return {
        "host": unquote(parts.hostname),
        "port": parts.port or 6379,
        "db": int(parts.path.removeprefix("/") or "0"),
        "connection_class": _Tls if scheme == "rediss" else _Plain,
        **_read_user(parts),
        **settings,
    }


def _read_unix(parts: SplitResult) -> dict[str, Any]:
    asked = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if not asked.keys() <= {"db"} or not parts.path or parts.hostname:
        raise ValueError
    return {
        "connection_class": _Unix,
        "path": unquote(parts.path),
        "db": int(asked.get("db", "0")),
        **_read_user(parts),
    }
