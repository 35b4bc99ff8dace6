"""How far a request got before it failed: whether any byte of it can be on the provider's bill."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from transports.library import Request


class Progress:
    """How far a request got, as httpcore tells through the ``trace`` extension while this context is open.

    The caller's own trace function is called as before; the request gets its own extensions back.
    """

    __slots__ = ("_awaits", "_extensions", "_reports", "_request", "_sent", "_theirs")

    def __init__(self, request: Request, *, awaits: bool) -> None:
        self._request = request
        self._extensions = request.extensions
        self._theirs = self._extensions.get("trace")
        self._reports = False
        self._awaits = awaits
        self._sent = False

    def __enter__(self) -> None:
        self._request.extensions = {**self._extensions, "trace": self._anote if self._awaits else self._note}

    def __exit__(self, *exc_info: object) -> None:
        self._request.extensions = self._extensions

    def surely_unsent(self, error: BaseException, library: ModuleType, *, always_reports: bool) -> bool:
        """Whether no byte of the body can have reached the provider.

        ``always_reports``: the transport below is known to tell, so that silence means that nothing was sent.
        """
        if self._sent:  # a transport that tries again by itself may fail to connect after it has sent once
            return False
        is_early = isinstance(error, library.ConnectError | library.ConnectTimeout | library.PoolTimeout)
        return is_early or self._reports or always_reports

    def _note(self, name: str, info: dict[str, Any]) -> None:
        self._take(name, info)
        if self._theirs is not None:
            self._theirs(name, info)

    async def _anote(self, name: str, info: dict[str, Any]) -> None:
        self._take(name, info)
        if self._theirs is not None:
            await self._theirs(name, info)

    def _take(self, name: str, info: dict[str, Any]) -> None:
        self._reports = True
        if name.endswith("send_request_body.started") and info["request"].method != b"CONNECT":
            self._sent = True
