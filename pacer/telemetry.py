"""What happened, told as spans, metrics and log lines. The only importer of opentelemetry outside of the cli.

Ids, models, counts and host names only: never a prompt, an answer, a key or the query of a URL.
Nothing is recorded unless the application has set up an OpenTelemetry SDK; else the API calls cost next to nothing.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Protocol

import msgspec
from opentelemetry import metrics, trace

from pacer.errors import BudgetExceeded, WaitTooLong
from pacer.ledger import Account
from pacer.ticket import Reservation, Ticket
from pacer.usage import Estimate, Settlement, Threshold, Usage
from pacer.verdict import CEILINGS

LOGGED_WAIT_SECONDS = 1.0
RUNS_NAMED = 100
"""Metrics tell so many runs of a process apart; all further ones are ``_OTHER`` together."""
OTHER = "_OTHER"
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
ERRORS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
"""The bounds of the buckets of the two histograms."""

_log = logging.getLogger("pacer")
_tracer = partial(trace.get_tracer, "pacer")
_meter = metrics.get_meter("pacer")
_time_in_queue = _meter.create_histogram(
    "pacer.request.time_in_queue",
    "s",
    "Time an admitted call waited for its admission",
    explicit_bucket_boundaries_advisory=WAITS,
)
_requests = _meter.create_counter("pacer.requests", "{request}", "Calls by pacer.result")
_tokens = _meter.create_counter("pacer.tokens", "{token}", "Tokens booked by pacer.token.class")
_uncharged = _meter.create_counter("pacer.uncharged_requests", "{request}", "Calls without a bill, by reason")
_estimate_error = _meter.create_histogram(
    "pacer.estimate.error",
    "1",
    "How far the expected input was from the billed one, as a part of that",
    explicit_bucket_boundaries_advisory=ERRORS,
)

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


@contextmanager
def waiting(ticket: Ticket) -> Iterator[None]:
    """Span ``pacer.wait`` around a wait, a child of the caller's span; one log line if it is expected to be long."""
    wait, run, agent = ticket.wait, ticket.account.run.name, ticket.account.label
    limit = wait.limit if wait else "unknown"
    seconds = wait.seconds if wait else None
    if seconds is None or seconds >= LOGGED_WAIT_SECONDS:
        expected = "until open calls settle" if seconds is None else f"about {seconds:.1f} s"
        whose = f"run {run}, agent {agent!r}," if agent else f"run {run}"
        _log.info("%s waits for %s: %s, place %d in line", whose, limit, expected, ticket.position)
    attributes: dict[str, str | int] = {
        "pacer.limit": limit,
        **_whose(run, agent),
        "pacer.tokens.asked": ticket.call.worst if limit in CEILINGS else ticket.call.tokens,
        "pacer.queue.position": ticket.position,
        **_model(ticket.call),
    }
    # Never the current span: what else happens meanwhile belongs to the caller's, and so does the refusal.
    span = _tracer().start_span("pacer.wait", attributes=attributes)
    outcome = "cancelled"
    try:
        yield
        outcome = _outcome(ticket.decision)
    finally:
        span.set_attribute("pacer.wait.outcome", outcome)
        span.end()


def _outcome(decision: Reservation | BudgetExceeded | None) -> str:
    if isinstance(decision, BudgetExceeded):
        return "timed_out" if isinstance(decision, WaitTooLong) else "refused"
    return "admitted"


def admitted(place: Reservation) -> None:
    """A call has its place."""
    if _late:
        _catch_up()
    _time_in_queue.record(place.waited_seconds, _of(place.account.run.name))


def _catch_up() -> None:
    """Measure what finalizers left to do; other threads may be at it too."""
    with suppress(IndexError):
        while True:
            _late.popleft()()


def refused(refusal: BudgetExceeded, call: Estimate) -> None:
    """Event ``pacer.refused`` on the caller's span, and a count."""
    _requests.add(1, _of(refusal.run, "pacer.result", _outcome(refusal)))
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


def settled(place: Reservation, usage: Usage, settlement: Settlement) -> None:
    """A reservation has ended."""
    if getattr(_finalizer, "runs", False):
        _late.append(partial(settled, place, usage, settlement))
        return
    run = place.account.run.name
    _requests.add(1, _of(run, "pacer.result", settlement.source))
    for name, amount in _classes(usage, settlement):
        if amount > 0:
            _tokens.add(amount, _of(run, "pacer.token.class", name))
    if settlement.source == "provider" and usage.input > 0:
        error = (place.call.input - usage.input) / usage.input
        _estimate_error.record(abs(error), _of(run, "pacer.estimate.side", "over" if error >= 0 else "under"))


