"""Bytes pass, a meter reads along, and the end of the body settles the call: at its end, at an error, at ``close``.

The meter never changes what passes, but for the usage chunk that a caller did not ask for; it never raises, and it
keeps at most 8 MiB (``LARGEST_BODY_BYTES``). It reads late: chunks are put aside until they are 64 KiB or the body
ends, and of the last ones only those events are read that tell the bill.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any

from pacer.admission import Reservation
from pacer.estimate import Measure
from pacer.pacer import Pacer
from pacer.usage import Usage
from transports import encodings, limits
from transports.encodings import Decode
from transports.sse import LARGEST_EVENT_BYTES, EventReader, Reader, reader_of
from transports.wire import Tally, Wire

LARGEST_BODY_BYTES = LARGEST_EVENT_BYTES
LARGEST_BACKLOG_BYTES = 64 * 1024
LARGEST_REFUSAL_BYTES = 64 * 1024
UNBELIEVABLE_FACTOR = 20
"""A usage of more than this many times the worst case counts as missing."""

_NO_USAGE = b'"usage":null'
"""What OpenAI writes into every event but the one with the usage."""

_log = logging.getLogger("pacer")


class Meter:
    """Reads one answer and settles its reservation, once.

    ``measure`` is what the usage is a lesson for, if the body could be read; ``events`` splits a stream, ``decode``
    undoes the encoding of the body (``None``: nobody can).
    """

    def __init__(
        self,
        pacer: Pacer,
        place: Reservation,
        wire: Wire,
        measure: Measure | None,
        events: Reader | None,
        decode: Decode | None,
    ) -> None:
        self.pacer = pacer
        self.place = place
        self.wire = wire
        self.measure = measure
        self.ended = False
        self._tally = Tally()
        self._events = events
        self._decode = decode
        self._body = bytearray()
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._blind = decode is None

    def feed(self, chunk: bytes) -> bytes:
        """Take ``chunk``; returns what passes on to the caller."""
        self._backlog.append(chunk)
        self._backlog_bytes += len(chunk)
        if self._backlog_bytes > LARGEST_BACKLOG_BYTES:
            self._catch_up()
        return chunk

    def finish(self) -> bytes:
        """The body has ended by itself: settle. Returns bytes that were held back."""
        self._catch_up(is_whole=True)
        self._settle(is_whole=True)
        return b""

    def abandon(self) -> bytes:
        """The body broke, was dropped or was closed early: settle. Returns bytes that were held back."""
        if not self.ended:
            self._catch_up()
            self._settle(is_whole=False)
        return b""

    def _catch_up(self, *, is_whole: bool = False) -> None:
        """Read what was put aside; ``is_whole`` if nothing follows."""
        chunks = b"".join(self._backlog)
        self._backlog.clear()
        self._backlog_bytes = 0
        if self._blind or self._decode is None:
            return
        try:
            text = self._decode(chunks)
            if self._events is None:
                self._read_body(text, is_whole=is_whole)
            elif is_whole:
                self._read_last([*self._events.feed(text), *self._events.finish()], self._events)
            else:
                for event in self._events.feed(text):
                    self._read_event(event, self._events)
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)

    def _read_body(self, text: bytes, *, is_whole: bool) -> None:
        self._body += text
        if len(self._body) > LARGEST_BODY_BYTES:
            self._blind = True
            self._body.clear()
        elif is_whole:
            self._tally.usage = self.wire.read_answer(bytes(self._body)) or {}
            self._tally.final = True
            self._body.clear()

    def _read_last(self, events: list[bytes], reader: Reader) -> None:
        """Read what may tell the bill, and all the rest only if it did not."""
        mark, last = self.wire.mark, len(events) - 1
        telling = [i for i, event in enumerate(events) if (mark in event and _NO_USAGE not in event) or i == last]
        for i in telling:
            self._read_event(events[i], reader)
        if not self._tally.final:
            for i in sorted(set(range(last)).difference(telling)):
                self._read_event(events[i], reader)

    def _read_event(self, event: bytes, reader: Reader) -> bool:
        """Whether the event carries nothing but usage."""
        data = reader.payload(event)
        return bool(data) and self.wire.read_event(data, self._tally)

    def _give_up(self, error: Exception) -> None:
        self._blind = True
        self._tally.final = False
        self.pacer.count_unread()
        # The kind of the error only: its text could quote the answer.
        _log.warning("run %s: an answer could not be metered (%s)", self.pacer.run, type(error).__name__)

    def _settle(self, *, is_whole: bool) -> None:
        if self.ended:
            return
        self.ended = True
        usage = self._reported()
        if usage is not None and self._tally.final:
            self.pacer.settle(self.place, usage, "provider")
            if self.measure is not None:
                self.pacer.estimator.learn(self.place.call.model, self.measure, usage)
            return
        seen = usage or Usage(self.place.call.input)
        # Usage in the middle of a stream may lag behind its text: the larger of both was produced.
        seen = Usage(seen.input, max(seen.output, self._tally.seen_output), seen.cached)
        self.pacer.settle(self.place, seen, "estimate" if is_whole else "partial")

    def _reported(self) -> Usage | None:
        """The usage reported so far, if it can be believed."""
        try:
            usage = self.wire.usage(self._tally.usage) if self._tally.usage else None
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return None
        limit = UNBELIEVABLE_FACTOR * self.place.call.worst
        return usage if usage is not None and usage.tokens <= limit else None


class HidingMeter(Meter):
    """Drops the event that carries nothing but usage: the caller did not ask for it, we did.

    What may be that event is held back until it is whole.
    """

    def __init__(
        self,
        pacer: Pacer,
        place: Reservation,
        wire: Wire,
        measure: Measure | None,
        events: EventReader,
        decode: Decode | None,
    ) -> None:
        super().__init__(pacer, place, wire, measure, events, decode)
        self._splits = events

    def feed(self, chunk: bytes) -> bytes:
        """Take ``chunk``; returns what passes on to the caller."""
        if self._blind or self._is_one_silent_event(chunk):
            return super().feed(chunk)
        passed = b"".join([event for event in self._splits.feed(chunk) if not self._is_ours(event)])
        if self._splits.overflowed or self._blind:  # from here on nothing is held back
            self._blind = True
            passed += self._splits.take_rest()
        return passed

    def finish(self) -> bytes:
        """The body has ended by itself: settle. Returns bytes that were held back."""
        rest = self._splits.take_rest()
        passed = b"" if rest and self._is_ours(rest) else rest
        super().finish()
        return passed

    def abandon(self) -> bytes:
        """The body broke, was dropped or was closed early: settle. Returns bytes that were held back."""
        super().abandon()
        return self._splits.take_rest()

    def _catch_up(self, *, is_whole: bool = False) -> None:
        """Read the silent events that were put aside, if the bill did not come."""
        silent = self._backlog
        self._backlog, self._backlog_bytes = [], 0
        if not (is_whole and self._tally.final):
            for event in silent:
                self._is_ours(event)

    def _is_one_silent_event(self, chunk: bytes) -> bool:
        """Whether ``chunk`` is one whole event that cannot be the one with the usage."""
        return (
            0 <= chunk.find(b"\n\n") == len(chunk) - 2
            and (self.wire.mark not in chunk or _NO_USAGE in chunk)
            and b"\r" not in chunk
            and self._splits.is_between_events
        )

    def _is_ours(self, event: bytes) -> bool:
        """Read the event; whether it carries nothing but usage."""
        if self._blind:
            return False
        try:
            return self._read_event(event, self._splits)
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return False


def meter(
    pacer: Pacer,
    place: Reservation,
    wire: Wire,
    measure: Measure | None,
    headers: Mapping[bytes, bytes],
    *,
    hides_usage: bool,
) -> Meter:
    """The meter for an answer with these headers (names in lower case)."""
    events = reader_of(headers.get(b"content-type", b""))
    encoding = headers.get(b"content-encoding", b"")
    decode = encodings.decoder(encoding)
    if hides_usage and isinstance(events, EventReader) and encoding.lower() in (b"", b"identity"):
        return HidingMeter(pacer, place, wire, measure, events, decode)
    return Meter(pacer, place, wire, measure, events, decode)


class Listener:
    """Reads the body of a refusal for the wait that Gemini asks for there, and passes it on."""

    ended = True  # nothing is left to settle, so nobody misses an end that never comes

    def __init__(self, pacer: Pacer, place: Reservation, status: int, content_encoding: bytes) -> None:
        self._tell = partial(pacer.answered, place, status)
        self._decode = encodings.decoder(content_encoding)
        self._body = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Read ``chunk``; returns it."""
        if len(self._body) < LARGEST_REFUSAL_BYTES:
            self._body += chunk[:LARGEST_REFUSAL_BYTES]
        return chunk

    def finish(self) -> bytes:
        """The body has ended: tell the lane. Nothing was held back."""
        try:
            word = limits.retry_info(self._decode(bytes(self._body))) if self._decode is not None else None
        except Exception:  # a decoder's own error; reading along never breaks the caller's answer
            return b""
        if word is not None:
            self._tell(word)
        return b""

    def abandon(self) -> bytes:
        """The body is not read to its end; the pause by the status alone stands."""
        return b""


