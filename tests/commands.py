"""What the tests of the command share: ``pacer run`` as it is typed, and what its receipt says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(**variables: str) -> dict[str, str]:
    """That of the tests, with this tree on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def paced(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``pacer run`` with these words."""
    command = [sys.executable, "-m", "pacer.cli", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=100)


def told(receipt: str, what: str) -> int:
    """The number before ``what``."""
    found = re.search(rf"([\d,]+) {what}\b", receipt)
    assert found is not None, receipt
    return int(found[1].replace(",", ""))
