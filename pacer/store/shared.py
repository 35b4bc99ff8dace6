"""The books of one process among several that share a run: decided here, held and settled in a vault.

The caller's thread exchanges with a quick vault itself; what takes longer, or has to wait, is left to one clerk, a
thread that also keeps the leases alive and looks what others did while somebody waits for them. Only one thread at a
time is at the vault, never under the lock of the books; what is written meanwhile goes along with the next exchange.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeVar

import msgspec
import tenacity

from pacer.admission import Admission
from pacer.entry import Answer, Change, Limit, Look, Settle
from pacer.errors import StoreError
from pacer.ledger import Account
from pacer.share import Receded
from pacer.shared import SharedAdmission
from pacer.store.journal import Journal
from pacer.store.memory import MemoryStore
from pacer.store.vault import Away, Busy, Forgotten, Opened, Vault
from pacer.ticket import Posted, Reservation, Seat
from pacer.usage import Status

LOOK_SECONDS = 0.05
"""While somebody waits for what other processes hold, it is looked for so often."""
TELL_SECONDS = 1.0
"""What a process has to show is told so often while it changes."""
RENEWALS = 3
"""So often within its time a lease is renewed."""
MOST_AT_ONCE = 256
MOST_OF_CALLERS = 16
"""What has piled up beyond this is the clerk's: it would keep an event loop for too long."""
ROUNDS_OF_CALLERS = 3
"""So many exchanges a caller's own thread does on one occasion."""
PATIENCE_SECONDS = 1.0
"""Who asks for how things stand, or changes them, waits so long for the vault."""

_GONE = "It was ended, emptied, replaced or restored; start again, under this name or another one."

_log = logging.getLogger("pacer")
T = TypeVar("T")


