"""BudgetTransport: the way of one request, told once, and the two shells that walk it, blocking and awaiting."""

from __future__ import annotations

import ssl
import time
from collections.abc import Generator
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from pacer import estimate, parking, settings
from pacer.admission import Reservation
from pacer.errors import BudgetExceeded
from pacer.estimate import Measure
from pacer.flow import Park, Pause, Space
from pacer.pacer import Pacer, join
from pacer.settings import SettingsInput
from pacer.usage import Estimate, Source, Usage
from transports import limits, refusal, retry
from transports.inner import Inner
from transports.library import Request, Response, body_of, library_of
from transports.retry import Discard
from transports.stream import Listener, Meter, metered
from transports.wire import Call, Path, Wire, edited, gemini, recognise

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Transport(httpx.BaseTransport, httpx.AsyncBaseTransport, httpx2.BaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]  # each library wants its own
        ...
else:
    # No base class at run time: anthropic refuses heirs of httpx's transports for its httpx2 client.
    _Transport = object

UNREADABLE_BODY_BYTES = 16_384
"""The size supposed for a body that can neither be read nor measured."""
_WAIT_IN_BODY = frozenset({gemini.WIRE.provider})
_REPORTS_USAGE_UNASKED = frozenset({"api.mistral.ai"})  # its streams end with usage, and it refuses unknown members


@dataclass(frozen=True, slots=True)
class Send:
    """Hand the request to the network."""

    request: Request


class Receipt:
    """What became of an admitted call: ``response.extensions["pacer"]``. Tokens; complete when the body has ended."""

    def __init__(self, place: Reservation, output_cap: int | None) -> None:
        self._place = place
        self.output_cap = output_cap
        """The output cap that went out in place of the caller's, or where there was none; ``None`` if untouched."""

    @property
    def waited_seconds(self) -> float:
        """Seconds from the request to its admission."""
        return self._place.waited_seconds

    @property
    def admitted_at(self) -> float:
        """When the call was admitted, on the pacer's monotonic clock."""
        return self._place.granted_at

    @property
    def settled_at(self) -> float | None:
        """When it was settled, on the same clock; ``None`` as long as the body goes on."""
        return self._place.settled_at

    @property
    def paced(self) -> int:
        """The tokens that its admission took from the rate; the difference to the usage comes back at the end."""
        return self._place.call.expected

    @property
    def reserved(self) -> int:
        """The worst case that was held against the ceiling."""
        return self._place.call.worst

    @property
    def charged(self) -> int | None:
        """Tokens booked as spent; ``None`` as long as the body goes on."""
        return None if self._place.settlement is None else self._place.settlement.spent

    @property
    def unknown(self) -> int | None:
        """Tokens booked beside because nobody saw the end of the bill; ``None`` as long as the body goes on."""
        return None if self._place.settlement is None else self._place.settlement.unknown

    @property
    def source(self) -> Source | None:
        """Where the number came from; ``None`` as long as the body goes on."""
        return None if self._place.settlement is None else self._place.settlement.source

    def __repr__(self) -> str:
        return (
            f"<Receipt {self.charged} charged + {self.unknown} unknown of {self.reserved} reserved, "
            f"from {self.source}, waited {self.waited_seconds:.2f} s>"
        )


@dataclass(slots=True)
class _Exchange:
    """One model call on its way: the request as it came, and what was recognised in it."""

    request: Request
    body: bytes | None
    library: ModuleType
    wire: Wire
    call: Call
    estimate: Estimate
    safe_input: int
    measure: Measure | None


