"""The meter of ``transports.stream`` on whole bodies: compressed, huge, hostile, and when it is wrong itself."""

from __future__ import annotations

import gzip
import json
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import brotli
import httpx
import pytest
import zstandard

import transports.exchange
from pacer import Pacer, estimate
from pacer.estimate import Estimator
from pacer.usage import Usage
from tests.dialects import DIALECTS, Dialect
from tests.servers import CHAT, Answer, Caller, Inner, Server, answer_json, ask, books, chunked, whole
from transports import BudgetTransport, encodings
from transports.wire import Tally, openai_chat

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
MB = 1_000_000


def metered(
    chunks: Iterable[bytes], headers: dict[str, str] = JSON, *, take_all: bool = True
) -> tuple[Pacer, Any, Any]:
    """One answer through a transport of its own pacer: the pacer, the receipt and the raw bytes (or their number)."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(Answer(chunks, headers)), pacer=pacer)
    with (
        httpx.Client(transport=transport) as client,
        client.stream("POST", "http://a.test" + CHAT, json=ask()) as response,
    ):
        got: Any = b"".join(response.iter_raw()) if take_all else sum(len(chunk) for chunk in response.iter_raw())
    return pacer, response.extensions["pacer"], got


def assert_unknown(pacer: Pacer, receipt: Any) -> None:
    """The call is charged by estimate: never as nothing, and up to the whole hold."""
    assert receipt.source == "estimate"
    spent, unknown, held, in_flight = books(pacer)
    assert spent > 0
    assert unknown > 0
    assert spent + unknown == receipt.reserved
    assert (held, in_flight) == (0, 0)


def compressed(text: bytes, encoding: str) -> bytes:
    for name in encoding.split(", "):
        text = {"gzip": gzip, "deflate": zlib, "br": brotli, "zstd": zstandard}[name].compress(text)
    return text


# ---------------------------------------------------------------- compressed bodies


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br", "br, deflate", "GZIP", "identity"])
def test_a_compressed_answer_is_metered_exactly_and_passes_untouched(caller: Caller, encoding: str):
    """Over a real connection, in chunks of three bytes; the caller's library decodes it as ever."""
    text = answer_json()
    packed = text if encoding == "identity" else compressed(text, encoding.lower())
    drops = (packed[i : i + 3] for i in range(0, len(packed), 3))
    headers = [f"Content-Encoding: {encoding}", "Content-Type: application/json"]
    pacer = Pacer()
    with Server(chunked(drops, *headers)) as server:
        transport = BudgetTransport(pacer=pacer)
        _, chunks = caller.stream(transport, url=server.url + CHAT, json=ask())
        assert b"".join(chunks) == packed
        assert books(pacer) == (30, 0, 0, 0)
        assert caller.send(transport, url=server.url + CHAT, json=ask()).content == text
        assert books(pacer) == (60, 0, 0, 0)


def test_deflate_without_its_wrapper_is_metered_too(caller):
    """Some servers send it, and the libraries read it."""
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(answer_json()) + packer.flush()
    pacer = Pacer()
    inner = Inner(Answer([body], {**JSON, "content-encoding": "deflate"}))
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask())
    assert response.content == answer_json()
    assert books(pacer) == (30, 0, 0, 0)


def flushed(texts: list[bytes], encoding: str) -> list[bytes]:
    """Each text as one chunk of a compressed stream that can be read so far."""
    if encoding == "br":
        packer = brotli.Compressor()
        return [packer.process(text) + packer.flush() for text in texts] + [packer.finish()]
    if encoding == "zstd":
        writer = zstandard.ZstdCompressor().compressobj()
        chunks = [writer.compress(text) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for text in texts]
        return [*chunks, writer.flush()]
    deflater = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    return [deflater.compress(text) + deflater.flush(zlib.Z_SYNC_FLUSH) for text in texts] + [deflater.flush()]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_stream_passes_whole(encoding):
    """Compressed although it was not asked for: exact usage, and the usage event cannot be cut out."""
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 10}}\n\n'
    events = [b'data: {"choices": [{"delta": {}}]}\n\n', usage, b"data: [DONE]\n\n"]
    pacer = Pacer()
    inner = Inner(Answer(flushed(events, encoding), {**SSE, "content-encoding": encoding}))
    with httpx.Client(transport=BudgetTransport(inner, pacer=pacer)) as client:
        got = client.post("http://a.test" + CHAT, json=ask(stream=True)).content
    assert got == b"".join(events)
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize(("encoding", "library"), [("br", "brotli"), ("zstd", "backports")])
def test_without_its_library_an_encoding_is_not_read(monkeypatch, caplog, encoding, library):
    """The call is charged by estimate, and one line of the log says what to install."""
    encodings._warn_once.cache_clear()
    for name in (library, "compression"):  # None in sys.modules: the import fails
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "backports.zstd", raising=False)
    packed = compressed(answer_json(), encoding)
    for _ in range(2):
        pacer, receipt, got = metered([packed], {**JSON, "content-encoding": encoding})
        assert got == packed
        assert_unknown(pacer, receipt)
    assert [record.getMessage().count("token-pacer[encodings]") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "gzip, br", "x-unheard-of", "gzip, x-unheard-of", "br, br, br, br, br"]
)
def test_an_encoding_that_is_not_read_makes_the_call_unknown(encoding):
    """Its bytes pass, and are not guessed at."""
    pacer, receipt, got = metered([b"", answer_json()], {**JSON, "content-encoding": encoding})
    assert got == answer_json()
    assert_unknown(pacer, receipt)


