"""The books in this process's memory: one lock, held for microseconds, around the pure admission.

Nothing foreign runs under the lock. A settlement may come from a garbage collection that interrupts the very thread
that holds it, so settlements, departures and counts are posted: whoever holds the lock works them off before and after
its own part.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from pacer import telemetry
from pacer.admission import Admission
from pacer.ledger import Account
from pacer.ticket import Caller, Reservation, Seat, Ticket
from pacer.usage import Estimate, Oddity, Settlement, Status, Usage, Word

_log = logging.getLogger("pacer")
T = TypeVar("T")
LONGEST_HOLD_SECONDS = 1.0
"""Longer than this a fork waits for no books: who holds them may be the very thread, interrupted by a signal."""
MOST_POSTED = 128
"""So many counts may lie there until somebody looks into the books."""


class _Books:
    """The critical section: posted settlements first, then the caller's part, then everybody it lets in."""

    __slots__ = ("_store",)

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __enter__(self) -> float:
        """Seconds on the store's clock, as of now."""
        store = self._store
        store._lock.acquire()
        try:
            now = store._clock()
            if store._posts:
                store._do_posted(now)
        except BaseException:
            store._lock.release()
            raise
        return now

    def __exit__(self, *exc_info: object) -> None:
        store = self._store
        if store._posts or store._decided or store._admission.is_busy:
            store._close()
        else:
            store._lock.release()
        if store._posts:  # a collection posted something since it was last looked
            store._work_off()
        if store._is_shared:
            store._send()


