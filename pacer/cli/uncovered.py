"""Model calls that no transport can see, as they pass in the processes below ``pacer run``: by whom, and where to.

It stands in any Python that comes by, also in one without token-pacer: nothing but the standard library is imported,
and no library before the program does it. It looks on: the call goes its way whatever becomes of the looking, and of
its address only the host is written down. Each call is a line of its own, so a process that is killed has told all.
"""

from __future__ import annotations  # older Pythons read this, too

import os
import sys

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType
    from typing import Any

DIRECTORY = "TOKEN_PACER_TALLY"
FILE = "uncovered"
MOST_TOLD = 12
"""No more hosts are named than that."""

CALL_ENDS = (
    *("/chat/completions", "/completions", "/responses", "/embeddings", "/messages", "/chat", "/generate", "/embed"),
    *("/invoke", "/invoke-with-response-stream", "/converse", "/converse-stream", ":rawPredict", ":streamRawPredict"),
    *(":generateContent", ":streamGenerateContent", ":embedContent", ":batchEmbedContents"),
)
"""How the path of a model call ends, as ``transports.wire`` has it; it is too long in coming to be asked here."""
SESSION_ENDS = ("/realtime", "/responses", "BidiGenerateContent")
"""How the path of a session with a model ends, on a websocket."""
RPC_STARTS = (
    *("/xai_api.Chat/GetCompletion", "/xai_api.Chat/StartDeferredCompletion", "/xai_api.Chat/CompactContext"),
    *("/xai_api.Sample/", "/xai_api.Embedder/", "/xai_api.Image/Generate"),
    *("/google.cloud.aiplatform.v1.PredictionService/", "/google.cloud.aiplatform.v1beta1.PredictionService/"),
)
RPC_PACKAGE = "/google.ai.generativelanguage."
RPC_ENDS = ("GenerateContent", "GenerateAnswer", "GenerateMessage", "GenerateText", "EmbedContent", "EmbedContents")
"""Names of model calls on gRPC: how they begin, or the package they are in and how they end."""
NAMED_BEFORE = ("botocore", "requests", "urllib3")
"""Whoever of these is behind a request of ``http.client`` is named in its place; the first, where it is several."""
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-:_[]")


def read(directory: Path) -> tuple[str, ...]:
    """What was seen, most calls first: ``3 calls to api.openai.com by aiohttp``."""
    from collections import Counter

    try:
        with open(directory / FILE, errors="replace") as file:
            seen = Counter(tuple(words) for words in map(str.split, file) if len(words) == 2)
    except FileNotFoundError:
        return ()
    told = seen.most_common(MOST_TOLD)
    rest = sum(seen.values()) - sum(number for _, number in told)
    lines = [f"{_count(number, library)} to {_plain(host)} by {_plain(library)}" for (library, host), number in told]
    return (*lines, f"{_count(rest, '')} to other hosts") if rest else tuple(lines)


def _count(number: int, library: str) -> str:
    noun = "session" if library == "websockets" else "call"
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# -------------------------------------------------------------------- what is seen


def is_call(method: str, path: str) -> bool:
    """Whether a request is a model call, by its method and path alone."""
    return method == "POST" and path.endswith(CALL_ENDS) and "/threads/" not in path


def is_rpc(method: str) -> bool:
    """The same of the full name of a method on gRPC."""
    return method.startswith(RPC_STARTS) or (method.startswith(RPC_PACKAGE) and method.endswith(RPC_ENDS))


def _tell(library: str, host: str) -> None:
    path = os.path.join(os.environ[DIRECTORY], FILE)
    line = f"{library} {_plain(host)}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def _plain(host: str) -> str:
    return "".join(char if char in _LETTERS else "?" for char in host.lower()[:255]) or "?"


def _behind() -> set[str]:
    """The modules whose functions led here."""
    names, frame = set(), sys._getframe()
    while frame is not None:
        names.add(frame.f_globals.get("__name__") or "")
        frame = frame.f_back  # type: ignore[assignment]
    return names


def _is_paced(behind: set[str]) -> bool:
    """Whether it is sent for a transport of ours, which may stand before any library."""
    auto = sys.modules.get("transports.auto")
    return "transports.budget" in behind or (auto is not None and auto._is_below_us.get())


def _seen(library: str, host: str) -> None:
    if not _is_paced(_behind()):
        _tell(library, host)


# -------------------------------------------------------------------- where it looks


def _http(connection: Any, method: str, url: str, *_: object, **__: object) -> None:
    if not is_call(method, url.partition("?")[0]):
        return
    behind = _behind()
    if not _is_paced(behind):
        packages = {name.partition(".")[0] for name in behind}
        library = next((name for name in NAMED_BEFORE if name in packages), "http.client")
        _tell(library, connection._tunnel_host or _host(url) or connection.host)


def _host(url: str) -> str:
    return url.partition("?")[0].partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]


def _of_http_client(module: ModuleType) -> None:  # with it all that is built on it
    _look_on(module.HTTPConnection, "putrequest", _http)