@pytest.mark.parametrize(
    "body",
    [answer_json(), gzip.compress(answer_json())[:-20], gzip.compress(answer_json())[:40] + b"junk" * 9, b""],
    ids=["not compressed at all", "cut", "broken in the middle", "empty"],
)
def test_a_broken_compression_makes_the_call_unknown(body):
    """It is the caller's library that has to complain about it."""
    pacer, receipt, got = metered([body[:50], body[50:]], {**JSON, "content-encoding": "gzip"})
    assert got == body
    assert_unknown(pacer, receipt)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
@pytest.mark.parametrize("fault", ["cut", "not compressed", "broken", "followed by junk", "without its first byte"])
def test_a_caller_who_decodes_a_broken_body_gets_what_the_library_makes_of_it(caller, encoding, fault):
    """The same text or the same error as without us, and the call is never free."""
    good = compressed(answer_json(), encoding)
    body = {
        "cut": good[:-9],
        "not compressed": answer_json(),
        "broken": good[:40] + b"junk" * 9,
        "followed by junk": good + b"junk" * 9,
        "without its first byte": good[1:],
    }[fault]
    answer = Answer([body[:50], body[50:]], {**JSON, "content-encoding": encoding})

    def told(transport: Any) -> Any:
        try:
            return caller.send(transport, json=ask()).content
        except caller.library.DecodingError as error:
            return type(error)

    pacer = Pacer()
    assert told(BudgetTransport(Inner(answer), pacer=pacer)) == told(Inner(answer))
    spent, unknown, held, in_flight = books(pacer)
    assert (spent, unknown) == (30, 0) or (spent > 0 and unknown > 400)
    assert (held, in_flight) == (0, 0)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "gzip, gzip", "zstd, br"])
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("size", [1_024, 10 * MB], ids=["in small chunks", "in one chunk"])
def test_a_compression_bomb_does_not_go_off(content_type, size, encoding):
    """A body that would become 200 MB is inflated to the bound and no further."""
    bomb = compressed(b" " * 200 * MB, encoding)
    chunks = [bomb[i : i + size] for i in range(0, len(bomb), size)]
    tracemalloc.start()
    try:
        pacer, receipt, got = metered(chunks, {"content-type": content_type, "content-encoding": encoding})
        assert tracemalloc.get_traced_memory()[1] < 48 * MB
    finally:
        tracemalloc.stop()
    assert got == bomb
    assert_unknown(pacer, receipt)


