"""The pacer: one set of limits, its books, and the register by which all who name a run share one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Unpack

from pacer import flow, ledger, scope, settings, telemetry
from pacer.admission import Admission
from pacer.entry import SUMS
from pacer.errors import LimitsConflict
from pacer.estimate import Estimator, Learned
from pacer.ledger import Account
from pacer.profile import profile_of
from pacer.scope import Agent, Books, Run, Scope
from pacer.settings import RatesInput, Settings, SettingsInput
from pacer.smoothing import Smoothing
from pacer.store import Store
from pacer.store.opening import limits_of, open_store
from pacer.ticket import Reservation, Seat
from pacer.usage import Estimate, Settlement, Source, Status, Usage, Word

MEASURED_WITHIN_SECONDS = 1.0
"""What a shared store tells of its runs later is not waited for when they are measured."""


class Pacer:
    """One budget: a rate, a ceiling, and the books of the calls under them. Any thread and event loop may use it.

    Takes the settings of the README's table as arguments (the environment is not read here). ``clock`` gives monotonic
    seconds. Raises: SettingsError, and with a shared store StoreError and LimitsConflict.
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
        self.name = chosen.run
        self.estimator = Estimator()
        spacing = chosen.requests_per_second
        self._smoothing = Smoothing(spacing) if spacing else None
        self._rates = chosen
        self._store: Store = open_store(chosen, clock)
        self.books = Books(self._store, chosen)
        telemetry.budgets.add(self)

    def run(self, name: str, *, ceiling: int | str | None = None) -> Run:
        """A run of this pacer: a ceiling and books of its own, under the same rates. See :func:`pacer.run`.

        Raises: SettingsError; when it is entered LimitsConflict, and with a shared store StoreError.
        """
        return Run(lambda: self.books, name, ceiling)

    def agent(
        self,
        name: str,
        *,
        ceiling: int | str | None = None,
        weight: float = 1.0,
        reserve: int | str | None = None,
    ) -> Agent:
        """An agent below the scope at hand. See :func:`pacer.agent`. Raises: SettingsError."""
        return Agent(lambda: self.books, name, ceiling, weight, reserve)

    def owns(self, scope: Scope) -> bool:
        """Whether it is a run or an agent of this pacer."""
        return scope.store is self._store

    def admit(
        self, call: Estimate, bound: Scope | None = None, named: str | None = None
    ) -> Generator[flow.Step, None, Reservation]:
        """The way of one call to its place, to be driven by a shell. Raises: BudgetExceeded.

        ``bound`` is the scope of the transport, ``named`` the one that the request names.
        """
        if self.settings.profile != "none":
            call = profile_of(self.settings.profile, call).arriving(call)
        caller = scope.caller(self.books, bound, named)
        return flow.admit(self._store, call, caller, self._smoothing)

    def answered(self, place: Reservation, status: int, word: Word | None) -> None:
        """Take in an answer's status and what it said of the provider's own limits, as soon as it is there."""
        place.status = status
        if word is not None or status >= 400 or place.tells:
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
            self._store.settle(place, usage, counted, settlement)
            telemetry.settled(place, usage, settlement)
            telemetry.tell(self.name, place, usage, settlement)

    @property
    def is_shared(self) -> bool:
        """Whether its books lie in a store that other processes share."""
        return self.settings.store != "memory:"

    def when_written(self, place: Reservation, seat: Seat) -> bool:
        """Wake ``seat`` when the end of the call is in a shared store, or that is away; ``False`` if it is there."""
        return self._store.when_written(place, seat)

    def count_unmetered(self) -> None:
        """A request passed that is no model call."""
        self._store.count("unmetered")

    def count_failed(self, place: Reservation, worst: int) -> None:
        """A provider answered with an error; the call was not charged. ``worst``: what it may bill all the same."""
        self._store.count("failed")
        self._store.count("failed_tokens", worst)
        telemetry.uncharged("provider_error", place.account.run.name)

    def count_unread(self, place: Reservation) -> None:
        """An answer could not be read because of an error of ours; the call is charged by estimate."""
        self._store.count("unread")
        telemetry.uncharged("unread", place.account.run.name)

    def learned(self) -> tuple[Learned, ...]:
        """What the calls so far have taught about each model, the one heard of last at the end."""
        return self.estimator.learned()

    def set_ceiling(self, ceiling: int | str | None) -> None:
        """Change the ceiling of its own run. See :meth:`pacer.Run.set_ceiling`. Raises: SettingsError."""
        self.run(self.name).set_ceiling(ceiling)

    def set_rate(self, **given: Unpack[RatesInput]) -> None:
        """Change rates at once; what is not given stays, ``None`` takes a rate away.

        What the buckets have stays, up to the new burst; open calls give back to the bucket they took from.
        Raises: SettingsError.
        """
        changed = settings.changed_rates(self._rates, **given)
        self._store.do(lambda admission, now: admission.set_limits(limits_of(changed), now))
        self._rates = changed

    def pause(self) -> None:
        """Let no call go until it is resumed, of no run; open calls go on."""
        self._store.do(lambda admission, now: admission.set_paused(admission.register.root, True))

    def resume(self) -> None:
        """Let calls go again."""
        self._store.do(lambda admission, now: admission.set_paused(admission.register.root, False))

    def status(self) -> Status:
        """How its own run and the pacer around it stand at this instant; of other runs: ``run(name).status()``."""
        return self._store.status(self._store.account)

    def standings(self) -> Iterator[telemetry.Standing]:
        """How each of its runs stands, over all processes; what is not told within a second is as it was seen last."""
        give_up = time.monotonic() + MEASURED_WITHIN_SECONDS
        for run in self._store.do(lambda admission, now: admission.register.runs()):
            stands = partial(_standing, run)
            yield self._store.look(stands, run) if time.monotonic() < give_up else self._store.do(stands)

    def close(self) -> None:
        """Leave a shared store: what is kept there for this process's agents goes back at once, not with its lease.

        The end of the process does the same. Nothing can be called through the pacer any more.
        """
        self._store.close()
        telemetry.budgets.discard(self)
        with _shared_lock:
            if self.is_shared and _shared.get(self.name) is self:
                del _shared[self.name]

    def __repr__(self) -> str:
        return f"<Pacer {scope.line_of(self.status())}>"


