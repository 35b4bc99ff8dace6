"""Other packages that can be put around an httpx call, as far as they are installed. ``make bench`` installs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import httpx

Around = Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport]


def around() -> dict[str, Around]:
    """The peers that are installed, with limits that never make them wait."""
    found: dict[str, Around] = {}
    if importlib.util.find_spec("httpx_limiter"):
        found["httpx-limiter (counts requests)"] = httpx_limiter
    if importlib.util.find_spec("tokenwarden"):
        found["tokenwarden (prices after the call)"] = tokenwarden
    return found


def missing() -> list[str]:
    """Which peers are not in the table, and why."""
    lines = [
        f"{package}: not installed"
        for package, module in (("httpx-limiter", "httpx_limiter"), ("tokenwarden", "tokenwarden"))
        if not importlib.util.find_spec(module)
    ]
    return [*lines, "token-throttle: needs Python 3.12, and is called by hand around each call instead of a transport"]


def httpx_limiter(noop: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    """Requests per second by aiolimiter."""
    from httpx_limiter import AsyncRateLimitedTransport, Rate
    from httpx_limiter.aiolimiter import AiolimiterAsyncLimiter

    limiter = AiolimiterAsyncLimiter.create(Rate.create(magnitude=10**9))
    return AsyncRateLimitedTransport(limiter=limiter, transport=noop)


def tokenwarden(noop: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    """A spending limit checked before, priced after; it reads each answer whole before it passes it on."""
    from tokenwarden._async_transport import AsyncTokenWardenTransport
    from tokenwarden.budget._store import BudgetConfig, BudgetMode

    budget = BudgetConfig(key="bench", limit=1e12, window_seconds=86_400, mode=BudgetMode.ENFORCE)
    return AsyncTokenWardenTransport(noop, budgets=[budget])
