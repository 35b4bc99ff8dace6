"""The transports below ours: the one the user gave, or those their client would have built itself.

A client that is given ``transport=`` forgets proxies from the environment and its pool size, so these are made here.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from functools import cache
from types import ModuleType
from typing import Any
from urllib.request import getproxies, proxy_bypass

MAX_CONNECTIONS = 1_000
MAX_KEEPALIVE_CONNECTIONS = 100
"""The pool of the openai and anthropic SDKs."""

Loop = asyncio.AbstractEventLoop | None
Key = tuple[str, bool, Loop, str | None]


class _Answer:
    """An answer that is awaited or read; forgotten when it is closed or dropped."""


class _Built:
    """A transport that was built here. Clients share it, so it is closed when nobody reads from it any more.

    Some frameworks close their client after each call; that must not cut the answers of others.
    """

    def __init__(self, transport: Any, library: ModuleType) -> None:
        self.transport = transport
        self._library = library
        self._open: weakref.WeakSet[_Answer] = weakref.WeakSet()
        self._is_closing = False

    def handle_request(self, request: Any) -> Any:
        """Pass the request on; its answer is open until it is closed."""
        self._open.add(answer := _Answer())
        try:
            response = self.transport.handle_request(request)
        except BaseException:
            self.end(answer)
            raise
        response.stream = _held(response.stream, self, answer, self._library)
        return response

    async def handle_async_request(self, request: Any) -> Any:
        """Pass the request on; its answer is open until it is closed."""
        self._open.add(answer := _Answer())
        try:
            response = await self.transport.handle_async_request(request)
        except BaseException:
            await self.aend(answer)
            raise
        response.stream = _held(response.stream, self, answer, self._library)
        return response

    def end(self, answer: _Answer) -> None:
        """An answer was closed."""
        self._open.discard(answer)
        if self._is_over():
            self.transport.close()

    async def aend(self, answer: _Answer) -> None:
        """An answer was closed."""
        self._open.discard(answer)
        if self._is_over():
            await self.transport.aclose()

    def close(self) -> None:
        """Close it now, or when the last answer has been."""
        self._is_closing = True
        if self._is_over():
            self.transport.close()

    async def aclose(self) -> None:
        """Close it now, or when the last answer has been."""
        self._is_closing = True
        if self._is_over():
            await self.transport.aclose()

    def _is_over(self) -> bool:
        return self._is_closing and not self._open


class _HeldStream:
    """A body that is passed on as it is, whose end is told. The library's stream classes are mixed in by ``_held``."""

    def __init__(self, inner: Any, built: _Built, answer: _Answer) -> None:
        self._inner = inner
        self._built = built
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        chunks: Iterator[bytes] = iter(self._inner)
        return chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: AsyncIterator[bytes] = aiter(self._inner)
        return chunks

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._built.end(self._answer)

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            await self._built.aend(self._answer)


def _held(inner: Any, built: _Built, answer: _Answer, library: ModuleType) -> Any:
    return _stream_class(library)(inner, built, answer)


@cache
def _stream_class(library: ModuleType) -> Any:
    return type("HeldStream", (_HeldStream, library.SyncByteStream, library.AsyncByteStream), {})


class Inner:
    """Gives the transport for a request; builds one per library, kind, event loop and proxy when none was given."""

    def __init__(self, given: Any, *, verify: ssl.SSLContext | bool, http2: bool, limits: Any) -> None:
        self._given = given
        self._verify = verify
        self._http2 = http2
        self._limits = limits
        self._proxies = getproxies() if given is None else {}
        self._built: dict[Key, _Built] = {}
        self._lock = threading.Lock()

    def reports_sending(self, library: ModuleType) -> bool:
        """Whether the transport tells through the ``trace`` extension how far a request got."""
        return self._given is None or isinstance(self._given, library.HTTPTransport | library.AsyncHTTPTransport)

    def transport(self, library: ModuleType, url: Any, *, awaits: bool) -> Any:
        """The transport for ``url``."""
        if self._given is not None:
            return self._given
        key = (library.__name__, awaits, _loop() if awaits else None, self._proxy(url))
        return self._built.get(key) or self._build(library, key)

    def close(self) -> None:
        """Close the blocking transports once nobody reads from them; a later request builds new ones."""
        for transport in self._take(awaits=False):
            transport.close()

    async def aclose(self) -> None:
        """Close the awaiting transports of this loop once nobody reads from them; a later request builds new ones."""
        for transport in self._take(awaits=True):
            await transport.aclose()

    def _build(self, library: ModuleType, key: Key) -> Any:
        kind = library.AsyncHTTPTransport if key[1] else library.HTTPTransport
        with self._lock:
            self._built = {k: t for k, t in self._built.items() if k[2] is None or not k[2].is_closed()}
            built = kind(verify=self._verify, http2=self._http2, limits=self._pool(library), proxy=key[3])
            return self._built.setdefault(key, _Built(built, library))

    def _pool(self, library: ModuleType) -> Any:
        chosen = self._limits
        if chosen is None:
            return library.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_KEEPALIVE_CONNECTIONS)
        return library.Limits(
            max_connections=chosen.max_connections,
            max_keepalive_connections=chosen.max_keepalive_connections,
            keepalive_expiry=chosen.keepalive_expiry,
        )

    def _proxy(self, url: Any) -> str | None:
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not proxy or proxy_bypass(url.netloc.decode("ascii")):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _take(self, *, awaits: bool) -> list[Any]:
        if self._given is not None:
            return [self._given]
        loop = _loop() if awaits else None
        with self._lock:
            keys = [key for key in self._built if key[1] is awaits and key[2] is loop]
            return [self._built.pop(key) for key in keys]


def _loop() -> Loop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
