"""Images, audio and files in a request: found wherever they stand, told by what stands beside them, text left alone."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacer import media
from pacer.media import REFERRED_BYTES, Piece, apart


def base64_of(size: int, seed: int = 1) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def body_of(*parts: object) -> bytes:
    said = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Look at this."}, *parts]}],
    }
    return json.dumps(said, separators=(",", ":")).encode()


RAW = base64_of(30_000)
URL_SAFE = RAW.replace("+", "-").replace("/", "_")


def uri(media_type: str) -> str:
    return f"data:{media_type};base64,{RAW}"


EMBEDDED: list[tuple[str, Any]] = [
    ("image", {"type": "image_url", "image_url": {"url": uri("image/png")}}),
    ("image", {"type": "image_url", "image_url": {"detail": "low", "url": uri("image/jpeg")}}),
    ("image", {"type": "input_image", "image_url": uri("image/webp")}),
    ("document", {"type": "input_file", "filename": "a.pdf", "file_data": uri("application/pdf")}),
    ("document", {"type": "file", "file": {"filename": "a.pdf", "file_data": RAW}}),
    ("text", {"type": "file", "file": {"filename": "a.csv", "file_data": uri("text/csv")}}),
    ("unknown", {"type": "blob", "url": uri("x-thing/y")}),
    ("wave", {"type": "input_audio", "input_audio": {"data": RAW, "format": "wav"}}),
    ("audio", {"type": "input_audio", "input_audio": {"format": "mp3", "data": RAW}}),
    ("audio", {"type": "input_audio", "input_audio": RAW}),
    ("image", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": RAW}}),
    ("image", {"source": {"data": RAW, "media_type": "image/png", "type": "base64"}, "type": "image"}),
    ("document", {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": RAW},
                  "title": "audio", "cache_control": {"type": "ephemeral"}}),
    ("unknown", {"source": {"type": "base64", "data": RAW}}),
    ("image", {"inlineData": {"mimeType": "image/png", "data": RAW}}),
    ("audio", {"inline_data": {"data": URL_SAFE, "mime_type": "audio/ogg"}}),
    ("wave", {"inline_data": {"data": URL_SAFE, "mime_type": "audio/wav"}}),
    ("video", {"inlineData": {"mimeType": "video/mp4", "data": RAW}}),
    ("unknown", {"inlineData": {"mimeType": "x-thing/y", "data": RAW}}),
    ("image", {"image": {"format": "png", "source": {"bytes": RAW}}}),
    ("document", {"document": {"source": {"bytes": RAW}, "name": "the image", "format": "pdf"}}),
]  # fmt: skip
REFERRED: list[tuple[str, Any]] = [
    ("image", {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}}),
    ("image", {"type": "image_url", "image_url": {"detail": "high", "url": "https://a.test/x.png"}}),
    ("image", {"type": "input_image", "image_url": "https://a.test/x.png"}),
    ("image", {"type": "input_image", "file_id": "file-1"}),
    ("document", {"type": "input_file", "file_id": "file-1"}),
    ("document", {"type": "input_file", "file_url": "https://a.test/x.pdf"}),
    ("document", {"type": "file", "file": {"file_id": "file-1"}}),
    ("image", {"type": "image", "source": {"type": "url", "url": "https://a.test/x.png"}}),
    ("document", {"type": "document", "source": {"type": "url", "url": "https://a.test/x.pdf"}}),
    ("image", {"type": "image", "source": {"type": "file", "file_id": "file-1"}}),
    ("video", {"fileData": {"mimeType": "video/mp4", "fileUri": "https://a.test/files/1"}}),
    ("document", {"file_data": {"file_uri": "gs://a/1"}}),
]
TEXTS: list[Any] = [
    {"type": "text", "text": RAW},
    {"type": "text", "text": f"![]({uri('image/png')})"},
    {"type": "text", "text": json.dumps({"type": "image", "data": RAW})},
    {"type": "thinking", "thinking": "so", "signature": RAW},
    {"type": "redacted_thinking", "data": RAW},
    {"type": "reasoning", "encrypted_content": RAW},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": f"So it says: {RAW}"}},
    {"type": "tool_result", "content": [{"type": "text", "text": RAW}]},
    {"type": "output_text", "text": "so", "annotations": [{"type": "file_citation", "file_id": "file-1"}]},
    {"type": "text", "text": "Read https://a.test/x.png and its image_url, please."},
    {"type": "search_result", "source": "https://a.test/image", "url": "https://a.test/image.png"},
]


@pytest.mark.parametrize("pretty", [False, True])
@pytest.mark.parametrize(("kind", "part"), EMBEDDED)
def test_media_in_a_request_are_told_by_what_stands_beside_them(kind, part, pretty):
    """In every spelling, with or without spaces, and between other parts: their bytes are no text."""
    around = [{"type": "text", "text": "Then tell me."}] * 2
    body = body_of(around[0], part, around[1])
    body = json.dumps(json.loads(body)).encode() if pretty else body
    text, pieces = apart(body)
    assert [piece.kind for piece in pieces] == [kind]
    assert pieces[0].size == pytest.approx(30_000, abs=2)
    assert len(text) < 500
    assert RAW[:50].encode() not in text


@pytest.mark.parametrize(("kind", "part"), REFERRED)
def test_media_that_a_request_refers_to_are_found(kind, part):
    """A URL or the id of a file costs what a medium of a supposed size costs, beside its few bytes of text."""
    body = body_of({"type": "text", "text": "and"}, part)
    assert apart(body) == (body, [Piece(kind, REFERRED_BYTES)])
    assert apart(json.dumps(json.loads(body)).encode())[1] == [Piece(kind, REFERRED_BYTES)]


@pytest.mark.parametrize("part", TEXTS)
def test_what_nothing_tells_for_media_is_text(part):
    """Base64 in a prompt, signatures of thoughts, citations: every byte of them counts."""
    body = body_of(part, {"type": "text", "text": "x"})
    text, pieces = apart(body)
    assert (len(text), pieces) == (len(body), [])


@pytest.mark.parametrize("part", TEXTS)
def test_text_beside_media_stays_text(part):
    """An image in the next part makes no image of it."""
    body = body_of(part, EMBEDDED[0][1], part)
    text, pieces = apart(body)
    assert [piece.kind for piece in pieces] == ["image"]
    assert len(text) == len(body) - len(uri("image/png"))


def test_the_images_of_ollama_stand_in_a_list():
    """Without a type, and one after the other."""
    images = [base64_of(9_000, seed) for seed in range(3)]
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "And { these?", "images": images}]}
    ).encode()
    assert [piece.kind for piece in apart(body)[1]] == ["image"] * 3


def test_many_media_of_one_request_are_each_found():
    """Whatever the kinds of their neighbours."""
    kinds, parts = zip(*EMBEDDED, strict=True)
    text, pieces = apart(body_of(*parts))
    assert tuple(piece.kind for piece in pieces) == kinds
    assert len(text) < 3_000


@pytest.mark.parametrize("names", range(20, 26))
def test_an_image_is_found_behind_strings_that_look_alike(names):
    """Wherever the looks for it fall, also between the quotes of short names and into the data URI's own beginning."""
    for shift in range(64):
        text, pieces = apart(body_of({"parts": ["n" * shift, *["n" * 61] * names, uri("image/png")]}))
        assert [piece.kind for piece in pieces] == ["image"]
        assert len(text) < 3_000


