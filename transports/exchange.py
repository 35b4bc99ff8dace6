"""One model call on its way: what the request is, what it may cost, and in which form it goes out."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import Self

import msgspec

from pacer import estimate
from pacer.estimate import COLD_OUTPUT_CAP, Estimator, Measure
from pacer.settings import Settings
from pacer.usage import Estimate
from transports.library import Request, body_of
from transports.wire import Call, Path, Wire, edited, recognise

_log = logging.getLogger("pacer")

UNREADABLE_BODY_BYTES = 16_384
"""The size supposed for a body that can neither be read nor measured."""
_REPORTS_USAGE_UNASKED = ".mistral.ai"  # in all its regions streams end with usage, and unknown members are refused


class Exchange(msgspec.Struct):
    """The request as it came, and what was recognised in it. ``injects``: an output cap is added where none is."""

    request: Request
    library: ModuleType
    body: bytes | None
    wire: Wire
    call: Call
    estimate: Estimate
    safe_input: int
    measure: Measure | None
    injects: bool

    @classmethod
    def of(cls, request: Request, library: ModuleType, settings: Settings, estimator: Estimator) -> Self | None:
        """The exchange that a request begins; ``None`` if it is no model call."""
        body = body_of(request, library)
        url = request.url
        path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        wire = recognise(request.method, path, body, request.headers)
        if wire is None:
            return None
        host = url.host
        call = _read(request, body, path, host, wire, settings)
        measure = estimate.measure(body) if body is not None else None
        least_input, expected_input, safe_input = estimator.input(call.model, measure or _measure_of_unread(request))
        if call.output_cap is None:
            _say_uncapped(call.model)
        expected_output, cap = estimator.output(call.model, wire.endpoint, call.output_cap, call.choices)
        worst = least = safe_input + cap
        if call.cap_at is not None:
            least = safe_input + min(cap, max(expected_output, call.least_cap * call.choices))
        estimated = Estimate(
            expected_input, expected_output, worst, wire.provider, call.model, host, least, least_input, cap
        )
        injects = call.cap_at is not None and call.output_cap is None
        return cls(request, library, body, wire, call, estimated, safe_input, measure, injects)

    def cap_to_send(self, worst: int) -> int:
        """The output cap to write into the request, so that its worst case is no more than ``worst``."""
        return (worst - self.safe_input) // self.call.choices

    def outgoing(self, cap: int | None) -> Request:
        """The request with ``cap`` and the switch for usage that it shall go out with; as it came, if with none."""
        call, request = self.call, self.request
        if self.body is None or (cap is None and call.usage_at is None):
            return request
        edits: dict[Path, object] = {}
        if call.usage_at is not None:
            edits[call.usage_at] = True
        if cap is not None and call.cap_at is not None:
            edits[call.cap_at] = cap
        body = edited(self.body, edits)
        if body is None:
            return request
        headers = request.headers.copy()
        headers["content-length"] = str(len(body))
        headers.pop("transfer-encoding", None)  # an iterator that an auth flow has read still says chunked
        if call.usage_at is not None:
            headers["accept-encoding"] = "identity"  # a hidden chunk cannot be cut out of a compressed stream
        return type(request)(request.method, request.url, headers=headers, content=body, extensions=request.extensions)


def _read(request: Request, body: bytes | None, path: str, host: str, wire: Wire, settings: Settings) -> Call:
    """What the request says of itself, without the places where nothing may be written."""
    call = wire.read_request(body) if body else Call()
    if wire.model_of is not None:
        call.model = wire.model_of(path)
    if settings.output_cap == "leave" or (call.output_cap is None and settings.output_cap != "inject"):
        call.cap_at = None
    if not settings.include_usage or host.endswith(_REPORTS_USAGE_UNASKED):
        call.usage_at = None
    if (call.cap_at is not None or call.usage_at is not None) and _is_signed(request):
        call.cap_at = call.usage_at = None
    return call


@lru_cache(maxsize=256)
def _say_uncapped(model: str) -> None:
    """Once for each model, for whoever wonders why a call holds so much."""
    _log.info(
        "calls of model %r declare no output cap: as much as its answers teach is held for each, %d tokens at first",
        model,
        COLD_OUTPUT_CAP,
    )


def _is_signed(request: Request) -> bool:
    """Whether a signature covers the body (SigV4), so that another body would be refused."""
    for name, value in request.headers.raw:  # noqa: SIM110  # any() over a generator takes twice as long
        if value[:5] == b"AWS4-" and name.lower() == b"authorization":
            return True
    return False


def _measure_of_unread(request: Request) -> Measure:
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and len(declared) < 16:
        return estimate.measure_of_size(int(declared))
    return estimate.measure_of_size(UNREADABLE_BODY_BYTES)
