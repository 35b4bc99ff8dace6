"""Bytes pass, a meter reads along, and the end of the body settles the call: at its end, at an error, at ``close``.

The meter never changes what passes, but for the usage chunk that a caller did not ask for; it never raises, and it
keeps at most 8 MiB (``LARGEST_BODY_BYTES``). It reads late: chunks are put aside until they are 64 KiB or the body
ends, and of the last ones only those events are read that tell the bill.
"""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any, Self

from pacer import parking, telemetry
from pacer.pacer import Pacer
from pacer.ticket import Reservation, Seat
from pacer.usage import Source, Usage
from transports import encodings, limits
from transports.encodings import Decode
from transports.exchange import Exchange
from transports.sse import LARGEST_EVENT_BYTES, EventReader, Reader, reader_of
from transports.wire import Tally

LARGEST_BODY_BYTES = LARGEST_EVENT_BYTES
LARGEST_BACKLOG_BYTES = 64 * 1024
UNBELIEVABLE_FACTOR = 20
"""A usage of more than this many times the worst case counts as missing."""

_NO_USAGE = b'"usage":null'
"""What OpenAI writes into every event but the one with the usage."""

_log = logging.getLogger("pacer")


class Reading(ABC):
    """Reads along with a body, whose chunks are put aside in ``backlog``. As a context it is told how the body ends."""

    ended = False
    """Whether it has been told."""
    edits = False
    """Whether it leaves out something of what passes: see ``_EditedStream``."""
    writes: Callable[[Seat], bool] | None = None
    """Whether what the end brought is still to be written for other processes; the seat is woken when it is."""

    def __init__(self) -> None:
        self.backlog = bytearray()  # no BytesIO: a collector of cycles may close that before it finalizes the stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.finish()
        elif kind is GeneratorExit:  # closed by hand or by a collection: nobody can tell
            self.drop()
        else:
            self.abandon()

    @abstractmethod
    def catch_up(self) -> None:
        """Read what was put aside."""

    @abstractmethod
    def finish(self) -> None:
        """The body has ended by itself."""

    @abstractmethod
    def abandon(self) -> None:
        """The body broke, was dropped or was closed early, unless it has ended."""

    def wait_written(self) -> None:
        """Block until what the end of the body brought is where it has to be, as far as that is known."""
        if self.writes is not None:
            seat = parking.ThreadSeat(parking.no_tick)
            if self.writes(seat):
                seat.wait()

    async def until_written(self) -> None:
        """The same, awaiting."""
        if self.writes is not None:
            seat = parking.async_seat(parking.no_tick)
            if self.writes(seat):
                await seat.wait()

    def drop(self) -> None:
        """Abandon it from where a garbage collection may have come by."""
        with telemetry.in_finalizer():
            self.abandon()

    def _put_aside(self) -> bytes:
        chunks = bytes(self.backlog)
        self.backlog.clear()
        return chunks


