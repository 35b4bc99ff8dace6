"""Every client of the process is paced, with no change to the code that makes it: ``install`` and ``uninstall``.

What is patched is how a client of httpx or httpx2 chooses its transport; the one it would have used stays below ours,
with its proxies, mounts and pool. Neither library is imported here: a hook waits until somebody else does.
"""

from __future__ import annotations

import importlib
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Unpack

from pacer import settings
from pacer.errors import SettingsError
from pacer.pacer import Pacer, join
from pacer.scope import HEADER
from pacer.settings import OF_A_TRANSPORT, Settings, SettingsInput
from transports.budget import BudgetTransport, Send
from transports.inner import Inner
from transports.library import Response, body_of
from transports.wire import recognise

LIBRARIES = ("httpx", "httpx2")
CLIENTS = ("Client", "AsyncClient")
CHOICE = "_transport_for_url"
MOST_KEPT = 64
"""A client whose transport is another one each time is not followed any further back than that."""
_KEPT = "_token_pacer_kept"


class PacedTransport(BudgetTransport):
    """A BudgetTransport that was put around a client's own transport."""

    def __init__(self, inner: Any, pacer: Pacer, chosen: Settings, library: ModuleType) -> None:
        # Not by super(), which would check the settings again for each client.
        self.pacer = pacer
        self.inner = inner
        self._library = library
        self._settings = chosen
        self._scope = None
        self._inner = Inner(inner, verify=True, http2=False, limits=None)

    def handle_request(self, request: Any) -> Any:
        """As BudgetTransport does; what is no model call takes a short cut."""
        if self._is_plain(request):
            return self.inner.handle_request(request)
        return super().handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        """As BudgetTransport does; what is no model call takes a short cut."""
        if self._is_plain(request):
            return await self.inner.handle_async_request(request)
        return await super().handle_async_request(request)

    def _is_plain(self, request: Any) -> bool:
        """Whether it is no model call, or one that is paced already, and has nothing that is meant for us."""
        if HEADER in request.headers:
            return False
        if request.method != "POST":  # nothing that a transport could have overlooked: not even counted
            return True
        if _is_below_us.get():
            return True
        path = request.url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        if recognise("POST", path, body_of(request, self._library), request.headers) is not None:
            return False
        self.pacer.count_unmetered()
        return True

    def _send(self, step: Send) -> Response:
        with _below_us():
            return super()._send(step)

    async def _asend(self, step: Send) -> Response:
        with _below_us():
            return await super()._asend(step)


_is_below_us: ContextVar[bool] = ContextVar("pacer_auto_below", default=False)


@contextmanager
def _below_us() -> Iterator[None]:
    """A transport may send through a client of its own, which is ours, too: the call is paced already."""
    token = _is_below_us.set(True)
    try:
        yield
    finally:
        _is_below_us.reset(token)


class _Kept(dict[int, PacedTransport]):
    """The transports put around those of one client, by the ``id`` of what they hold; the client owns them.

    Kept anywhere else they would keep alive what they hold, and with that perhaps the client.
    """

    def __init__(self, patch: _Patch | None = None) -> None:
        self.patch = patch

    def __reduce__(self) -> Any:  # a copy of the client begins anew
        return _Kept, ()


class _Patch:
    """What one ``install`` put in place."""

    def __init__(self, chosen: Settings) -> None:
        self.chosen = chosen
        self.pacer = join(chosen)
        own = {name: getattr(chosen, name) for name in OF_A_TRANSPORT}
        self._settings = self.pacer.settings.model_copy(update=own)
        self._originals: list[tuple[type, Any, Any]] = []
        self._clients: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._is_over = False

    def put_in(self, library: ModuleType) -> None:
        """Patch both clients of a library."""
        for name in CLIENTS:
            kind = getattr(library, name)
            if all(kind is not patched for patched, _, _ in self._originals):
                self._put_in(kind, library)

    def _put_in(self, kind: type, library: ModuleType) -> None:
        original = kind.__dict__[CHOICE]

        @wraps(original)
        def choice(client: Any, url: Any) -> Any:
            inner = original(client, url)
            kept = client.__dict__.get(_KEPT)
            paced = kept.get(id(inner)) if kept is not None and kept.patch is self else None
            return self._first_around(client, inner, library) if paced is None else paced

        setattr(kind, CHOICE, choice)
        self._originals.append((kind, original, choice))

    def take_out(self) -> None:
        """Put back what was there; where somebody has patched over it since, ours does nothing any more."""
        self._is_over = True
        for kind, original, choice in self._originals:
            if kind.__dict__[CHOICE] is choice:
                setattr(kind, CHOICE, original)
        for client in list(self._clients.values()):
            client.__dict__.pop(_KEPT, None)

    def _first_around(self, client: Any, inner: Any, library: ModuleType) -> Any:
        """The transport for a call that the client would have sent through ``inner``."""
        if self._is_over or _is_paced(inner):
            return inner
        kept = client.__dict__.get(_KEPT)
        if kept is None or kept.patch is not self or len(kept) >= MOST_KEPT:
            kept = client.__dict__[_KEPT] = _Kept(self)
            self._clients[id(client)] = client
        return kept.setdefault(id(inner), PacedTransport(inner, self.pacer, self._settings, library))


