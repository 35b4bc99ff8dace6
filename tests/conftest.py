"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import engine
from tests.servers import CALLERS, Caller

collect_ignore = ["sdks"]  # only where it is named (make test-sdks): its SDKs have an environment of their own

# A loaded machine is slow, not wrong: no example has a deadline.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell has what it runs in the background ignore these, and all that starts: tests could not interrupt a program.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(params=CALLERS, ids=lambda c: f"{c.library.__name__}-{'async' if c.awaits else 'sync'}")
def caller(request: pytest.FixtureRequest) -> Caller:
    """Each of the four clients."""
    caller: Caller = request.param
    return caller


@pytest.fixture(params=engine.STORES)
def each_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """Engines with their books in each kind of store."""
    with engine.on(request.param):
        yield


@pytest.fixture(autouse=True)
def _a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no setting of the machine the tests run on."""
    for name in os.environ:
        if name.upper().startswith("PACER_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