class Meter(Reading):
    """Reads one answer and settles its reservation, once.

    ``events`` splits a stream (``None``: the body is one answer), ``decode`` undoes the encoding of the body (``None``:
    nobody can).
    """

    def __init__(
        self, pacer: Pacer, place: Reservation, exchange: Exchange, events: Reader | None, decode: Decode | None
    ) -> None:
        super().__init__()
        self.pacer = pacer
        self.place = place
        if pacer.is_shared:
            self.writes = partial(pacer.when_written, place)
        self._exchange = exchange
        self._wire = exchange.wire
        self._tally = Tally()
        self._events = events
        self._decode = decode
        self._body = bytearray()
        self._failed = False

    def catch_up(self) -> None:
        """Read what was put aside, all of it."""
        chunks = self._put_aside()
        if self._decode is None:
            return
        try:
            text = self._decode(chunks)
            if self._events is None:
                self._keep(text)
            else:
                self._read(self._events.feed(text), self._events)
                if self._events.overflowed:
                    self._events.take_rest()
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)

    def finish(self) -> None:
        """The body has ended by itself: settle."""
        chunks = self._put_aside()
        try:
            if self._decode is not None:
                self._take_last(self._decode(chunks))
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
        self._settle(is_whole=True)

    def abandon(self) -> None:
        """The body broke, was dropped or was closed early: settle, unless it has ended."""
        if not self.ended:
            self.catch_up()
            self._settle(is_whole=False)

    def _take_last(self, text: bytes) -> None:
        if self._events is not None:
            self._read_last(text, self._events)
            return
        self._keep(text)
        self._tally.usage = self._wire.read_answer(bytes(self._body)) or {}
        self._tally.final = True

    def _keep(self, text: bytes) -> None:
        self._body += text
        if len(self._body) > LARGEST_BODY_BYTES:
            self._stop_reading()

    def _read(self, events: list[bytes], reader: Reader) -> None:
        for event in events:
            self._read_event(event, reader)

    def _read_last(self, text: bytes, reader: Reader) -> None:
        """Read the events from the first on that may tell the bill, and those before it only if it was not told."""
        start = 0
        if not reader.pending:
            tells_at = _tells_at(text, self._wire.mark)
            if tells_at < 0 and self._bill() is not None:
                return
            start = reader.start_of_event(text, tells_at)
        self._read([*reader.feed(text[start:]), *reader.finish()], reader)
        if start and self._bill() is None:
            self._read(reader.feed(text[:start]), reader)

    def _read_event(self, event: bytes, reader: Reader) -> bool:
        """Whether the event carries nothing but usage."""
        data = reader.payload(event)
        return bool(data) and self._wire.read_event(data, self._tally)

    def _stop_reading(self) -> None:
        self._decode = None
        self._tally.final = False
        self._body.clear()

    def _give_up(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        self._stop_reading()
        self.pacer.count_unread(self.place)
        # The kind of the error only: its text could quote the answer.
        _log.warning("run %s: an answer could not be metered (%s)", self.pacer.name, type(error).__name__)

    def _settle(self, *, is_whole: bool) -> None:
        if self.ended:
            return
        self.ended = True
        usage = self._bill()
        if usage is None:
            self._settle_unseen("estimate" if is_whole else "partial")
            return
        self.pacer.settle(self.place, usage)
        call, measure = self._exchange.call, self._exchange.measure
        if measure is None:
            return
        try:
            self.pacer.estimator.learn(call.model, self._wire.endpoint, measure, usage, call.choices)
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)

    def _settle_unseen(self, source: Source) -> None:
        call, seen_output, told = self.place.call, self._tally.seen_output, self._reported()
        if told is None:
            self.pacer.settle_unseen(self.place, source, Usage(call.least_input, seen_output), call.input)
            return
        # Usage in the middle of a stream may lag behind its text: the larger of both was produced.
        sure = Usage(told.input, max(told.output, seen_output), told.cached)
        self.pacer.settle_unseen(self.place, source, sure, told.input)

    def _bill(self) -> Usage | None:
        """The usage that ends the matter, if it can be believed."""
        return self._reported() if self._tally.final else None

    def _reported(self) -> Usage | None:
        """The usage reported so far, if it can be believed."""
        try:
            usage = self._wire.usage(self._tally.usage) if self._tally.usage else None
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return None
        limit = UNBELIEVABLE_FACTOR * self.place.call.worst
        return usage if usage is not None and usage.tokens <= limit else None


class HidingMeter(Meter):
    """Drops the event that carries nothing but usage: the caller did not ask for it, we did.

    What may be that event is held back until it is whole; all other events are put aside like those of any stream.
    """

    edits = True

    def __init__(self, pacer: Pacer, place: Reservation, exchange: Exchange, decode: Decode | None) -> None:
        super().__init__(pacer, place, exchange, EventReader(), decode)
        self._split = EventReader()

    def feed(self, chunk: bytes) -> bytes:
        """Take ``chunk``; returns what passes on to the caller."""
        if self._decode is None:
            return chunk
        is_whole = chunk.endswith(b"\n\n") and not self._split.pending
        if is_whole and _tells_at(chunk, self._wire.mark) < 0:  # events that say nothing of the bill
            self.backlog += chunk
            if len(self.backlog) > LARGEST_BACKLOG_BYTES:
                self.catch_up()
            return chunk
        passed = self._without_ours(self._split.feed(chunk))
        if self._split.overflowed:
            self._stop_reading()
        return passed + self.take_rest() if self._decode is None else passed

    def last(self) -> bytes:
        """What was held back when the body ended and is to pass on."""
        return self._without_ours(self._split.finish())

    def take_rest(self) -> bytes:
        """What was held back when the body broke."""
        return self._split.take_rest()

    def _without_ours(self, events: list[bytes]) -> bytes:
        return b"".join([event for event in events if not self._is_ours(event)])

    def _is_ours(self, event: bytes) -> bool:
        """Read the event; whether it carries nothing but usage."""
        if self._decode is None:
            return False
        try:
            return self._read_event(event, self._split)
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return False


