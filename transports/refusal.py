"""A refusal becomes an HTTP answer that every SDK shows well and none repeats in vain.

402 with ``x-should-retry: false`` is tried once by the openai, anthropic, groq, cohere, mistral and google SDKs; 429
with ``retry-after`` is what their retry loops understand, so it is given only where waiting helps; and 503 where the
store of the run is away.
"""

from __future__ import annotations

import json
import math
from types import ModuleType
from urllib.parse import quote

from pacer.errors import BudgetExceeded, StoreUnavailable, WaitTooLong
from transports.library import Request, Response

_KINDS = {WaitTooLong: ("budget_wait_too_long", 429), StoreUnavailable: ("budget_store_unavailable", 503)}


def answer(refusal: BudgetExceeded, library: ModuleType, request: Request) -> Response:
    """The refusal as a response of ``library``."""
    kind, status = _KINDS.get(type(refusal), ("budget_exceeded", 402))
    headers = {
        f"x-pacer-{name.replace('_', '-')}": quote(str(value), safe="/") for name, value in _numbers(refusal).items()
    }
    if status != 402:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_seconds or 1.0)))
    else:
        headers["x-should-retry"] = "false"
    return library.Response(
        status,
        headers={**headers, "content-type": "application/json"},
        content=json.dumps(_body(refusal, kind, status)).encode(),
        request=request,
    )


def _body(refusal: BudgetExceeded, kind: str, status: int) -> dict[str, object]:
    """One body for all: the members of problem+json, and the ``error`` object that SDKs print."""
    message = str(refusal)
    return {
        "type": "error",
        "title": kind,
        "status": status,
        "detail": message,
        "error": {"type": kind, "code": kind, "message": message, "param": refusal.limit},
        **_numbers(refusal),
    }


def _numbers(refusal: BudgetExceeded) -> dict[str, object]:
    names = ("limit", "run", "agent", "asked", "amount", "spent", "unknown", "held", "remaining", "wrap_up")
    return {name: value for name in names if (value := getattr(refusal, name)) is not None}
