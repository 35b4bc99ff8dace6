"""Content encodings, undone chunk by chunk for the meter: gzip, deflate, br, zstd and stacks of them.

Every decoder gives some 8 MiB at a time at most, whatever a hostile body would become. The libraries for br and zstd
are optional, as they are for httpx.
"""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import Callable
from functools import cache

from transports.sse import LARGEST_EVENT_BYTES

_log = logging.getLogger("pacer")

Decode = Callable[[bytes], bytes]

_LARGEST_STACK = 4
_WINDOW_LOG = 23
"""8 MiB, the window that RFC 8878 asks every decoder to allow; a larger one is not read."""


def decoder(content_encoding: bytes) -> Decode | None:
    """What undoes the encodings of a body; ``None`` if one of them is not known."""
    if not content_encoding:
        return _as_is
    names = [name.strip() for name in content_encoding.lower().split(b",")]
    found = [_DECODERS.get(name) for name in names if name not in (b"", b"identity")]
    if None in found or len(found) > _LARGEST_STACK:
        return None
    try:
        known = [make() for make in found if make is not None]
    except ImportError as missing:
        _warn_once(missing.name)
        return None
    undone: Decode = _as_is
    for decode in reversed(known):  # the last one applied is the first one undone
        undone = _then(undone, decode)
    return undone


@cache
def _warn_once(library: str | None) -> None:
    _log.warning("answers are compressed and %s is not installed: token-pacer[encodings] reads them", library)


def _as_is(chunk: bytes) -> bytes:
    return chunk


def _then(first: Decode, second: Decode) -> Decode:
    return lambda chunk: second(first(chunk))


def _zlib() -> Decode:
    return _inflated(zlib.decompressobj(wbits=47))  # gzip or zlib, by the header


def _inflated(stream: zlib._Decompress) -> Decode:
    def decode(chunk: bytes) -> bytes:
        if stream.eof:  # it would keep all that follows its end
            return b""
        return stream.decompress(stream.unconsumed_tail + chunk, LARGEST_EVENT_BYTES)

    return decode


def _deflate() -> Decode:
    undo: Decode | None = None

    def decode(chunk: bytes) -> bytes:
        nonlocal undo
        if undo is not None:
            return undo(chunk)
        try:
            undo = _zlib()
            return undo(chunk)
        except zlib.error:  # some servers leave out the header
            undo = _inflated(zlib.decompressobj(wbits=-15))
            return undo(chunk)

    return decode


def _brotli() -> Decode:
    import brotli

    stream = brotli.Decompressor()
    waiting = bytearray()

    def decode(chunk: bytes) -> bytes:
        if stream.is_finished():
            return b""
        waiting.extend(chunk)
        text: bytes = stream.process(b"", output_buffer_limit=LARGEST_EVENT_BYTES)
        if not text and stream.can_accept_more_data():
            text = stream.process(bytes(waiting), output_buffer_limit=LARGEST_EVENT_BYTES)
            waiting.clear()
        return text

    return decode


def _zstd() -> Decode:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})

    def decode(chunk: bytes) -> bytes:
        return b"" if stream.eof else stream.decompress(chunk, LARGEST_EVENT_BYTES)

    return decode


_DECODERS: dict[bytes, Callable[[], Decode]] = {
    b"gzip": _zlib,
    b"x-gzip": _zlib,
    b"deflate": _deflate,
    b"br": _brotli,
    b"zstd": _zstd,
}