class Listener(Reading):
    """Reads the body of a refusal, as far as 64 KiB, for the wait that Gemini asks for there."""

    ended = True  # nothing is left to settle, so nobody misses an end that never comes

    def __init__(self, pacer: Pacer, place: Reservation, status: int, content_encoding: bytes) -> None:
        super().__init__()
        self._tell = partial(pacer.answered, place, status)
        self._decode = encodings.decoder(content_encoding)

    def catch_up(self) -> None:
        """So long a body is read no further."""
        self._put_aside()
        self._decode = None

    def finish(self) -> None:
        """The body has ended by itself: tell the lane."""
        try:
            word = limits.retry_info(self._decode(self._put_aside())) if self._decode is not None else None
        except Exception:  # a decoder's own error; reading along never breaks the caller's answer
            return
        if word is not None:
            self._tell(word)

    def abandon(self) -> None:
        """The body is not read to its end; the pause by the status alone stands."""


def meter(pacer: Pacer, place: Reservation, exchange: Exchange, headers: Mapping[bytes, bytes]) -> Meter:
    """The meter for an answer with these headers (names in lower case)."""
    events = reader_of(headers.get(b"content-type", b""))
    encoding = headers.get(b"content-encoding", b"")
    decode = encodings.decoder(encoding)
    if exchange.call.usage_at is not None and type(events) is EventReader and encoding in (b"", b"identity"):
        return HidingMeter(pacer, place, exchange, decode)
    return Meter(pacer, place, exchange, events, decode)


def _tells_at(text: bytes, mark: bytes) -> int:
    """Where ``text`` first may tell the bill; below 0 if it does not."""
    at = text.find(mark)
    while at >= 0 and text.startswith(_NO_USAGE, at):
        at = text.find(mark, at + 1)
    return at


class _MeteredStream:
    """The body of an admitted answer. The library's stream classes are mixed in by :func:`metered`."""

    def __init__(self, inner: Any, reading: Any) -> None:
        self._inner = inner
        self._reading = reading

    def __iter__(self) -> Iterator[bytes]:
        reading = self._reading
        backlog = reading.backlog
        with reading:
            for chunk in self._inner:
                backlog += chunk
                if len(backlog) > LARGEST_BACKLOG_BYTES:
                    reading.catch_up()
                yield chunk
        reading.wait_written()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reading = self._reading
        backlog = reading.backlog
        with reading:
            async for chunk in self._inner:
                backlog += chunk
                if len(backlog) > LARGEST_BACKLOG_BYTES:
                    reading.catch_up()
                yield chunk
        await reading.until_written()

    def close(self) -> None:
        self._reading.abandon()
        self._inner.close()

    async def aclose(self) -> None:
        self._reading.abandon()
        await self._inner.aclose()

    def __del__(self) -> None:
        if not self._reading.ended:
            self._reading.drop()
            warnings.warn("an LLM answer was dropped without being read or closed", ResourceWarning, stacklevel=1)


class _EditedStream(_MeteredStream):
    """A body of which something is left out."""

    def __iter__(self) -> Iterator[bytes]:
        reading = self._reading
        with reading:
            try:
                for chunk in self._inner:
                    passed = reading.feed(chunk)
                    if passed or not chunk:
                        yield passed
            except Exception:
                if rest := reading.take_rest():
                    yield rest
                raise
            if last := reading.last():
                yield last
        reading.wait_written()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reading = self._reading
        with reading:
            try:
                async for chunk in self._inner:
                    passed = reading.feed(chunk)
                    if passed or not chunk:
                        yield passed
            except Exception:
                if rest := reading.take_rest():
                    yield rest
                raise
            if last := reading.last():
                yield last
        await reading.until_written()


def metered(inner: Any, reading: Reading, library: ModuleType) -> Any:
    """``inner`` with ``reading`` reading along, as a stream of ``library``."""
    return _stream_class(library, reading.edits)(inner, reading)


@cache
def _stream_class(library: ModuleType, is_edited: bool) -> Any:
    ours = _EditedStream if is_edited else _MeteredStream
    return type("MeteredStream", (ours, library.SyncByteStream, library.AsyncByteStream), {})
