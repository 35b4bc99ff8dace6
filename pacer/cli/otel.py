"""``pacer run --otel``: the OpenTelemetry SDK in each Python process of the command, set up from ``OTEL_*``.

It is the SDK's own configuration, where the program has none. What is set up so stands in for the program's: a provider
that the program sets later takes its place, as if it were the first.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pacer.errors import SettingsError

ASKED = "TOKEN_PACER_OTEL"
"""The variable that asks for it; one that began with ``PACER_`` would be a setting."""
DEFAULTS = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
}
"""The specification's, which the Python SDK does not have by itself."""
FLUSH_SECONDS = 10.0
"""A child of multiprocessing waits no longer at its end until everything is exported."""

_BEFORE_THE_STORES = -90
_MISSING = "--otel needs the OpenTelemetry SDK and an exporter: pip install token-pacer[otel]"
_log = logging.getLogger("pacer")
_has_begun = False


def variables() -> dict[str, str]:
    """What is to be in the environment of the command, beside what it has. Raises: SettingsError."""
    if not _is_there("opentelemetry.distro"):
        raise SettingsError(_MISSING)
    return {ASKED: "1", **{name: value for name, value in DEFAULTS.items() if not os.environ.get(name)}}


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def begin() -> None:
    """Set up the SDK in this process, if that is asked for and the program has not done so. Never fails."""
    global _has_begun
    if ASKED not in os.environ or _has_begun:
        return
    _has_begun = True  # before all else: an exporter may import httpx, which brings us here again
    try:
        from opentelemetry import trace
        from opentelemetry.distro import OpenTelemetryConfigurator

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            OpenTelemetryConfigurator().configure()  # type: ignore[no-untyped-call]
            _stand_in()
    except ImportError:
        _log.warning("traces and metrics of %s go nowhere: %s", sys.executable, _MISSING)
    except Exception as error:  # the program runs without them, too
        why = f"OpenTelemetry says: {error} (token-pacer[otel] brings the exporter for OTLP over HTTP)"
        _log.warning("traces and metrics of %s go nowhere, %s", sys.executable, why)


def _stand_in() -> None:
    """Whoever sets a provider from here on is the first who does so. The API has no public way to say that."""
    from opentelemetry import metrics, trace
    from opentelemetry._logs import _internal as logs_api
    from opentelemetry.metrics import _internal as metrics_api
    from opentelemetry.util._once import Once

    class Place(Once):
        def __init__(self, leave: Callable[[], object]) -> None:
            super().__init__()
            self._leave = leave

        def do_once(self, func: Callable[[], None]) -> bool:
            is_set = super().do_once(func)
            if is_set:  # not here: the last export may take long; not as a daemon: the end of the process waits for it
                threading.Thread(target=self._leave, name="pacer-otel").start()
            return is_set

    tracers: Any = trace.get_tracer_provider()
    meters: Any = metrics.get_meter_provider()
    flush = _Flush([tracers, meters])
    trace._TRACER_PROVIDER_SET_ONCE = Once()  # spans that are open, and tracers that are kept, still end with ours
    metrics_api._METER_PROVIDER_SET_ONCE = Place(lambda: flush.leave(meters))
    logs_api._LOGGER_PROVIDER_SET_ONCE = Once()


class _Flush:
    """Exports what is left when a child of multiprocessing ends: nothing that was registered with atexit runs there."""

    def __init__(self, providers: list[Any]) -> None:
        self._providers = providers
        self._is_arranged = False
        os.register_at_fork(after_in_child=self._arrange)
        self._arrange()

    def leave(self, provider: Any) -> None:
        """The program has one of its own: export the last, and no more."""
        self._providers.remove(provider)
        with suppress(Exception):  # whatever it could not export, it has logged
            provider.shutdown()

    def _arrange(self) -> None:
        processes = sys.modules.get("multiprocessing.util")
        if processes is None or self._is_arranged:
            return
        self._is_arranged = True
        processes.register_after_fork(self, _Flush._finalize)
        if sys.modules["multiprocessing.process"].parent_process() is not None:
            self._finalize()

    def _finalize(self) -> None:
        sys.modules["multiprocessing.util"].Finalize(None, self._export, exitpriority=_BEFORE_THE_STORES)

    def _export(self) -> None:
        for provider in self._providers:
            with suppress(Exception):  # as above
                provider.force_flush(int(FLUSH_SECONDS * 1_000))