class _MeteredStream:
    """The body of an admitted answer. The library's stream classes are mixed in by :func:`metered`."""

    def __init__(self, inner: Any, meter: Meter | Listener) -> None:
        self._inner = inner
        self._meter = meter

    def __iter__(self) -> Iterator[bytes]:
        feed = self._meter.feed
        try:
            for chunk in self._inner:
                passed = feed(chunk)
                if passed or not chunk:
                    yield passed
        except BaseException as error:
            rest = self._meter.abandon()
            if rest and isinstance(error, Exception):  # a generator that is being closed must not yield
                yield rest
            raise
        if rest := self._meter.finish():
            yield rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        feed = self._meter.feed
        try:
            async for chunk in self._inner:
                passed = feed(chunk)
                if passed or not chunk:
                    yield passed
        except BaseException as error:
            rest = self._meter.abandon()
            if rest and isinstance(error, Exception):
                yield rest
            raise
        if rest := self._meter.finish():
            yield rest

    def close(self) -> None:
        self._meter.abandon()
        self._inner.close()

    async def aclose(self) -> None:
        self._meter.abandon()
        await self._inner.aclose()

    def __del__(self) -> None:
        if not self._meter.ended:
            self._meter.abandon()
            warnings.warn("an LLM answer was dropped without being read or closed", ResourceWarning, stacklevel=1)


def metered(inner: Any, meter: Meter | Listener, library: ModuleType) -> Any:
    """``inner`` with the meter reading along, as a stream of ``library``."""
    return _stream_class(library)(inner, meter)


@cache
def _stream_class(library: ModuleType) -> Any:
    bases = (_MeteredStream, library.SyncByteStream, library.AsyncByteStream)
    return type("MeteredStream", bases, {})
