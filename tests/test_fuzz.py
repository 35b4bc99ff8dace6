"""Hostile answers, headers and requests: the caller gets what they get without us, and the books stay sane."""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pacer import Pacer
from tests.dialects import DIALECTS, Dialect, openai
from tests.servers import CALLERS, CHAT, URL, Answer, Caller, Inner, answer_json, ask, books
from transports import BudgetTransport
from transports.sse import EventReader

# Without shrinking: it takes longer than a test may, and the bodies are small.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
KINDS = st.sampled_from(
    ["application/json", "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream",
     "TEXT/Event-Stream;charset=utf-8", "text/html", "junk", ""]
)  # fmt: skip
PACKED = {
    "": lambda text: text,
    "identity": lambda text: text,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": lambda text: zstandard.ZstdCompressor().compress(text),
    "gzip, br": lambda text: brotli.compress(gzip.compress(text)),
    "x-unheard-of": lambda text: text,
}
NUMBERS: st.SearchStrategy[object] = st.one_of(
    st.integers(-5, 90),
    st.sampled_from([10**6, 10**18, 2**53 + 1, 10**30, -(10**30), 30.5, 30.0, 1e308, True, None, "30", [], {}, [30]]),
)
SPLICES = st.sampled_from(
    [b"", b"\x00", b'"', b"{", b"}", b"\n", b"\r\n\r\n", b"\n\n", b"data: ", b"\xff\xfe", b"\xe2\x80\xa8", b"NaN",
     b"Infinity", b"1e999", b"-", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b'"usage": {', b"[DONE]",
     b'\\ud800', b"\xff\xff\xff\xff", b"\x00\x00\x00\x10"]
)  # fmt: skip


def spoilt(usage: dict[str, object], values: list[object]) -> dict[str, object]:
    """The same members with other values, the inner ones first."""
    return {
        name: spoilt(value, values) if isinstance(value, dict) else values.pop(0) if values else value
        for name, value in usage.items()
    }


@st.composite
def mutated(draw: st.DrawFn, text: bytes) -> bytes:
    """Up to four cuts, doublings, flips and splices."""
    found = bytearray(text)
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.integers(0, len(found))), draw(st.integers(0, 60))
        match draw(st.sampled_from(["cut", "double", "flip", "splice", "end"])):
            case "cut":
                del found[at : at + size]
            case "double":
                found[at:at] = found[at : at + size]
            case "flip" if found:
                found[at % len(found)] ^= 1 << (size % 8)
            case "splice":
                found[at:at] = draw(SPLICES)
            case "end":
                del found[at:]
    return bytes(found)


@st.composite
def hostile(draw: st.DrawFn, dialect: Dialect) -> tuple[bytes, str, str]:
    """A body, its content type and its encoding; any of the three may be a lie."""
    usage = spoilt(dialect.usage(20, 10), draw(st.lists(NUMBERS, max_size=4)))
    streamed = draw(st.booleans())
    text = b"".join(dialect.stream(usage)) if streamed else dialect.answer(usage)
    if draw(st.integers(0, 9)) == 0:
        text = draw(st.binary(max_size=200))
    kind = draw(st.just(dialect.kind if streamed else "application/json") | KINDS)
    encoding = draw(st.just("") | st.sampled_from(list(PACKED)))
    packed = PACKED[draw(st.just(encoding) | st.sampled_from(list(PACKED)))]
    return draw(mutated(packed(draw(mutated(text))))), kind, encoding


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """What the logger of the house says meanwhile."""
    records: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = records.append  # type: ignore[method-assign, assignment]  # all it is to do
    logging.getLogger("pacer").addHandler(listener)
    try:
        yield records
    finally:
        logging.getLogger("pacer").removeHandler(listener)


def told(caller: Caller, transport: Any, decodes: bool, url: str, **request: Any) -> tuple[Any, Any, Any]:
    """What the caller gets: chunks or the decoded body, the class of the error, and the response if there is one."""
    got: list[bytes] = []
    try:
        if decodes:
            response = caller.send(transport, url=url, **request)
            return response.content, None, response
        response, _ = caller.stream(transport, url=url, into=got, **request)
    except caller.library.RequestError as error:
        return got, type(error), None
    return got, None, response