@given(st.text(max_size=3_000), st.text(max_size=3_000), st.integers(1_600, 9_000), st.integers(0, 9))
def test_an_image_is_found_wherever_it_stands(before, after, length, seed):
    """From 1,600 characters of base64 on; the text around is text, to the byte."""
    run = base64_of(length, seed)[:length]
    source = {"type": "base64", "media_type": "image/png", "data": run}
    body = body_of(
        {"type": "text", "text": before}, {"type": "image", "source": source}, {"type": "text", "text": after}
    )
    text, pieces = apart(body)
    assert pieces == [Piece("image", length * 0.75)]
    assert len(text) + length == len(body)


ODD = [b"A" * 2_000, b'"', b"{", b"}", b"data:;base64,", b'"image/', b'"file_id":', b"://", b'"image_url":', b"\\",
       b"iVBORw0KGgo====", b"-_", b"\x00\xff", b":", b'"base64"']  # fmt: skip


@given(st.lists(st.sampled_from(ODD)))
def test_no_bytes_break_it(parts):
    """What was cut out is accounted for by its size, but for what data URIs begin with; and it costs something."""
    body = b"".join(parts)
    text, pieces = apart(body)
    runs = sum(piece.size for piece in pieces if piece.size != REFERRED_BYTES) / 0.75
    assert runs <= len(body) - len(text) <= runs + 128 * len(pieces)
    for piece in pieces:
        assert 1 <= piece.tokens <= piece.most_tokens < 10**9


def test_a_png_tells_its_pixels():
    """An icon costs less than a screenshot, and the largest no more than the rule's cap."""

    def tokens(width: int, height: int) -> float:
        png = (
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
            + struct.pack(">II", width, height)
            + random.Random(1).randbytes(3_000)
        )
        part = {"inlineData": {"mimeType": "image/png", "data": base64.urlsafe_b64encode(png).decode()}}
        return apart(body_of(part))[1][0].tokens

    assert tokens(64, 64) == 258
    assert tokens(1_000, 750) == 1_000
    assert tokens(9_000, 60_000) == 1_600


@pytest.mark.parametrize("head", ["iVBORw0KGgo=", "iVBORw0KGgo=A", "iVBORw0KGgo\\/", "iVBORw0KGgo-_="])
def test_a_png_that_is_none_is_an_image_like_others(head):
    part = {"inlineData": {"mimeType": "image/png", "data": head + "A" * 3_000}}
    (piece,) = apart(body_of(part))[1]
    assert piece.kind == "image"
    assert piece.most_tokens == 4_784


@pytest.mark.parametrize(
    ("piece", "tokens", "most"),
    [
        (Piece("image", 10), 1_100, 4_784),
        (Piece("image", 10**7), 1_100, 4_784),
        (Piece("document", 1_000), 2_000, 3_000),
        (Piece("document", 400_000), 20_000, 300_000),
        (Piece("document", 10**8), 200_000, 300_000),
        (Piece("wave", 320_000), 320, 1_280),
        (Piece("audio", 80_000), 320, 1_280),
        (Piece("video", 1_250_000), 2_950, 14_750),
        (Piece("text", 4_000), 1_000, 4_000),
        (Piece("unknown", 400_000), 20_000, 300_000),
    ],
)
def test_each_kind_costs_what_its_rule_says(piece, tokens, most):
    assert (piece.tokens, piece.most_tokens) == (tokens, most)


def test_every_kind_that_can_be_told_has_a_rule():
    assert {kind for kind, _ in media._SIGNS} == set(media.RULES)


def test_a_long_body_is_searched_for_references_at_both_ends():
    filler = {"type": "text", "text": "word " * 40_000}
    reference = {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}}
    assert len(apart(body_of(reference, filler))[1]) == len(apart(body_of(filler, reference))[1]) == 1
    assert apart(body_of(filler, reference, filler))[1] == []
