"""httpx and httpx2 have the same names and no common base: which of the two a request belongs to, and its classes.

httpx2 is optional and never imported here; whoever hands us one of its requests has imported it.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any

Request = Any
"""``httpx.Request`` or ``httpx2.Request``."""
Response = Any
"""The response of the same library."""


def library_of(request: Request) -> ModuleType:
    """The module whose ``Request`` this is. Raises: TypeError for anything else."""
    return _library(type(request))  # type: ignore[arg-type]  # Request is Any; classes are hashable


@cache
def _library(kind: type) -> ModuleType:
    for name in ("httpx", "httpx2"):
        module = sys.modules.get(name)
        if module is not None and issubclass(kind, module.Request):
            return module
    raise TypeError(f"BudgetTransport takes requests of httpx or httpx2, not {kind.__module__}.{kind.__qualname__}")


def body_of(request: Request, library: ModuleType) -> bytes | None:
    """The body if it is in memory; ``None`` for a stream, which only the network may consume."""
    if not isinstance(request.stream, library.ByteStream):
        return None
    content: bytes = request.read()  # the request that follows a redirect has it unread
    return content


def without_header(request: Request, library: ModuleType, name: str) -> Request:
    """The same request without that header; the caller's own stays as it is."""
    headers = request.headers.copy()
    del headers[name]
    body = body_of(request, library)
    content = {"stream": request.stream} if body is None else {"content": body}
    return type(request)(request.method, request.url, headers=headers, extensions=request.extensions, **content)
