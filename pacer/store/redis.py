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
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

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

CALL_SECONDS = 0.65
"""After this no further reply is waited for in one call; with the last one it takes less than a second."""
ANSWER_SECONDS = 0.3
CONNECT_SECONDS = 0.2

QUICK_SECONDS = 0.0004
"""A server that usually answers sooner is worth that an event loop waits for it; further away there are threads."""
HASTE_SECONDS = 0.0006
"""So long an exchange that is not patient waits for its answer."""

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


def _read_scripts() -> dict[str, str]:
    folder = files("pacer.store") / "lua"
    texts = {file.name.removesuffix(".lua"): file.read_text("utf-8") for file in folder.iterdir()}
    books = texts.pop("books")
    return {name: books + text for name, text in texts.items()}


_SCRIPTS = _read_scripts()
_SHAS = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in _SCRIPTS.items()}


class _Told(msgspec.Struct, frozen=True):
    verdict: tuple[str, ...] = ()
    runs: dict[str, RunBooks] = {}
    levels: dict[Kind, float] = {}
    refunds: dict[Kind, int] = {}
    paused: bool = False
    revision: int = 0


class _Opening(msgspec.Struct, frozen=True):
    limits: str
    paused: bool
    revision: int
    epoch: str
    run: RunBooks


class _UsedRun(RunBooks, frozen=True, kw_only=True):
    used_at: float


class _PacerRows(msgspec.Struct, frozen=True):
    limits: str = "[]"
    levels: dict[str, float] = {}
    runs: dict[str, _UsedRun] = {}
    members: dict[str, str] = {}


