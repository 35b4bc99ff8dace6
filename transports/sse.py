"""Bytes of a server-sent event stream become events, at any split of the bytes. Nothing is decoded to text here.

Line ends are LF, CRLF or CR; ``str.splitlines`` would also break at U+2028 inside JSON, which is legal there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)

LARGEST_EVENT_BYTES = 8 * 1024 * 1024
"""An event beyond this is not read any further; its bytes still pass to the caller."""


class Event(NamedTuple):
    """One event: its bytes on the wire, and the payload of its ``data`` lines."""

    raw: bytes
    data: bytes


class EventReader:
    """Feed it chunks, get whole events. Memory is bounded by one event."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scanned = 0
        self._has_cr = False
        self.overflowed = False

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """The events that ``chunk`` completes, one by one."""
        if self.overflowed:
            return ()
        if not self._pending and chunk.startswith(b"data: ") and _is_one_line(chunk):  # as most providers send them
            return (Event(chunk, chunk[6:-2]),)
        return self._split(chunk)

    def _split(self, chunk: bytes) -> Iterator[Event]:
        self._pending += chunk
        self._has_cr = self._has_cr or b"\r" in chunk
        while (end := self._next_end()) is not None:
            raw = bytes(self._pending[:end])
            del self._pending[:end]
            self._scanned = 0
            yield _event(raw)
        self._scanned = max(0, len(self._pending) - 3)
        if len(self._pending) > LARGEST_EVENT_BYTES:
            self.overflowed = True

    def finish(self) -> Iterator[Event]:
        """The last event, where the stream ended without a blank line."""
        if rest := self.take_rest():
            yield _event(rest)

    def take_rest(self) -> bytes:
        """The bytes of the event that is not complete yet."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._scanned = 0
        return rest

    def _next_end(self) -> int | None:
        if not self._has_cr:
            found = self._pending.find(b"\n\n", self._scanned)
            return None if found < 0 else found + 2
        match = _BLANK_LINE.search(self._pending, self._scanned)
        return match.end() if match else None


def _event(raw: bytes) -> Event:
    lines = raw.removeprefix(_BOM).splitlines()  # of bytes: at LF, CR and CRLF only
    return Event(raw, b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")))


def _is_one_line(chunk: bytes) -> bool:
    return chunk.find(b"\n") == len(chunk) - 2 and chunk.endswith(b"\n\n") and b"\r" not in chunk
