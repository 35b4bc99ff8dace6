"""The body of an admitted answer: it passes as it is, a meter reads along, and its end settles the call once."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacer import Pacer
from tests.engine import Clock
from tests.servers import (
    CALLERS,
    CHAT,
    LIBRARIES,
    MESSAGES,
    Answer,
    Caller,
    Connection,
    Inner,
    Server,
    answer_json,
    ask,
    books,
    chunked,
    ok,
    whole,
)
from transports import BudgetTransport

SSE = {"content-type": "text/event-stream"}
CLAUDE = "http://model.test" + MESSAGES


def event(said: object, name: str = "") -> bytes:
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)  # as the providers write it
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return event({"id": "c", "choices": [choice], "usage": None})


USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}})
DONE = b"data: [DONE]\n\n"
TEXT = [event({"choices": [], "prompt_filter_results": []}), delta("He\u2028"), delta("llo"), delta("", "stop")]
OPENAI = b"".join([*TEXT, USAGE, DONE])
UNASKED = b"".join([*TEXT, DONE])
START = event(
    {"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 1}}}, "message_start"
)
WORD = event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}, "content_block_delta")
END = event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10}}, "message_delta")
ANTHROPIC = b"".join([START, event({"type": "ping"}, "ping"), WORD, WORD, END, event({"type": "message_stop"})])


def frame(payload: bytes) -> bytes:
    """An AWS frame without headers; nobody here checks its sums."""
    return (16 + len(payload)).to_bytes(4) + bytes(8) + payload + bytes(4)


def stream_of(*chunks: bytes | Exception, headers: dict[str, str] = SSE) -> Answer:
    return Answer(chunks, headers)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


def asked(usage: bool) -> dict[str, Any]:
    return ask(stream=True, **({"stream_options": {"include_usage": True}} if usage else {}))


def metered(
    caller: Caller, answer: Answer, *, url: str = "http://model.test" + CHAT, take: int | None = None, **options: Any
) -> tuple[Pacer, Any, bytes]:
    """One stream through a transport of its own pacer: the pacer, the receipt and what the caller got."""
    pacer = Pacer(**options)
    response, chunks = caller.stream(BudgetTransport(Inner(answer), pacer=pacer), take, url, json=asked(False))
    return pacer, response.extensions["pacer"], b"".join(chunks)


# ---------------------------------------------------------------- streams that are no server-sent events

FRAMES = {"content-type": "application/vnd.amazon.eventstream"}
CONVERSED = [
    frame(b'{"role":"assistant"}'),
    *[frame(b'{"contentBlockIndex":0,"delta":{"text":"x"}}')] * 3,
    frame(b'{"stopReason":"end_turn"}'),
    frame(b'{"usage":{"inputTokens":20,"outputTokens":10,"totalTokens":30}}'),
]
INVOKED = [
    frame(json.dumps({"bytes": base64.b64encode(json.dumps(said).encode()).decode()}).encode())
    for said in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 1}}},
        *[{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}] * 3,
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 20, "outputTokenCount": 10}},
    )
]
LINES = {"content-type": "application/x-ndjson"}
CHATTED = [
    *[b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}\n'] * 3,
    b'{"model":"m","done":true,"done_reason":"stop","prompt_eval_count":20,"eval_count":10}\n',
]
OTHERS = pytest.mark.parametrize(
    ("path", "events", "headers"),
    [
        ("/model/amazon.nova-lite-v1:0/converse-stream", CONVERSED, FRAMES),
        ("/model/anthropic.claude-3-haiku/invoke-with-response-stream", INVOKED, FRAMES),
        ("/api/chat", CHATTED, LINES),
    ],
    ids=["converse", "invoke", "ollama"],
)


@OTHERS
@given(places=st.lists(st.integers(0, 10_000), max_size=40))
def test_frames_and_lines_are_metered_at_any_split(path, events, headers, places):
    """The provider's number, and every byte."""
    pacer, body = Pacer(), b"".join(events)
    transport = BudgetTransport(Inner(stream_of(*cut(body, places), headers=headers)), pacer=pacer)
    with httpx.Client(transport=transport) as client:
        assert client.post("http://model.test" + path, json=asked(False)).content == body
    assert books(pacer) == (30, 0, 0, 0)