def assert_sane(pacer: Pacer, receipt: Any, size: int) -> None:
    """Settled once, never free, and within reason."""
    spent, unknown, held, in_flight = books(pacer)
    assert (held, in_flight, pacer.status().calls) == (0, 0, 1)
    assert spent > 0
    assert unknown >= 0
    if receipt is None:
        return
    assert (receipt.charged, receipt.unknown) == (spent, unknown)
    if receipt.source == "provider":
        assert unknown == 0
        assert spent <= 20 * receipt.reserved
    else:
        assert spent + unknown == max(spent, receipt.reserved)
        assert spent <= 20 * receipt.reserved + size  # no event is counted that was not there


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60, phases=PHASES)
@given(data=st.data())
def test_no_answer_breaks_a_call(name, data):
    """Of any dialect, type and encoding, true or not, in any chunks, broken off or not, read raw or decoded."""
    dialect, caller = DIALECTS[name], data.draw(st.sampled_from(CALLERS))
    body, kind, encoding = data.draw(hostile(dialect))
    chunks: list[bytes | Exception] = list(cut(body, data.draw(st.lists(st.integers(0, 10_000), max_size=8))))
    if data.draw(st.integers(0, 4)) == 0:
        chunks.append(caller.library.ReadError("gone"))
    headers = {"content-type": kind, **({"content-encoding": encoding} if encoding else {})}
    said = {**ask(), **dialect.cap(500), "stream": True, "stream_options": {"include_usage": True}}
    url = "http://model.test" + data.draw(st.sampled_from([dialect.path, dialect.streamed_path]))
    decodes, pacer = data.draw(st.booleans()), Pacer()
    expected = told(caller, Inner(Answer(chunks, headers)), decodes, url, json=said)
    transport = BudgetTransport(Inner(Answer(chunks, headers)), pacer=pacer)
    with logged() as lines:
        got = told(caller, transport, decodes, url, json=said)
    assert got[:2] == expected[:2]
    assert len(lines) <= 1
    assert_sane(pacer, got[2] and got[2].extensions["pacer"], len(body) + 9_000_000 * bool(encoding))


@settings(max_examples=150, phases=PHASES)
@given(data=st.data())
def test_hiding_the_usage_hides_nothing_else(data):
    """A caller who did not ask for usage gets every event but those that are nothing but usage, in order, whatever the
    stream is.
    """
    caller = data.draw(st.sampled_from(CALLERS))
    usage = spoilt(openai(20, 10), data.draw(st.lists(NUMBERS, max_size=4)))
    body = data.draw(mutated(b"".join([*DIALECTS["openai"].stream(usage), b"data: [DONE]\n\n"])))
    chunks = cut(body, data.draw(st.lists(st.integers(0, 10_000), max_size=8)))
    inner, pacer = Inner(Answer(chunks, {"content-type": "text/event-stream"})), Pacer()
    got, error, response = told(caller, BudgetTransport(inner, pacer=pacer), True, URL, json=ask(stream=True))
    assert error is None
    reader, rest = EventReader(), got
    for event in [*reader.feed(body), *reader.finish()]:
        if rest.startswith(event):
            rest = rest.removeprefix(event)
        else:
            assert b'"choices"' in event
            assert b'"usage"' in event
    assert rest == b""
    assert_sane(pacer, response.extensions["pacer"], len(body))


# ---------------------------------------------------------------- headers

NAMES = [b"retry-after", b"retry-after-ms", b"x-ratelimit-remaining-tokens", b"x-ratelimit-limit-tokens",
         b"x-ratelimit-reset-tokens", b"anthropic-ratelimit-requests-remaining",
         b"anthropic-ratelimit-requests-reset", b"ratelimitbysize-remaining", b"content-type", b"content-length",
         b"X-Other"]  # fmt: skip
VALUES = st.binary(max_size=20) | st.sampled_from(
    [b"", b"0", b"-1", b"1", b"1.5", b"nan", b"-inf", b"1e400", b"9" * 400, b"soon", b"1s", b"0001-01-01T00:00:00Z",
     b"9999-12-31T23:59:59+00:00", b"Fri, 31 Dec 9999 23:59:59 GMT", b"Mon, 32 Foo 2024 25:61:61 +9999", b"\xff\x00"]
)  # fmt: skip