class SharedStore(MemoryStore):
    """See :class:`pacer.store.Store`."""

    _is_shared = True

    def __init__(
        self,
        admission: SharedAdmission,
        vault: Vault,
        limits: tuple[Limit, ...],
        journal: Journal,
        *,
        lease: float,
        failure: Literal["refuse", "pass"],
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(admission, clock)
        self._shared = admission
        self._vault = vault
        self._limits = limits
        self._journal = journal
        self._lease = lease
        self._passes_when_away = failure == "pass"
        self._grace = grace
        self._away_since: float | None = None
        self._is_told_away = False
        self._is_reached = True
        self._renewed_at = clock()
        self._told_at = clock() - TELL_SECONDS
        self._has_news = True
        self._looks = False
        self._is_closed = False
        self._make_threads()
        _open_ones.add(self)
        _close_with_process(self)

    def _make_threads(self) -> None:
        self._wire = threading.Lock()
        self._bell = threading.Event()
        self._clerk: threading.Thread | None = None
        self._at_it = threading.local()

    # ---------------------------------------------------------------- what a process does

    def run(self, name: str, ceiling: int | None) -> Account:
        """The run of that name, made in the vault with this ceiling if there is none. Raises: StoreError."""
        run = self._at_vault(lambda vault: self._open(vault, name, ceiling))
        with self._books:
            pass  # what was seen may concern those who wait
        return run

    def _open(self, vault: Vault, name: str, ceiling: int | None) -> Account:
        """The vault is ours until this is taken in: beside what others see there later it would look like a loss."""
        opened = vault.open(name, ceiling, self._limits)
        try:
            with self._lock:
                run = self._shared.register.run(name, opened.run.ceiling)
                self._shared.see(run, opened.run, self._clock())
        except Receded as error:
            raise StoreError(f"run {name}: {self._lose_for(error)}") from None
        return run

    def see(self, opened: Opened) -> None:
        """The pacer's own run was opened: this is how it stands."""
        with self._books as now:
            self._shared.revision = opened.revision
            self._shared.see(self.account, opened.run, now)

    def work_off_the_dead(self) -> None:
        """Book what processes that have died could not."""
        with suppress(StoreError):  # it is left to who comes next
            self._journal.work_off(lambda settlements: self._at_vault(lambda vault: _book(vault, settlements)))

    def do(self, operation: Callable[[Admission, float], T]) -> T:
        """Change something; what changes for all processes is in the vault when this returns, if that is there."""
        with self._books as now:
            before = self._last_posted()
            done = operation(self._admission, now)
            last = self._last_posted()
            changes_all = last is not None and last is not before and isinstance(last.entry, Change)
            written = self._when_last_is_written() if changes_all else None
        if written is not None:
            written.wait(PATIENCE_SECONDS)
        return done

    def look(self, operation: Callable[[Admission, float], T], account: Account | None = None) -> T:
        """See how something stands now, in all processes."""
        run = (account or self.account).run
        seen = None
        with self._books as now:
            if now - run.seen_at > LOOK_SECONDS and self._away_since is None and not self._is_closed:
                self._admission.outbox.append(Posted(Look(run.name), now))
                seen = self._when_last_is_written()
        if seen is not None:
            seen.wait(PATIENCE_SECONDS)
        return super().do(operation)

    def status(self, account: Account | None = None) -> Status:
        """How everything stands, in all processes."""
        seen_from = account or self.account
        return self.look(lambda admission, now: admission.status(seen_from, now), seen_from)

    def when_written(self, place: Reservation, seat: Seat) -> bool:
        """Wake ``seat`` when the end of the reservation is in the vault, or that is away; ``False``: it is there."""
        with self._books:
            is_there = self._away_since is None and not self._is_closed
            return is_there and self._shared.when_written(place, seat.wake)

    def close(self) -> None:
        """Write what is left to write; what was carved out goes back, what is held is left to its lease."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(StoreError):
            self._at_vault(self._write_the_rest)
        if self._admission.outbox:
            self._keep()
            self._journal.leave()
        else:
            self._journal.clear()
        with suppress(StoreError):
            self._at_vault(_leave)
        self._dismiss_all()
        _tell(self._shared.stop_waiting())
        self._bell.set()

    def _dismiss_all(self) -> None:
        """Nobody will ever answer those who ask now, or wait."""
        with self._books as now:
            self._shared.passes = False
            self._shared.give_up(now, f"the store of run {self.account.name} was left by close()", now)
            self._take_told()

    def _write_the_rest(self, vault: Vault) -> None:
        for attempt in attempts(self._grace):
            with attempt:
                while self._admission.outbox:
                    _tell(self._exchange_batch(patient=True))

    def _last_posted(self) -> Posted | None:
        outbox = self._admission.outbox
        return outbox[-1] if outbox else None

    def _when_last_is_written(self) -> threading.Event:
        event = threading.Event()
        self._admission.outbox[-1].done = event.set
        return event

    def _at_vault(self, do: Callable[[Vault], T]) -> T:
        if not self._wire.acquire(timeout=2 * PATIENCE_SECONDS):
            raise StoreError(f"the store of run {self.account.name} is busy for too long")
        try:
            return do(self._vault)
        except (Away, Forgotten) as error:
            raise StoreError(str(error)) from None
        finally:
            self._wire.release()

    # ---------------------------------------------------------------- exchanges

    def _send(self) -> None:
        """Exchange at once with a quick vault, else let the clerk do it."""
        if self._is_closed:
            if self._shared.in_line or any(posted.ticket is not None for posted in list(self._admission.outbox)):
                self._dismiss_all()
            return
        if getattr(self._at_it, "now", False):
            return  # further up in this thread it is looked at again
        if self._away_since is not None or self._shared.has_passed:
            self._keep()
        is_little = 0 < len(self._admission.outbox) <= MOST_OF_CALLERS
        if is_little and self._vault.is_quick and self._away_since is None:
            with suppress(Away):  # the clerk has more time
                self._exchange(patient=False)
        waits = self._shared.waits_for_others and not self._looks
        if self._admission.outbox or self._clerk is None or waits:
            self._ring()

    def _exchange(self, *, patient: bool) -> None:
        """Exchange until there is nothing to write, or somebody else does. Raises: Away."""
        rounds = 0
        self._at_it.now = True
        try:
            while self._admission.outbox and not self._is_closed and (patient or rounds < ROUNDS_OF_CALLERS):
                if not self._wire.acquire(blocking=False):
                    return
                rounds += 1
                try:
                    written = self._exchange_batch(patient=patient)
                finally:
                    self._wire.release()
                with self._books:
                    pass  # who is let in is woken, and who comes next is asked for
                _tell(written)
        finally:
            self._at_it.now = False

    def _exchange_batch(self, *, patient: bool) -> list[Callable[[], object]]:
        """Write a batch and take in the answer; whom to tell that it is written. The wire is ours. Raises: Away."""
        batch = self._take_batch()
        try:
            answer = self._vault.exchange([posted.entry for posted in batch], patient=patient)
            limits = self._vault.limits() if answer.revision != self._shared.revision else None
        except Exception as error:
            self._put_back(batch, is_doubtful=not isinstance(error, Busy))
            if isinstance(error, Away):
                raise
            self._lose_for(error)  # whatever it is, it lets nothing go, and nobody hang
            return []
        self._take_in(batch, answer, limits)
        return [posted.done for posted in batch if posted.done is not None]

    def _take_in(self, batch: list[Posted], answer: Answer, limits: tuple[Limit, ...] | None) -> None:
        self._is_reached = True
        if not self._has_news:
            self._has_news = True
            self._ring()
        try:
            with self._lock:
                now = self._clock()
                self._shared.take_in(batch, answer, now)
                if limits is not None:
                    self._shared.see_limits(limits, answer.revision, now)
                self._take_told()
        except Receded as error:
            self._put_back(batch, is_doubtful=True)
            self._lose_for(error)

    def _take_batch(self) -> list[Posted]:
        outbox = self._admission.outbox
        with self._lock:  # whoever has just posted something may still be about to note when it is written
            return [outbox.popleft() for _ in range(min(len(outbox), MOST_AT_ONCE))]

    def _put_back(self, batch: list[Posted], *, is_doubtful: bool) -> None:
        """These are to be written again, and ``is_doubtful`` if some of them may have been already."""
        with self._lock:
            self._admission.outbox.extendleft(reversed(batch))
        for posted in batch:
            posted.is_doubtful = posted.is_doubtful or is_doubtful

    def _take_told(self) -> None:
        self._decided += self._shared.told
        self._shared.told = []

    def _lose_for(self, error: Exception) -> str:
        """Nothing of a run (of all runs, where it names none) is let go any more; why."""
        name = ""
        match error:
            case Forgotten():
                name, why = error.run, f"{error}. {_GONE}"
            case Receded():
                name, why = str(error), f"less was spent by its books than before. {_GONE}"
            case StoreError():
                why = str(error)
            case _:
                why = f"an error of ours ({type(error).__name__}), see the log"
                _log.error("run %s: an exchange with its store failed", self.account.name, exc_info=error)
        with self._lock:
            waiters = self._shared.stop_waiting(name)
            is_new = self._shared.lose(name, why, self._clock())
            self._take_told()
        _tell(waiters)
        if is_new:
            whose = name or self.account.name
            _log.error("run %s: nothing more is let go, its store cannot be relied on: %s", whose, why)
        return why

    # ---------------------------------------------------------------- the clerk

    def _ring(self) -> None:
        if self._clerk is None and not self._is_closed:
            with self._lock:
                starts = self._clerk is None
                if starts:
                    self._clerk = threading.Thread(
                        target=_serve, args=(weakref.ref(self), self._bell), name="pacer-clerk", daemon=True
                    )
            if starts and self._clerk is not None:
                self._clerk.start()
        self._bell.set()

    def _work(self) -> float:
        """Do what is to be done at the vault, however long it is away; seconds until the next time."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Away),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.25),
            stop=lambda state: self._is_closed,
            before_sleep=self._go_without,
        ):
            with attempt:
                self._exchange(patient=True)
                try:
                    self._renew()
                except (Forgotten, StoreError) as error:
                    self._lose_for(error)
                    self._renewed_at = self._told_at = self._clock()  # nor is it asked again at once
                self._look_around()
        self._come_back()
        now = self._clock()
        self._looks = self._shared.waits_for_others
        if self._looks:
            return LOOK_SECONDS
        due = self._renewed_at + self._lease / RENEWALS
        return max(0.0, (min(due, self._told_at + TELL_SECONDS) if self._has_news else due) - now)

    def _renew(self) -> None:
        now = self._clock()
        told = now >= self._told_at + TELL_SECONDS and self._has_news
        if not told and now < self._renewed_at + self._lease / RENEWALS:
            return
        with self._books:
            runs = self._shared.telling(now)
        self._has_news = False
        with self._wire:
            if self._is_closed:
                return
            self._vault.renew(
                msgspec.json.encode({"process": f"{socket.gethostname()}:{os.getpid()}", "runs": runs}).decode()
            )
        self._is_reached = True
        self._renewed_at = self._told_at = now

    def _look_around(self) -> None:
        """Somebody waits: see what others have done."""
        with self._books as now:
            if not self._shared.waits_for_others:
                return
            for run in self._shared.register.runs():
                if run.waiting and now - run.seen_at >= LOOK_SECONDS / 2:
                    self._admission.outbox.append(Posted(Look(run.name, self._shared.needed(run)), now))
        self._exchange(patient=True)

    def _go_without(self, state: tenacity.RetryCallState) -> None:
        if state.outcome is not None:
            self._fail(state.outcome.exception())

    def _fail(self, error: BaseException | None) -> None:
        """An attempt has failed: after the grace, calls are refused or go without the vault."""
        with self._books as now:
            if self._away_since is None:
                self._away_since = now
            self._is_reached = False
            waiters = self._shared.stop_waiting()
            is_over = now - self._away_since >= self._grace
            if is_over:
                self._shared.passes = self._passes_when_away
                self._shared.give_up(
                    now - self._grace, f"{error}. It is tried again; see store_failure and store_grace.", now
                )
                self._take_told()
        if is_over:
            self._tell_away(error)
        self._keep()
        _tell(waiters)

    def _keep(self) -> None:
        """Write down what is not booked yet, that it outlives this process."""
        ends = (posted for posted in reversed(list(self._admission.outbox)) if isinstance(posted.entry, Settle))
        new = list(itertools.takewhile(lambda posted: not posted.is_kept, ends))
        self._journal.append([posted.entry for posted in reversed(new) if isinstance(posted.entry, Settle)])
        for posted in new:
            posted.is_kept = True

    def _tell_away(self, error: BaseException | None) -> None:
        if not self._is_told_away:
            self._is_told_away = True
            what = "go without it" if self._passes_when_away else "are refused"
            _log.error("run %s: its store is away, calls %s until it is back: %s", self.account.name, what, error)

    def _come_back(self) -> None:
        if self._journal.holds_any:
            with self._wire:  # somebody may just be writing what is not in the outbox any more
                if not self._admission.outbox:
                    self._journal.clear()
        if self._away_since is None or not self._is_reached:  # nothing to write is no sign that it could be written
            return
        with self._books:
            self._away_since = None
            self._shared.passes = False
        if self._is_told_away:
            self._is_told_away = False
            _log.warning("run %s: its store is back, and everything is written", self.account.name)

    def _renew_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._make_threads()
        self._posts.clear()
        self._decided.clear()
        self._armed = None
        self._vault.after_fork()
        self._shared.member = self._vault.member
        self._journal.after_fork(self._vault.member)
        self._shared.forget_the_living()
        _close_with_process(self)