def _classes(usage: Usage, settlement: Settlement) -> Iterator[tuple[str, int]]:
    """No token is in two classes: all but the unknown ones add up to what is spent."""
    yield "input", usage.input - usage.cached - usage.written
    yield "cached", usage.cached
    yield "written", usage.written
    yield "output", usage.output - usage.reasoning
    yield "reasoning", usage.reasoning
    yield "unclassified", usage.tokens - usage.input - usage.output
    yield "unknown", settlement.unknown


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
    """A call passed that no bill was read of."""
    if getattr(_finalizer, "runs", False):
        _late.append(partial(uncharged, reason, run))
        return
    _uncharged.add(1, _of(run, "reason", reason))


# -------------------------------------------------------------------- how runs stand


class Standing(msgspec.Struct, frozen=True):
    """How a run stands over all processes, in tokens; ``queued`` and ``active`` are this process's calls.

    Without a ceiling there is no ``limit`` and nothing ``remaining``.
    """

    run: str
    limit: int | None
    spent: int
    unknown: int
    held: int
    remaining: int | None
    queued: int
    active: int


class Budget(Protocol):
    """Whatever has runs whose standing is measured as long as it is there."""

    def standings(self) -> Iterable[Standing]:
        """How each of its runs stands now."""


budgets: weakref.WeakSet[Budget] = weakref.WeakSet()
_seen: dict[str, Counter[str]] = {}
"""What was seen last of all runs, by what a metric calls them."""


def _look() -> None:
    global _seen
    seen: dict[str, Counter[str]] = {}
    with in_finalizer():  # the SDK has its lock: whoever is told something now might ask for it again
        for budget in list(budgets):
            for standing in budget.standings():
                numbers = msgspec.structs.asdict(standing)
                sums = seen.setdefault(_named(numbers.pop("run")), Counter())
                sums.update({name: amount for name, amount in numbers.items() if amount is not None})
    _seen = seen


def _observer(name: str, looks: bool = False) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    """Tells one number of all runs; of those that are asked together, the first one looks."""

    def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        if looks:
            _look()
        return [metrics.Observation(sums[name], _of(run)) for run, sums in _seen.items() if name in sums]

    return observe


_meter.create_observable_up_down_counter(
    "pacer.queued_requests", [_observer("queued", looks=True)], "{request}", "Calls waiting for admission"
)
_meter.create_observable_up_down_counter(
    "pacer.active_reservations", [_observer("active")], "{request}", "Calls admitted and not settled"
)
_meter.create_observable_gauge("pacer.budget.limit", [_observer("limit")], "{token}", "The ceiling of a run")
_meter.create_observable_gauge("pacer.budget.spent", [_observer("spent")], "{token}", "What is on the bill for sure")
_meter.create_observable_gauge("pacer.budget.unknown", [_observer("unknown")], "{token}", "What may be on it, too")
_meter.create_observable_gauge("pacer.budget.held", [_observer("held")], "{token}", "What open calls may cost")
_meter.create_observable_gauge(
    "pacer.budget.remaining", [_observer("remaining")], "{token}", "What nobody has spent, holds or has carved out"
)


# -------------------------------------------------------------------- attributes

_named_runs: set[str] = set()


def _named(run: str) -> str:
    """What a metric calls the run."""
    if run not in _named_runs:
        if len(_named_runs) >= RUNS_NAMED:
            return OTHER
        _named_runs.add(run)
    return run


@lru_cache(maxsize=1_024)
def _of(run: str, name: str = "", value: str = "") -> dict[str, str]:
    """The attributes of a measurement, made once."""
    named = _named(run)
    return {"pacer.run": named, name: value} if name else {"pacer.run": named}


def _whose(run: str, agent: str | None) -> dict[str, str]:
    """Names of agents are on spans and in log lines, never on a metric: there may be any number of them."""
    return {"pacer.run": run, "pacer.agent": agent} if agent else {"pacer.run": run}


def _model(call: Estimate) -> dict[str, str]:
    """What of it is known."""
    named = {
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": call.model,
        "server.address": call.server,
    }
    return {name: value for name, value in named.items() if value not in ("", "unknown")}


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
