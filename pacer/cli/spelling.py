"""How names and numbers are spelt on a terminal.

Names come from other processes: whatever could move the cursor, break a line or turn the reading order is escaped.
"""

from __future__ import annotations

import unicodedata

_INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def plain(text: str) -> str:
    """The text on one line, with everything escaped that is not meant to be seen."""
    return "".join(
        char.encode("unicode_escape", "surrogatepass").decode() if unicodedata.category(char) in _INVISIBLE else char
        for char in text
    )


def short(amount: int | None) -> str:
    """At most seven characters, exact below a million."""
    if amount is None:
        return "none"
    for size, unit in ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M")):
        if abs(amount) >= size:
            return f"{amount / size:.{2 if abs(amount) < 10 * size else 1}f}{unit}"
    return f"{amount:,}"


def span(seconds: float) -> str:
    """A time that has passed, in its largest unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
