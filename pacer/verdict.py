"""What a refusal says: which limit of whose account, the numbers, and the way out.

No digit and no word of rates is in the text of a ceiling: retry loops in agent frameworks fire on those.
"""

from __future__ import annotations

from typing import Any, Literal

from pacer.errors import BudgetExceeded, CeilingReached, StoreUnavailable, WaitTooLong
from pacer.ledger import Account
from pacer.usage import Estimate, Threshold, Wait

CEILINGS = frozenset({"ceiling", "agent_ceiling", "spawn_threshold", "wrap_up_reserve"})
"""Limits whose tokens only come back when open calls settle."""
_WHY = {
    "never": ", and waiting cannot help",
    "own": " beside the answers that its own task still holds open: read or close those first",
    "no wait": " while other calls are in flight, and on_limit=refuse allows no wait",
}
_WAY_OUT = {
    "ceiling": "Raise it with PACER_CEILING or BudgetTransport(ceiling=...), or start another run.",
    "agent_ceiling": "Raise it with PACER_AGENT_CEILING or agent(..., ceiling=...).",
    "spawn_threshold": "Raise PACER_CEILING, or lower PACER_SPAWN_THRESHOLD.",
    "wrap_up_reserve": "Raise it with PACER_WRAP_UP_RESERVE or agent(..., reserve=...).",
}


def ceiling_reached(
    call: Estimate, account: Account, node: Account, limit: str, why: Literal["never", "own", "no wait"]
) -> BudgetExceeded:
    """``node`` is the account of the path that has no room."""
    whose = f"run {node.name!r}" if node.kind != "agent" else f"agent {node.name!r} in run {node.run.name!r}"
    what = f"The token ceiling of {whose} has no room left for this call"
    if limit == "spawn_threshold":
        what = f"The token ceiling of {whose} has less room left than an agent needs to start (spawn_threshold)"
    wrap_up = ""
    if account.left:
        wrap_up = " What this agent keeps for its wrap-up is still there: call inside `with pacer.wrap_up():`."
    return CeilingReached(
        f"{what}{_WHY[why]}. {_WAY_OUT[limit]}{wrap_up} The numbers are in the x-pacer-* headers.",
        limit=limit,
        amount=node.ceiling or 0,
        asked=call.worst,
        wrap_up=account.left or None,
        **_numbers(account, node),
    )


def call_too_large(call: Estimate, account: Account, tokens: int) -> BudgetExceeded:
    """The call may cost more than :func:`pacer.limit` lets one call cost here."""
    return CeilingReached(
        "This call may cost more than one call may cost here, and waiting cannot help. "
        "Raise pacer.limit(tokens=...) around it, or declare a lower output cap. "
        "The numbers are in the x-pacer-* headers.",
        limit="call_limit",
        amount=tokens,
        asked=call.worst,
        **_numbers(account, account.run),
    )


def wait_too_long(
    call: Estimate, account: Account, node: Account, wait: Wait, amount: float | None, max_wait: float | None
) -> BudgetExceeded:
    """``node`` is the account that is short, or the run; ``amount`` that of the rate, if it is one of ours.

    ``max_wait`` is ``None`` where no wait at all is allowed, by ``on_limit``.
    """
    if max_wait is None:
        patience, longer = "no wait", "PACER_ON_LIMIT=wait"
    else:
        patience, longer = f"at most {max_wait:g} s", "a larger PACER_MAX_WAIT"
    needed = "until open calls have settled" if wait.seconds is None else f"{wait.seconds:.1f} s"
    run = account.run.name
    if wait.limit == "paused":
        why, way_out = f"Run {run!r} or an agent in it is paused, and {patience} is allowed", "Resume it."
    elif amount is not None or wait.limit in CEILINGS:
        why = f"Run {run!r} is at its {wait.limit}: this call would wait {needed}, and {patience} is allowed"
        setting = "ceiling" if wait.limit == "spawn_threshold" else wait.limit
        way_out = f"Set a larger PACER_{setting.upper()} or {longer}, or try again later."
    else:
        why = f"The provider itself asks this call to wait {needed} ({wait.limit}), and {patience} is allowed"
        way_out = f"Set {longer}, or try again later."
    return WaitTooLong(
        f"{why}. {way_out}",
        limit=wait.limit,
        amount=node.ceiling or 0 if amount is None else amount,
        asked=call.tokens,
        retry_after_seconds=wait.seconds if wait.seconds is not None else 1.0,
        **_numbers(account, node),
    )


def store_unavailable(call: Estimate, account: Account, why: str) -> BudgetExceeded:
    """The books of the run cannot be asked; ``why`` says what is wrong and what to do."""
    return StoreUnavailable(
        f"The books that run {account.run.name!r} shares with other processes cannot be asked: {why}",
        limit="store",
        amount=account.run.ceiling or 0,
        asked=call.worst,
        retry_after_seconds=1.0,
        **_numbers(account, account.run),
    )


def threshold(node: Account, fraction: float) -> Threshold:
    """What a watch is told."""
    return Threshold(node.run.name, node.label, fraction, node.spent, node.unknown, node.ceiling or 0)


def _numbers(account: Account, node: Account) -> dict[str, Any]:
    return {
        "run": account.run.name,
        "agent": account.label or None,
        "spent": node.spent,
        "unknown": node.unknown,
        "held": node.held,
        "remaining": node.remaining,
    }