def _aiohttp(session: Any, method: str, url: Any, *_: object, **__: object) -> None:
    if method.upper() == "POST":
        built = session._build_url(url)
        if is_call("POST", built.path):
            _seen("aiohttp", built.host)


def _of_aiohttp(module: ModuleType) -> None:
    _look_on(module.ClientSession, "_request", _aiohttp)


def _websocket(protocol: Any) -> None:
    uri = getattr(protocol, "uri", None) or protocol.wsuri
    if uri.path.endswith(SESSION_ENDS):
        _seen("websockets", uri.host)


def _of_websockets(module: ModuleType) -> None:
    _look_on(module.ClientProtocol, "connect", _websocket)


def _rpc(callable_: Any, *_: object, **__: object) -> None:
    method = callable_._method
    method = method.decode() if isinstance(method, bytes) else method
    if is_rpc(method):
        target = callable_._target if hasattr(callable_, "_target") else _targets[callable_._references[0]]
        target = target.decode() if isinstance(target, bytes) else target
        _seen("grpc", target.rpartition("/")[2].rpartition(":")[0] or target)


def _of_grpc(module: ModuleType) -> None:
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and kind.__name__.endswith("MultiCallable") and kind.__module__ == module.__name__:
            for name in ("__call__", "with_call", "future"):
                if name in vars(kind):
                    _look_on(kind, name, _rpc)


_targets: Any = None  # of channels that do not keep it themselves


def _of_grpc_aio(module: ModuleType) -> None:
    import weakref

    global _targets
    _targets = weakref.WeakKeyDictionary()
    _look_on(module.Channel, "__init__", lambda channel, target, *_, **__: _targets.update({channel: target}))
    _of_grpc(module)


def _lm15(transport: Any, request: Any) -> None:
    if is_call(request.method, request.url.partition("?")[0]):
        _seen("lm15", _host(request.url))


def _of_lm15(module: ModuleType) -> None:  # the client of dspy
    for name in ("StdlibTransport", "StdlibAsyncTransport"):
        if name in vars(module):
            _look_on(vars(module)[name], "stream", _lm15)


LOOKOUTS = {
    "http.client": _of_http_client,
    "aiohttp.client": _of_aiohttp,
    "websockets.client": _of_websockets,
    "grpc._channel": _of_grpc,
    "grpc.aio._channel": _of_grpc_aio,
    "lm15.transports._sync": _of_lm15,
    "lm15.transports._async": _of_lm15,
    "dspy._vendor.lm15.transports._sync": _of_lm15,
    "dspy._vendor.lm15.transports._async": _of_lm15,
}
"""By the module in which the call passes."""


def _look_on(kind: type, name: str, look: Callable[..., object]) -> None:
    """Have every call of a method looked at before it goes its way."""
    from functools import wraps

    original = vars(kind)[name]

    def seen(*args: Any, **kwargs: Any) -> Any:
        try:  # noqa: SIM105  # contextlib takes long to import
            look(*args, **kwargs)
        except Exception:  # noqa: S110  # another release of the library, or the command is over: the call goes on
            pass
        return original(*args, **kwargs)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        _quietly(look, *args, **kwargs)
        return await original(*args, **kwargs)

    is_coroutine_function = bool(original.__code__.co_flags & 0x80)
    setattr(kind, name, wraps(original)(awaited if is_coroutine_function else seen))


def _quietly(look: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    try:  # noqa: SIM105
        look(*args, **kwargs)
    except Exception:  # noqa: S110
        pass


# -------------------------------------------------------------------- how it gets there


_at_it: set[str] = set()


class _Door:
    """Finds modules as they would be found without it, and takes its place in those it knows once they are loaded."""

    is_of_token_pacer = True

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in LOOKOUTS or name in _at_it:
            return None
        _at_it.add(name)
        try:
            spec = next(filter(None, cls._found(name, path, target)), None)
        finally:
            _at_it.discard(name)
        if spec is not None:
            _quietly(_look_when_loaded, name, spec.loader)
        return spec

    @classmethod
    def _found(cls, name: str, path: Any, target: Any) -> Iterator[Any]:
        for finder in list(sys.meta_path):
            if finder is not cls and hasattr(finder, "find_spec"):
                yield finder.find_spec(name, path, target)


def _look_when_loaded(name: str, loader: Any) -> None:
    if isinstance(loader, type):  # shared by all modules of its kind
        return
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        load(module)
        if module.__name__ == name:
            vars(loader).pop("exec_module", None)
            _quietly(LOOKOUTS[name], module)

    loader.exec_module = exec_module


def begin() -> None:
    """Look on from now on, in libraries that are there and those to come. Twice is fine."""
    if any(hasattr(finder, "is_of_token_pacer") for finder in sys.meta_path):
        return
    for name, lookout in LOOKOUTS.items():
        if name in sys.modules:
            _quietly(lookout, sys.modules[name])
    sys.meta_path.insert(0, _Door)
