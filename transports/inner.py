"""The transports below ours: the one the user gave, or those their client would have built itself.

A client that is given ``transport=`` forgets proxies from the environment and its pool size, so these are made here.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import ModuleType
from typing import Any
from urllib.request import getproxies, proxy_bypass

MAX_CONNECTIONS = 1_000
MAX_KEEPALIVE_CONNECTIONS = 100
"""The pool of the openai and anthropic SDKs."""

Loop = asyncio.AbstractEventLoop | None
Key = tuple[str, bool, Loop, str | None]


class Inner:
    """Gives the transport for a request; builds one per library, kind, event loop and proxy when none was given."""

    def __init__(self, given: Any, *, verify: ssl.SSLContext | bool, http2: bool, limits: Any) -> None:
        self._given = given
        self._verify = verify
        self._http2 = http2
        self._limits = limits
        self._proxies = getproxies() if given is None else {}
        self._built: dict[Key, Any] = {}
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
        """Close the blocking transports; a later request builds new ones."""
        for transport in self._take(awaits=False):
            transport.close()

    async def aclose(self) -> None:
        """Close the awaiting transports of this loop; a later request builds new ones."""
        for transport in self._take(awaits=True):
            await transport.aclose()

    def _build(self, library: ModuleType, key: Key) -> Any:
        kind = library.AsyncHTTPTransport if key[1] else library.HTTPTransport
        with self._lock:
            self._built = {k: t for k, t in self._built.items() if k[2] is None or not k[2].is_closed()}
            return self._built.setdefault(
                key,
                kind(verify=self._verify, http2=self._http2, limits=self._pool(library), proxy=key[3]),
            )

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
