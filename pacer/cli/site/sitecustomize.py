"""Python imports this at its start in every process below ``pacer run``, before anything of the program.

Nothing of ours is loaded until somebody imports httpx or httpx2. Any Python may come by, also one that has no
token-pacer: then it says so, and does no harm. The ``sitecustomize`` that this one stands before is run as well.
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
        if name not in ("httpx", "httpx2"):
            return None
        try:
            import transports  # noqa: F401  # tells whether it is there
            from pacer.cli import tally
        except ImportError:
            _append("missing", sys.executable)
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Door]
            return None
        tally.begin()
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Door]
        return importlib.util.find_spec(name)


def _append(name: str, line: str) -> None:
    try:
        with open(os.path.join(os.environ["TOKEN_PACER_TALLY"], name), "a") as file:
            file.write(line + "\n")
    except (OSError, KeyError):  # the command is over: nobody reads it any more
        pass


def _run_next() -> None:
    places = [place for place in sys.path if os.path.abspath(place or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get("TOKEN_PACER_TALLY"):
    _append("started", sys.executable)
    sys.meta_path.insert(0, _Door)
_run_next()
