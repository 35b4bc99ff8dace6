"""Bytes pass, a meter reads along, and the end of the body settles the call: at its end, at an error, at ``close``.

The meter never changes what passes, but for the usage chunk that a caller did not ask for; it never raises, and it
keeps at most 8 MiB (``LARGEST_BODY_BYTES``).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache, partial
from types import ModuleType
from typing import Any

from pacer.admission import Reservation
from pacer.estimate import Measure
from pacer.pacer import Pacer
from pacer.usage import Usage
from transports import encodings, limits
from transports.sse import LARGEST_EVENT_BYTES, Event, Reader, reader_of
from transports.wire import Tally, Wire

LARGEST_BODY_BYTES = LARGEST_EVENT_BYTES
LARGEST_REFUSAL_BYTES = 64 * 1024
UNBELIEVABLE_FACTOR = 20
"""A usage of more than this many times the worst case counts as missing."""

_log = logging.getLogger("pacer")


class Meter:
    """Reads one answer and settles its reservation, once.

    ``measure`` is what the usage is a lesson for, if the body could be read; ``hides_usage`` drops the event that
    carries nothing but usage.
    """

    def __init__(
        self, pacer: Pacer, place: Reservation, wire: Wire, measure: Measure | None, *, choices: int, hides_usage: bool
    ) -> None:
        self.pacer = pacer
        self.place = place
        self.wire = wire
        self.measure = measure
        self._choices = choices
        self.ended = False
        self._hides_usage = hides_usage
        self._tally = Tally()
        self._events: Reader | None = None
        self._body = bytearray()
        self._decode: encodings.Decode | None = None
        self._blind = False

    def expect(self, content_type: bytes, content_encoding: bytes) -> None:
        """What kind of body follows, from the answer's headers."""
        self._events = reader_of(content_type)
        if content_encoding.lower() not in (b"", b"identity"):
            self._hides_usage = False
            self._decode = encodings.decoder(content_encoding)
            self._blind = self._decode is None

    def feed(self, chunk: bytes) -> bytes:
        """Read ``chunk``; returns what passes on to the caller."""
        try:
            return self._feed(chunk)
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return chunk

    def finish(self) -> bytes:
        """The body has ended by itself: settle. Returns bytes that were held back."""
        rest = b""
        try:
            rest = self._finish()
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
        self._settle(whole=True)
        return rest

    def abandon(self) -> bytes:
        """The body broke, was dropped or was closed early: settle. Returns bytes that were held back."""
        self._settle(whole=False)
        return self._events.take_rest() if self._hides_usage and self._events is not None else b""

    def _feed(self, chunk: bytes) -> bytes:
        if self._blind:
            return chunk
        text = chunk if self._decode is None else self._decode(chunk)
        if self._events is None:
            self._body += text
            self._blind = len(self._body) > LARGEST_BODY_BYTES
            if self._blind:
                self._body.clear()
            return chunk
        events = self._events.feed(text)
        if not self._hides_usage:
            for event in events:
                self._read_event(event)
            return chunk
        passed = self._without_usage(events)
        if self._events.overflowed or self._blind:  # from here on nothing is held back
            self._hides_usage = False
            passed += self._events.take_rest()
        return passed

    def _without_usage(self, events: Iterable[Event]) -> bytes:
        """The bytes of the events but for those that carry nothing but usage; all of them are read."""
        return b"".join([event.raw for event in events if not self._read_event(event)])

    def _read_event(self, event: Event) -> bool:
        """Whether the event carries nothing but usage."""
        if self._blind or not event.data:
            return False
        try:
            return self.wire.read_event(event.data, self._tally)
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return False

    def _finish(self) -> bytes:
        if self._blind:
            return b""
        if self._events is None:
            self._tally.usage = self.wire.read_answer(bytes(self._body)) or {}
            self._tally.final = True
            self._body.clear()
            return b""
        rest = self._without_usage(self._events.finish())
        return rest if self._hides_usage else b""

    def _give_up(self, error: Exception) -> None:
        self._blind = True
        self._tally.final = False
        # The kind of the error only: its text could quote the answer.
        _log.warning("run %s: an answer could not be metered (%s)", self.pacer.run, type(error).__name__)

    def _settle(self, *, whole: bool) -> None:
        if self.ended:
            return
        self.ended = True
        usage = self._reported()
        if usage is not None and self._tally.final:
            self.pacer.settle(self.place, usage, "provider")
            if self.measure is not None:
                model, endpoint = self.place.call.model, self.wire.endpoint
                self.pacer.estimator.learn(model, endpoint, self.measure, usage, self._choices)
            return
        seen = usage or Usage(self.place.call.least_input)
        likely = 0 if usage is not None else self.place.call.likely_input
        # Usage in the middle of a stream may lag behind its text: the larger of both was produced.
        seen = Usage(seen.input, max(seen.output, self._tally.seen_output), seen.cached)
        self.pacer.settle(self.place, seen, "estimate" if whole else "partial", likely)

    def _reported(self) -> Usage | None:
        """The usage reported so far, if it can be believed."""
        try:
            usage = self.wire.usage(self._tally.usage) if self._tally.usage else None
        except Exception as error:  # metering never breaks the caller's answer
            self._give_up(error)
            return None
        limit = UNBELIEVABLE_FACTOR * self.place.call.worst
        return usage if usage is not None and usage.total <= limit else None


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
        try:
            for chunk in self._inner:
                passed = self._meter.feed(chunk)
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
        try:
            async for chunk in self._inner:
                passed = self._meter.feed(chunk)
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
