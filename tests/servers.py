"""What the transport's tests share: a loopback server that gives exactly the bytes it is told to, an inner transport
that needs no network, and callers of both libraries, blocking and awaiting.
"""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import httpx
import httpx2

from pacer import Pacer

LIBRARIES: tuple[ModuleType, ...] = (httpx, httpx2)
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
URL = "http://model.test" + CHAT

# ---------------------------------------------------------------- a server on loopback


class Connection:
    """One accepted connection: read requests, write bytes, or break it."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._file = raw.makefile("rb")

    def read(self) -> tuple[str, bytes] | None:
        """The next request, its head as text and its body; ``None`` at the end."""
        lines = []
        while (line := self._file.readline()) not in (b"\r\n", b""):
            lines.append(line.decode())
        if not lines:
            return None
        sizes = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")]
        return "".join(lines), self._file.read(sizes[0] if sizes else 0)

    def write(self, text: bytes) -> None:
        """Send bytes as they are."""
        self._raw.sendall(text)

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._raw.close()


class Server(socketserver.ThreadingTCPServer):
    """Plays ``play(connection)`` on each connection, or answers each with the same bytes. Keeps what it heard."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, play: bytes | Callable[[Connection], None], tls: ssl.SSLContext | None = None) -> None:
        self.heard: list[str] = []
        self.bodies: list[bytes] = []
        self._play = play
        self._tls = tls
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.port: int = self.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Play one connection; whatever the client does to it is none of our business."""
        try:
            raw = request if self._tls is None else self._tls.wrap_socket(request, server_side=True)
            connection = Connection(raw)
            if callable(self._play):
                self._play(connection)
                connection.close()
                return
            while self.hear(connection):
                connection.write(self._play)
            connection.close()
        except OSError:
            pass

    def hear(self, connection: Connection) -> bool:
        """Read one request and keep it."""
        request = connection.read()
        if request is not None:
            self.heard.append(request[0])
            self.bodies.append(request[1])
        return request is not None

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()


def self_signed(folder: Path) -> ssl.SSLContext:
    """TLS for a server that nobody has a reason to trust; the key is made for these tests and good until 2126."""
    (folder / "both.pem").write_text(_SELF_SIGNED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


_SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqaATaXAlda+Rz4X9
TSebYyDGYdpiT4bUG5JKXX4cJCWhRANCAAQGfG+VBuaWBqH1mBPqa2Qg3HctIbnY
7NM3QtP/iIkJaNOy41nvPLDCOgK6jgDqjxlZgQo4k8x0QGBDZImh15Lv
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUH6YQxuYvZRTTnm5MRi0nsSp1UwUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDEyMzM1OFoYDzIxMjYxMDMx
MTIzMzU4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQGfG+VBuaWBqH1mBPqa2Qg3HctIbnY7NM3QtP/iIkJaNOy41nvPLDC
OgK6jgDqjxlZgQo4k8x0QGBDZImh15Lvo28wbTAdBgNVHQ4EFgQUcvHV7SredWJd
7yxm8KFOsUL/InEwHwYDVR0jBBgwFoAUcvHV7SredWJd7yxm8KFOsUL/InEwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgFjAG+k7HSFJTLp25wgO5PA/R4zocKb6uxbafec4mrF8CIQCs
Cn6kI/RdeRnQ2fbXDvLG6rc6UyjjOL0DeH74BN+KPg==
-----END CERTIFICATE-----
"""


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(chunks: Iterable[bytes], *headers: str, end: bytes = b"0\r\n\r\n") -> bytes:
    """An answer in chunks; without ``end`` it is cut off."""
    head = "\r\n".join(["HTTP/1.1 200 OK", "transfer-encoding: chunked", *headers]).encode() + b"\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def closed_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ---------------------------------------------------------------- an inner transport without a network


@dataclass
class Answer:
    """What the inner transport answers: an exception, or status, headers and chunks (an exception there is raised)."""

    chunks: Iterable[bytes | Exception] = ()
    headers: dict[str, str] | dict[bytes, bytes] = field(default_factory=dict)
    status: int = 200
    error: BaseException | None = None


