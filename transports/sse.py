"""Bytes of a stream become events, at any split of the bytes: server-sent events, JSON lines, AWS frames.

Nothing is decoded to text here. Lines of server-sent events end with LF, CRLF or CR; ``str.splitlines`` also breaks
them at U+2028 inside JSON, which is legal there.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from functools import lru_cache

_BOM = b"\xef\xbb\xbf"
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)

_FRAME_PRELUDE_BYTES = 12
_SMALLEST_FRAME_BYTES = 16

LARGEST_EVENT_BYTES = 8 * 1024 * 1024
"""An event beyond this is not read any further; its bytes still pass to the caller."""


class Reader(ABC):
    """Feed it chunks, get whole events with every byte they came in. Memory is bounded by one event.

    A kind of stream says where its events end and what their payload is.
    """

    def __init__(self) -> None:
        self.pending = bytearray()
        """The bytes of the event that is not complete yet."""
        self._scanned = 0
        self.overflowed = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that ``chunk`` completes."""
        if self.overflowed:
            return []
        self.pending += chunk
        if not self._has_whole_event():
            events: list[bytes] = []
            self._scanned = max(0, len(self.pending) - 3)
        else:
            events, rest = self._split(self.take_rest())
            self.pending += rest
        self.overflowed = self.overflowed or len(self.pending) > LARGEST_EVENT_BYTES
        return events

    def finish(self) -> list[bytes]:
        """The last event, where the stream ended without the mark of its end."""
        return [self.take_rest()] if self.pending and not self.overflowed else []

    def take_rest(self) -> bytes:
        """The pending bytes, which are pending no more."""
        rest = bytes(self.pending)
        self.pending.clear()
        self._scanned = 0
        return rest

    def start_of_event(self, text: bytes, at: int) -> int:
        """Where in ``text``, which begins with one, an event starts that is not behind ``at``; the later the better."""
        return 0

    @abstractmethod
    def payload(self, event: bytes) -> bytes:
        """What the event carries."""

    @abstractmethod
    def _has_whole_event(self) -> bool:
        """Whether an event ends in the pending bytes; none does before ``_scanned``."""

    @abstractmethod
    def _split(self, text: bytes) -> tuple[list[bytes], bytes]:
        """The whole events in ``text``, and the rest behind them."""


class EventReader(Reader):
    """Server-sent events: a blank line ends one."""

    def __init__(self) -> None:
        super().__init__()
        self._has_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that ``chunk`` completes."""
        self._has_cr = self._has_cr or b"\r" in chunk
        return super().feed(chunk)

    def start_of_event(self, text: bytes, at: int) -> int:
        """Behind the last blank line."""
        found = text.rfind(b"\n\n", 0, max(0, at))
        return 0 if found < 0 else found + 2

    def payload(self, event: bytes) -> bytes:
        """The ``data`` lines."""
        if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and not self._has_cr:
            return event[6:-2]
        lines = event.removeprefix(_BOM).splitlines()  # of bytes: at LF, CR and CRLF only
        return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))

    def _has_whole_event(self) -> bool:
        if self._has_cr:
            return _BLANK_LINE.search(self.pending, self._scanned) is not None
        return self.pending.find(b"\n\n", self._scanned) >= 0

    def _split(self, text: bytes) -> tuple[list[bytes], bytes]:
        if self._has_cr:
            ends = [match.end() for match in _BLANK_LINE.finditer(text)]
            return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)], text[ends[-1] :]
        *events, rest = text.split(b"\n\n")
        return [event + b"\n\n" for event in events], rest


class LineReader(Reader):
    """JSON lines, as Ollama sends them."""

    def start_of_event(self, text: bytes, at: int) -> int:
        """Behind the last line end."""
        return text.rfind(b"\n", 0, max(0, at)) + 1

    def payload(self, event: bytes) -> bytes:
        """The line."""
        return event.strip()

    def _has_whole_event(self) -> bool:
        return self.pending.find(b"\n", self._scanned) >= 0

    def _split(self, text: bytes) -> tuple[list[bytes], bytes]:
        *lines, rest = text.split(b"\n")
        return [line + b"\n" for line in lines], rest


class FrameReader(Reader):
    """AWS event stream frames: lengths of the whole and of its headers, a checksum, headers, payload, a checksum."""

    def payload(self, event: bytes) -> bytes:
        """What stands between the headers and the checksum; nothing if the frame was cut off."""
        if len(event) < _SMALLEST_FRAME_BYTES or int.from_bytes(event[:4]) != len(event):
            return b""
        return event[_FRAME_PRELUDE_BYTES + int.from_bytes(event[4:8]) : -4]

    def _has_whole_event(self) -> bool:
        return self._end(self.pending, 0) is not None

    def _split(self, text: bytes) -> tuple[list[bytes], bytes]:
        frames, start = [], 0
        while end := self._end(text, start):
            frames.append(text[start:end])
            start = end
        return frames, text[start:]

    def _end(self, text: bytes | bytearray, start: int) -> int | None:
        """Where the frame ends that begins at ``start``, if it is there whole."""
        if len(text) - start < _FRAME_PRELUDE_BYTES:
            return None
        size = int.from_bytes(text[start : start + 4])
        if size < _SMALLEST_FRAME_BYTES or size > LARGEST_EVENT_BYTES:  # no frame: nothing after it can be found
            self.overflowed = True
            return None
        return start + size if start + size <= len(text) else None


def reader_of(content_type: bytes) -> Reader | None:
    """A reader for a body of this type; ``None`` where it is no stream of events."""
    kind = _kind_of(content_type)
    return None if kind is None else kind()


_READERS: dict[bytes, type[Reader]] = {
    b"text/event-stream": EventReader,
    b"application/x-ndjson": LineReader,
    b"application/vnd.amazon.eventstream": FrameReader,
}


@lru_cache(maxsize=64)
def _kind_of(content_type: bytes) -> type[Reader] | None:
    return _READERS.get(content_type.partition(b";")[0].strip().lower())