@OTHERS
def test_frames_and_lines_that_are_dropped_count_what_was_seen(caller, path, events, headers):
    """Three words of output, and the rest of the worst case as unknown."""
    answer = stream_of(*events, headers=headers)
    seen = next(number for number, event in enumerate(events) if event != events[1] and number > 1)
    pacer, receipt, _ = metered(caller, answer, url="http://model.test" + path, take=seen)
    assert receipt.source == "partial"
    spent, unknown, held, in_flight = books(pacer)
    assert spent >= 3
    assert spent + unknown == receipt.reserved
    assert (held, in_flight) == (0, 0)


# ---------------------------------------------------------------- whole streams

SPLITS = st.lists(st.integers(0, 10_000), max_size=40)


@pytest.mark.parametrize("usage_asked", [True, False])
@given(places=SPLITS)
def test_an_openai_stream_is_metered_at_any_split(usage_asked, places):
    """The same usage; who asked for it gets every byte, who did not gets all but the one event."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(stream_of(*cut(OPENAI, places))), pacer=pacer)
    with httpx.Client(transport=transport) as client:
        assert client.post("http://a.test" + CHAT, json=asked(usage_asked)).content == (
            OPENAI if usage_asked else UNASKED
        )
    assert books(pacer) == (30, 0, 0, 0)


@given(places=SPLITS)
def test_an_anthropic_stream_is_metered_at_any_split(places):
    """Input from the first event, output from the last, every byte delivered."""
    pacer = Pacer()
    with httpx.Client(transport=BudgetTransport(Inner(stream_of(*cut(ANTHROPIC, places))), pacer=pacer)) as client:
        assert client.post(CLAUDE, json=asked(False)).content == ANTHROPIC
    assert books(pacer) == (30, 0, 0, 0)


def test_a_stream_is_metered_in_all_four_clients(caller):
    """The usage is asked for, hidden, and charged."""
    pacer, receipt, got = metered(caller, stream_of(*TEXT, USAGE, DONE))
    assert got == UNASKED
    assert books(pacer) == (30, 0, 0, 0)
    assert (receipt.charged, receipt.unknown, receipt.source) == (30, 0, "provider")


def test_usage_is_asked_for_only_where_the_caller_did_not(caller):
    """The request that goes out asks; the one of the caller stays, and an asking one goes out as it is."""
    for usage in (False, True):
        inner = Inner(stream_of(OPENAI))
        response = caller.send(BudgetTransport(inner, pacer=Pacer()), json=asked(usage))
        (out,) = inner.requests
        assert json.loads(out.content) == asked(True)
        assert int(out.headers["content-length"]) == len(out.content)
        assert json.loads(response.request.content) == asked(usage)
        assert (out is response.request) == usage


@pytest.mark.parametrize("host", ["api.mistral.ai", "api.eu.mistral.ai", "codestral.mistral.ai"])
def test_mistral_is_not_asked_for_its_usage(caller, host):
    """It refuses members that it does not know, and tells the usage of each stream unasked."""
    inner = Inner(Answer([*TEXT, USAGE, DONE], SSE))
    _, got = caller.stream(BudgetTransport(inner, pacer=Pacer()), url=f"https://{host}{CHAT}", json=asked(False))
    assert b"stream_options" not in inner.requests[0].content
    assert got == [*TEXT, USAGE, DONE]


def test_text_is_not_hidden_because_usage_comes_with_it(caller):
    """Some providers report usage beside the last piece of text; that event is the caller's."""
    choice = {"index": 0, "delta": {"content": "!"}, "finish_reason": "stop"}
    last = event({"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 10}})
    pacer, _, got = metered(caller, stream_of(TEXT[1], last, DONE))
    assert got == TEXT[1] + last + DONE
    assert books(pacer) == (30, 0, 0, 0)


def test_an_unasked_stream_stays_so_when_switched_off(caller):
    """``include_usage=off`` leaves request and stream alone; such a call is charged by estimate, not as nothing."""
    pacer, inner = Pacer(), Inner(stream_of(UNASKED))
    response = caller.send(BudgetTransport(inner, pacer=pacer, include_usage="off"), json=asked(False))
    assert json.loads(inner.requests[0].content) == asked(False)
    assert response.content == UNASKED
    assert response.extensions["pacer"].source == "estimate"
    assert response.extensions["pacer"].charged > 2


def test_the_first_chunk_is_delivered_before_the_second_is_made(caller):
    """Nothing is buffered, also where an event has to be hidden later on."""
    inner = Inner(stream_of(*TEXT, USAGE, DONE))
    _, chunks = caller.stream(BudgetTransport(inner, pacer=Pacer()), 1, json=asked(False))
    assert chunks == TEXT[:1]
    assert inner.bodies[0].pulled == 1


LONG = [delta("word ")] * 15_000


@pytest.mark.parametrize("usage_asked", [True, False])
def test_a_long_stream_is_metered_in_little_memory(caller, usage_asked):
    """However long it is, some 64 KiB of it are put aside; what passes is what came, but for a hidden usage."""
    chunks, pacer = [*LONG, USAGE, DONE], Pacer()
    got: list[bytes] = []
    tracemalloc.start()
    try:
        caller.stream(BudgetTransport(Inner(Answer(chunks, SSE)), pacer=pacer), into=got, json=asked(usage_asked))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert got == (chunks if usage_asked else [*LONG, DONE])
    assert books(pacer) == (30, 0, 0, 0)


def test_of_an_event_without_end_nothing_is_kept():
    """Beyond the bound it is not read any more, and not held until the stream is over either."""
    kept = 0

    def endless() -> Iterator[bytes]:
        nonlocal kept
        for _ in range(200):
            yield b"x" * 65_536
        kept = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        transport = BudgetTransport(Inner(Answer(endless(), SSE)), pacer=Pacer())
        with (
            httpx.Client(transport=transport) as client,
            client.stream("POST", "http://a.test" + CHAT, json=asked(True)) as response,
        ):
            assert sum(map(len, response.iter_raw())) == 200 * 65_536
    finally:
        tracemalloc.stop()
    assert 0 < kept < 1_000_000


@pytest.mark.parametrize("usage_asked", [True, False])
def test_a_long_stream_is_metered_wherever_it_is_cut(usage_asked):
    """An event may be put aside in two parts."""
    text = b"".join([*LONG[:1_000], USAGE, DONE])
    for size in (997, 1_000, 4_001):
        chunks, pacer = [text[at : at + size] for at in range(0, len(text), size)], Pacer()
        _, got = CALLERS[0].stream(BudgetTransport(Inner(Answer(chunks, SSE)), pacer=pacer), json=asked(usage_asked))
        assert b"".join(got) == (text if usage_asked else text.replace(USAGE, b""))
        assert books(pacer) == (30, 0, 0, 0)


def test_deltas_before_a_usage_that_is_not_the_bill_were_seen(caller):
    """The stream ends in the middle of the text: both the usage so far and the text are lower bounds."""
    so_far = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    middle = event({"choices": [{"index": 0, "delta": {"content": "word "}}], "usage": so_far})
    pacer = Pacer()
    inner = Inner(Answer([*LONG[:50], middle], SSE))
    response, _ = caller.stream(BudgetTransport(inner, pacer=pacer), json=asked(True))
    assert response.extensions["pacer"].source == "estimate"
    assert books(pacer)[0] == 20 + 51


@pytest.mark.parametrize("usage_asked", [True, False])
@pytest.mark.parametrize("end", [[], [DONE]], ids=["no end", "end"])
def test_deltas_before_a_bill_that_cannot_be_believed_were_seen(caller, end, usage_asked):
    """They are all that is known of the output, and would be free where only what was seen is booked."""
    bad = event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": -1}})
    pacer = Pacer(unknown="seen")
    inner = Inner(Answer([*LONG[:50], bad, *end], SSE))
    response, _ = caller.stream(BudgetTransport(inner, pacer=pacer), json=asked(usage_asked))
    receipt = response.extensions["pacer"]
    assert receipt.source == "estimate"
    assert receipt.charged == receipt._place.call.least_input + 50


@pytest.mark.parametrize("usage_asked", [True, False])
def test_every_delta_of_a_long_stream_that_is_dropped_was_seen(caller, usage_asked):
    """Those that were read on the way and those that were only put aside."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(Answer([*LONG, USAGE, DONE], SSE)), pacer=pacer)
    response, _ = caller.stream(transport, take=2_500, json=asked(usage_asked))
    assert response.extensions["pacer"].charged >= 2_500


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_usage_is_hidden_among_events_that_say_there_is_none(caller, at_once):
    """OpenAI writes ``"usage":null`` into every other event; several events may come in one chunk."""
    silent = [delta("He"), delta("l"), delta("l"), delta("o"), delta("", "stop")]
    events = [*silent, USAGE, DONE]
    chunks = [b"".join(events[at : at + at_once]) for at in range(0, len(events), at_once)]
    pacer, got = Pacer(), list[bytes]()
    caller.stream(BudgetTransport(Inner(Answer(chunks, SSE)), pacer=pacer), into=got, json=asked(False))
    assert b"".join(got) == b"".join([*silent, DONE])
    assert books(pacer) == (30, 0, 0, 0)


def test_an_event_too_large_to_read_passes_whole(caller):
    """Beyond the bound the meter gives up, hands out what it kept back, and books the rest as unknown."""
    parts = [TEXT[0], *[b"x" * 1_000_000] * 10, b"\n\n", DONE]
    pacer, receipt, got = metered(caller, stream_of(*parts))
    assert got == b"".join(parts)
    assert receipt.source == "estimate"
    assert sum(books(pacer)[:2]) == receipt.reserved


CUMULATIVE = [
    event({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 20, "completion_tokens": made}})
    for made in (1, 5, 10)
]
LATER = event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60}})


@pytest.mark.parametrize(
    ("events", "charged"),
    [
        ([*TEXT, USAGE], 30),
        ([*TEXT, USAGE[:-2]], 30),
        ([*TEXT, USAGE[:-1], b": bye"], 30),
        ([*TEXT, USAGE, LATER, DONE], 60),
        ([*CUMULATIVE, DONE], 30),
        ([b"\xef\xbb\xbf", *TEXT, b": ping\n\n", USAGE.replace(b"data: ", b"data:"), DONE], 30),
        ([part.replace(b"\n", b"\r\n") for part in (*TEXT, USAGE, DONE)], 30),
        ([part.replace(b"\n", b"\r") for part in (*TEXT, USAGE, DONE)], 30),
        ([*TEXT, event({"choices": [{"delta": {"content": "x" * 5_000_000}}]}), USAGE, DONE], 30),
    ],
    ids=["no [DONE]", "no blank line at the end", "a comment at the end", "usage twice", "usage on every chunk",
         "byte order mark, comment and no space", "CRLF", "CR", "an event of 5 MB"],
)  # fmt: skip
def test_an_odd_stream_is_billed_by_its_last_usage(caller, events, charged):
    """Nothing is summed, nothing is missed, and every byte passes to the caller who asked for the usage."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(stream_of(*events)), pacer=pacer)
    _, chunks = caller.stream(transport, json=asked(True))
    assert chunks == events
    assert books(pacer) == (charged, 0, 0, 0)


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete", "response.failed"])
def test_a_responses_stream_is_billed_however_it_ends(caller, end):
    """Incomplete and failed answers cost what they made."""
    bill = {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30}
    events = [event({"type": "response.output_text.delta"}), event({"type": end, "response": {"usage": bill}}, end)]
    pacer, _, got = metered(caller, stream_of(*events), url="http://model.test/v1/responses")
    assert got == b"".join(events)
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("after", [[], [DONE], [event({"type": "message_stop"})]])
def test_an_error_inside_a_stream_is_no_bill(caller, after):
    """It began with 200, and what was made before the error is billed: seen as spent, the rest unknown."""
    broke = event({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "error")
    for url, events in (("http://model.test" + CHAT, TEXT), (CLAUDE, [START, WORD, WORD])):
        pacer, receipt, got = metered(caller, stream_of(*events, broke, *after), url=url)
        assert got == b"".join([*events, broke, *after])
        assert receipt.source == "estimate"
        assert receipt.charged >= 2
        assert books(pacer) == (receipt.charged, receipt.reserved - receipt.charged, 0, 0)


@given(places=SPLITS)
def test_a_gemini_stream_as_one_json_array_is_metered_at_any_split(places):
    """Without ``alt=sse`` the whole stream is one array."""
    told = {"promptTokenCount": 20, "candidatesTokenCount": 10, "totalTokenCount": 30}
    parts: list[dict[str, Any]] = [{"candidates": [{"content": {"parts": [{"text": "x"}]}}]}] * 3
    body = json.dumps([*parts, {"candidates": [{"finishReason": "STOP"}], "usageMetadata": told}], indent=1).encode()
    pacer = Pacer()
    inner = Inner(stream_of(*cut(body, places), headers={"content-type": "application/json; charset=UTF-8"}))
    with httpx.Client(transport=BudgetTransport(inner, pacer=pacer)) as client:
        url = "http://model.test/v1beta/models/g:streamGenerateContent"
        assert client.post(url, json={"contents": []}).content == body
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("way", ["raw", "bytes", "text", "lines", "read"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_stream_may_be_read_in_any_way(caller, way, encoding):
    """The same pieces as without us, and the same bill."""
    packed = gzip.compress(OPENAI) if encoding == "gzip" else OPENAI
    answer = Answer(cut(packed, list(range(0, 900, 7))), {**SSE, "content-encoding": encoding})
    pacer = Pacer()

    def block(transport: Any) -> Any:
        with (
            caller.library.Client(transport=transport) as client,
            client.stream("POST", CLAUDE.replace(MESSAGES, CHAT), json=asked(True)) as response,
        ):
            return response.read() if way == "read" else list(getattr(response, f"iter_{way}")())

    async def wait(transport: Any) -> Any:
        async with (
            caller.library.AsyncClient(transport=transport) as client,
            client.stream("POST", CLAUDE.replace(MESSAGES, CHAT), json=asked(True)) as response,
        ):
            if way == "read":
                return await response.aread()
            return [piece async for piece in getattr(response, f"aiter_{way}")()]

    paced = BudgetTransport(Inner(answer), pacer=pacer)
    got = caller.run(lambda: block(paced), lambda: wait(paced))
    assert got == caller.run(lambda: block(Inner(answer)), lambda: wait(Inner(answer)))
    assert books(pacer) == (30, 0, 0, 0)


class Ship(pydantic.BaseModel):
    """What a parsed answer is."""

    name: str


def test_the_helpers_of_openai_are_metered():
    """Raw responses, streamed responses, ``parse`` and ``stream``: whatever reads the body, it is billed once."""
    pacer = Pacer()
    parsed = json.loads(answer_json())
    parsed["choices"][0]["message"]["content"] = '{"name": "Beagle"}'
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    words = [event({**chunk, "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]})] * 3
    usage = event({**chunk, "choices": [], "usage": json.loads(answer_json())["usage"]})
    whole_one = Answer([json.dumps(parsed).encode()], {"content-type": "application/json"})
    inner = Inner(whole_one, whole_one, whole_one, stream_of(*words, usage, DONE))
    with openai.OpenAI(
        api_key="k", http_client=openai.DefaultHttpxClient(transport=BudgetTransport(inner, pacer=pacer))
    ) as client:
        chat: Any = client.chat.completions
        said = ask()
        assert chat.with_raw_response.create(**said).parse().usage.total_tokens == 30
        assert books(pacer) == (30, 0, 0, 0)
        with chat.with_streaming_response.create(**said) as response:
            assert books(pacer)[3] == 1
            assert json.loads(b"".join(response.iter_bytes())) == parsed
        assert books(pacer) == (60, 0, 0, 0)
        assert chat.parse(**said, response_format=Ship).choices[0].message.parsed == Ship(name="Beagle")
        assert books(pacer) == (90, 0, 0, 0)
        with chat.stream(**said) as stream:
            assert stream.get_final_completion().choices[0].message.content == "xxx"
        assert books(pacer) == (120, 0, 0, 0)


def test_the_helpers_of_anthropic_are_metered():
    """``messages.stream`` reads on to the end by itself; a streaming response that is left early is unknown."""
    message: dict[str, object] = {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 20, "output_tokens": 1},
    }  # fmt: skip
    block = {"type": "text", "text": ""}
    events = [
        event({"type": "message_start", "message": message}, "message_start"),
        event({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start"),
        event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
              "content_block_delta"),
        event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
               "usage": {"output_tokens": 10}}, "message_delta"),
        event({"type": "message_stop"}, "message_stop"),
    ]  # fmt: skip
    pacer = Pacer()
    transport = BudgetTransport(Inner(stream_of(*events)), pacer=pacer)
    with anthropic.Anthropic(api_key="k", http_client=anthropic.DefaultHttpxClient(transport=transport)) as client:
        messages: Any = client.messages
        with messages.stream(**ask()) as stream:
            assert stream.get_final_text() == "x"
        assert books(pacer) == (30, 0, 0, 0)
        with messages.with_streaming_response.create(**ask(stream=True)) as response:
            assert next(response.iter_bytes()) == events[0]
        spent, unknown, held, in_flight = books(pacer)
        assert spent == 30 + 21
        assert unknown > 400
        assert (held, in_flight) == (0, 0)


def test_an_open_stream_keeps_nothing_of_the_rate():
    """However slowly it drips: what its admission took comes back with time, and others go on."""
    clock = Clock()
    pacer = Pacer(tokens_per_second=100, burst=1_000, max_wait=0, clock=clock)
    transport = BudgetTransport(Inner(stream_of(*TEXT), ok()), pacer=pacer, refusal="raise")
    response = transport.handle_request(httpx.Request("POST", CLAUDE, json=ask(900, stream=True)))
    reader = iter(response.stream)
    next(reader)
    assert books(pacer)[3] == 1
    clock.now += 30
    assert pacer.status().tokens_available == 1_000
    with httpx.Client(transport=transport) as client:
        assert client.post(CLAUDE, json=ask(900)).status_code == 200
    assert books(pacer)[3] == 1
    response.close()
    assert books(pacer)[2:] == (0, 0)


# ---------------------------------------------------------------- streams that end too early


@pytest.mark.parametrize("unknown", ["worst", "seen"])
def test_a_dropped_stream_is_booked_by_what_was_seen(caller, unknown):
    """The least input and the deltas are spent; the rest of the hold is unknown, or where only what was seen is wanted,
    the rest of the expected input.
    """
    pacer, receipt, _ = metered(caller, stream_of(*TEXT, USAGE), take=3, unknown=unknown)
    call = receipt._place.call
    assert 0 < call.least_input < call.input
    total = receipt.reserved if unknown == "worst" else call.input + 2
    assert books(pacer) == (call.least_input + 2, total - call.least_input - 2, 0, 0)
    assert receipt.source == "partial"


@pytest.mark.parametrize("unknown", ["worst", "seen"])
def test_a_dropped_anthropic_stream_counts_its_deltas(caller, unknown):
    """The input is known from the first event; the deltas seen since are output that was billed."""
    pacer, receipt, _ = metered(caller, stream_of(START, WORD, WORD, WORD, END), url=CLAUDE, take=4, unknown=unknown)
    assert books(pacer) == (20 + 3, receipt.reserved - 23 if unknown == "worst" else 0, 0, 0)


def test_a_stream_without_its_bill_is_unknown(caller):
    """``message_start`` is not the bill, even where the stream ended in good order."""
    pacer, receipt, got = metered(caller, stream_of(START, WORD), url=CLAUDE)
    assert got == START + WORD
    assert receipt.source == "estimate"
    assert sum(books(pacer)[:2]) == receipt.reserved


def test_an_invalid_last_usage_is_not_mended_with_an_earlier_one(caller):
    """A usage that cannot be believed makes the call unknown."""
    good = event({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 20, "completion_tokens": 1}})
    bad = event({"choices": [], "usage": {"prompt_tokens": "20", "completion_tokens": 10}})
    pacer, receipt, _ = metered(caller, stream_of(good, bad, DONE))
    assert receipt.source == "estimate"
    assert sum(books(pacer)[:2]) == receipt.reserved


def test_a_broken_stream_raises_as_it_did_before(caller):
    """The very exception, after all bytes that came; settled at once."""
    broken = caller.library.ReadError("gone")
    pacer, inner = Pacer(), Inner(stream_of(TEXT[1], TEXT[2][:9], broken))
    got: list[bytes] = []
    with pytest.raises(caller.library.ReadError) as caught:
        caller.stream(BudgetTransport(inner, pacer=pacer), into=got, json=asked(False))
    assert caught.value is broken
    assert b"".join(got) == TEXT[1] + TEXT[2][:9]
    spent, unknown, held, in_flight = books(pacer)
    assert spent > 1
    assert unknown > 400
    assert (held, in_flight) == (0, 0)


BROKEN: dict[str, Any] = {
    "chunked body cut": chunked(TEXT[:2], "content-type: text/event-stream", end=b""),
    "chunk cut": chunked(TEXT[:2], "content-type: text/event-stream", end=b"ff\r\ndata"),
    "length not reached": whole(b"", "content-type: text/event-stream").replace(b"length: 0", b"length: 99") + DONE,
}


@pytest.mark.parametrize("kind", [*BROKEN, "reset"])
def test_a_body_cut_by_the_network_is_settled_at_once(caller, kind):
    """The caller sees the error of the library; input is spent, the rest unknown, nothing stays held."""

    def play(connection: Connection) -> None:
        server.hear(connection)
        connection.write(BROKEN.get(kind) or BROKEN["chunked body cut"])
        if kind == "reset":
            connection.reset()

    pacer = Pacer()
    with Server(play) as server, pytest.raises((caller.library.RemoteProtocolError, caller.library.ReadError)):
        caller.stream(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=asked(False))
    spent, unknown, held, in_flight = books(pacer)
    assert spent > 0
    assert unknown > 400
    assert (held, in_flight) == (0, 0)


@pytest.mark.parametrize("end", ["0\r\n\r\n", "0\r\nx-checksum: 1\r\n\r\n", None])
def test_a_stream_over_the_network_is_metered(caller, end):
    """Chunked byte by byte, with trailers, or ended by closing the connection."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nconnection: close\r\n\r\n"
    drops = chunked((OPENAI[i : i + 1] for i in range(len(OPENAI))), "CONTENT-TYPE: Text/Event-Stream", end=b"")

    def play(connection: Connection) -> None:
        server.hear(connection)
        connection.write(head + OPENAI if end is None else drops + end.encode())

    pacer = Pacer()
    with Server(play) as server:
        _, chunks = caller.stream(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=asked(False))
    assert b"".join(chunks) == UNASKED
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("reads", [0, 1])
def test_a_stream_closed_early_is_settled_first_and_once(caller, reads):
    """Before anything below can fail or be cancelled; a second close changes nothing. The inner stream hears both."""
    pacer, inner = Pacer(), Inner(stream_of(*TEXT))
    transport = BudgetTransport(inner, pacer=pacer)
    request = caller.library.Request("POST", CLAUDE, json=asked(False))
    seen: list[tuple[int, int, int, int]] = []

    def fails() -> None:
        seen.append(books(pacer))
        raise OSError("below")

    async def afails() -> None:
        fails()

    def play() -> None:
        stream = transport.handle_request(request).stream
        inner.bodies[0].close = fails
        reader = iter(stream)
        assert [next(reader) for _ in range(reads)] == TEXT[:reads]
        for _ in range(2):
            with pytest.raises(OSError, match="below"):
                stream.close()

    async def aplay() -> None:
        stream = (await transport.handle_async_request(request)).stream
        inner.bodies[0].aclose = afails
        reader = aiter(stream)
        assert [await anext(reader) for _ in range(reads)] == TEXT[:reads]
        for _ in range(2):
            with pytest.raises(OSError, match="below"):
                await stream.aclose()

    caller.run(play, aplay)
    assert seen == [books(pacer)] * 2
    assert seen[0][1] > 400
    assert seen[0][2:] == (0, 0)


def test_an_answer_that_nobody_reads_or_closes_is_settled_when_collected():
    """No hold stays for ever, and the mistake is shown."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(stream_of(*TEXT)), pacer=pacer)
    kept = [transport.handle_request(httpx.Request("POST", CLAUDE, json=asked(False)))]
    gc.collect()
    assert books(pacer)[3] == 1
    with pytest.warns(ResourceWarning, match="dropped without being read or closed"):
        kept.clear()
    gc.collect()
    assert books(pacer)[2:] == (0, 0)
    assert books(pacer)[1] > 400


def test_a_reader_dropped_after_one_chunk_is_settled():
    """A generator that is let go settles by being closed, without a warning."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(stream_of(*TEXT)), pacer=pacer)
    response = transport.handle_request(httpx.Request("POST", CLAUDE, json=asked(False)))
    reader = response.iter_raw()
    next(reader)
    del reader
    gc.collect()
    assert books(pacer)[2:] == (0, 0)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_a_cancelled_reader_is_settled(library: Any):
    """A task that is cancelled between two chunks leaves nothing held."""
    pacer = Pacer()

    async def play() -> None:
        read = asyncio.Event()

        class Hanging(library.AsyncByteStream):
            async def __aiter__(self):
                yield TEXT[1]
                read.set()
                await asyncio.Event().wait()

        class Endless:
            async def handle_async_request(self, request):
                return library.Response(200, headers=SSE, stream=Hanging())

            async def aclose(self):
                """Nothing to close."""

        async with library.AsyncClient(transport=BudgetTransport(Endless(), pacer=pacer)) as client:
            call = asyncio.create_task(client.post("http://a.test" + CHAT, json=asked(False)))
            await read.wait()
            assert books(pacer)[3] == 1
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert books(pacer)[2:] == (0, 0)
            assert books(pacer)[1] > 400

    asyncio.run(play())


def test_a_stream_whose_event_loop_is_closed_under_it_is_settled_when_collected():
    """Nobody can await its close any more; the books do not need to."""
    pacer = Pacer(ceiling=10_000)
    transport = BudgetTransport(Inner(Answer([*TEXT, USAGE], SSE)), pacer=pacer)
    kept: list[Any] = []

    async def abandoned() -> None:
        client = httpx.AsyncClient(transport=transport)
        request = client.build_request("POST", "http://a.test" + CHAT, json=ask(stream=True))
        kept.append(await client.send(request, stream=True))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandoned())
    loop.close()
    assert books(pacer)[3] == 1
    kept.clear()
    with pytest.warns(ResourceWarning, match="dropped without being read or closed"):
        gc.collect()
    assert books(pacer)[2:] == (0, 0)
    assert books(pacer)[1] > 400


OPEN_AT_EXIT = """
import asyncio, httpx
from pacer import Pacer
from transports import BudgetTransport

class Inner(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=httpx.ByteStream(b"data: 1"))

async def main():
    client = httpx.AsyncClient(transport=BudgetTransport(Inner(), pacer=pacer))
    request = client.build_request("POST", "http://a.test/v1/chat/completions", json={"model": "m", "max_tokens": 9})
    kept.append(await client.send(request, stream=True))

pacer, kept = Pacer(ceiling=10_000), []
asyncio.run(main())
print(pacer.status().in_flight)
"""


def test_an_answer_that_is_open_when_the_interpreter_ends_makes_no_noise():
    """What is left to settle is settled or lost with the process; nothing is printed and nothing hangs."""
    ended = subprocess.run([sys.executable, "-c", OPEN_AT_EXIT], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")