def _is_paced(transport: Any) -> bool:
    """Whether a BudgetTransport is in it, below whatever transports and clients are wrapped around that."""
    seen: set[int] = set()
    found = [transport]
    while found:
        one = found.pop()
        if isinstance(one, BudgetTransport):
            return True
        if id(one) not in seen:
            seen.add(id(one))
            found += [part for part in _parts(one) if _forwards(part)]
    return False


def _parts(one: Any) -> Iterator[Any]:
    slots = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
    for value in [*getattr(one, "__dict__", {}).values(), *(getattr(one, name, None) for name in slots)]:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _forwards(part: Any) -> bool:
    kind = type(part)  # asking the object itself might wake something up
    return hasattr(kind, "handle_request") or hasattr(kind, "handle_async_request") or hasattr(kind, CHOICE)


# -------------------------------------------------------------------- libraries that are imported later


class _Hook:
    """Finds the libraries as they would be found without it, and patches them as soon as they are loaded."""

    def __init__(self, patch: _Patch) -> None:
        self._patch = patch
        self._at_it = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have, with a loader that patches."""
        if name not in LIBRARIES or getattr(self._at_it, "now", False):
            return None
        self._at_it.now = True
        try:
            spec = _found(name)
        finally:
            self._at_it.now = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._patch)  # type: ignore[assignment]  # it does what loaders do
        return spec


def _found(name: str) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(name, None, None)) is not None:
            return spec  # type: ignore[no-any-return]
    return None


class _Loader:
    """Loads as the loader does that was found; the module gets that one back, and is patched."""

    def __init__(self, found: Any, patch: _Patch) -> None:
        self._found = found
        self._patch = patch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module, not loaded yet."""
        return self._found.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        """Load it, and patch it."""
        module.__loader__ = self._found
        if module.__spec__ is not None:
            module.__spec__.loader = self._found
        self._found.exec_module(module)
        _patch_if_installed(self._patch, module)


def _patch_if_installed(patch: _Patch, module: ModuleType) -> None:
    with _lock:
        if _installed is not None and _installed[0] is patch:
            patch.put_in(module)


# -------------------------------------------------------------------- install, uninstall

_lock = threading.RLock()
_installed: tuple[_Patch, _Hook] | None = None


def install(**given: Unpack[SettingsInput]) -> None:
    """Pace every client of httpx and httpx2 in this process, blocking and awaiting, made before or after.

    Settings are those of :class:`BudgetTransport`, ``PACER_*`` where they are not given, and so is the pacer: the one
    of the run, shared with all transports that name none. A client that has a BudgetTransport keeps it and gets no
    other. Once more with the same settings is fine. Raises: SettingsError, LimitsConflict, StoreError.
    """
    global _installed
    chosen = settings.load(**given)
    with _lock:
        if _installed is not None:
            _agree(_installed[0], chosen)
            return
        patch = _Patch(chosen)
        hook = _Hook(patch)
        _installed = patch, hook
        sys.meta_path.insert(0, hook)
    for name in LIBRARIES:  # not under the lock: this waits where another thread is just importing it
        if name in sys.modules:
            _patch_if_installed(patch, importlib.import_module(name))


def _agree(patch: _Patch, chosen: Settings) -> None:
    join(chosen)
    for name in ("run", *sorted(OF_A_TRANSPORT)):
        there, mine = getattr(patch.chosen, name), getattr(chosen, name)
        if there != mine:
            raise SettingsError(f"{name}={mine} is not accepted: install() was called with {name}={there} before")


def uninstall() -> None:
    """Put back what was there before :func:`install`: clients send as they did. Without it, nothing happens."""
    global _installed
    with _lock:
        if _installed is None:
            return
        patch, hook = _installed
        _installed = None
        patch.take_out()
        if hook in sys.meta_path:
            sys.meta_path.remove(hook)
