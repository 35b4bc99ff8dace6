"""The pacer: one set of limits, its books, and the register by which all who name a run share one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Unpack

from pacer import flow, settings, telemetry
from pacer.admission import Admission, Gate, Reservation, gate
from pacer.errors import LimitsConflict
from pacer.estimate import Estimator, Learned
from pacer.ledger import Account
from pacer.profile import profile_of
from pacer.settings import Settings, SettingsInput
from pacer.smoothing import Smoothing
from pacer.store import Store
from pacer.store.memory import MemoryStore
from pacer.usage import Estimate, Rate, Settlement, Source, Status, Usage, Word

BURST_SECONDS = 10.0
"""The default burst is what the rate gives in this time."""


class Pacer:
    """One budget: a rate, a ceiling, and the books of the calls under them. Any thread and event loop may use it.

    Takes the settings of the README's table as arguments (the environment is not read here).
    Raises: SettingsError.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, **given: Unpack[SettingsInput]) -> None:
        self._open(settings.explicit(**given), clock)

    @classmethod
    def from_settings(cls, chosen: Settings) -> Pacer:
        """A pacer of its own for settings that are checked already."""
        pacer = cls.__new__(cls)
        pacer._open(chosen, time.monotonic)
        return pacer

    def _open(self, chosen: Settings, clock: Callable[[], float]) -> None:
        self.settings = chosen
        self.run = chosen.run
        self.estimator = Estimator()
        spacing = chosen.requests_per_second
        self._smoothing = Smoothing(spacing) if spacing else None
        account = Account(chosen.run, chosen.ceiling, parent=Account("pacer"))
        admission = Admission(
            account,
            _gates(chosen, clock()),
            max_wait=chosen.max_wait,
            may_wait=chosen.on_limit == "wait",
        )
        self._store: Store = MemoryStore(admission, clock)

    def admit(self, call: Estimate) -> Generator[flow.Step, None, Reservation]:
        """The way of one call to its place, to be driven by a shell. Raises: BudgetExceeded."""
        if self.settings.profile != "none":
            call = profile_of(self.settings.profile, call).arriving(call)
        return flow.admit(self._store, call, self.run, self._smoothing)

    def answered(self, place: Reservation, status: int, word: Word | None) -> None:
        """Take in an answer's status and what it said of the provider's own limits, as soon as it is there."""
        if word is not None or status >= 400 or place.probes:
            self._store.answered(place, status, word)

    def settle(self, place: Reservation, usage: Usage) -> None:
        """End a reservation, once, by the provider's bill. Safe in any thread and inside a garbage collection."""
        self._settle(place, usage, Settlement(usage.tokens, 0, "provider"))

    def void(self, place: Reservation) -> None:
        """End a reservation, once, that cost nothing: it was not sent, or the provider said no. Safe as ``settle``."""
        self._settle(place, Usage(), Settlement(0, 0, "void"))

    def settle_unseen(self, place: Reservation, source: Source, sure: Usage, likely_input: int) -> None:
        """End a reservation, once, whose bill nobody saw. Safe as ``settle``.

        Spent is what is on the bill for ``sure``. Unknown is the rest of the worst case; with ``unknown=seen`` it is
        only the rest of the ``likely_input``.
        """
        unknown = place.call.worst - sure.tokens
        if self.settings.unknown == "seen":
            unknown = min(unknown, likely_input - sure.input)
        self._settle(place, sure, Settlement(sure.tokens, max(0, unknown), source))

    def _settle(self, place: Reservation, usage: Usage, settlement: Settlement) -> None:
        if place.settlement is None:
            counted = usage
            if self.settings.profile != "none":
                counted = profile_of(self.settings.profile, place.call).counted(place.call, usage)
            self._store.settle(place, counted, settlement)
            telemetry.settled(usage, settlement, self.run)

    @property
    def has_ceiling(self) -> bool:
        """Whether the run has a ceiling right now."""
        return self._store.ceiling is not None

    def count_unmetered(self) -> None:
        """A request passed that is no model call."""
        self._store.count("unmetered")

    def count_failed(self, worst: int) -> None:
        """A provider answered with an error; the call was not charged. ``worst``: what it may bill all the same."""
        self._store.count("failed")
        self._store.count("failed_tokens", worst)
        telemetry.uncharged("provider_error", self.run)

    def count_unread(self) -> None:
        """An answer could not be read because of an error of ours; the call is charged by estimate."""
        self._store.count("unread")
        telemetry.uncharged("unread", self.run)

    def learned(self) -> tuple[Learned, ...]:
        """What the calls so far have taught about each model, the one heard of last at the end."""
        return self.estimator.learned()

    def set_ceiling(self, ceiling: int | None) -> None:
        """Change the ceiling at once: raising wakes waiters, lowering refuses the hopeless; spending stays."""
        self._store.set_ceiling(settings.explicit(ceiling=ceiling).ceiling)

    def status(self) -> Status:
        """How everything stands at this instant."""
        return self._store.status()

    def __repr__(self) -> str:
        now = self.status()
        parts = [f"{now.spent:,} spent + {now.unknown:,} unknown + {now.held:,} held"]
        parts[0] += "" if now.ceiling is None else f" of {now.ceiling:,}"
        if now.tokens_per_second is not None and now.tokens_available is not None:
            parts.append(f"{now.tokens_available:,.0f} tokens at {now.tokens_per_second:,g}/s")
        if now.server_pause_seconds:
            parts.append(f"paused by the provider for {now.server_pause_seconds:.1f} s")
        waiting = f"{now.in_flight} in flight, {now.waiting} waiting"
        if now.waits_for is not None:
            waiting += f" for {now.waits_for}"
        if now.next_seconds is not None:
            waiting += f", next in {now.next_seconds:.1f} s"
        return f"<Pacer {self.run}: {' | '.join([*parts, waiting])}>"