class BudgetTransport(_Transport):
    """A transport for ``httpx.Client``, ``httpx.AsyncClient`` and both of httpx2: meters, paces and caps LLM calls.

    ``inner`` is the transport below; by default what the client would have built, from ``verify``, ``http2`` and
    ``limits``. Without ``pacer`` it joins the pacer of its ``run``; all other keyword arguments are settings, and what
    is not given comes from ``PACER_*``. Raises: SettingsError, LimitsConflict.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        pacer: Pacer | None = None,
        verify: ssl.SSLContext | bool = True,
        http2: bool = False,
        limits: Any = None,
        **given: Unpack[SettingsInput],
    ) -> None:
        self._settings = settings.load(**given) if pacer is None else settings.for_transport(pacer.settings, **given)
        self.pacer = join(self._settings) if pacer is None else pacer
        self._inner = Inner(inner, verify=verify, http2=http2, limits=limits)

    def handle_request(self, request: Any) -> Any:
        """Walk the request's way, blocking. Raises: what the inner transport raises, and BudgetExceeded if asked to."""
        way = self._way(request, awaits=False)
        try:
            step = next(way)
            while True:
                try:
                    result = self._block(step, request)
                except BaseException as error:
                    step = way.throw(error)
                else:
                    step = way.send(result)
        except StopIteration as end:
            return end.value

    async def handle_async_request(self, request: Any) -> Any:
        """Walk the request's way, awaiting. Raises: what the inner transport raises, and BudgetExceeded if asked to."""
        way = self._way(request, awaits=True)
        try:
            step = next(way)
            while True:
                try:
                    result = await self._await(step, request)
                except BaseException as error:
                    step = way.throw(error)
                else:
                    step = way.send(result)
        except StopIteration as end:
            return end.value

    def _way(self, request: Request, *, awaits: bool) -> Generator[Any, Any, Response]:
        """The story of one request: recognise, estimate, admit, send, meter."""
        library = library_of(request)
        exchange = self._recognised(request, library)
        if exchange is None:
            self.pacer.count_unmetered()
            return (yield Send(request))
        try:
            if self._settings.retries and exchange.body is not None:
                return (
                    yield from retry.attempts(
                        lambda: self._attempt(exchange, awaits=awaits), self._settings.retries, library
                    )
                )
            return (yield from self._attempt(exchange, awaits=awaits))
        except BudgetExceeded as refused:
            if self._settings.refusal == "raise":
                raise
            return refusal.answer(refused, library, request)

    def _attempt(self, exchange: _Exchange, *, awaits: bool) -> Generator[Any, Any, Response]:
        """One try: a place, the network, and a meter on the answer."""
        place = yield from self.pacer.admit(exchange.estimate)
        try:
            cap = self._cap_to_send(exchange, place)
            outgoing = _edited(exchange, cap)
            progress = _Progress(outgoing, self._inner.reports_sending(exchange.library), awaits=awaits)
        except BaseException:
            self.pacer.settle(place, Usage(), "void")
            raise
        try:
            with progress:
                response = yield Send(outgoing)
            response.extensions["pacer"] = Receipt(place, cap)
            return self._metered(response, exchange, place)
        except BaseException as error:
            if progress.surely_unsent(error, exchange.library):
                self.pacer.settle(place, Usage(), "void")
            else:
                self.pacer.settle(place, Usage(place.call.least_input), "partial", place.call.likely_input)
            raise

    def _metered(self, response: Response, exchange: _Exchange, place: Reservation) -> Response:
        """Put the meter on an answer, or settle at once where there is nothing to read."""
        status = response.status_code
        # Each look-up in httpx's headers walks through all of them; this walks once.
        headers = {name.lower(): value for name, value in response.headers.raw}
        self.pacer.answered(place, status, limits.word_of(headers, time.time()))
        if status == 429 and exchange.wire.provider in _WAIT_IN_BODY and not response.is_stream_consumed:
            listener = Listener(self.pacer, place, status, headers.get(b"content-encoding", b""))
            response.stream = metered(response.stream, listener, exchange.library)
        if status in (408, 409, 499):
            self.pacer.settle(place, Usage(place.call.least_input), "partial", place.call.likely_input)
        elif not 200 <= status < 300:
            self.pacer.settle(place, Usage(), "void")
            if status >= 400:
                self.pacer.count_failed()
        else:
            self._read_along(response, headers, exchange, place)
        return response

    def _read_along(
        self, response: Response, headers: dict[bytes, bytes], exchange: _Exchange, place: Reservation
    ) -> None:
        hides_usage = exchange.call.usage_at is not None
        meter = Meter(
            self.pacer,
            place,
            exchange.wire,
            exchange.measure,
            choices=exchange.call.choices,
            hides_usage=hides_usage,
        )
        content_type = headers.get(b"content-type", b"")
        if response.is_stream_consumed:  # read already: no byte will pass the meter
            meter.expect(content_type, b"")
            meter.feed(response.content)
            meter.finish()
            return
        meter.expect(content_type, headers.get(b"content-encoding", b""))
        response.stream = metered(response.stream, meter, exchange.library)

    def _recognised(self, request: Request, library: ModuleType) -> _Exchange | None:
        """What the request is, if it is a model call."""
        body = body_of(request, library)
        path = request.url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        wire = recognise(request.method, path, body, request.headers)
        if wire is None:
            return None
        host = request.url.host
        call = wire.read_request(body) if body else Call()
        if wire.model_of is not None:
            call.model = wire.model_of(path)
        if not self._settings.include_usage or host in _REPORTS_USAGE_UNASKED:
            call.usage_at = None
        if _is_signed(request):
            call.usage_at = call.cap_at = None
        measure = estimate.measure(body) if body is not None else None
        least_input, expected_input, safe_input = self.pacer.estimator.input(
            call.model, measure or estimate.measure_of_size(_declared_size(request.headers.get("content-length")))
        )
        expected_output, cap = self.pacer.estimator.output(call.model, wire.endpoint, call.output_cap, call.choices)
        least = None
        if call.cap_at is not None and self._may_lower(call):
            least = safe_input + min(cap, max(expected_output, call.least_cap * call.choices))
        estimated = Estimate(
            expected_input,
            expected_output,
            safe_input + cap,
            wire.provider,
            call.model,
            host,
            least=least,
            least_input=least_input,
        )
        return _Exchange(request, body, library, wire, call, estimated, safe_input, measure)

    def _may_lower(self, call: Call) -> bool:
        if call.output_cap is None:
            return self._settings.output_cap == "inject"
        return self._settings.output_cap != "leave"

    def _cap_to_send(self, exchange: _Exchange, place: Reservation) -> int | None:
        """The output cap to write into the request: a lowered one, or one where the caller gave none."""
        call, worst = exchange.call, place.call.worst
        injected = call.output_cap is None and exchange.estimate.least is not None and self.pacer.has_ceiling
        if worst == exchange.estimate.worst and not injected:
            return None
        return (worst - exchange.safe_input) // call.choices

    def _block(self, step: object, request: Request) -> Any:
        match step:
            case Send(outgoing):
                library = library_of(request)
                return self._inner.transport(library, outgoing.url, awaits=False).handle_request(outgoing)
            case Park(store, ticket):
                seat = parking.ThreadSeat(store.tick)
                store.sit(ticket, seat)
                return seat.wait()
            case Space(smoothing):
                return time.sleep(smoothing.turn_seconds(time.monotonic()))
            case Pause(seconds):
                return time.sleep(seconds)
            case Discard(response):
                return response.close()
        raise AssertionError(f"no such step: {step!r}")

    async def _await(self, step: object, request: Request) -> Any:
        match step:
            case Send(outgoing):
                library = library_of(request)
                transport = self._inner.transport(library, outgoing.url, awaits=True)
                return await transport.handle_async_request(outgoing)
            case Park(store, ticket):
                seat = parking.async_seat(store.tick)
                store.sit(ticket, seat)
                return await seat.wait()
            case Space(smoothing):
                return await parking.async_turn(smoothing)
            case Pause(seconds):
                return await parking.async_sleep(seconds)
            case Discard(response):
                return await response.aclose()
        raise AssertionError(f"no such step: {step!r}")

    def close(self) -> None:
        """Close the inner transport; the budget goes on. Twice is fine."""
        self._inner.close()

    async def aclose(self) -> None:
        """Close the inner transport; the budget goes on. Twice is fine."""
        await self._inner.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<BudgetTransport {self.pacer!r}>"


