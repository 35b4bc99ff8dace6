"""What became of an admitted call, as its answer tells it."""

from __future__ import annotations

import msgspec

from pacer.ticket import Reservation
from pacer.usage import Source


class Receipt(msgspec.Struct, frozen=True):
    """What became of an admitted call: ``response.extensions["pacer"]``. Tokens; complete when the body has ended.

    ``output_cap`` is the cap that went out in place of the caller's, or where there was none; ``None`` if untouched.
    """

    _place: Reservation
    output_cap: int | None

    @property
    def waited_seconds(self) -> float:
        """Seconds from the request to its admission."""
        return self._place.waited_seconds

    @property
    def run(self) -> str:
        """The run it was booked on."""
        return self._place.account.run.name

    @property
    def agent(self) -> str:
        """The agent it was booked on, as names from the run down; empty outside of agents."""
        return self._place.account.label

    @property
    def admitted_at(self) -> float:
        """When the call was admitted, on the pacer's monotonic clock."""
        return self._place.granted_at

    @property
    def settled_at(self) -> float | None:
        """When it was settled, on the same clock; ``None`` as long as the body goes on."""
        return self._place.settled_at

    @property
    def paced(self) -> int:
        """The tokens that its admission took from the rate; the difference to the usage comes back at the end."""
        return self._place.call.tokens

    @property
    def reserved(self) -> int:
        """The worst case that was held against the ceiling."""
        return self._place.call.worst

    @property
    def charged(self) -> int | None:
        """Tokens booked as spent; ``None`` as long as the body goes on."""
        return None if self._place.settlement is None else self._place.settlement.spent

    @property
    def unknown(self) -> int | None:
        """Tokens booked beside because nobody saw the end of the bill; ``None`` as long as the body goes on."""
        return None if self._place.settlement is None else self._place.settlement.unknown

    @property
    def source(self) -> Source | None:
        """Where the number came from; ``None`` as long as the body goes on."""
        return None if self._place.settlement is None else self._place.settlement.source

    def __repr__(self) -> str:
        return (
            f"<Receipt {self.charged} charged + {self.unknown} unknown of {self.reserved} reserved, "
            f"from {self.source}, waited {self.waited_seconds:.2f} s>"
        )
