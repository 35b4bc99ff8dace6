"""The readers of streams: the same events at any split of the bytes."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.sse import LARGEST_EVENT_BYTES, EventReader, FrameReader, LineReader, Reader, reader_of

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [
        b'data: {"a": 1}',
        b"data:x",
        b"data: \xe2\x80\xa8 \xc2\x85 \xe2\x80\xa9",
        b"data:",
        b"data",
        b": ping",
        b"event: delta",
        b"id: 7",
        b"junk",
        b"",
        b"",
    ]
)
STREAMS = st.tuples(st.sampled_from([b"", b"\xef\xbb\xbf"]), st.lists(st.tuples(LINES, ENDS), max_size=14)).map(
    lambda parts: parts[0] + b"".join(line + end for line, end in parts[1])
)


class Event(NamedTuple):
    """An event as it came, and its payload."""

    raw: bytes
    data: bytes


def everything(reader: Reader, chunks: Iterable[bytes]) -> list[Event]:
    events = [event for chunk in chunks for event in reader.feed(chunk)] + reader.finish()
    return [Event(event, reader.payload(event)) for event in events]


def read(chunks: Iterable[bytes]) -> list[Event]:
    return everything(EventReader(), chunks)


def payloads(text: bytes) -> list[bytes]:
    return [event.data for event in read([text])]


def by_the_book(text: bytes) -> list[bytes]:
    """The data of each event, as the specification says; read at leisure, the whole text at once."""
    found: list[bytes] = []
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\n|\r", text.removeprefix(b"\xef\xbb\xbf")), b""]:
        if not line and data:
            found.append(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return [one for one in found if one]


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split_gives_the_same_events(text, places):
    """Events do not depend on how the network cut the bytes."""
    assert read(cut(text, places)) == read([text])


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=30))
def test_the_raw_bytes_of_all_events_are_the_stream(text, places):
    """Nothing is lost, added or moved."""
    assert b"".join(event.raw for event in read(cut(text, places))) == text


@given(STREAMS)
def test_the_payloads_are_those_of_the_specification(text):
    """Another reader, written for clearness alone, finds the same payloads."""
    assert [data for data in payloads(text) if data] == by_the_book(text)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends_are_read(end):
    """LF, CRLF and CR, each in one piece and byte by byte."""
    text = end.join([b"data: 1", b"", b"event: x", b"data: 2", b"", b""])
    assert payloads(text) == [b"1", b"2"]
    assert read([text[i : i + 1] for i in range(len(text))]) == read([text])


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_event_is_given_out_with_its_last_byte(end):
    """Nobody waits for the next event to see this one."""
    assert EventReader().feed(b"data: 1" + end + end) == [b"data: 1" + end + end]


def test_a_byte_order_mark_is_skipped():
    """It may stand before the first event, and stays in the raw bytes."""
    (event,) = read([b"\xef\xbb\xbfdata: 1\n\n"])
    assert event == Event(b"\xef\xbb\xbfdata: 1\n\n", b"1")


def test_comments_have_no_payload():
    """A heartbeat is an event without data."""
    assert payloads(b": ping\n\ndata: 1\n\n:\n\n") == [b"", b"1", b""]


def test_several_data_lines_are_one_payload():
    """They are joined by LF, whatever their own line ends were."""
    assert payloads(b'data: {"a":\r\ndata:  1}\n\n') == [b'{"a":\n 1}']


def test_a_lone_cr_ends_a_line_in_a_stream_of_lf_too():
    """Line ends may be mixed; what looks like one JSON line may be two."""
    assert payloads(b'data: {"a": 1,\rdata: "b": 2}\n\n') == [b'{"a": 1,\n"b": 2}']


def test_a_chunk_that_is_one_whole_line_may_be_part_of_an_event():
    """What looks like an event of its own belongs to the line before it."""
    assert [event.data for event in read([b"data: 1\n", b"data: 2\n\n", b"data: 3\n\n"])] == [b"1\n2", b"3"]


def test_one_space_after_the_colon_is_optional():
    """One space belongs to the colon, a second one to the payload."""
    assert payloads(b"data:1\n\ndata: 1\n\ndata:  1\n\n") == [b"1", b"1", b" 1"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_line_separators_of_unicode_end_no_line(mark):
    """They are legal inside JSON (openai-python #1230); only LF, CRLF and CR end a line."""
    text = f'data: {{"a": "x{mark}y"}}'.encode()
    assert payloads(text + b"\n\n") == [text[6:]]
    assert payloads(b"event: x\r\n" + text + b"\r\n\r\n") == [text[6:]]


def test_the_last_event_needs_no_blank_line():
    """What stands at the end of the stream counts, also without any line end."""
    assert payloads(b"data: 1\n\ndata: 2") == [b"1", b"2"]
    assert payloads(b"data: 1\n\ndata: 2\r") == [b"1", b"2"]


def test_the_rest_is_taken_once():
    """``take_rest`` gives the bytes of the incomplete event and forgets them."""
    reader = EventReader()
    assert reader.feed(b"data: 1") == []
    assert reader.take_rest() == b"data: 1"
    assert reader.take_rest() == b""
    assert reader.finish() == []


def test_an_endless_event_is_given_up():
    """Beyond the bound nothing is kept any more, and the bytes so far can be had back."""
    reader = EventReader()
    piece = b"x" * 1_000_000
    for _ in range(9):
        assert reader.feed(piece) == []
    assert reader.overflowed
    kept = len(reader.take_rest())
    assert LARGEST_EVENT_BYTES < kept <= LARGEST_EVENT_BYTES + len(piece)
    assert reader.feed(b"\n\ndata: 1\n\n") == []
    assert reader.feed(b"data: 1\n\n") == []


def test_an_event_just_within_the_bound_is_read():
    """A large event is no reason to give up."""
    reader = EventReader()
    found = reader.feed(b"data: " + b"x" * (LARGEST_EVENT_BYTES - 100))
    found += reader.feed(b"\n\n")
    assert [len(reader.payload(event)) for event in found] == [LARGEST_EVENT_BYTES - 100]
    assert not reader.overflowed


def test_memory_does_not_grow_with_the_stream():
    """After 30 MB of events no more is kept than one event."""
    reader = EventReader()
    chunk = b"data: " + b"y" * 1_000 + b"\n\n: ping\r\n\r\n"
    tracemalloc.start()
    try:
        for _ in range(30_000):
            for _event in reader.feed(chunk):
                pass
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_event_in_many_small_chunks_is_not_scanned_again_and_again():
    """The search goes on where it stopped: one byte a chunk costs no more than a few bytes of looking."""
    reader = EventReader()
    for _ in range(1_000):
        reader.feed(b"x")
        assert len(reader.pending) - reader._scanned <= 3


# ---------------------------------------------------------------- lines and frames


def frame(payload: bytes, headers: bytes = b"") -> bytes:
    """An AWS frame; nobody here checks its sums."""
    size = 16 + len(headers) + len(payload)
    return size.to_bytes(4) + len(headers).to_bytes(4) + b"sum1" + headers + payload + b"sum2"


@given(st.lists(st.binary(max_size=30)), st.binary(max_size=9), st.integers(1, 40))
def test_frames_at_any_split(payloads, headers, size):
    """Their payloads, whatever is in them, and every byte once."""
    stream = b"".join(frame(payload, headers) for payload in payloads)
    events = everything(FrameReader(), [stream[at : at + size] for at in range(0, len(stream), size)])
    assert [event.data for event in events] == payloads
    assert b"".join(event.raw for event in events) == stream


@given(st.lists(st.binary(min_size=1, max_size=30).map(lambda line: b"{" + line.replace(b"\n", b"") + b"}")),
       st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 40))  # fmt: skip
def test_lines_at_any_split(lines, end, is_closed, size):
    """The last one needs no end."""
    stream = end.join(lines) + (end if lines and is_closed else b"")
    events = everything(LineReader(), [stream[at : at + size] for at in range(0, len(stream), size)])
    assert [event.data for event in events] == lines
    assert b"".join(event.raw for event in events) == stream


@pytest.mark.parametrize("size", [0, 15, LARGEST_EVENT_BYTES + 1, 2**32 - 1])
def test_what_is_no_frame_is_read_no_further(size):
    reader = FrameReader()
    assert (reader.feed(size.to_bytes(4) + b"x" * 60)) == []
    assert reader.overflowed


def test_a_frame_that_was_cut_off_says_nothing():
    assert everything(FrameReader(), [frame(b"{}")[:-1]]) == [Event(frame(b"{}")[:-1], b"")]


def test_the_type_of_a_body_tells_its_reader():
    assert isinstance(reader_of(b"text/event-stream; charset=utf-8"), EventReader)
    assert isinstance(reader_of(b"Application/X-NDJSON"), LineReader)
    assert isinstance(reader_of(b"application/vnd.amazon.eventstream"), FrameReader)
    assert reader_of(b"application/json") is None
