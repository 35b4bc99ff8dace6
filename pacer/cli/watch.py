"""A store that is read again and again by a thread of its own: whoever shows what it says never waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pacer.errors import StoreError
from pacer.settings import Settings
from pacer.store.opening import vault_of
from pacer.store.vault import Away, Forgotten, Vault

IDLE = 20
"""A thread that reads pauses so many times as long as its last look took, however large the store is,"""
LONGEST_PAUSE_SECONDS = 5.0
"""but no longer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What was read last, and ``at`` which monotonic second (the start of the watch, before there is a value).

    ``trouble`` says why nothing newer could be read; ``is_gone``, that the books are not there any more.
    """

    value: T | None
    at: float
    trouble: str = ""
    is_gone: bool = False


class Watch(Generic[T]):
    """Reads a vault about every ``seconds``, less often where that takes long; ``reading`` is what it said last."""

    def __init__(self, chosen: Settings, read: Callable[[Vault], T], seconds: float) -> None:
        self._chosen = chosen
        self._read = read
        self._seconds = seconds
        self._is_over = threading.Event()
        self.reading: Reading[T] = Reading(None, time.monotonic())

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._run, name="pacer-watch", daemon=True).start()

    def stop(self) -> None:
        """Read no more; what is being read just now is not waited for."""
        self._is_over.set()

    def _run(self) -> None:
        with closing(vault_of(self._chosen)) as vault:
            pause = 0.0
            while not self._is_over.wait(pause):
                began = time.monotonic()
                self.reading = self._look(vault)
                took = 0.0 if self.reading.trouble else time.monotonic() - began
                pause = max(self._seconds, min(took * IDLE, LONGEST_PAUSE_SECONDS))

    def _look(self, vault: Vault) -> Reading[T]:
        try:
            return Reading(self._read(vault), time.monotonic())
        except Away as error:
            return replace(self.reading, trouble=str(error))
        except (Forgotten, StoreError) as error:
            return replace(self.reading, trouble=str(error), is_gone=True)


class Speed:
    """Tokens per second of the last ``seconds``, from a total that is looked at now and then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, total: int) -> float:
        """The speed, given the total at ``now``; of the time since the first look, until that is long enough ago."""
        self._seen.append((now, total))
        while now - self._seen[0][0] > self._seconds:
            self._seen.popleft()
        since, before = self._seen[0]
        return (total - before) / (now - since) if now > since else 0.0
