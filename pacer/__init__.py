"""Pace and cap the tokens of LLM calls. This package knows tokens and time; ``transports`` knows HTTP.

What a name needs is loaded when it is first asked for: a command that only looks into a store starts sooner.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

if not TYPE_CHECKING:  # so that a type checker still tells names that are not there

    def __getattr__(name):
        if name in __all__:
            for room in ("errors", "usage", "scope", "pacer"):  # what takes longest stands last
                module = import_module(f"{__name__}.{room}")
                if hasattr(module, name):
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return {*globals(), *__all__}
