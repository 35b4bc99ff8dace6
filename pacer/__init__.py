"""Pace and cap the tokens of LLM calls. This package knows tokens and time; ``transports`` knows HTTP."""

from pacer.errors import BudgetExceeded, CeilingReached, LimitsConflict, PacerError, SettingsError, WaitTooLong
from pacer.pacer import Pacer
from pacer.usage import Status

__all__ = [
    "BudgetExceeded",
    "CeilingReached",
    "LimitsConflict",
    "Pacer",
    "PacerError",
    "SettingsError",
    "Status",
    "WaitTooLong",
]
