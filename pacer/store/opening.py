"""The store that the settings name, opened: the memory of this process, or a vault with its process's side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pacer.admission import Admission
from pacer.entry import Change, Limit
from pacer.errors import LimitsConflict, StoreError
from pacer.ledger import Account
from pacer.settings import Settings, shown
from pacer.store import Store
from pacer.store.vault import Away, Opened, Vault
from pacer.ticket import gates_of
from pacer.usage import Kind

BURST_SECONDS = 10.0
"""The default burst is what the rate gives in this time."""


def open_store(chosen: Settings, clock: Callable[[], float]) -> Store:
    """The store for a pacer with these settings. Raises: StoreError, LimitsConflict."""
    if chosen.store == "memory:":
        from pacer.store.memory import MemoryStore

        gates = gates_of(limits_of(chosen), clock())
        return MemoryStore(Admission(_account(chosen, chosen.ceiling), gates, **_rules(chosen)), clock)
    from pacer.shared import SharedAdmission
    from pacer.store.journal import Journal
    from pacer.store.shared import SharedStore

    vault = vault_of(chosen)
    opened = books_of(vault, chosen)
    account, gates = _account(chosen, opened.run.ceiling), gates_of(opened.limits, clock())
    store = SharedStore(
        SharedAdmission(account, gates, vault.member, **_rules(chosen)),
        vault,
        opened.limits,
        Journal(f"{shown('store', chosen.store)} {chosen.run}", vault.member),
        lease=chosen.lease,
        failure=chosen.store_failure,
        grace=chosen.store_grace,
        clock=clock,
    )
    store.see(opened)
    store.work_off_the_dead()
    return store


def _rules(chosen: Settings) -> dict[str, Any]:
    """What a process decides by, whatever its store."""
    return {
        "max_wait": chosen.max_wait,
        "may_wait": chosen.on_limit == "wait",
        "spawn_threshold": chosen.spawn_threshold,
        "order": chosen.order,
    }


def vault_of(chosen: Settings) -> Vault:
    """The vault of a pacer, not connected yet. Raises: StoreError."""
    if chosen.store.startswith("sqlite:"):
        from pacer.store.sqlite import SqliteVault

        return SqliteVault(chosen.store.removeprefix("sqlite:"), chosen.run, chosen.lease)
    from pacer.store.redis import RedisVault  # its library is an extra

    return RedisVault(chosen.store, chosen.run, chosen.lease)


def _account(chosen: Settings, ceiling: int | None) -> Account:
    return Account(chosen.run, ceiling, parent=Account("pacer", kind="pacer"))


def books_of(vault: Vault, chosen: Settings) -> Opened:
    """The books of the run; what is in force there holds, unless these settings are to change it for all.

    Raises: StoreError, LimitsConflict.
    """
    limits = limits_of(chosen)
    try:
        opened = _opened(vault, chosen, limits)
        if chosen.update_limits:
            changes = [Change(limits=limits)] if limits else []
            if "ceiling" in chosen.model_fields_set:
                changes.append(Change(chosen.run, ceiling=chosen.ceiling))
            vault.exchange(changes)
            opened = vault.open(chosen.run, chosen.ceiling, limits)
    except Away as error:
        raise StoreError(str(error)) from None
    theirs = {limit.setting: limit for limit in opened.limits}
    for limit in limits:
        _agree(chosen.run, limit.setting, limit.amount, there.amount if (there := theirs.get(limit.setting)) else None)
        if "burst" in chosen.model_fields_set and there is not None and limit.kind == "tokens":
            _agree(chosen.run, "burst", limit.burst, there.burst)
    if "ceiling" in chosen.model_fields_set:
        _agree(chosen.run, "ceiling", chosen.ceiling, opened.run.ceiling)
    return opened


def _opened(vault: Vault, chosen: Settings, limits: tuple[Limit, ...]) -> Opened:
    try:
        return vault.open(chosen.run, chosen.ceiling, limits)
    except Away:
        from pacer.store.shared import attempts

        return attempts(chosen.store_grace)(vault.open, chosen.run, chosen.ceiling, limits)


def _agree(run: str, setting: str, mine: float | None, theirs: float | None) -> None:
    if mine != theirs:
        raise LimitsConflict(
            f"run {run!r} is open in its store with {setting}={theirs} and was joined with {setting}={mine}: leave "
            f"that out, name another run (PACER_RUN), or change it for all with update_limits=on"
        )


def limits_of(chosen: Settings) -> tuple[Limit, ...]:
    """The rates among the settings."""
    return tuple(
        Limit(setting, kind, amount, per, burst or max(1.0, amount / per * BURST_SECONDS))
        for setting, kind, amount, per, burst in _rates_of(chosen)
        if amount is not None
    )


def _rates_of(chosen: Settings) -> Iterator[tuple[str, Kind, float | None, float, float | None]]:
    yield "tokens_per_second", "tokens", chosen.tokens_per_second, 1.0, chosen.burst
    yield "tokens_per_minute", "tokens", chosen.tokens_per_minute, 60.0, chosen.burst
    yield "input_tokens_per_minute", "input", chosen.input_tokens_per_minute, 60.0, None
    yield "output_tokens_per_minute", "output", chosen.output_tokens_per_minute, 60.0, None
    yield "requests_per_minute", "requests", chosen.requests_per_minute, 60.0, None