class _Progress:
    """How far a request got, as httpcore tells through the ``trace`` extension while this context is open.

    The caller's own trace function is called as before; the request gets its own extensions back.
    """

    def __init__(self, request: Request, always_reports: bool, *, awaits: bool) -> None:
        self._request = request
        self._extensions = request.extensions
        self._reports = always_reports
        self._awaits = awaits
        self._sent = False

    def __enter__(self) -> None:
        theirs = self._extensions.get("trace")

        def note(name: str, info: dict[str, Any]) -> None:
            self._note(name, info)
            if theirs is not None:
                theirs(name, info)

        async def anote(name: str, info: dict[str, Any]) -> None:
            self._note(name, info)
            if theirs is not None:
                await theirs(name, info)

        self._request.extensions = {**self._extensions, "trace": anote if self._awaits else note}

    def __exit__(self, *exc_info: object) -> None:
        self._request.extensions = self._extensions

    def surely_unsent(self, error: BaseException, library: ModuleType) -> bool:
        """Whether no byte of the body can have reached the provider."""
        if isinstance(error, library.ConnectError | library.ConnectTimeout | library.PoolTimeout):
            return True
        return self._reports and not self._sent

    def _note(self, name: str, info: dict[str, Any]) -> None:
        self._reports = True
        if name.endswith("send_request_body.started") and info["request"].method != b"CONNECT":
            self._sent = True


def _edited(exchange: _Exchange, cap: int | None) -> Request:
    """The request with the output cap and the switch for usage that it shall go out with; as it came, if with none."""
    call, request, edits = exchange.call, exchange.request, dict[Path, object]()
    if call.usage_at is not None:
        edits[call.usage_at] = True
    if cap is not None and call.cap_at is not None:
        edits[call.cap_at] = cap
    body = edited(exchange.body, edits) if edits and exchange.body is not None else None
    if body is None:
        return request
    headers = request.headers.copy()
    headers["content-length"] = str(len(body))
    if call.usage_at is not None:
        headers["accept-encoding"] = "identity"  # a hidden chunk cannot be cut out of a compressed stream
    return type(request)(request.method, request.url, headers=headers, content=body, extensions=request.extensions)


def _is_signed(request: Request) -> bool:
    """Whether a signature covers the body (SigV4), so that another body would be refused."""
    return bool(request.headers.get("authorization", "").startswith("AWS4-"))


def _declared_size(content_length: str | None) -> int:
    if content_length is not None and content_length.isdecimal() and len(content_length) < 16:
        return int(content_length)
    return UNREADABLE_BODY_BYTES
