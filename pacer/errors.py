"""What can go wrong, drawn as a tree. Each error carries its numbers and says what waiting would change.

PacerError
├── SettingsError (ValueError)        a setting cannot be used: fix it, waiting changes nothing
│   └── LimitsConflict                a run that is open already has other limits
├── StoreError                        the store cannot be used: mend or name another, waiting changes nothing
└── BudgetExceeded (RuntimeError)     a call was refused; nothing was sent and nothing was booked
    ├── CeilingReached                waiting changes nothing: the tokens are spent
    ├── WaitTooLong                   waiting helps, but longer than the caller allows
    └── StoreUnavailable              the shared books cannot be reached: waiting may help
"""

from __future__ import annotations

import copyreg
from typing import Any


class PacerError(Exception):
    """Base of everything this library raises on its own account."""


class SettingsError(PacerError, ValueError):
    """A setting is missing, malformed or unknown; the message names it, its value and what is accepted."""


class LimitsConflict(SettingsError):
    """A transport or pacer asked for other limits than the ones its run was opened with."""


class StoreError(PacerError):
    """A store cannot be opened or used; the message names it (never with a password) and says what to do."""


class BudgetExceeded(PacerError, RuntimeError):
    """A call was refused before it was sent.

    Attributes: ``limit`` (the setting that refused), ``run``, ``agent`` (names from the run down, ``None`` outside of
    agents), ``asked`` (tokens the call might cost), ``amount`` (the limit itself), ``spent``, ``unknown``, ``held``,
    ``remaining`` (tokens of the account that refused; ``None`` without a ceiling), ``wrap_up`` (tokens that the agent
    can still spend inside ``with pacer.wrap_up():``), ``retry_after_seconds`` (``None`` when waiting cannot help).
    """

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        run: str,
        asked: int,
        amount: float,
        agent: str | None = None,
        spent: int = 0,
        unknown: int = 0,
        held: int = 0,
        remaining: int | None = None,
        wrap_up: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.run = run
        self.agent = agent
        self.asked = asked
        self.amount = amount
        self.spent = spent
        self.unknown = unknown
        self.held = held
        self.remaining = remaining
        self.wrap_up = wrap_up
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        """All of it: a worker process hands it to its parent, which would hang if it could not read it."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]  # as object's own


class CeilingReached(BudgetExceeded):
    """What is left under the ceiling cannot hold this call, even when every open call has settled."""


class WaitTooLong(BudgetExceeded):
    """The call would have had to wait longer than ``max_wait`` (or ``on_limit=refuse`` allows no wait at all)."""


class StoreUnavailable(BudgetExceeded):
    """The books that the run shares with other processes cannot be reached, and nothing goes without them."""
