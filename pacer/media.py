"""Images, audio, video and files in a request: found in its raw bytes, and what each kind costs by a stated rule.

Everything else is text: prompts, tool schemas, tool results, and base64 that nothing beside it tells for media, such as
the signature of a thought.
"""

from __future__ import annotations

import base64
import math
import string
from collections.abc import Iterator
from typing import NamedTuple


class Rule(NamedTuple):
    """Tokens by the unit, and bytes by the unit: usually, and where it costs most.

    There is at least one unit, and never more than ``most_units``.
    """

    tokens: float
    most_tokens: float
    bytes: float
    fewest_bytes: float
    most_units: float = math.inf


_DOCUMENT = Rule(2_000, 3_000, 40_000, 4_000, 100)
RULES = {
    # One image, whatever its bytes. OpenAI, "Images and vision": 85 and 170 for each tile, 765 for a square, 1,445 at
    # most; or 1,536 patches, times up to 2.46. Anthropic, "Vision": width x height / 750, up to about 1,600, to 4,784
    # where the resolution is high. Gemini, "Understand and count tokens": 258 for each tile.
    "image": Rule(1_100, 4_784, math.inf, math.inf, 1),
    # Pages. Anthropic, "PDF support": 1,500 to 3,000 each, 100 of them at most. Gemini, "Document understanding": 258.
    "document": _DOCUMENT,
    # Seconds. Gemini, "Audio understanding": 32 tokens; OpenAI about 10. Samples of 16 bits at 16 kHz, 8 bits at 8 kHz.
    "wave": Rule(32, 32, 32_000, 8_000),
    # The same, compressed to 64 kbit/s, 16 kbit/s.
    "audio": Rule(32, 32, 8_000, 2_000),
    # Seconds. Gemini, "Understand and count tokens": 263 tokens, and 32 of sound. 1 Mbit/s, 200 kbit/s.
    "video": Rule(295, 295, 125_000, 25_000),
    # Tokens of text: four bytes, one byte.
    "text": Rule(1, 1, 4, 1),
    "unknown": _DOCUMENT,
}
REFERRED_BYTES = 400_000
"""The size supposed of what is only named: by a URL, by the id of a file."""
_PIXELS_A_TOKEN = 750
_SMALL_IMAGE, _LARGE_IMAGE = 258, 1_600
"""Tokens of an image with known pixels: of a small one for Gemini and OpenAI, of a large one for Anthropic."""

_SIGNS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("text", (b'"text/', b'"application/json')),
    ("image", (b'"image/',)),
    ("wave", (b'"audio/wav', b'"audio/x-wav', b'"audio/pcm', b'"audio/L16')),
    ("audio", (b'"audio/',)),
    ("video", (b'"video/',)),
    ("document", (b'"application/',)),
    ("image", (b'"image"', b'"images"', b'"image_url"', b'"input_image"')),
    ("wave", (b'"wav"', b'"pcm16"')),
    ("audio", (b'"audio"', b'"input_audio"')),
    ("video", (b'"video"',)),
    ("document", (b'"document"', b'"input_file"', b'"file"', b'"file_data"', b'"fileData"')),
    ("unknown", (b'"base64"', b'"mimeType"', b'"mime_type"')),
)
"""What tells the kind of a medium in the members beside it: media types, then names; the first one counts. A text would
have its quotes escaped."""
_REFERENCES = (b'"image_url":', b'"file_url":', b'"file_id":', b'"fileUri":', b'"file_uri":', b':"url"', b': "url"')
_NEAR = 400
"""Beside a medium is what stands within so many bytes of it;"""
_EDGE = 2_048
"""references are looked for in so many bytes at both ends of a body: all of a long one would take longer than its
measure."""

_STRIDE = 64
_LOOK = b"x" * 24
"""So many bytes, each ``_STRIDE`` from the next, look like base64 where media are."""
_SHORTEST = len(_LOOK) * _STRIDE
"""What is shorter counts as text, and so costs about what its image does."""
_PREFIX = 128
"""Longer than ``data:application/vnd...;base64,`` of any kind of file that a model reads."""
_ALPHABET = string.ascii_letters.encode() + string.digits.encode() + b"+/=-_\\"
"""Of base64, also URL-safe, also with its slashes or line ends escaped."""
_MASK = bytes(ord("x") if byte in _ALPHABET else ord(" ") for byte in range(256))