def attempts(grace: float) -> tenacity.Retrying:
    """Attempts at what a vault does, as long as it is away and for ``grace`` seconds. The last one raises: Away."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Away),
        wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.25),
        stop=tenacity.stop_after_delay(grace),
        reraise=True,
    )


def _leave(vault: Vault) -> None:
    try:
        vault.leave()
    finally:
        vault.close()


def _book(vault: Vault, settlements: list[Settle]) -> None:
    """Write settlements one by one: those of a run that is gone go with it."""
    for settlement in settlements:
        with suppress(Forgotten):
            vault.exchange([settlement])


def _tell(waiters: list[Callable[[], object]]) -> None:
    for tell in waiters:
        with suppress(RuntimeError):  # its event loop is closed
            tell()


def _serve(store_of: weakref.ref[SharedStore], bell: threading.Event) -> None:
    """The clerk's day: work, then sleep until the bell rings or it is time. It ends with its store."""
    while (store := store_of()) is not None and not store._is_closed:
        try:
            seconds = store._work()
        except tenacity.RetryError:
            return
        except Exception:  # who waits for the clerk must not wait for ever
            _log.exception("run %s: the clerk of its store stumbled", store.account.name)
            seconds = PATIENCE_SECONDS
        del store
        bell.wait(seconds)
        bell.clear()


_open_ones: weakref.WeakSet[SharedStore] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for store in list(_open_ones):
        store.close()


def _close_with_process(store: SharedStore) -> None:
    """A child of multiprocessing runs nothing that was registered with atexit before it was there."""
    processes = sys.modules.get("multiprocessing.util")
    if processes is not None:
        processes.register_after_fork(store, _finalize)
        _finalize(store)


def _finalize(store: SharedStore) -> None:
    last = -100
    sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=last)
