"""What the answers of one server allow for one model: a pause it asked for, the slow start after it, a pace.

After a pause the first call goes alone, and each answer lets one more go unanswered, which doubles their number with
each round: a fleet that ran into a limit does not run into it again as one. What passed between one pause and the next,
if anybody had to wait meanwhile, is the pace to go on with, and each answer quickens it a little. Where an answer tells
that little remains, calls are spread over what is left. All of it only slows down; time comes in as an argument.
"""

from __future__ import annotations

import math

from pacer.usage import Allowance, Estimate, Kind, Wait, Word

LONGEST_PAUSE_SECONDS = 60.0
"""No pause or pace that a server asks for is obeyed beyond this."""
JITTER = 0.1
"""Up to this share is added to a pause, so that several processes do not come back at once."""
WIDEST_WINDOW = 64
"""Calls that may go unanswered when the slow start after a pause ends."""
LEEWAY = 1.1
"""The pace learned between two pauses is slower than what passed by this factor,"""
QUICKENING = 0.98
"""and each answer makes its interval shorter by this one."""
LONGEST_INTERVAL_SECONDS = 5.0
"""No pace that was only guessed is slower, so that a fleet recovers from an outage within minutes."""
LOW = 0.2
"""Calls are spread when less than this share of the server's limit remains."""
FORGOTTEN_AFTER_SECONDS = 300.0

PAUSE = "server_pause"
REMAINING = "server_remaining"
_PAUSING = (429, 529)


class Server:
    """One server's word for one model. ``probing`` counts the calls of a slow start that are not answered yet."""

    __slots__ = (
        "_interval",
        "_next_at",
        "_paces",
        "_passes",
        "_strikes",
        "_struck_at",
        "_was_short",
        "_window",
        "paused_until",
        "probing",
    )

    def __init__(self) -> None:
        self.paused_until = -math.inf
        self.probing = 0
        self._window: int | None = None
        self._strikes = 0
        self._struck_at = -math.inf
        self._passes = 0
        self._was_short = False
        self._interval = 0.0
        self._paces: dict[Kind, tuple[float, float]] = {}
        self._next_at = -math.inf

    @property
    def has_paused(self) -> bool:
        """Whether it has asked for a pause: from then on every answer tells at which pace calls pass."""
        return self._struck_at > -math.inf

    def wait(self, now: float) -> Wait | None:
        """Whether a call has to wait for the server's sake; without seconds: until an answer has come."""
        if (seconds := self.paused_until - now) > 1e-6:
            return Wait(PAUSE, seconds)
        if self._window is not None and self.probing >= self._window:
            return Wait(PAUSE, None)
        if (seconds := self._next_at - now) > 1e-6:
            return Wait(REMAINING if self._paces else PAUSE, seconds)
        return None

    def granted(self, call: Estimate, now: float, *, waited: bool) -> bool:
        """A call goes out. Whether it is one of a slow start, which has to be told how it ends."""
        self._was_short = self._was_short or waited
        seconds = [
            min(call.asked(kind) * each, until - now) for kind, (each, until) in self._paces.items() if until > now
        ]
        self._next_at = max(now, self._next_at) + max([*seconds, self._interval])
        if self._window is None:
            return False
        self.probing += 1
        return True

    def answered(self, status: int, word: Word | None, granted_at: float, now: float, jitter: float) -> None:
        """Take in an answer to a call granted at ``granted_at``. ``jitter`` is a random number from 0 to 1."""
        asked = word.pause_seconds if word is not None else None
        if status in _PAUSING or (status == 503 and asked is not None):
            self._strike(asked, granted_at, now, jitter)
        elif status < 400:
            self._passed(granted_at)
            self._hear(word.allowances if word is not None else (), now)

    def pause(self, seconds: float, now: float) -> None:
        """Let nobody go for ``seconds``; a longer pause that is in force stays."""
        self.paused_until = max(self.paused_until, now + min(seconds, LONGEST_PAUSE_SECONDS))

    def is_forgettable(self, now: float) -> bool:
        """Whether nothing is lost by forgetting all this."""
        ends = [
            self._next_at,
            self.paused_until + FORGOTTEN_AFTER_SECONDS,
            *(until for _, until in self._paces.values()),
        ]
        return self.probing == 0 and max(ends) <= now

    def _strike(self, asked: float | None, granted_at: float, now: float, jitter: float) -> None:
        if granted_at > self._struck_at:  # calls that were under way when it struck first tell nothing new
            self._strikes += 1
            if self._passes and self._was_short:  # else what passed is what was asked for, not what is allowed
                self._interval = min(LEEWAY * (now - self._struck_at) / self._passes, LONGEST_INTERVAL_SECONDS)
            self._passes = 0
            self._was_short = False
        self._struck_at = now
        seconds = 2.0 ** min(self._strikes - 1, 6) if asked is None else asked
        self.pause(seconds * (1.0 + JITTER * jitter), now)
        self._window = 1

    def _passed(self, granted_at: float) -> None:
        if granted_at <= self._struck_at or not self.has_paused:
            return
        self._passes += 1
        self._interval *= QUICKENING
        self._strikes = 0
        if self._window is None:
            return
        self._window += 1
        if self._window > WIDEST_WINDOW:
            self._window = None

    def _hear(self, allowances: tuple[Allowance, ...], now: float) -> None:
        """Spread what is left, where it is little, until the server's counter is full again."""
        for said in allowances:
            if said.limit is not None and said.remaining >= LOW * said.limit:
                self._paces.pop(said.kind, None)
                continue
            reset = min(said.reset_seconds, LONGEST_PAUSE_SECONDS)
            each = reset / max(said.remaining, 1)
            if said.limit is not None:  # what refills comes back meanwhile: never slower than half of that
                each = min(each, 2.0 * reset / max(said.limit - said.remaining, 1))
            self._paces[said.kind] = (each, now + reset)
        if not self._paces:
            self._next_at = min(self._next_at, now + self._interval)