class Piece(NamedTuple):
    """One medium of a request. ``size`` in bytes, decoded; ``pixels`` of a PNG, 0 where they are not known."""

    kind: str
    size: float
    pixels: int = 0

    @property
    def tokens(self) -> float:
        """What it usually costs."""
        if self.pixels:
            return min(max(_SMALL_IMAGE, self.pixels / _PIXELS_A_TOKEN), _LARGE_IMAGE)
        rule = RULES[self.kind]
        return rule.tokens * min(max(1.0, self.size / rule.bytes), rule.most_units)

    @property
    def most_tokens(self) -> float:
        """What it costs in the rule's largest case."""
        rule = RULES[self.kind]
        return rule.most_tokens * min(max(1.0, self.size / rule.fewest_bytes), rule.most_units)


def apart(body: bytes) -> tuple[bytes, list[Piece]]:
    """The text of a request and its media, those in it and those that it refers to."""
    mask = body[::_STRIDE].translate(_MASK)
    text, pieces = _embedded(body, mask) if _LOOK in mask else (body, [])
    edges = text if len(text) <= 2 * _EDGE else text[:_EDGE] + text[-_EDGE:]
    if b'url"' in edges or b'"file' in edges:
        pieces += _referred(edges)
    return text, pieces


def _embedded(body: bytes, mask: bytes) -> tuple[bytes, list[Piece]]:
    """Cuts out what looks like base64, tells it by what stands beside it then, and puts back what nothing tells."""
    gaps, runs, end = [], [], 0
    for start, stop in _runs(body, mask):
        gaps.append(body[end:start])
        runs.append(body[start:stop])
        end = stop
    text = b"".join([*gaps, body[end:]])
    pieces, others, place = [], [text], 0
    for gap, run in zip(gaps, runs, strict=True):
        place += len(gap)
        piece = _piece(run, text, place)
        if piece is None:
            others.append(run)
        else:
            pieces.append(piece)
    return b"".join(others), pieces


def _runs(body: bytes, mask: bytes) -> Iterator[tuple[int, int]]:
    """Where strings start and stop that look like base64, from behind what a data URI begins with."""
    at = mask.find(_LOOK)
    while at >= 0:
        inside = (at + len(_LOOK) - 1) * _STRIDE
        start, stop = body.rfind(b'"', 0, inside) + 1, body.find(b'"', inside)
        if stop < 0:
            return
        middle = max(inside, start + _PREFIX)
        if start and stop - start >= _SHORTEST and _is_base64(body[middle : min(middle + _SHORTEST, stop)]):
            yield start, stop
        at = mask.find(_LOOK, stop // _STRIDE + 1)


def _is_base64(text: bytes) -> bool:
    return not text.translate(None, _ALPHABET)


def _piece(run: bytes, text: bytes, place: int) -> Piece | None:
    """What was cut out of ``text`` at ``place``, if it is a medium."""
    media_type, sign, encoded = run[:_PREFIX].partition(b";base64,")
    if sign and media_type.startswith(b"data:"):
        kind = _kind(b'"' + media_type[len(b"data:") :]) or "unknown"
        return Piece(kind, (len(run) - len(media_type) - len(sign)) * 0.75, _pixels(encoded))
    found = _kind(_beside(text, place)) if _is_base64(run[:_STRIDE]) else None
    return None if found is None else Piece(found, len(run) * 0.75, _pixels(run))


def _referred(text: bytes) -> list[Piece]:
    pieces = []
    for key in _REFERENCES:
        at = text.find(key)
        while at >= 0:
            value = text[at : at + _STRIDE].partition(b"}")[0]
            if b"://" in value or key == b'"file_id":':
                kind = _kind(_beside(text, at))
                pieces += [] if kind is None else [Piece(kind, REFERRED_BYTES)]
            at = text.find(key, at + len(key))
    return pieces


def _kind(members: bytes) -> str | None:
    for kind, signs in _SIGNS:
        for sign in signs:  # any() would take three times as long
            if sign in members:
                return kind
    return None


def _beside(text: bytes, place: int) -> bytes:
    """What is near of the object that holds ``place``, and of those around of which it is a member."""
    first, last = max(0, place - _NEAR), place + _NEAR
    left = right = place
    while True:
        left, right = text.rfind(b"{", first, left), text.find(b"}", right, last) + 1 or last
        if left < 0 or not text[first:left].rstrip().endswith(b":"):
            return text[max(first, left) : right]


def _pixels(encoded: bytes) -> int:
    """Width times height of a PNG, which it tells in its first 24 bytes; 0 of anything else."""
    if not encoded.startswith(b"iVBORw0KGgo"):
        return 0
    try:
        head = base64.b64decode(encoded[:32], b"-_" if b"-" in encoded[:32] or b"_" in encoded[:32] else None)
    except ValueError:  # escaped or padded where no PNG is
        return 0
    return int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])
