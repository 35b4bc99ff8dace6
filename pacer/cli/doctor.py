"""``pacer doctor``: whether what is installed and set here would be paced, and what to do where it would not.

Nothing is changed, no provider is called, and no SDK is imported. Nothing here is fit for a terminal yet.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from pacer import settings
from pacer.cli import sdks, tally
from pacer.cli.run import SITE
from pacer.errors import SettingsError, StoreError
from pacer.settings import Settings
from pacer.store.opening import vault_of
from pacer.store.vault import Away, Forgotten

State = Literal["ok", "warning", "wrong"]
EXTRAS = ("", "httpx2", "encodings", "redis", "cli")
"""Those of token-pacer that are for everybody; the others pin versions for its own tests."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
START_SECONDS = 20.0
"""A Python that takes longer to start is not waited for."""

_PROBE = """
import sys
try:
    import pacer, transports
except ImportError:
    pass
print(sys.version.split()[0], "transports" in sys.modules)
"""


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at: what it is, how it stands, and what to say of it."""

    name: str
    state: State
    text: str


class Report(msgspec.Struct, frozen=True):
    """All that was found. ``code``: 0 all covered and valid, 1 not covered or to be warned of, 2 wrong."""

    code: int
    sdks: tuple[sdks.Found, ...]
    settings: tuple[Check, ...]
    store: tuple[Check, ...]
    pythons: tuple[Check, ...]
    dependencies: tuple[Check, ...]
    proxies: tuple[Check, ...]


def examine(store: str | None = None) -> Report:
    """Look at everything; ``store`` in place of ``PACER_STORE``."""
    found = sdks.installed()
    variables = tuple(_variables())
    chosen = None
    if all(check.state == "ok" for check in variables):
        try:
            chosen = settings.load() if store is None else settings.load(store=store)
        except SettingsError as error:
            variables = (*variables, Check("together", "wrong", str(error)))
    books = () if chosen is None else tuple(_store(chosen))
    others = (variables, books, tuple(_pythons()), tuple(_dependencies()), tuple(_proxies()))
    states = {check.state for checks in others for check in checks}
    covered = all(one.covered == "yes" for one in found if not one.through)
    covered = covered and not any(gap.counts for one in found for gap in one.gaps)
    code = 2 if "wrong" in states else 1 if "warning" in states or not covered else 0
    return Report(code, found, *others)


# -------------------------------------------------------------------- settings


def _variables() -> Iterator[Check]:
    for variable, value in sorted(os.environ.items()):
        if variable.upper().startswith("PACER_"):
            try:
                yield _variable(variable, value)
            except SettingsError as error:
                yield Check(variable, "wrong", str(error))


def _variable(variable: str, value: str) -> Check:
    name = variable.upper().removeprefix("PACER_").lower()
    settings.known(name, shown=variable)
    beside = {"tokens_per_second": "1"} if name == "burst" else {}  # it means nothing alone
    settings.explicit(**{name: value, **beside})  # type: ignore[arg-type]  # the names are those of settings
    return Check(variable, "ok", str(settings.shown(name, value)))


# -------------------------------------------------------------------- the store


def _store(chosen: Settings) -> Iterator[Check]:
    name = str(settings.shown("store", chosen.store))
    if chosen.store == "memory:":
        yield Check(name, "ok", "each process counts alone; `pacer run` makes a store of its own")
        return
    warned = _Warned()
    logging.getLogger("pacer").addHandler(warned)
    try:
        yield from _in_file(name, chosen) if chosen.store.startswith("sqlite:") else _on_server(name, chosen)
    except (StoreError, Away) as error:
        yield Check(name, "wrong", str(error))
    finally:
        logging.getLogger("pacer").removeHandler(warned)
    for text in warned.texts:
        yield Check(name, "warning", text)


class _Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _in_file(name: str, chosen: Settings) -> Iterator[Check]:
    path = Path(chosen.store.removeprefix("sqlite:"))
    if not os.path.lexists(path):
        yield Check(name, "ok", "not there yet: the first run makes it")
        return
    with closing(vault_of(chosen)) as vault:
        yield Check(name, "ok", f"runs in it: {len(vault.rows()):,}")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        yield Check(name, "warning", f"others may look into it (mode {mode:o}): chmod 600")


def _on_server(name: str, chosen: Settings) -> Iterator[Check]:
    from pacer.store.redis import RedisVault  # its library is an extra

    with closing(RedisVault(chosen.store, chosen.run, chosen.lease)) as vault:
        with suppress(Forgotten):  # no such run yet: it has answered
            vault.limits()
        try:
            told = vault.told()
        except StoreError:  # it need not let us ask
            yield Check(name, "ok", "answers; INFO is not allowed, so its settings are not known")
            return
    server = next((kind for kind in ("valkey", "redis") if f"{kind}_version" in told), "a server")
    yield Check(name, "ok", f"answers: {server.capitalize()} {told.get(f'{server}_version', '')}".rstrip())
    if told.get("aof_enabled") == "0":
        yield Check(name, "warning", "appendonly is no: what was spent since its last snapshot is lost with the server")


# -------------------------------------------------------------------- Pythons, dependencies, proxies


def _pythons() -> Iterator[Check]:
    """This Python and those that a command would find, started as ``pacer run`` starts them."""
    found = [sys.executable, shutil.which("python"), shutil.which("python3")]
    seen = {(os.path.dirname(path), os.path.realpath(path)): path for path in reversed(found) if path}
    for path in reversed(seen.values()):
        yield _python(path)


def _python(path: str) -> Check:
    with tempfile.TemporaryDirectory(prefix="pacer-") as directory:
        there = os.environ.get("PYTHONPATH")
        places = os.pathsep.join([str(SITE), there] if there else [str(SITE)])
        variables = {**os.environ, "PYTHONPATH": places, tally.DIRECTORY: directory}
        try:
            done = subprocess.run(  # noqa: S603  # a Python of this machine
                [path, "-c", _PROBE], env=variables, capture_output=True, text=True, timeout=START_SECONDS
            )
            version, has_us = done.stdout.split()
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return Check(path, "warning", "cannot be started")
        if not (Path(directory) / tally.STARTED).exists():
            return Check(path, "warning", f"{version}: does not look at PYTHONPATH or has no site: NOT PACED")
    if has_us != "True":
        return Check(path, "warning", f"{version}: token-pacer is not installed there: NOT PACED")
    return Check(path, "ok", version)


def _dependencies() -> Iterator[Check]:
    try:
        required = list(sdks.required("token-pacer", EXTRAS))
    except metadata.PackageNotFoundError:
        yield Check("token-pacer", "warning", "runs without being installed: what it requires is not known")
        return
    for requirement in required:
        version = sdks.version_of(requirement.name)
        if version is None and requirement.marker is not None:  # an extra
            continue
        state: State = "ok" if sdks.is_met(requirement) else "warning"
        text = f"{version or 'missing'}{'' if state == 'ok' else f', but token-pacer needs {requirement.specifier}'}"
        yield Check(requirement.name, state, text)


def _proxies() -> Iterator[Check]:
    for variable, value in sorted(os.environ.items()):
        if variable.upper() in PROXIES and value:
            yield Check(variable, "ok", value if variable.upper() == "NO_PROXY" else _address(value))


def _address(url: str) -> str:
    """Where a proxy is, without user and password."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        return "cannot be read"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
