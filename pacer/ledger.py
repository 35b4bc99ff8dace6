"""The tree of accounts: what is spent, unknown and held at every node. The invariants of the books live here."""

from __future__ import annotations

from pacer.usage import Estimate, Settlement


class Account:
    """One node of the tree. A parent's numbers are the sums of its children's and its own calls'.

    For every account ``spent + unknown + held <= ceiling`` as long as holds are upper bounds; ``remaining`` is
    derived, never stored. ``path`` is this account and all its ancestors, nearest first.
    """

    __slots__ = ("calls", "ceiling", "held", "in_flight", "name", "path", "spent", "unknown")

    def __init__(self, name: str, ceiling: int | None = None, parent: Account | None = None) -> None:
        self.name = name
        self.ceiling = ceiling
        self.path: tuple[Account, ...] = (self, *(parent.path if parent is not None else ()))
        self.spent = 0
        self.unknown = 0
        self.held = 0
        self.in_flight = 0
        self.calls = 0

    @property
    def remaining(self) -> int | None:
        """Tokens that nobody has spent or holds; negative after an overshoot, ``None`` without a ceiling."""
        if self.ceiling is None:
            return None
        return self.ceiling - self.spent - self.unknown - self.held

    def never_fits(self, amount: int) -> bool:
        """Whether ``amount`` would not fit even if every open hold came back."""
        return self.ceiling is not None and self.spent + self.unknown + amount > self.ceiling

    def takes(self, call: Estimate) -> bool:
        """Whether the call can be held now; one that could never have its worst case, with the least it needs."""
        if self.ceiling is None:
            return True
        room = self.ceiling - self.spent - self.unknown
        return (call.worst if call.worst <= room else call.least) <= room - self.held


def hold(account: Account, amount: int) -> None:
    """Set ``amount`` aside on the whole path; the caller has asked every node before."""
    for node in account.path:
        node.held += amount
        node.in_flight += 1


def settle(account: Account, amount: int, settlement: Settlement) -> None:
    """Replace a hold of ``amount`` by what became of it. More than was held is booked all the same, never clamped."""
    for node in account.path:
        node.held -= amount
        node.in_flight -= 1
        node.spent += settlement.spent
        node.unknown += settlement.unknown
        node.calls += settlement.source != "void"


def release(account: Account, amount: int) -> None:
    """Take back a hold whose call was never made."""
    for node in account.path:
        node.held -= amount
        node.in_flight -= 1
