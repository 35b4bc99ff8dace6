"""What happened, told as spans, metrics and log lines. The only importer of opentelemetry.

Ids, models, counts and host names only: never a prompt, an answer, a key or the query of a URL.
Nothing is recorded unless the application has set up an OpenTelemetry SDK; then the API calls cost next to nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial

import msgspec
from opentelemetry import metrics, trace

from pacer.errors import BudgetExceeded, WaitTooLong
from pacer.ledger import Account
from pacer.ticket import Reservation, Ticket
from pacer.usage import Estimate, Settlement, Threshold, Usage

_log = logging.getLogger("pacer")
_tracer = trace.get_tracer("pacer")
_meter = metrics.get_meter("pacer")
_time_in_queue = _meter.create_histogram("pacer.request.time_in_queue", "s", "Time a call waited for admission")
_queued = _meter.create_up_down_counter("pacer.queued_requests", "{request}", "Calls waiting for admission")
_active = _meter.create_up_down_counter("pacer.active_reservations", "{request}", "Calls admitted and not settled")
_requests = _meter.create_counter("pacer.requests", "{request}", "Calls by pacer.result")
_tokens = _meter.create_counter("pacer.tokens", "{token}", "Tokens booked by pacer.token.class")
_uncharged = _meter.create_counter("pacer.uncharged_requests", "{request}", "Calls not charged, by reason")

LOGGED_WAIT_SECONDS = 1.0

_finalizer = threading.local()
_late: deque[Callable[[], None]] = deque()


@contextmanager
def in_finalizer() -> Iterator[None]:
    """Around what a finalizer does: what it measures waits for the next call.

    A garbage collection may run in a thread that holds the SDK's own locks, which cannot be taken twice.
    """
    outer = getattr(_finalizer, "runs", False)
    _finalizer.runs = True
    try:
        yield
    finally:
        _finalizer.runs = outer


class WaitRecord:
    """A wait under way; it is told how the wait ended."""

    def __init__(self) -> None:
        self.outcome = "cancelled"


@contextmanager
def waiting(ticket: Ticket) -> Iterator[WaitRecord]:
    """Span ``pacer.wait`` around a wait, a child of the caller's span; one log line if it is expected to be long."""
    call, wait, run, agent = ticket.call, ticket.wait, ticket.account.run.name, ticket.account.label
    limit = wait.limit if wait else "unknown"
    seconds = wait.seconds if wait else None
    if seconds is None or seconds >= LOGGED_WAIT_SECONDS:
        expected = "until open calls settle" if seconds is None else f"about {seconds:.1f} s"
        whose = f"run {run}, agent {agent!r}," if agent else f"run {run}"
        _log.info("%s waits for %s: %s, place %d in line", whose, limit, expected, ticket.position)
    attributes: dict[str, str | int] = {
        "pacer.limit": limit,
        **_whose(run, agent),
        "pacer.tokens.asked": call.tokens,
        "pacer.queue.position": ticket.position,
        **_model(call),
    }
    record = WaitRecord()
    _queued.add(1, _of(run))
    with _tracer.start_as_current_span("pacer.wait", attributes=attributes, record_exception=False) as span:
        try:
            yield record
        finally:
            span.set_attribute("pacer.wait.outcome", record.outcome)
            _queued.add(-1, _of(run))


def admitted(place: Reservation) -> None:
    """A call has its place."""
    run = place.account.run.name
    if _late:
        _catch_up()
    _time_in_queue.record(place.waited_seconds, _of(run))
    _active.add(1, _of(run))


def _catch_up() -> None:
    """Measure what finalizers left to do; other threads may be at it too."""
    with suppress(IndexError):
        while True:
            _late.popleft()()


def refused(refusal: BudgetExceeded, call: Estimate) -> None:
    """Event ``pacer.refused`` on the caller's span, and a count."""
    result = "timed_out" if isinstance(refusal, WaitTooLong) else "refused"
    _requests.add(1, _of(refusal.run, "pacer.result", result))
    span = trace.get_current_span()
    if span.is_recording():
        numbers: dict[str, str | int] = {
            "pacer.limit": refusal.limit,
            **_whose(refusal.run, refusal.agent),
            "pacer.tokens.asked": refusal.asked,
        }
        if refusal.remaining is not None:
            numbers["pacer.tokens.remaining"] = refusal.remaining
        span.add_event("pacer.refused", {**numbers, **_model(call)})