class MemoryStore:
    """See :class:`pacer.store.Store`. ``clock`` gives monotonic seconds."""

    _is_shared = False

    def __init__(self, admission: Admission, clock: Callable[[], float] = time.monotonic) -> None:
        self._admission = admission
        self._clock = clock
        self._lock = threading.Lock()
        self._posts: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._decided: list[Ticket] = []
        self._armed: tuple[Ticket, float] | None = None
        self._books = _Books(self)
        _alive.add(self)

    @property
    def account(self) -> Account:
        """The run of those who name none."""
        return self._admission.account

    def offer(self, call: Estimate, owner: object, caller: Caller) -> Ticket:
        """Decide on a call, or queue it."""
        with self._books as now:
            return self._admission.offer(call, owner, caller, now)

    def run(self, name: str, ceiling: int | None) -> Account:
        """The run of that name; a new one gets this ceiling."""
        return self.do(lambda admission, now: admission.register.run(name, ceiling))

    def sit(self, ticket: Ticket, seat: Seat, *, asks: bool = False) -> None:
        """Attach the seat; a ticket decided or answered meanwhile is woken at once."""
        with self._books:
            ticket.seat = seat
            if self._armed is not None and self._armed[0] is ticket:
                self._armed = None  # the time was kept in the seat it has left
            if ticket.decision is not None or asks > ticket.is_asking:
                self._decided.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Undo the ticket; the next waiter is examined in the same critical section."""
        self._posts.append((self._admission.leave, (ticket,)))
        self._work_off()

    def settle(self, place: Reservation, usage: Usage, counted: Usage, settlement: Settlement) -> None:
        """Post a settlement and work it off, here or in the thread that has the lock just now."""
        self._posts.append((self._admission.settle, (place, usage, counted, settlement)))
        self._work_off()

    def answered(self, place: Reservation, status: int, word: Word | None) -> None:
        """Take in a server's word; wakes whom a slow start lets go next."""
        with self._books as now:
            self._admission.answered(place, status, word, now, random.random())  # noqa: S311  # spreads load, hides nothing

    def tick(self) -> None:
        """Examine the lane: its timer fired."""
        with self._books:
            self._armed = None

    def do(self, operation: Callable[[Admission, float], T]) -> T:
        """Change something; wakes whom it helps and refuses whom it leaves without hope."""
        with self._books as now:
            return operation(self._admission, now)

    def post(self, operation: Callable[[Admission, float], object]) -> None:
        """Post a change: a scope may be collected under the lock."""
        self._posts.append((operation, (self._admission,)))
        self._work_off()

    def count(self, oddity: Oddity, amount: int = 1) -> None:
        """Post a count: a stream that is collected under the lock may find that it cannot be read.

        Nobody waits for it: whoever looks into the books next works it off, or the last of many.
        """
        self._posts.append((self._admission.count, (oddity, amount)))
        if len(self._posts) >= MOST_POSTED:
            self._work_off()

    def status(self, account: Account | None = None) -> Status:
        """How everything stands, posted settlements included."""
        with self._books as now:
            return self._admission.status(account or self.account, now)

    def look(self, operation: Callable[[Admission, float], T], account: Account | None = None) -> T:
        """See how something stands now."""
        return self.do(operation)

    def when_written(self, place: Reservation, seat: Seat) -> bool:
        """Nothing is written late here."""
        return False

    def close(self) -> None:
        """Nothing to let go: the books are here."""

    def _send(self) -> None:
        """Nothing to send: nobody shares these books."""

    def _work_off(self) -> None:
        """Do what is posted; if the lock is taken, its holder looks here again after letting go of it."""
        while self._posts and self._lock.acquire(blocking=False):
            self._close()
        if self._is_shared:
            self._send()

    def _do_posted(self, now: float) -> None:
        posts = self._posts
        while posts:
            do, arguments = posts.popleft()
            do(*arguments, now)

    def _decide_and_arm(self, now: float) -> tuple[list[Ticket], tuple[Ticket, Seat, float] | None]:
        """Under the lock: decide, and find out who keeps the time from here on, in which seat and for how long."""
        decided = self._decided + self._admission.pump(now)
        self._decided = []
        due = self._admission.next_due(now)
        if due is None or due[0].seat is None:
            return decided, None
        if self._armed is not None and self._armed[0] is due[0] and now <= self._armed[1] <= due[1]:
            return decided, None  # an overdue timer is armed anew: its loop may have stopped
        self._armed = due
        return decided, (due[0], due[0].seat, max(0.0, due[1] - now))

    def _close(self) -> None:
        """The end of the critical section, and what must not happen inside: waking and setting timers.

        What is posted meanwhile is left to the caller.
        """
        decided: list[Ticket] = []
        timer = None
        try:
            now = self._clock()
            self._do_posted(now)
            if self._decided or self._admission.is_busy:
                decided, timer = self._decide_and_arm(now)
            crossed, self._admission.crossed = self._admission.crossed, []
        finally:
            self._lock.release()
        if timer is not None:
            keeper, seat, seconds = timer
            self._reach(keeper, seat.arm, seconds)
        for ticket in decided:
            if ticket.seat is not None:
                self._reach(ticket, ticket.seat.wake)
        for watch, threshold in crossed:  # last: whoever listens may take their time
            telemetry.crossed(threshold, watch.tell)

    def _reach(self, ticket: Ticket, do: Callable[..., None], *args: float) -> None:
        try:
            do(*args)
        except RuntimeError:  # its event loop is closed: nobody will ever use its place
            # Not left here and now: there may be thousands of them in a row, each let in by the one before it.
            self._posts.append((self._admission.leave, (ticket,)))

    def _renew_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._posts.clear()
        self._decided.clear()
        self._armed = None
        self._admission.forget_the_living()
        if self._admission.gates or self._admission.account.ceiling is not None:
            _log.warning("run %s was forked: this process now counts alone", self._admission.account.name)


_alive: weakref.WeakSet[MemoryStore] = weakref.WeakSet()
_forking = threading.local()


def _hold_all() -> None:
    """Nobody is in the midst of the books when they are copied."""
    _forking.held = []
    for store in list(_alive):
        if store._lock.acquire(timeout=LONGEST_HOLD_SECONDS):
            _forking.held.append(store)


def _let_go_all() -> None:
    for store in _forking.held:
        store._lock.release()
        if store._posts:  # meanwhile
            store._work_off()
    _forking.held = []


def _renew_all() -> None:
    _forking.held = []
    for store in list(_alive):
        store._renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_all, after_in_parent=_let_go_all, after_in_child=_renew_all)
