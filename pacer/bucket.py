"""A token bucket. Time comes in as an argument; nothing here looks at a clock."""

from __future__ import annotations

from pacer.usage import Rate


class Bucket:
    """A level that refills at ``rate`` up to ``burst`` and may stand in debt; two numbers of state.

    A call larger than the burst is admitted when the bucket is full, and leaves the difference as debt
    (the ``WaitN`` of Go's x/time/rate would refuse it for ever).
    """

    __slots__ = ("_level", "_stamp", "burst", "per_second", "rate")

    def __init__(self, rate: Rate, burst: float, now: float) -> None:
        self.rate = rate
        self.per_second = rate.per_second
        self.burst = burst
        self._level = burst
        self._stamp = now

    def level(self, now: float) -> float:
        """Tokens at ``now``, negative in debt. A clock that steps back changes nothing."""
        if now > self._stamp:
            self._level = min(self.burst, self._level + (now - self._stamp) * self.per_second)
            self._stamp = now
        return self._level

    def set_level(self, level: float, now: float) -> None:
        """The level as it is told by those who keep it."""
        self._level = min(self.burst, level)
        self._stamp = max(now, self._stamp)

    def wait_seconds(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken (until the bucket is full, for more than the burst); 0 means now."""
        short = min(amount, self.burst) - self.level(now)
        # A rest below a millionth of a token is rounding: without this a timer could wake a hair early for ever.
        return short / self.per_second if short > 1e-6 else 0.0

    def paid_at(self, amount: float) -> float:
        """When nothing is owed any more; who took ``amount`` last may then still owe what of it is beyond the burst."""
        return self._stamp + max(0.0, min(0.0, self.burst - amount) - self._level) / self.per_second

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``; the level may go below zero."""
        if now > self._stamp:
            self.level(now)
        self._level -= amount

    def give_back(self, amount: float, now: float) -> None:
        """Return what a call did not use, at most up to the burst; a negative ``amount`` becomes debt."""
        self._level = min(self.burst, self.level(now) + amount)