def settled(usage: Usage, settlement: Settlement, run: str) -> None:
    """A reservation has ended."""
    if getattr(_finalizer, "runs", False):
        _late.append(partial(settled, usage, settlement, run))
        return
    _active.add(-1, _of(run))
    _requests.add(1, _of(run, "pacer.result", settlement.source))
    if usage.tokens:
        _tokens.add(usage.input - usage.cached, _of(run, "pacer.token.class", "input"))
        _tokens.add(usage.output, _of(run, "pacer.token.class", "output"))
    if usage.cached:
        _tokens.add(usage.cached, _of(run, "pacer.token.class", "cached"))
    if settlement.unknown:
        _tokens.add(settlement.unknown, _of(run, "pacer.token.class", "unknown"))


def crossed(threshold: Threshold, tell: Callable[[Threshold], object] | None) -> None:
    """A part of a ceiling is booked: a listener is told, or else a log line and an event on the span at hand."""
    if getattr(_finalizer, "runs", False):
        _late.append(partial(crossed, threshold, tell))
        return
    if tell is not None:
        try:
            tell(threshold)
        except Exception:  # whoever listens never breaks a call
            _log.exception("run %s: a listener of a threshold failed", threshold.run)
        return
    whose = f"run {threshold.run}" + (f", agent {threshold.agent!r}," if threshold.agent else "")
    booked = threshold.spent + threshold.unknown
    _log.warning(
        "%s has booked %d %% of its ceiling: %d of %d", whose, threshold.fraction * 100, booked, threshold.ceiling
    )
    span = trace.get_current_span()
    if span.is_recording():
        event: dict[str, str | int | float] = {
            **_whose(threshold.run, threshold.agent),
            "pacer.threshold": threshold.fraction,
            "pacer.tokens.booked": booked,
            "pacer.tokens.ceiling": threshold.ceiling,
        }
        span.add_event("pacer.threshold", event)


def uncharged(reason: str, run: str) -> None:
    """A call passed without being charged."""
    if getattr(_finalizer, "runs", False):
        _late.append(partial(uncharged, reason, run))
        return
    _uncharged.add(1, _of(run, "reason", reason))


@lru_cache(maxsize=1_024)
def _of(run: str, name: str = "", value: str = "") -> dict[str, str]:
    """The attributes of a measurement, made once."""
    return {"pacer.run": run, name: value} if name else {"pacer.run": run}


def _whose(run: str, agent: str | None) -> dict[str, str]:
    """Names of agents are on spans and in log lines, never on a metric: there may be any number of them."""
    return {"pacer.run": run, "pacer.agent": agent} if agent else {"pacer.run": run}


def _model(call: Estimate) -> dict[str, str]:
    return {
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": call.model,
        "server.address": call.server,
    }


# ---------------------------------------------------------------- listeners


class Ended(msgspec.Struct, frozen=True, eq=False):
    """A call at its end: settled, or refused, or given up before it had a ``place`` (without a ``refusal``).

    ``since`` is when it was asked for, in seconds on the clock of ``pacer``; ``waited_for`` the limit that it had to
    wait for at first, empty if it had not.
    """

    pacer: str
    account: Account
    call: Estimate
    since: float
    waited_for: str
    place: Reservation | None = None
    usage: Usage = Usage()
    settlement: Settlement | None = None
    refusal: BudgetExceeded | None = None


listeners: list[Callable[[Ended], object]] = []
"""Told of the end of every call of the process, in any thread and inside a garbage collection: they take no lock."""


def tell(pacer: str, place: Reservation, usage: Usage, settlement: Settlement) -> None:
    """Tell the listeners of a call that is settled."""
    if listeners:
        since = place.granted_at - place.waited_seconds
        _tell(Ended(pacer, place.account, place.call, since, place.waited_for, place, usage, settlement))


def tell_of_none(pacer: str, ticket: Ticket, waited_for: str, error: BaseException) -> None:
    """Tell the listeners of a call that got no place."""
    if listeners:
        refusal = error if isinstance(error, BudgetExceeded) else None
        _tell(Ended(pacer, ticket.account, ticket.call, ticket.since, waited_for, refusal=refusal))


def _tell(ended: Ended) -> None:
    for listener in listeners:
        try:
            listener(ended)
        except Exception:  # whoever listens never breaks a call
            _log.exception("run %s: a listener of calls failed", ended.pacer)
