"""Pace and cap the tokens of LLM calls. This package knows tokens and time; ``transports`` knows HTTP."""

from pacer.errors import (
    BudgetExceeded,
    CeilingReached,
    LimitsConflict,
    PacerError,
    SettingsError,
    StoreError,
    StoreUnavailable,
    WaitTooLong,
)
from pacer.pacer import Pacer, agent, run
from pacer.scope import Agent, Run, limit, wrap_up
from pacer.usage import Limits, Status, Threshold, Waiting

__all__ = [
    "Agent",
    "BudgetExceeded",
    "CeilingReached",
    "Limits",
    "LimitsConflict",
    "Pacer",
    "PacerError",
    "Run",
    "SettingsError",
    "Status",
    "StoreError",
    "StoreUnavailable",
    "Threshold",
    "WaitTooLong",
    "Waiting",
    "agent",
    "limit",
    "run",
    "wrap_up",
]
