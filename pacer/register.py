"""The runs and agents of a pacer that are known: by name, by the id that a header gives, and for how long."""

from __future__ import annotations

import itertools
from collections import Counter

from pacer import ledger
from pacer.ledger import Account

RUNS_REMEMBERED = 1_024
"""Runs that nobody is in are forgotten beyond so many, the one left longest ago first."""
NAMED_REMEMBERED = 256
"""Agents that only a header names are ended beyond so many in each account."""


class Register:
    """``default`` is the run of those who name none; with ``late_spawns`` agents at work go before others."""

    def __init__(self, default: Account, *, late_spawns: bool = False) -> None:
        self.default = default
        self.root = default.path[-1]
        self._late_spawns = late_spawns
        self._ids = itertools.count(default.id + 1)
        self._runs: dict[str, Account] = {default.name: default}
        self._inside: Counter[Account] = Counter()
        self._named: dict[Account, dict[str, Account]] = {}
        self._by_id: dict[int, Account] = {default.id: default}

    def run(self, name: str, ceiling: int | None) -> Account:
        """The run of that name; a new one gets this ceiling."""
        found = self._runs.pop(name, None)
        if found is None:
            found = Account(name, ceiling, self.root, id=next(self._ids))
        self._runs[name] = self._by_id[found.id] = found
        return found

    def known(self, name: str) -> Account | None:
        """The run of that name, if there is one."""
        return self._runs.get(name)

    def runs(self) -> list[Account]:
        """Every run that is known."""
        return list(self._runs.values())

    def agents_known(self) -> int:
        """How many agents and runs there are now."""
        return len(self._by_id)

    def enter_run(self, run: Account) -> None:
        """Somebody is in the run."""
        self._inside[run] += 1

    def leave_run(self, run: Account) -> None:
        """Somebody is not in the run any more; without anybody it is remembered as long as there are not too many."""
        self._inside[run] -= 1
        if not self._inside[run]:
            del self._inside[run]
        surplus = len(self._runs) - RUNS_REMEMBERED
        if surplus > 0:
            kept = {self.default, *self._inside}
            idle = [run for run in self._runs.values() if run.is_idle() and run not in kept]
            for old in idle[:surplus]:
                self.end(self._runs.pop(old.name))

    def spawn(self, parent: Account, name: str, ceiling: int | None, weight: float, reserve: int) -> Account:
        """A new agent below ``parent``."""
        agent = Account(name, ceiling, living(parent), kind="agent", id=next(self._ids), reserve=reserve, weight=weight)
        agent.turn.is_late = self._late_spawns
        self._by_id[agent.id] = agent
        return agent

    def named(self, parent: Account, name: str, ceiling: int | None) -> Account:
        """The agent that calls with this name in a header belong to, made when it is named first.

        It keeps nothing for a wrap-up: only who is inside of an agent can tell that it wraps up.
        """
        siblings = self._named.setdefault(parent, {})
        found = siblings.pop(name, None)
        if found is None:
            surplus = len(siblings) + 1 - NAMED_REMEMBERED
            idle = [other for other, agent in siblings.items() if agent.is_idle()] if surplus > 0 else []
            for other in idle[:surplus]:
                self.end(siblings.pop(other))
            found = self.spawn(parent, name, ceiling, 1.0, 0)
        siblings[name] = found
        return found

    def by_id(self, number: int) -> Account | None:
        """The agent or run with this id, as long as it is at work."""
        return self._by_id.get(number)

    def end(self, account: Account) -> None:
        """The account takes no more calls, nor do those that were only named below it. Twice is fine."""
        if account.ended:
            return
        ledger.end(account)
        for named in self._named.pop(account, {}).values():
            self.end(named)
        self.retire(account)

    def retire(self, account: Account) -> None:
        """Something of the account is over; if it has ended, that may have been the last."""
        if account.ended:
            for gone in ledger.retire(account):
                del self._by_id[gone.id]


def living(account: Account) -> Account:
    """The account, or its nearest ancestor that has not ended; at most its run, whose ceiling holds whatever comes."""
    while account.ended and account.kind == "agent" and account.parent is not None:
        account = account.parent
    return account
