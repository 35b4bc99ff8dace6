"""A command from its start to its end: it keeps the terminal, and gets every signal that is sent to us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pacer.cli.live import StatusLine

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a command that cannot be started, as a shell has them."""

_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_OF_KEYS = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP}
"""What a terminal sends to all in its foreground; a hangup goes to its first process alone."""
_SI_KERNEL = 0x80


class NotStarted(Exception):
    """The command cannot be started; ``code`` is what a shell would exit with."""

    def __init__(self, name: str, why: str, code: int) -> None:
        script = f"; did you mean: python {name!r}" if name.endswith(".py") and os.path.exists(name) else ""
        super().__init__(f"{name!r} cannot be started: {why}{script}")
        self.code = code


@contextmanager
def orderly() -> Iterator[None]:
    """What would end us on the spot lets us clear up before, and comes too late once the command has ended."""
    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    try:
        for number in _PASSED_ON:
            if before[number] == signal.SIG_DFL:
                signal.signal(number, _end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def supervised(command: Sequence[str], environment: Mapping[str, str], line: StatusLine | None) -> int:
    """The exit code of the command; what is sent to us meanwhile is passed on to it. Raises: NotStarted.

    It is within :func:`orderly`.
    """
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored, it would not wake us
    heard = {*_PASSED_ON, signal.SIGCHLD, *(line.signals if line else ())}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        with line or nullcontext():
            # Nothing is lost between the start and the wait: until then all signals are kept back.
            child = subprocess.Popen(  # noqa: S603  # this is what we were asked to run
                list(command),
                env=dict(environment),
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
            )
            code = _waited(child, heard, line)
    except FileNotFoundError:
        raise NotStarted(command[0], "there is no such command", NOT_FOUND) from None
    except OSError as error:
        raise NotStarted(command[0], error.strerror or str(error), NOT_EXECUTABLE) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code if code >= 0 else 128 - code


def _waited(child: subprocess.Popen[bytes], heard: set[signal.Signals], line: StatusLine | None) -> int:
    if line is not None:
        line.start()
    while (code := child.poll()) is None:
        number, is_the_terminals = _next_signal(heard)
        if number == signal.SIGCHLD:
            _bury_others(child)
        elif number != signal.SIGWINCH and not (is_the_terminals and _is_in_our_group(child)):
            child.send_signal(number)
        if line is not None and number == signal.SIGWINCH:
            line.look()
        if line is not None and number == signal.SIGTSTP:
            _stop(line)
            child.send_signal(signal.SIGCONT)  # who continues us alone means both
    for number in _PASSED_ON:  # from now on too late for the command; nobody else is meant
        signal.signal(number, lambda *_: None)
    return code


def _bury_others(child: subprocess.Popen[bytes]) -> None:
    """The first process of a container is given all orphans, and nobody else waits for them."""
    if sys.platform != "linux":
        return
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == child.pid:
            return
        os.waitpid(ended.si_pid, 0)


def _is_in_our_group(child: subprocess.Popen[bytes]) -> bool:
    """Some commands leave it, as ``timeout`` does."""
    try:
        return os.getpgid(child.pid) == os.getpgrp()
    except ProcessLookupError:
        return False


def _stop(line: StatusLine) -> None:
    """Stop as it was asked for, with the terminal left as it was, until somebody continues us."""
    line.give_way()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    line.come_back()


def _next_signal(heard: set[signal.Signals]) -> tuple[int, bool]:
    """The next signal, and whether it came from the terminal: then all that are in our process group have got it."""
    if sys.platform == "linux":
        told = signal.sigtimedwait(heard, 1.0)
        if told is None:  # a thread of somebody else's may have got what was meant for us: that the command has ended
            return signal.SIGCHLD, False
        return told.si_signo, told.si_signo in _OF_KEYS and told.si_code == _SI_KERNEL
    number = signal.sigwait(heard)
    return number, number in _OF_KEYS and _has_the_terminal()


def _has_the_terminal() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
