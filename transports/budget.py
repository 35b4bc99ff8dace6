"""BudgetTransport: the way of one request, told once, and the two shells that walk it, blocking and awaiting."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Generator
from functools import partial
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import msgspec

from pacer import parking, settings
from pacer.errors import BudgetExceeded, SettingsError
from pacer.flow import Park, Pause, Space
from pacer.pacer import Pacer, join
from pacer.scope import HEADER, Scope
from pacer.settings import SettingsInput
from pacer.ticket import Reservation, Seat
from pacer.usage import Usage
from transports import limits, refusal, retry
from transports.exchange import Exchange
from transports.inner import Inner
from transports.library import Request, Response, library_of, without_header
from transports.progress import Progress
from transports.receipt import Receipt
from transports.retry import Discard
from transports.stream import Listener, meter, metered
from transports.wire import gemini

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Transport(httpx.BaseTransport, httpx.AsyncBaseTransport, httpx2.BaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]  # each library wants its own
        ...
else:
    # No base class at run time: anthropic refuses heirs of httpx's transports for its httpx2 client.
    _Transport = object

_WAIT_IN_BODY = frozenset({gemini.WIRE.provider})


class Send(msgspec.Struct, frozen=True):
    """Hand the request of ``library`` to the network."""

    request: Request
    library: ModuleType


class Written(msgspec.Struct, frozen=True):
    """Wait until what became of a call is in the books that others share."""

    pacer: Pacer
    place: Reservation

    def waits(self, seat: Seat) -> bool:
        """Wake ``seat`` when it is there; ``False`` if it is."""
        return self.pacer.when_written(self.place, seat)


def _check_parts(inner: object, pacer: object, scope: object) -> None:
    # Told now: a call that fails below may have been sent, for all we know, and is booked.
    sends = hasattr(inner, "handle_request") or hasattr(inner, "handle_async_request")
    if inner is not None and (isinstance(inner, type) or not sends):
        raise SettingsError(
            f"inner={type(inner).__qualname__} is not accepted: give a transport, such as httpx.HTTPTransport()"
        )
    if pacer is not None and not isinstance(pacer, Pacer):
        raise SettingsError(f"pacer={pacer!r} is not accepted: give a Pacer(...), or the name of a run as run=")
    if scope is not None and not isinstance(scope, Scope):
        raise SettingsError(f"scope={scope!r} is not accepted: give what pacer.run() or pacer.agent() returned")


class BudgetTransport(_Transport):
    """A transport for ``httpx.Client``, ``httpx.AsyncClient`` and both of httpx2: meters, paces and caps LLM calls.

    ``inner`` is the transport below; by default what the client would have built, from ``verify``, ``http2`` and
    ``limits``. Without ``pacer`` it joins the pacer of its ``run``. All calls belong to ``scope``, but for those of
    scopes below it. All other keyword arguments are settings, and what is not given comes from ``PACER_*``; beside
    ``pacer`` only ``refusal``, ``retries``, ``include_usage``, ``output_cap`` and ``on_5xx`` are taken.
    Raises: SettingsError, LimitsConflict, and with a shared store StoreError.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        pacer: Pacer | None = None,
        scope: Scope | None = None,
        verify: ssl.SSLContext | bool = True,
        http2: bool = False,
        limits: Any = None,
        **given: Unpack[SettingsInput],
    ) -> None:
        _check_parts(inner, pacer, scope)
        self._settings = settings.load(**given) if pacer is None else settings.for_transport(pacer.settings, **given)
        self.pacer = join(self._settings) if pacer is None else pacer
        self._scope = scope
        if scope is not None and not self.pacer.owns(scope):
            raise SettingsError(f"scope={scope!r} is not accepted: give one of {self.pacer!r}")
        self._inner = Inner(inner, verify=verify, http2=http2, limits=limits)

    def handle_request(self, request: Any) -> Any:
        """Walk the request's way, blocking. Raises: what the inner transport raises, and BudgetExceeded if asked to."""
        way = self._way(request, awaits=False)
        try:
            step = next(way)
            while True:
                try:
                    result = self._send(step) if type(step) is Send else self._block(step)
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
                    result = await (self._asend(step) if type(step) is Send else self._await(step))
                except BaseException as error:
                    step = way.throw(error)
                else:
                    step = way.send(result)
        except StopIteration as end:
            return end.value

    def _way(self, request: Request, *, awaits: bool) -> Generator[Any, Any, Response]:
        """The story of one request: recognise, estimate, admit, send, meter."""
        library = library_of(request)
        named = request.headers.get(HEADER)
        if named is not None:
            request = without_header(request, library, HEADER)
        exchange = Exchange.of(request, library, self._settings, self.pacer.estimator)
        if exchange is None:
            self.pacer.count_unmetered()
            return (yield Send(request, library))
        try:
            if self._settings.retries and exchange.body is not None:
                once = partial(self._attempt, exchange, named, awaits=awaits)
                return (yield from retry.attempts(once, self._settings.retries, library))
            return (yield from self._attempt(exchange, named, awaits=awaits))
        except BudgetExceeded as refused:
            if self._settings.refusal == "raise":
                raise
            return refusal.answer(refused, library, request)

    def _attempt(self, exchange: Exchange, named: str | None, *, awaits: bool) -> Generator[Any, Any, Response]:
        """One try: a place, the network, and a meter on the answer."""
        place = yield from self.pacer.admit(exchange.estimate, self._scope, named)
        try:
            cap = None
            if place.call.worst != exchange.estimate.worst or (exchange.injects and place.account.is_capped):
                cap = exchange.cap_to_send(place.call.worst)
            outgoing = exchange.outgoing(cap)
            progress = Progress(outgoing, awaits=awaits)
        except BaseException:
            self.pacer.void(place)
            raise
        try:
            with progress:
                response = yield Send(outgoing, exchange.library)
        except BaseException as error:
            reports = self._inner.reports_sending(exchange.library)
            if progress.surely_unsent(error, exchange.library, always_reports=reports):
                self.pacer.void(place)
            else:
                self._settle_unanswered(place)
            raise
        try:
            response.extensions["pacer"] = Receipt(place, cap)
            self._meter(response, exchange, place)
            if place.settlement is not None and self.pacer.is_shared:
                yield Written(self.pacer, place)
        except GeneratorExit:  # nobody goes on to close it
            raise
        except BaseException:
            self._settle_unanswered(place)
            yield Discard(response)  # the caller will not see it, and its connection would be lost to the pool
            raise
        return response

    def _meter(self, response: Response, exchange: Exchange, place: Reservation) -> None:
        """Put the meter on an answer, or settle at once where there is nothing to read."""
        status = response.status_code
        # Each look-up in httpx's headers walks through all of them; this walks once.
        headers = {name.lower(): value for name, value in response.headers.raw}
        self.pacer.answered(place, status, limits.word_of(headers, time.time()))
        if 200 <= status < 300:
            self._read_along(response, headers, exchange, place)
        elif status in (408, 409, 499) or (status >= 500 and self._settings.on_5xx == "unknown"):
            self._settle_unanswered(place)
        else:
            self.pacer.void(place)
            if status >= 400:
                self.pacer.count_failed(place, place.call.worst if status >= 500 else 0)
        if status == 429 and exchange.wire.provider in _WAIT_IN_BODY and not response.is_stream_consumed:
            listener = Listener(self.pacer, place, status, headers.get(b"content-encoding", b""))
            response.stream = metered(response.stream, listener, exchange.library)

    def _settle_unanswered(self, place: Reservation) -> None:
        """It was sent, and nothing tells whether the provider will bill it."""
        self.pacer.settle_unseen(place, "partial", Usage(), place.call.input)

    def _read_along(
        self, response: Response, headers: dict[bytes, bytes], exchange: Exchange, place: Reservation
    ) -> None:
        if response.is_stream_consumed:  # its content is decoded
            headers.pop(b"content-encoding", None)
        reading = meter(self.pacer, place, exchange, headers)
        if response.is_stream_consumed:  # read already: no byte will pass the meter
            reading.backlog += response.content
            reading.finish()
        else:
            response.stream = metered(response.stream, reading, exchange.library)

    def _send(self, step: Send) -> Response:
        transport = self._inner.transport(step.library, step.request.url, awaits=False)
        return transport.handle_request(step.request)

    def _asend(self, step: Send) -> Awaitable[Response]:
        transport = self._inner.transport(step.library, step.request.url, awaits=True)
        answer: Awaitable[Response] = transport.handle_async_request(step.request)
        return answer

    def _block(self, step: object) -> Any:
        match step:
            case Park(store, ticket, asks):
                seat = parking.ThreadSeat(store.tick)
                store.sit(ticket, seat, asks=asks)
                return seat.wait()
            case Written() if step.waits(seat := parking.ThreadSeat(parking.no_tick)):
                return seat.wait()
            case Written():
                return None
            case Space(smoothing):
                return time.sleep(smoothing.turn_seconds(time.monotonic()))
            case Pause(seconds):
                return time.sleep(seconds)
            case Discard(response):
                return response.close()
        raise AssertionError(f"no such step: {step!r}")

    async def _await(self, step: object) -> Any:
        match step:
            case Park(store, ticket, asks):
                seat = parking.async_seat(store.tick)
                store.sit(ticket, seat, asks=asks)
                return await seat.wait()
            case Written() if step.waits(awaited := parking.async_seat(parking.no_tick)):
                return await awaited.wait()
            case Written():
                return None
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