def test_a_zstd_window_beyond_the_bound_is_not_read():
    """A small body may ask for a window of 128 MB; RFC 8878 lets a reader refuse more than 8."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = packer.compress(answer_json()) + packer.flush()
    tracemalloc.start()
    try:
        pacer, receipt, got = metered([body], {**JSON, "content-encoding": "zstd"})
        assert tracemalloc.get_traced_memory()[1] < 20 * MB
    finally:
        tracemalloc.stop()
    assert got == body
    assert_unknown(pacer, receipt)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_what_follows_the_end_of_a_compressed_body_is_not_kept(encoding):
    """30 MB of junk behind a small compressed body cost no memory, and no copying of it at each chunk."""

    def chunks() -> Iterator[bytes]:
        yield compressed(answer_json(), encoding)
        for _ in range(300):
            yield bytes(100_000)

    tracemalloc.start()
    try:
        metered(chunks(), {**JSON, "content-encoding": encoding}, take_all=False)
        assert tracemalloc.get_traced_memory()[1] < 20 * MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_a_huge_body_is_not_kept(content_type):
    """100 MB pass, at most the bound is kept, and the call is unknown."""

    def chunks() -> Iterator[bytes]:
        yield b'data: {"content": "'
        for _ in range(1_000):
            yield b"x" * 100_000
        yield b'"}\n\n'

    tracemalloc.start()
    try:
        pacer, receipt, size = metered(chunks(), {"content-type": content_type}, take_all=False)
        assert tracemalloc.get_traced_memory()[1] < 48 * MB
    finally:
        tracemalloc.stop()
    assert size == 100 * MB + 23
    assert_unknown(pacer, receipt)


@pytest.mark.parametrize(
    ("content_type", "start"),
    [
        ("application/json", b"{"),
        ("text/event-stream", b"data: "),
        ("text/event-stream", b"data: \r"),
        ("application/x-ndjson", b"{"),
        ("application/vnd.amazon.eventstream", (8_000_000).to_bytes(4)),
    ],
)
def test_a_small_chunk_costs_the_same_behind_a_long_event(content_type, start):
    """Bytes that drip in are not searched or copied again and again: behind 4 MB a byte takes no longer than behind
    none, give or take a loaded machine.
    """

    def seconds(before: bytes) -> float:
        chunks = [before, *[b"x"] * 1_000]
        transport = BudgetTransport(Inner(Answer(chunks, {"content-type": content_type})), pacer=Pacer())
        response = transport.handle_request(httpx.Request("POST", "http://a.test" + CHAT, json=ask()))
        reader = iter(response.stream)
        next(reader)
        began = time.thread_time()
        for _ in zip(range(990), reader, strict=False):  # before its end, where the whole is read once
            pass
        took = time.thread_time() - began
        response.close()
        return took

    small = min(seconds(start) for _ in range(3))
    large = min(seconds(start + b"x" * 4 * MB) for _ in range(3))
    assert large < 8 * small + 0.01


# ---------------------------------------------------------------- answers that cannot be believed


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"[1, 2]", "application/json"),
        (b'"usage"', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"a":' * 100_000, "application/json"),
        (b'{"usage": {"prompt_tokens": ' + b"9" * 5_000 + b"}}", "application/json"),
        (b'{"usage": {"prompt_tokens": NaN, "completion_tokens": 10}}', "application/json"),
        (b'{"usage": \xff\xfe}', "application/json"),
        (b"<html>busy</html>", "text/html"),
        (b"", ""),
        (b"data: {", "text/event-stream"),
        (b"data: [DONE]\n\n", "text/event-stream"),
        (b": ping\n\n" * 9, "text/event-stream"),
        (b'data: {"error": {"message": "overloaded"}}\n\n', "text/event-stream"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_an_answer_without_usage_is_unknown(caller, body, content_type):
    """It was answered with 200, so it may have been billed: never 0."""
    pacer = Pacer()
    with Server(whole(body, f"content-type: {content_type}")) as server:
        response = caller.send(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=ask())
    assert response.content == body
    assert_unknown(pacer, response.extensions["pacer"])


NONSENSE = [-1, "30", 30.5, 10**30, True, None, [30], {}]


@pytest.mark.parametrize(
    "usage",
    [
        *({"prompt_tokens": 20, "completion_tokens": value} for value in NONSENSE),
        *({}, [], "30", 30, False),
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 10**6, "completion_tokens": 9},
    ],
    ids=repr,
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_usage_that_cannot_be_believed_is_unknown(usage, streamed):
    """Never 0, never a crash; more than twenty times the worst case counts as nonsense too."""
    text = answer_json(usage)
    body = b'data: {"choices": [], "usage": %s}\n\n' % json.dumps(usage).encode() if streamed else text
    pacer, receipt, _ = metered([body], SSE if streamed else JSON)
    assert_unknown(pacer, receipt)


def spoilt(usage: dict[str, Any], value: object) -> Iterator[dict[str, Any]]:
    """The usage with each of its counts in turn replaced by ``value``."""
    for name, told in usage.items():
        if isinstance(told, dict):
            yield from ({**usage, name: inner} for inner in spoilt(told, value))
        elif name != "done":
            yield {**usage, name: value}


def said_in(dialect: Dialect, usage: dict[str, Any], streamed: bool) -> tuple[Pacer, Any]:
    """An answer of the dialect with this usage: the pacer, and the receipt."""
    pacer = Pacer()
    chunks = dialect.stream(usage) if streamed else [dialect.answer(usage)]
    headers = {"content-type": dialect.kind if streamed else "application/json"}
    with httpx.Client(transport=BudgetTransport(Inner(Answer(chunks, headers)), pacer=pacer)) as client:
        url = "http://a.test" + (dialect.streamed_path if streamed else dialect.path)
        return pacer, client.post(url, json={**ask(), **dialect.cap(500)}).extensions["pacer"]


@pytest.mark.parametrize("value", [-1, "30", 30.5, 10**7, 10**18, True, [30], {}, float("nan")], ids=repr)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", DIALECTS)
def test_one_number_that_makes_no_sense_makes_a_usage_unknown_in_any_dialect(name, streamed, value):
    """Whichever of its numbers it is; never free, never added up, never joined to a text."""
    dialect = DIALECTS[name]
    for usage in spoilt(dialect.usage(20, 10), value):
        assert_unknown(*said_in(dialect, usage, streamed))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", DIALECTS)
def test_an_answer_of_zero_or_without_usage_is_unknown_in_any_dialect(name, streamed):
    """There was text, so there were tokens."""
    dialect = DIALECTS[name]
    usages: list[dict[str, Any]] = [dialect.usage(0, 0), {"usage": None}, {"usage": {}}, {}]
    for usage in usages:
        assert_unknown(*said_in(dialect, usage, streamed))


def test_a_whole_float_is_a_number_of_tokens():
    """Cohere reports floats."""
    pacer, _, _ = metered([answer_json({"prompt_tokens": 20.0, "completion_tokens": 10.0})])
    assert books(pacer) == (30, 0, 0, 0)


def test_more_than_the_worst_case_is_booked_in_full():
    """Never clamped: overspend would become invisible."""
    pacer, receipt, _ = metered([answer_json({"prompt_tokens": 20, "completion_tokens": 5_000})])
    assert receipt.reserved < 5_020
    assert books(pacer) == (5_020, 0, 0, 0)


def test_an_answer_that_was_read_below_is_metered_from_memory(caller):
    """No byte of it will ever pass; caches and mocks answer so."""
    pacer = Pacer()

    class Cache(Inner):
        def handle_request(self, request):
            return caller.library.Response(200, content=answer_json(), headers=JSON)

    response = caller.send(BudgetTransport(Cache(), pacer=pacer), json=ask())
    assert response.content == answer_json()
    assert response.extensions["pacer"].charged == 30
    assert books(pacer) == (30, 0, 0, 0)


# ---------------------------------------------------------------- a meter that is wrong itself


def broken(*_: object) -> Any:
    raise ZeroDivisionError("a bug")


def with_bug(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    monkeypatch.setattr(transports.exchange, "recognise", lambda *_: replace(openai_chat.WIRE, **members))


HELLO = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\n'


@pytest.mark.parametrize("cuts", [[], [10], [10, 70], [60]], ids=repr)
@pytest.mark.parametrize("usage_asked", [True, False])
@pytest.mark.parametrize("breaks", [False, True], ids=["whole", "broken"])
def test_a_bug_in_reading_events_costs_no_byte(monkeypatch, caller, cuts, usage_asked, breaks):
    """The call is unknown; the caller gets every byte once, also those that were held back."""
    with_bug(monkeypatch, read_event=broken)
    text = HELLO * 3
    parts: list[Any] = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    if breaks:
        parts.append(caller.library.ReadError("gone"))
    pacer = Pacer()
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage_asked else {}
    transport = BudgetTransport(Inner(Answer(parts, SSE)), pacer=pacer)
    got: list[bytes] = []

    breaking = pytest.raises(caller.library.ReadError) if breaks else nullcontext()
    with breaking:
        caller.stream(transport, into=got, json=ask(stream=True, **options))
    assert b"".join(got) == text
    assert books(pacer)[0] > 0
    assert books(pacer)[1] > 400
    assert books(pacer)[2:] == (0, 0)


def test_a_bug_in_one_event_among_good_ones_costs_no_byte(monkeypatch):
    """What was read before in the same chunk, and what follows, passes too."""
    seen = 0

    def second_breaks(data: bytes, tally: Tally) -> bool:
        nonlocal seen
        seen += 1
        return broken() if seen == 2 else False

    with_bug(monkeypatch, read_event=second_breaks)
    pacer = Pacer()
    chunks = [HELLO + HELLO[:20], HELLO[20:] + HELLO + HELLO[:9], HELLO[9:]]
    with httpx.Client(transport=BudgetTransport(Inner(Answer(chunks, SSE)), pacer=pacer)) as client:
        assert client.post("http://a.test" + CHAT, json=ask(stream=True)).content == HELLO * 4
    assert books(pacer)[2:] == (0, 0)


@pytest.mark.parametrize("member", ["read_answer", "usage"])
def test_a_bug_in_reading_an_answer_breaks_nothing(monkeypatch, member):
    """The caller gets the answer, the call is unknown."""
    with_bug(monkeypatch, **{member: broken})
    pacer, receipt, got = metered([answer_json()])
    assert got == answer_json()
    assert_unknown(pacer, receipt)


USED = b'data: {"choices": [{}], "usage": {"prompt_tokens": 20, "completion_tokens": 1}}\n\n'


def breaks_later(data: bytes, tally: Tally) -> bool:
    """The bug shows after a usage was read."""
    return broken() if b"content" in data else openai_chat.WIRE.read_event(data, tally)


@pytest.mark.parametrize(
    ("members", "chunks", "headers"),
    [
        ({"read_event": broken}, [HELLO, HELLO, HELLO[:9]], SSE),
        ({"read_event": broken}, [HELLO * 3], SSE),
        ({"read_answer": broken}, [answer_json()], JSON),
        ({"usage": broken}, [answer_json()], JSON),
        ({"usage": broken}, [USED, USED], SSE),
        ({"read_event": breaks_later, "usage": broken}, [USED, HELLO], SSE),
    ],
    ids=["every event", "events of one chunk", "the answer", "the usage", "a streamed usage", "an event and the usage"],
)
@pytest.mark.parametrize("usage_asked", [True, False])
def test_a_bug_in_the_meter_is_logged_once_an_answer(monkeypatch, caplog, members, chunks, headers, usage_asked):
    """With the kind of the error and without its text, which might quote the answer."""
    with_bug(monkeypatch, **members)
    pacer = Pacer(run="nightly")
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage_asked else {}
    transport = BudgetTransport(Inner(Answer(chunks, headers)), pacer=pacer)
    with httpx.Client(transport=transport) as client:
        for answers in (1, 2):
            response = client.post("http://a.test" + CHAT, json=ask(stream=headers is SSE, **options))
            assert response.content == b"".join(chunks)
            logged = [record.getMessage() for record in caplog.records if record.name == "pacer"]
            assert logged == ["run nightly: an answer could not be metered (ZeroDivisionError)"] * answers
    assert books(pacer)[2:] == (0, 0)


def test_a_bug_in_the_meter_is_counted_once_an_answer(monkeypatch):
    """Whoever reads the status sees that the books go by estimates."""
    with_bug(monkeypatch, read_event=broken)
    pacer = Pacer()
    with httpx.Client(transport=BudgetTransport(Inner(Answer([HELLO] * 3, SSE)), pacer=pacer)) as client:
        for answers in (1, 2):
            client.post("http://a.test" + CHAT, json=ask(stream=True))
            assert pacer.status().unread == answers


def test_a_bug_in_learning_breaks_nothing(monkeypatch, caller):
    """The answer passes, and its bill is in the books already."""
    monkeypatch.setattr(Estimator, "learn", broken)
    pacer = Pacer()
    response = caller.send(BudgetTransport(Inner(Answer([answer_json()], JSON)), pacer=pacer), json=ask())
    assert response.content == answer_json()
    assert books(pacer) == (30, 0, 0, 0)
    assert pacer.status().unread == 1


def test_a_lesson_that_cannot_be_learned_breaks_nothing():
    """A body that is a stream and says it is empty has nothing to learn from."""
    pacer, inner = Pacer(), Inner(Answer([answer_json()], JSON))
    with httpx.Client(transport=BudgetTransport(inner, pacer=pacer)) as client:
        response = client.post("http://a.test" + CHAT, content=iter([b""]), headers={"content-length": "0"})
    assert response.content == answer_json()
    assert books(pacer)[2:] == (0, 0)


def test_a_bill_is_one_lesson_and_a_guess_is_none(caller):
    """The estimator learns from the provider's numbers, once a call; an answer without them teaches nothing."""
    pacer, expected, endpoint = Pacer(), Estimator(), openai_chat.WIRE.endpoint
    transport = BudgetTransport(Inner(Answer([b"{}"], JSON), Answer([answer_json()], JSON)), pacer=pacer)
    for answered in (False, True):
        request = caller.send(transport, json=ask()).request
        if answered:
            expected.learn("m", endpoint, estimate.measure(request.content), Usage(20, 10))
        assert pacer.estimator.input("m", estimate.measure(b"w" * 999)) == expected.input(
            "m", estimate.measure(b"w" * 999)
        )
        assert pacer.estimator.output("m", endpoint, None, 1) == expected.output("m", endpoint, None, 1)


def test_several_choices_teach_what_one_of_them_takes(caller):
    """The usage counts them together."""
    pacer = Pacer()
    caller.send(BudgetTransport(Inner(Answer([answer_json()], JSON)), pacer=pacer), json=ask(n=2))
    assert pacer.learned()[0].outputs[openai_chat.WIRE.endpoint].expected == 5
