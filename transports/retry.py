"""Which answers earn another try, and when. The only importer of tenacity; the steps stay with the drivers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

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

RETRIED_STATUSES = frozenset({429, 502, 503, 504, 529})
LONGEST_WAIT_SECONDS = 60.0
"""No provider's ``retry-after`` is obeyed beyond this."""

_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_SECONDS)


@dataclass(frozen=True, slots=True)
class Discard:
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
        asked = retry_after_seconds(state.outcome.result().headers, time.time())
        if asked is not None:
            return asked
    return _backoff(state)


def retry_after_seconds(headers: Any, unix_now: float) -> float | None:
    """What the provider asks for, at most 60 s; ``None`` where it says nothing that makes sense."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return min(milliseconds / 1_000, LONGEST_WAIT_SECONDS)
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is None and said:
        try:
            seconds = max(0.0, parsedate_to_datetime(said).timestamp() - unix_now)
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else min(seconds, LONGEST_WAIT_SECONDS)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
