"""Python imports this at its start in every process below ``pacer run``, before anything of the program.

Of ours only the lookout for calls that pass us by is loaded until somebody imports httpx or httpx2. Any Python may come
by, also one that has no token-pacer: then it says so, and does no harm. The ``sitecustomize`` that this one stands
before is run as well.
"""

from __future__ import annotations  # older Pythons read this, too

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


class _Door:
    """Lets the transports in as soon as a library that they can pace is looked for."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name == "opentelemetry.instrumentation.auto_instrumentation":
            os.execl = _execl_behind_us  # type: ignore[assignment]
        if name not in ("httpx", "httpx2"):
            return None
        is_paced = _begin()
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Door]
        spec = importlib.util.find_spec(name)
        if spec is not None and not is_paced:
            _append("missing", sys.executable)
        return spec


def _begin() -> bool:
    """Let the transports in, if they are there."""
    try:
        import transports.auto  # noqa: F401  # tells whether it is there, and no module of the program that is called so
        from pacer.cli import tally
    except ImportError:
        return False
    tally.begin()
    return True


def _append(name: str, line: str) -> None:
    try:
        with open(os.path.join(os.environ["TOKEN_PACER_TALLY"], name), "a") as file:
            file.write(line + "\n")
    except (OSError, KeyError):  # the command is over: nobody reads it any more
        pass


def _look_on() -> None:
    """Have the calls noticed that no transport can see, by a module that takes no name from the program."""
    place = os.path.join(os.path.dirname(HERE), "uncovered.py")
    spec = importlib.util.spec_from_file_location("token_pacer_uncovered", place)
    if spec is not None and spec.loader is not None:
        uncovered = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(uncovered)
        uncovered.begin()


def _execl_behind_us(file: str, *words: str) -> object:
    """``opentelemetry-instrument`` becomes its command so, with a ``sitecustomize`` before ours that runs no other."""
    _stand_first()
    os.execv(file, words)  # noqa: S606  # what it was asked to run


def _stand_first() -> None:
    """In the environment of all that is started from here."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if HERE in places:
        os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *(place for place in places if place != HERE)])


def _run_next() -> None:
    places = [place for place in sys.path if os.path.abspath(place or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)
        _stand_first()


if os.environ.get("TOKEN_PACER_TALLY"):
    _append("started", sys.executable)
    try:  # noqa: SIM105  # contextlib takes long to import
        _look_on()
    except Exception:  # noqa: S110  # the program is not to suffer for it
        pass
    sys.meta_path.insert(0, _Door)
_run_next()