@settings(max_examples=200, phases=PHASES)
@given(
    caller=st.sampled_from(CALLERS),
    status=st.sampled_from([200, 202, 206, 301, 400, 408, 413, 429, 500, 502, 503, 529, 599]),
    headers=st.dictionaries(st.sampled_from(NAMES), VALUES),
    path=st.sampled_from([CHAT, "/v1beta/models/g:generateContent"]),
)
def test_no_header_breaks_a_call(caller, status, headers, path):
    """Whatever they say, the answer passes, the pause is finite, and the next model's call goes at once."""
    answer, pacer, url = Answer([answer_json()], headers, status), Pacer(max_wait=0.1), "http://model.test" + path
    plain = told(caller, Inner(answer), False, url, json=ask())
    chunks, error, response = told(caller, BudgetTransport(Inner(answer), pacer=pacer), False, url, json=ask())
    assert (chunks, error) == plain[:2]
    assert response.headers.raw == plain[2].headers.raw
    assert books(pacer)[2:] == (0, 0)
    pause = pacer.status().server_pause_seconds
    assert math.isfinite(pause)
    assert 0 <= pause <= 66


# ---------------------------------------------------------------- requests

ANYTHING = st.recursive(
    NUMBERS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = st.dictionaries(
    st.sampled_from(["model", "messages", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of",
                     "stream", "stream_options", "prompt", "input", "options", "generationConfig", "inferenceConfig",
                     "thinking", "num_predict", "include_usage", "maxTokens", "maxOutputTokens"]),
    st.booleans() | ANYTHING,
)  # fmt: skip
PATHS = [
    *sorted({path.partition("?")[0] for one in DIALECTS.values() for path in (one.path, one.streamed_path)}),
    "/v1/completions", "/v1/embeddings", "/v1beta/models/g:embedContent", "/api/embed", "/brand/new",
    "/model/%ff%00/invoke", "/model/anthropic.x/invoke", "//chat/completions", "/v1/files",
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Any bytes, any JSON, or a request with some of its bytes changed."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=100))
    said = draw(ANYTHING | MEMBERS | MEMBERS.map(lambda more: {**ask(n=2, seed=10**20, stream=True), **more}))
    return draw(mutated(json.dumps(said).encode()))


@settings(max_examples=300, phases=PHASES)
@given(
    caller=st.sampled_from(CALLERS),
    path=st.sampled_from(PATHS),
    body=requests(),
    headers=st.fixed_dictionaries(
        {"content-type": st.sampled_from(["application/json", "text/plain", ""])},
        optional={"content-encoding": st.sampled_from(["gzip", "junk"])},
    ),
    ceiling=st.sampled_from([None, 600, 10**7]),
    output_cap=st.sampled_from(["lower", "inject", "leave"]),
)
def test_no_request_breaks_a_call(caller, path, body, headers, ceiling, output_cap):
    """It goes out as it came, but for a cap and a switch for usage; or it is refused, with a ceiling only."""
    inner = Inner(Answer([answer_json()], {"content-type": "application/json"}))
    pacer, url = Pacer(ceiling=ceiling), "http://model.test" + path
    transport = BudgetTransport(inner, pacer=pacer, output_cap=output_cap)
    with logged() as lines:
        got, error, response = told(caller, transport, True, url, content=body, headers=headers)
    lines = [line for line in lines if "of its ceiling" not in line.msg]  # which such a call may well book
    assert (error, lines) == (None, [])
    assert books(pacer)[2:] == (0, 0)
    if response.status_code == 402:
        assert ceiling is not None
        assert inner.requests == []
        return
    assert (got, response.status_code) == (answer_json(), 200)
    sent = inner.requests[0].content
    if sent != body:
        before, after = (json.loads(one.decode(errors="replace"), strict=False) for one in (body, sent))
        changed = {name for name in after if name not in before or repr(after[name]) != repr(before[name])}
        caps = {"max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_gen_len",
                "options", "generationConfig", "generation_config", "inferenceConfig"}  # fmt: skip
        assert changed <= caps | {"stream_options"}
        assert set(before) <= set(after)
        assert int(inner.requests[0].headers["content-length"]) == len(sent)
