"""Calls that took more of a rate than there was, and are sent when the debt is paid: take now, act later.

What others give back meanwhile lets them go sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from pacer.entry import Held
from pacer.ticket import Gate, Ticket
from pacer.usage import Kind


class _Delay(msgspec.Struct, frozen=True):
    """Until when a call waits; ``gate`` is the rate it waits for, if nothing else delays it, and ``refunds`` what had
    been given back to that then.
    """

    until: float
    gate: Gate | None
    refunds: int


class Delays:
    """The calls of a process that have their place and wait; ``refunds`` is all that each rate was ever given back."""

    def __init__(self) -> None:
        self.refunds: Mapping[Kind, int] = {}
        self._delays: dict[Ticket, _Delay] = {}

    def __len__(self) -> int:
        return len(self._delays)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._delays))

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._delays

    def add(self, ticket: Ticket, gates: Iterable[Gate], held: Held, now: float) -> None:
        """A call is to be sent in ``held.seconds``. Where several rates are short, nobody knows by how much."""
        short = [gate for gate in gates if gate.bucket.wait_seconds(0.0, now) > 0.0]
        gate = short[0] if len(short) == 1 and short[0].limit == held.limit else None
        self._delays[ticket] = self._delay(now + held.seconds, gate)

    def remove(self, ticket: Ticket) -> None:
        """It waits no more."""
        del self._delays[ticket]

    def clear(self) -> None:
        """Nobody waits any more."""
        self._delays.clear()

    def acts_at(self, ticket: Ticket) -> float:
        """When a call is to be sent, by all that is known: at the latest when nobody owes anything any more."""
        delay = self._delays[ticket]
        if delay.gate is None:
            return delay.until
        bucket = delay.gate.bucket
        given_back = self.refunds.get(delay.gate.kind, 0) - delay.refunds
        return min(delay.until - given_back / bucket.per_second, bucket.paid_at(delay.gate.asked(ticket.call)))

    def change(self, gates: Iterable[Gate], now: float) -> None:
        """The rates are other ones: what is still owed is paid at their pace."""
        rates = {gate.kind: gate for gate in gates}
        for ticket, delay in self._delays.items():
            if delay.gate is None:
                continue
            until, gate = now, rates.get(delay.gate.kind)
            if gate is not None:
                until += (self.acts_at(ticket) - now) * delay.gate.bucket.per_second / gate.bucket.per_second
            self._delays[ticket] = self._delay(until, gate)

    def _delay(self, until: float, gate: Gate | None) -> _Delay:
        return _Delay(until, gate, self.refunds.get(gate.kind, 0) if gate else 0)
