"""Which answers earn another try, and when. The only importer of tenacity; the steps stay with the drivers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

import msgspec
from tenacity import (
    DoAttempt,
    DoSleep,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from pacer.flow import Pause
from transports.library import Response
from transports.limits import LONGEST_WAIT_SECONDS, retry_after_seconds

RETRIED_STATUSES = frozenset({429, 502, 503, 504, 529})
_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_SECONDS)


class Discard(msgspec.Struct, frozen=True):
    """Close an answer that nobody will read."""

    response: Response


def attempts(
    once: Callable[[], Generator[Any, Any, Response]], retries: int, library: ModuleType
) -> Generator[Any, Any, Response]:
    """Run ``once`` up to ``1 + retries`` times; the last answer or error is the caller's."""
    errors = (library.NetworkError, library.ConnectTimeout, library.RemoteProtocolError)
    retrying = Retrying(
        stop=stop_after_attempt(1 + retries),
        retry=retry_if_exception_type(errors) | retry_if_result(lambda r: r.status_code in RETRIED_STATUSES),
        wait=_wait_seconds,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    retrying.begin()
    state = RetryCallState(retrying, None, (), {})
    while True:
        match retrying.iter(retry_state=state):
            case DoAttempt():
                try:
                    state.set_result((yield from once()))
                except Exception:
                    state.set_exception(sys.exc_info())  # type: ignore[arg-type]  # an exception is being handled
            case DoSleep() as seconds:
                if state.outcome is not None and not state.outcome.failed:
                    yield Discard(state.outcome.result())
                state.prepare_for_next_attempt()
                yield Pause(float(seconds))
            case response:
                return response


def _wait_seconds(state: RetryCallState) -> float:
    if state.outcome is not None and not state.outcome.failed:
        headers = state.outcome.result().headers
        asked = retry_after_seconds(headers.get("retry-after-ms"), headers.get("retry-after"), time.time())
        if asked is not None:
            return asked
    return _backoff(state)