# Not strict: every number comes as text, which alone is exact in Lua.
_told = msgspec.json.Decoder(_Told, strict=False)
_opening = msgspec.json.Decoder(_Opening, strict=False)
_pacer_rows = msgspec.json.Decoder(_PacerRows, strict=False)
_limits = msgspec.json.Decoder(tuple[Limit, ...])


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
        self._epochs: dict[str, str] = {}
        self._client: _Client | None = None
        self._is_cluster = False
        self._is_checked = False
        self._deadline = _Deadline()
        self._usual_seconds = QUICK_SECONDS
        self.is_quick = False

    def __repr__(self) -> str:
        return f"<RedisVault {self._pacer} at {self._place}>"

    # ------------------------------------------------------------ the protocol

    def open(self, run: str, ceiling: int | None, limits: tuple[Limit, ...]) -> Opened:
        """Make what is missing, and return what is there."""
        asked = {
            "run": run,
            "ceiling": "" if ceiling is None else str(ceiling),
            "limits": _spell_limits(limits),
            "epoch": secrets.token_hex(8),
        }
        found = _opening.decode(self._one("open", asked))
        self._epochs[run] = found.epoch
        return Opened(self._read_limits(found.limits), found.paused, found.revision, found.run)

    def exchange(self, entries: Sequence[Entry], *, patient: bool = True) -> Answer:
        """Each entry is one script, all of them one round trip; without patience for the answer it is Away."""
        batch = entries or (Look(""),)
        who = self._who({entry.run: self._epochs.get(entry.run, "") for entry in batch if entry.run})
        commands = [_command(self._keys, *_spell(entry), who) for entry in batch]
        commands[-1][-1] = "1"
        started = time.monotonic()
        try:
            told = [_told.decode(reply) for reply in self._talk(commands, patient=patient)]
        finally:
            self._learn((time.monotonic() - started) / len(commands))
        last = told[-1]
        verdicts = [_verdict(one.verdict) for one in told[: len(entries)]]
        return Answer(verdicts, last.runs, last.levels, last.refunds, last.paused, last.revision)

    def _learn(self, seconds: float) -> None:
        """How long the server took for an entry tells whether it is near and not too busy."""
        self._usual_seconds += (min(seconds, HASTE_SECONDS) - self._usual_seconds) / 8
        self.is_quick = self._usual_seconds < QUICK_SECONDS

    def renew(self, status: str) -> None:
        """Prolong the lease, and book what others have lost theirs with."""
        self._one("renew", {"status": status}, self._epochs)

    def limits(self) -> tuple[Limit, ...]:
        """The limits of the pacer as they are now."""
        (text,) = self._talk([["HGET", self._keys[0], "/limits"]])
        if text is None:
            raise Forgotten(f"the pacer {self._pacer} is not in {self._place} any more")
        return self._read_limits(text)

    def _read_limits(self, text: str | bytes) -> tuple[Limit, ...]:
        try:
            return _limits.decode(text)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self._keys[0]} at {self._place} holds no limits of ours: {error}") from None

    def told(self) -> dict[str, str]:
        """What the server tells of itself. Raises: StoreError, Away."""
        (text,) = self._talk([["INFO"]])
        return dict(line.partition(":")[::2] for line in text.decode(errors="replace").splitlines() if ":" in line)

    def leave(self) -> None:
        """Give up what is carved out and claimed; the holds are left to the next one that looks at leases."""
        self._one("leave", {})

    def after_fork(self) -> None:
        """Be another member, with a connection of its own."""
        _inherited.append(self._client)
        self._client = None
        self.member = secrets.token_hex(8)

    def rows(self) -> list[RunRow]:
        """Every run of every pacer, the one used last at the end."""
        found, trouble = self._attempt_rows()
        if trouble is not None:
            raise trouble.with_traceback(None)
        return sorted(found, key=lambda row: row.used_at)

    def end(self, run: str) -> None:
        """Remove the books of a run."""
        self._one("end", {"run": run})

    def close(self) -> None:
        """Close the connection; another call would open it again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # ------------------------------------------------------------ commands

    def _who(self, epochs: dict[str, str]) -> bytes:
        kept = int(KEPT_SECONDS * 1000)
        return msgspec.json.encode({"me": self.member, "lease": self._lease, "kept": kept, "epochs": epochs})

    def _one(self, script: str, asked: dict[str, Any], epochs: dict[str, str] | None = None) -> Any:
        command = _command(self._keys, script, msgspec.json.encode(asked), self._who(epochs or {}))
        return self._talk([command])[0]

    def _talk(self, commands: Sequence[list[Any]], *, patient: bool = True) -> list[Any]:
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

    def _attempt(self, commands: Sequence[list[Any]], patient: bool) -> tuple[list[Any], Exception | None]:
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
                command = _command(_keys(name), "rows", b"{}", self._who({}))
                (reply,) = node.send([command])
                found = _pacer_rows.decode(reply)
                limits, members = self._read_limits(found.limits), tuple(found.members.values())
                for run, books in found.runs.items():
                    plain = RunBooks(books.ceiling, books.paused, books.claimed, books.sums)
                    yield RunRow(name, run, plain, limits, found.levels, books.used_at, members)

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
    pass


class _Unix(_InTime, redis.UnixDomainSocketConnection):
    pass


class _Slow(Away):
    """The answer is still to come."""


class _Client(redis.Redis):
    """A client of redis-py, and one connection beside its pool: pools and pipelines cost more than the round trip."""

    line: Any
    owed = 0
    """Replies that nobody has waited for, which come before all others."""

    def send(self, commands: Sequence[list[Any]], haste: float | None = None) -> list[Any]:
        """Replies to commands in one round trip, the scripts loaded first where the server has lost them.

        Raises: _Slow if none comes in ``haste`` seconds.
        """
        replies = self._round_trip(commands, haste)
        lost = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if lost:  # a server that was started anew, or that never heard of us
            self._round_trip([["SCRIPT", "LOAD", text] for text in _SCRIPTS.values()])
            for place, reply in zip(lost, self._round_trip([commands[p] for p in lost]), strict=True):
                replies[place] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _round_trip(self, commands: Sequence[list[Any]], haste: float | None = None) -> list[Any]:
        line = self.line
        line.send_packed_command(line.pack_commands(commands))
        self.owed += len(commands)
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


def _command(keys: list[str], script: str, asked: bytes, who: bytes) -> list[Any]:
    return ["EVALSHA", _SHAS[script], len(keys), *keys, who, asked, ""]


def _spell(entry: Entry) -> tuple[str, bytes]:
    """The script of an entry, and the entry as JSON; whole numbers as text, which alone is exact in Lua."""
    plain = msgspec.to_builtins(entry)
    if isinstance(entry, Change) and not isinstance(entry.limits, msgspec.UnsetType):
        plain["limits"] = _spell_limits(entry.limits)
    return type(entry).__name__.lower(), msgspec.json.encode(_as_text(plain))


def _as_text(value: Any) -> Any:
    if type(value) is int:
        return str(value)
    if isinstance(value, dict):
        return {key: _as_text(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(one) for one in value]
    return value


def _spell_limits(limits: tuple[Limit, ...]) -> str:
    return msgspec.json.encode(limits).decode()


def _verdict(told: tuple[str, ...]) -> Verdict | None:
    match told:
        case ("held", amount, seconds, setting):
            return Held(int(amount), float(seconds), setting)
        case ("late", setting, seconds):
            return Late(setting, float(seconds))
        case ("short",):
            return Short()
        case ("missing",):
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