def _standing(run: Account, admission: Admission, now: float) -> telemetry.Standing:
    active = ledger.own_sums(run)[SUMS.index("in_flight")]
    return telemetry.Standing(
        run.name, run.ceiling, run.spent, run.unknown, run.held, run.remaining, queued=run.waiting, active=active
    )


_shared: dict[str, Pacer] = {}
_shared_lock = threading.Lock()


def _renew_lock() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a store may take seconds to open: whoever opened one stays behind in the parent
    os.register_at_fork(after_in_child=_renew_lock)


def join(chosen: Settings) -> Pacer:
    """The pacer of the run that ``chosen`` names; opened by the first who asks.

    Raises: LimitsConflict when a limit is named that differs from the one the run was opened with; StoreError.
    """
    with _shared_lock:
        pacer = _shared.get(chosen.run)
        if pacer is None:
            pacer = _shared[chosen.run] = Pacer.from_settings(chosen)
    theirs = pacer.settings.limits()
    for name, mine in chosen.limits_set().items():
        if theirs[name] != mine:
            raise LimitsConflict(
                f"run {chosen.run!r} is open with {name}={settings.shown(name, theirs[name])} and was joined with "
                f"{name}={settings.shown(name, mine)}: "
                f"name another run (PACER_RUN) or ask for a budget of its own with BudgetTransport(pacer=Pacer(...))"
            )
    return pacer


def _books_at_hand() -> Books:
    at_hand = scope.current()
    return at_hand.books if at_hand is not None else join(settings.load()).books


def run(name: str, *, ceiling: int | str | None = None) -> Run:
    """A run: ``with pacer.run("nightly", ceiling="500k") as run:``, also ``async with``, or as a decorator.

    All calls inside are booked on it, through whatever transport of the same pacer; entered again under the same name
    it goes on where it was. Its ceiling is the ``ceiling`` setting unless given. It is opened when it is entered, on
    the pacer that ``BudgetTransport()`` joins; ``Pacer.run`` is the same for a pacer of your own.
    Raises: SettingsError; when it is entered LimitsConflict, and with a shared store StoreError.
    """
    return Run(lambda: join(settings.load()).books, name, ceiling)


def agent(
    name: str, *, ceiling: int | str | None = None, weight: float = 1.0, reserve: int | str | None = None
) -> Agent:
    """An agent of the scope at hand: ``with pacer.agent("researcher") as agent:``, ``async with``, or as a decorator.

    All calls inside are booked on it and on all above it. ``ceiling`` (tokens, by default ``agent_ceiling``) can only
    narrow what those allow; by ``weight`` (0.001 to 1,000) it takes its turns among the agents beside it; ``reserve``
    (tokens, by default ``wrap_up_reserve``) is carved out with its first call, and only :func:`wrap_up` spends it. The
    name may be any string, of which 128 characters count; each time it is a new agent. Raises: SettingsError.
    """
    return Agent(_books_at_hand, name, ceiling, weight, reserve)