def _gates(chosen: Settings, now: float) -> tuple[Gate, ...]:
    gates = []
    if chosen.tokens_per_second is not None:
        rate = Rate(chosen.tokens_per_second)
        gates.append(gate("tokens_per_second", "tokens", rate, chosen.burst or rate.per_second * BURST_SECONDS, now))
    if chosen.tokens_per_minute is not None:
        rate = Rate(chosen.tokens_per_minute, 60.0)
        gates.append(gate("tokens_per_minute", "tokens", rate, chosen.burst or rate.per_second * BURST_SECONDS, now))
    for limit, kind, amount in (
        ("input_tokens_per_minute", "input", chosen.input_tokens_per_minute),
        ("output_tokens_per_minute", "output", chosen.output_tokens_per_minute),
        ("requests_per_minute", "requests", chosen.requests_per_minute),
    ):
        if amount is not None:
            rate = Rate(amount, 60.0)
            gates.append(gate(limit, kind, rate, max(1.0, rate.per_second * BURST_SECONDS), now))  # type: ignore[arg-type]  # the literals above
    return tuple(gates)


_shared: dict[str, Pacer] = {}
_shared_lock = threading.Lock()


def join(chosen: Settings) -> Pacer:
    """The pacer of the run that ``chosen`` names; opened by the first who asks.

    Raises: LimitsConflict when a limit is named that differs from the one the run was opened with.
    """
    with _shared_lock:
        pacer = _shared.get(chosen.run)
        if pacer is None:
            pacer = _shared[chosen.run] = Pacer.from_settings(chosen)
    theirs = pacer.settings.limits()
    for name, mine in chosen.limits_set().items():
        if theirs[name] != mine:
            raise LimitsConflict(
                f"run {chosen.run!r} is open with {name}={theirs[name]} and was joined with {name}={mine}: "
                f"name another run (PACER_RUN) or ask for a budget of its own with BudgetTransport(pacer=Pacer(...))"
            )
    return pacer
