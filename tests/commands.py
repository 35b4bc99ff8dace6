"""What the tests of the command share: ``pacer run`` as it is typed, in a terminal too, and what its receipt says."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUN = (sys.executable, "-m", "pacer.cli", "run")


def environment(**variables: str) -> dict[str, str]:
    """That of the tests, with this tree on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def paced(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``pacer run`` with these words."""
    return subprocess.run([*RUN, *words], capture_output=True, text=True, env=environment(**variables), timeout=100)


def told(receipt: str, what: str) -> int:
    """The number before ``what``."""
    found = re.search(rf"([\d,]+) {what}\b", receipt)
    assert found is not None, receipt
    return int(found[1].replace(",", ""))


class Terminal:
    """A person at a terminal, where one program is in the foreground."""

    def __init__(self, *words: str, **variables: str) -> None:
        self.child, self.file = pty.fork()
        if self.child == 0:
            os.execve(sys.executable, [*RUN, *words], environment(TERM="dumb", **variables))
        self.seen = ""
        modes = termios.tcgetattr(self.file)
        modes[3] |= termios.NOFLSH  # an interrupt would throw away what is on its way to us
        termios.tcsetattr(self.file, termios.TCSANOW, modes)

    def until(self, text: str) -> None:
        """Read until this is there."""
        give_up = time.monotonic() + 30
        while text not in self.seen and time.monotonic() < give_up:
            if select.select([self.file], [], [], 1.0)[0]:
                self.seen += os.read(self.file, 4096).decode()
        assert text in self.seen, self.seen

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def end(self) -> int:
        """The exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        os.close(self.file)
        return code