class Inner:
    """An inner transport: gives its answers one after the other, the last one for ever. Keeps requests and bodies."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Any] = []
        self.bodies: list[Any] = []
        self.closed = 0

    def handle_request(self, request: Any) -> Any:
        library = httpx if isinstance(request, httpx.Request) else httpx2
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer.error is not None:
            raise answer.error
        self.bodies.append(body_stream(library, answer.chunks))
        return library.Response(answer.status, headers=answer.headers, stream=self.bodies[-1], request=request)

    async def handle_async_request(self, request: Any) -> Any:
        return self.handle_request(request)

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def body_stream(library: Any, chunks: Iterable[bytes | Exception]) -> Any:
    """A body of ``library`` that remembers how many chunks were ``pulled`` and how often it was ``closed``."""

    class Body(library.SyncByteStream, library.AsyncByteStream):
        pulled = closed = 0

        def __iter__(self) -> Iterator[bytes]:
            for chunk in chunks:
                self.pulled += 1
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for chunk in self.__iter__():
                yield chunk

        def close(self) -> None:
            self.closed += 1

        async def aclose(self) -> None:
            self.closed += 1

    return Body()


# ---------------------------------------------------------------- callers


@dataclass(frozen=True)
class Caller:
    """A client of one library, blocking or awaiting."""

    library: Any
    awaits: bool

    def bare(self) -> Any:
        """The library's own transport, with nothing of ours; without certificates, which take long to load."""
        kind = self.library.AsyncHTTPTransport if self.awaits else self.library.HTTPTransport
        return kind(verify=False)

    def send(self, transport: Any, method: str = "POST", url: str = URL, **kwargs: Any) -> Any:
        """One request and its whole answer."""
        options = {"timeout": 10, "follow_redirects": kwargs.pop("follow_redirects", False)}
        if not self.awaits:
            with self.library.Client(transport=transport, **options) as client:
                return client.request(method, url, **kwargs)

        async def call() -> Any:
            async with self.library.AsyncClient(transport=transport, **options) as client:
                return await client.request(method, url, **kwargs)

        return asyncio.run(call())

    def stream(
        self, transport: Any, take: int | None = None, url: str = URL, into: list[bytes] | None = None, **kwargs: Any
    ) -> tuple[Any, list[bytes]]:
        """One request, and the first ``take`` raw chunks of its answer (all of them: ``None``), also put ``into``."""
        chunks: list[bytes] = [] if into is None else into
        if not self.awaits:
            with (
                self.library.Client(transport=transport, timeout=10) as client,
                client.stream("POST", url, **kwargs) as response,
            ):
                for chunk in response.iter_raw():
                    chunks.append(chunk)
                    if len(chunks) == take:
                        break
                return response, chunks

        async def call() -> Any:
            async with (
                self.library.AsyncClient(transport=transport, timeout=10) as client,
                client.stream("POST", url, **kwargs) as response,
            ):
                async for chunk in response.aiter_raw():
                    chunks.append(chunk)
                    if len(chunks) == take:
                        break
                return response

        return asyncio.run(call()), chunks

    def run(self, blocking: Callable[[], Any], awaiting: Callable[[], Awaitable[Any]]) -> Any:
        """Run the one of the two that is ours."""

        async def await_it() -> Any:
            return await awaiting()

        return asyncio.run(await_it()) if self.awaits else blocking()


CALLERS = [Caller(library, awaits) for library in LIBRARIES for awaits in (False, True)]


# ---------------------------------------------------------------- requests and answers


def ask(max_tokens: object = 500, **more: object) -> dict[str, Any]:
    """The body of a chat call, good for OpenAI's and Anthropic's way."""
    return {"model": "m", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hi"}], **more}


def answer_json(usage: object = None, **more: object) -> bytes:
    """A chat answer of OpenAI's kind; 30 tokens unless said otherwise."""
    if usage is None:
        usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    message = {"role": "assistant", "content": "Hello"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                       "usage": usage, **more}).encode()  # fmt: skip


def ok(usage: object = None) -> Answer:
    """A whole answer."""
    return Answer([answer_json(usage)], {"content-type": "application/json"})


def books(pacer: Pacer) -> tuple[int, int, int, int]:
    """Spent, unknown, held and in flight."""
    now = pacer.status()
    return now.spent, now.unknown, now.held, now.in_flight
