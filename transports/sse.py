"""Bytes of a stream become events, at any split of the bytes: server-sent events, JSON lines, AWS frames.

Nothing is decoded to text here. Lines of server-sent events end with LF, CRLF or CR; ``str.splitlines`` also breaks
them at U+2028 inside JSON, which is legal there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)

_FRAME_PRELUDE_BYTES = 12
_SMALLEST_FRAME_BYTES = 16

LARGEST_EVENT_BYTES = 8 * 1024 * 1024
"""An event beyond this is not read any further; its bytes still pass to the caller."""


class Event(NamedTuple):
    """One event: its bytes on the wire, and the payload of its ``data`` lines."""

    raw: bytes
    data: bytes


class Reader:
    """Feed it chunks, get whole events. Memory is bounded by one event. A kind of stream says where its events end."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scanned = 0
        self.overflowed = False

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """The events that ``chunk`` completes, one by one."""
        return () if self.overflowed else self._split(chunk)

    def finish(self) -> Iterator[Event]:
        """The last event, where the stream ended without the mark of its end."""
        if rest := self.take_rest():
            yield self._event(rest)

    def take_rest(self) -> bytes:
        """The bytes of the event that is not complete yet."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._scanned = 0
        return rest

    def _split(self, chunk: bytes) -> Iterator[Event]:
        self._pending += chunk
        while (end := self._next_end()) is not None:
            raw = bytes(self._pending[:end])
            del self._pending[:end]
            self._scanned = 0
            yield self._event(raw)
        self._scanned = max(0, len(self._pending) - 3)
        if len(self._pending) > LARGEST_EVENT_BYTES:
            self.overflowed = True

    def _next_end(self) -> int | None:
        """Where the first pending event ends; nothing before ``_scanned`` can end it."""
        raise NotImplementedError

    def _event(self, raw: bytes) -> Event:
        raise NotImplementedError


class EventReader(Reader):
    """Server-sent events: a blank line ends one."""

    def __init__(self) -> None:
        super().__init__()
        self._has_cr = False

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """The events that ``chunk`` completes, one by one."""
        if self.overflowed:
            return ()
        if not self._pending and chunk.startswith(b"data: ") and _is_one_line(chunk):  # as most providers send them
            return (Event(chunk, chunk[6:-2]),)
        self._has_cr = self._has_cr or b"\r" in chunk
        return self._split(chunk)

    def _next_end(self) -> int | None:
        if not self._has_cr:
            found = self._pending.find(b"\n\n", self._scanned)
            return None if found < 0 else found + 2
        match = _BLANK_LINE.search(self._pending, self._scanned)
        return match.end() if match else None

    def _event(self, raw: bytes) -> Event:
        lines = raw.removeprefix(_BOM).splitlines()  # of bytes: at LF, CR and CRLF only
        return Event(raw, b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")))


class LineReader(Reader):
    """JSON lines, as Ollama sends them."""

    def _next_end(self) -> int | None:
        found = self._pending.find(b"\n", self._scanned)
        return None if found < 0 else found + 1

    def _event(self, raw: bytes) -> Event:
        return Event(raw, raw.strip())


class FrameReader(Reader):
    """AWS event stream frames: lengths of the whole and of its headers, a checksum, headers, payload, a checksum."""

    def _next_end(self) -> int | None:
        if len(self._pending) < _FRAME_PRELUDE_BYTES:
            return None
        size = int.from_bytes(self._pending[:4])
        if size < _SMALLEST_FRAME_BYTES or size > LARGEST_EVENT_BYTES:  # no frame: nothing after it can be found
            self.overflowed = True
            return None
        return size if size <= len(self._pending) else None

    def _event(self, raw: bytes) -> Event:
        if len(raw) < _SMALLEST_FRAME_BYTES or int.from_bytes(raw[:4]) != len(raw):
            return Event(raw, b"")
        return Event(raw, raw[_FRAME_PRELUDE_BYTES + int.from_bytes(raw[4:8]) : -4])


def reader_of(content_type: bytes) -> Reader | None:
    """A reader for a body of this type; ``None`` where it is no stream of events."""
    kind = _READERS.get(content_type.partition(b";")[0].strip().lower())
    return None if kind is None else kind()


_READERS: dict[bytes, type[Reader]] = {
    b"text/event-stream": EventReader,
    b"application/x-ndjson": LineReader,
    b"application/vnd.amazon.eventstream": FrameReader,
}


def _is_one_line(chunk: bytes) -> bool:
    return chunk.find(b"\n") == len(chunk) - 2 and chunk.endswith(b"\n\n") and b"\r" not in chunk
