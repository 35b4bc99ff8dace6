"""Wire formats: which request is a model call, what it says of itself, and which usage is believed."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacer.usage import Usage
from transports.wire import (
    FAMILIES,
    Tally,
    Wire,
    _families_of,
    anthropic,
    bedrock,
    cohere,
    edited,
    gemini,
    generic,
    ollama,
    openai_chat,
    openai_responses,
    openai_text,
    recognise,
)
from transports.wire.format import LARGEST_CAP

JSON = {"content-type": "application/json"}
UTF8 = {"content-type": "application/json; charset=utf-8"}
CHAT, CLAUDE, OTHER = openai_chat.WIRE, anthropic.WIRE, generic.WIRE
RESPONSES, COMPLETIONS, EMBEDDINGS = openai_responses.WIRE, openai_text.COMPLETIONS, openai_text.EMBEDDINGS
GEMINI, COHERE, OLLAMA = gemini.WIRE, cohere.WIRE, ollama.WIRE
WIRES = [CHAT, CLAUDE, OTHER]
HOSTILE = [
    b"",
    b"not json",
    b"[]",
    b'"text"',
    b"17",
    b"null",
    b"{",
    b"\xff\xfe{}",
    b"[" * 100_000,
    b'{"messages":' * 100_000,
    b'{"max_tokens": ' + b"9" * 5_000 + b"}",
    b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model": NaN}',
]


def named(wire: Any) -> str:
    return wire.provider if isinstance(wire, Wire) else repr(wire)[:30]


def body(**members: object) -> bytes:
    return json.dumps(members).encode()


def asking_usage(wire: Wire, text: bytes) -> bytes | None:
    """The request with the switch for usage on; ``None`` if it is not to be touched."""
    at = wire.read_request(text).usage_at
    return edited(text, {at: True}) if at is not None else None


# ---------------------------------------------------------------- which request is a model call


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("/v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
        ("/openai/v1/chat/completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/deployments/my-gpt/chat/completions", CHAT),
        ("/v1/messages", CLAUDE),
        ("/gateway/anthropic/v1/messages", CLAUDE),
        ("/v1/responses", RESPONSES),
        ("/v1/completions", COMPLETIONS),
        ("/v1/embeddings", EMBEDDINGS),
        ("/api/generate", OLLAMA),
        ("/api/chat", OLLAMA),
        ("/v2/chat", COHERE),
        ("/v1/chat", OTHER),
        ("/v1beta/models/gemini-2.0-flash:generateContent", GEMINI),
        ("/v1beta/models/gemini-2.0-flash:streamGenerateContent", GEMINI),
        ("/v1/projects/p/locations/l/publishers/google/models/gemini-2.0-flash:generateContent", GEMINI),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/c:streamRawPredict", anthropic.VERTEX),
        ("/v1/projects/p/locations/l/publishers/mistralai/models/m:rawPredict", OTHER),
        ("/model/anthropic.claude/invoke", anthropic.BEDROCK),
        ("/model/us.anthropic.claude-v1%3A0/invoke-with-response-stream", anthropic.BEDROCK),
        ("/model/meta.llama3/invoke", bedrock.INVOKE),
        ("/agents/7/invoke", OTHER),
        ("/model/amazon.nova/converse", bedrock.CONVERSE),
        ("/openai/deployments/batches-of-files/responses", RESPONSES),
        ("/openai/deployments/my-gpt/completions", COMPLETIONS),
        ("/model/amazon.nova/converse-stream", bedrock.CONVERSE),
    ],
)
@pytest.mark.parametrize("readable", [True, False])
def test_a_model_call_is_known_by_method_and_path(path, wire, readable):
    """On any host, behind any prefix, and with a body that cannot be read."""
    assert recognise("POST", path, body(messages=[]) if readable else None, JSON) is wire


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/models"])
def test_only_posts_are_model_calls(method, path):
    """Listing, reading back and deleting cost no tokens."""
    assert recognise(method, path, b"", {}) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages/count_tokens",
        "/v1beta/models/gemini-2.0-flash:countTokens",
        "/tokenize",
        "/v1/moderations",
        "/v1/files",
        "/v1/batches",
        "/v1/messages/batches",
        "/v1/responses/input_tokens",
    ],
)
def test_counting_is_not_charged(path):
    """Although its body looks like a model call."""
    assert recognise("POST", path, body(model="m", messages=[], input="x"), JSON) is None


@pytest.mark.parametrize("speech", ["messages", "prompt", "input", "contents"])
def test_an_unknown_path_that_names_a_model_and_speaks_to_it_is_a_model_call(speech):
    """Never free: a new endpoint is charged by estimate."""
    assert recognise("POST", "/brand/new", body(model="m", **{speech: "x"}), UTF8) is OTHER


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        (body(model="m"), JSON),
        (body(messages=[]), JSON),
        (body(model=3, messages=[]), JSON),
        (body(model="m", messages=None), JSON),
        (body(model="m", messages=[]), {"content-type": "text/plain"}),
        (body(model="m", messages=[]), {}),
        (body(note='"model" and "messages"'), JSON),
        (None, JSON),
        *((text, JSON) for text in HOSTILE),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_any_other_post_passes(text, headers):
    """A model without speech, speech without a model, no JSON, or nothing readable is somebody else's call."""
    assert recognise("POST", "/brand/new", text, headers) is None


def test_the_paths_of_other_traffic_are_not_remembered():
    """They may all differ, and would push out those of model calls."""
    before = _families_of.cache_info()
    assert {recognise("POST", f"/v1/orders/{number}", b"{}", JSON) for number in range(500)} == {None}
    assert _families_of.cache_info() == before


# ---------------------------------------------------------------- what a request says of itself


@pytest.mark.parametrize(
    ("wire", "said", "cap"),
    [
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_completion_tokens": 8}, 8),
        (CHAT, {"max_completion_tokens": 8, "max_tokens": 7}, 8),
        (CHAT, {"max_completion_tokens": None, "max_tokens": 7}, 7),
        (CLAUDE, {"max_tokens": 9}, 9),
        (OTHER, {"max_output_tokens": 10}, 10),
        (OTHER, {"max_tokens": 11}, 11),
        (CHAT, {}, None),
        (CHAT, {"max_tokens": "7"}, None),
        (CHAT, {"max_tokens": 0}, None),
        (CHAT, {"max_tokens": -7}, None),
        (CHAT, {"max_tokens": True}, None),
        (CHAT, {"max_tokens": [7]}, None),
        (CHAT, {"max_tokens": 7.5}, None),
        (CHAT, {"max_tokens": 7.0}, 7),
        (CHAT, {"max_tokens": 10**9}, LARGEST_CAP),
        (CLAUDE, {"max_tokens": 10**30}, None),
    ],
    ids=named,
)
def test_the_declared_output_cap_is_read(wire, said, cap):
    """Each family by its own name; nonsense counts as not declared, an absurd one as the largest."""
    assert wire.read_request(body(model="m", **said)).output_cap == cap


@pytest.mark.parametrize(
    ("n", "choices"), [(1, 1), (8, 8), (0, 1), (None, 1), ("8", 1), (-1, 1), (10**9, 1_024), (True, 1)]
)
@pytest.mark.parametrize("wire", [CHAT, OTHER], ids=named)
def test_the_number_of_choices_is_read(wire, n, choices):
    """Eight answers cost eight times the output; nonsense counts as one."""
    assert wire.read_request(body(model="m", n=n)).choices == choices


@pytest.mark.parametrize("wire", WIRES, ids=named)
@pytest.mark.parametrize("model", [None, "", 3, ["m"], {"m": 1}])
def test_a_model_without_a_name_is_unknown(wire, model):
    """It is charged all the same."""
    assert wire.read_request(body(model=model)).model == "unknown"


@pytest.mark.parametrize("wire", WIRES, ids=named)
def test_a_long_model_name_is_cut(wire):
    """It ends up in spans and in memory."""
    assert wire.read_request(body(model="m" * 10_000)).model == "m" * 128


@pytest.mark.parametrize("wire", WIRES, ids=named)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_hostile_request_says_nothing(wire, text):
    """No crash, no cap believed, no rewriting that the provider would understand otherwise."""
    call = wire.read_request(text)
    assert (call.output_cap, call.choices, call.usage_at) == (None, 1, None)


def test_usage_is_asked_for_in_a_stream():
    """The other members keep their bytes, also numbers and escapes that a decoder would change."""
    text = rb'{"model":"m","stream":true,"seed":12345678901234567890123,"t":1.10,"x":"\u00e9"}'
    asking = asking_usage(CHAT, text)
    assert asking is not None
    assert json.loads(asking) == {**json.loads(text), "stream_options": {"include_usage": True}}
    assert asking.startswith(text[:-1])


@pytest.mark.parametrize("options", [{"include_usage": False, "x": 1}, {}, None, "junk"])
def test_other_stream_options_are_kept(options):
    """``include_usage`` is added to what the caller chose."""
    asking = asking_usage(CHAT, body(model="m", stream=True, stream_options=options))
    kept = options if isinstance(options, dict) else {}
    assert asking is not None
    assert json.loads(asking)["stream_options"] == {**kept, "include_usage": True}


@pytest.mark.parametrize(
    "said",
    [{"stream": True, "stream_options": {"include_usage": True}}, {"stream": False}, {}, {"stream": "true"}],
)
def test_usage_is_not_asked_for_where_it_comes_anyway(said):
    """Asked already, or not a stream: the body stays."""
    assert asking_usage(CHAT, body(model="m", **said)) is None


# ---------------------------------------------------------------- which usage is believed


@pytest.mark.parametrize(
    ("wire", "said", "usage"),
    [
        (CHAT, {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}, Usage(20, 10)),
        (CHAT, {"prompt_tokens": 20.0, "completion_tokens": 10.0}, Usage(20, 10)),
        (CHAT, {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 90}, Usage(20, 10, tokens=90)),  # xAI
        (CHAT, {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 3}, Usage(20, 10)),
        (
            CHAT,
            {"prompt_tokens": 20, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 15}},
            Usage(20, 10, cached=15),
        ),
        (
            CHAT,
            {"prompt_tokens": 20, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 99}},
            Usage(20, 10, cached=20),
        ),
        (
            CHAT,
            {"prompt_tokens": 20, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 6}},
            Usage(20, 10, reasoning=6),
        ),
        (CHAT, {"prompt_tokens": 20, "completion_tokens": 10, "prompt_tokens_details": "junk"}, Usage(20, 10)),
        (CLAUDE, {"input_tokens": 20, "output_tokens": 10}, Usage(20, 10)),
        (
            CLAUDE,
            {
                "input_tokens": 20,
                "output_tokens": 10,
                "cache_read_input_tokens": 300,
                "cache_creation_input_tokens": 4_000,
            },
            Usage(4_320, 10, cached=300, written=4_000),
        ),
        (CLAUDE, {"input_tokens": 20, "output_tokens": 10, "cache_read_input_tokens": None}, Usage(20, 10)),
        (OTHER, {"prompt_tokens": 20, "total_tokens": 20}, Usage(20)),  # embeddings
        (OTHER, {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30}, Usage(20, 10)),  # Responses
        (OTHER, {"input_tokens": 20, "output_tokens": 10, "total_tokens": 90}, Usage(20, 10, tokens=90)),
    ],
    ids=named,
)
def test_the_larger_of_total_and_parts_is_charged(wire, said, usage):
    """Cached input is inside for OpenAI, beside for Anthropic; a total larger than its parts counts."""
    assert wire.usage(said) == usage


NONSENSE = [None, -1, "30", 30.5, float("nan"), float("inf"), 10**30, True, [], {}, [30], {"a": 1}]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize(
    ("wire", "member"),
    [
        (CHAT, "prompt_tokens"),
        (CHAT, "completion_tokens"),
        (CHAT, "total_tokens"),
        (CLAUDE, "input_tokens"),
        (CLAUDE, "output_tokens"),
        (OTHER, "prompt_tokens"),
        (OTHER, "output_tokens"),
    ],
    ids=named,
)
def test_a_usage_with_one_wrong_number_is_missing(wire, member, value):
    """It is never 0 and never a guess: the call goes to unknown."""
    whole = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    if member in ("input_tokens", "output_tokens"):
        whole = {"input_tokens": 20, "output_tokens": 10}
    assert wire.usage(whole) is not None
    assert wire.usage({**whole, member: value}) is None


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (CHAT, {}),
        (CHAT, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        (CHAT, {"completion_tokens": 10}),
        (CHAT, {"prompt_tokens": 20}),
        (CLAUDE, {}),
        (CLAUDE, {"input_tokens": 0, "output_tokens": 0}),
        (CLAUDE, {"input_tokens": 20}),
        (CLAUDE, {"output_tokens": 10}),
        (OTHER, {"tokens": 30}),
    ],
    ids=named,
)
def test_a_usage_that_says_nothing_is_missing(wire, said):
    """A part that is absent is not known, which is not the same as none."""
    assert wire.usage(said) is None


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just({"cached_tokens": -1})
NAMES = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cache_read_input_tokens",
     "prompt_tokens_details", "completion_tokens_details"]
)  # fmt: skip


@given(st.sampled_from(WIRES), st.dictionaries(NAMES, VALUES))
def test_no_usage_crashes_or_is_free(wire, said):
    """Whatever a provider reports, it is a positive number of tokens or it is missing."""
    usage = wire.usage(said)
    assert usage is None or (
        type(usage.tokens) is int and usage.tokens > 0 and usage.tokens >= usage.input + usage.output
    )


@pytest.mark.parametrize("wire", WIRES, ids=named)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_hostile_answer_has_no_usage(wire, text):
    """Neither as a whole answer nor as an event of a stream."""
    assert wire.read_answer(text) is None
    tally = Tally()
    assert wire.read_event(text, tally) is False
    assert not (tally.usage and tally.final)


@pytest.mark.parametrize("wire", WIRES, ids=named)
@pytest.mark.parametrize("usage", [None, [], "30", 30, True])
def test_a_usage_that_is_no_object_is_missing(wire, usage):
    """In a whole answer."""
    assert wire.read_answer(body(usage=usage)) is None


@pytest.mark.parametrize("wire", WIRES, ids=named)
def test_of_two_usages_in_one_answer_the_last_counts(wire):
    """As any JSON reader has it."""
    assert wire.read_answer(b'{"usage": {"a": 1}, "usage": {"a": 2}}') == {"a": 2}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v1/threads/t1/messages", body(role="user", content="x")),
        ("/api/v10/channels/1/messages", body(content='say "messages"')),
        ("/v1.0/chats/1/messages", body(body={"content": "x"})),
        ("/v3/mail.test/messages", b"from=a%40mail.test&text=x"),
    ],
)
def test_a_message_to_somebody_else_is_no_model_call(path, text):
    """Threads, chats and mailers take messages under the same last word of the path as Anthropic's calls."""
    assert recognise("POST", path, text, JSON) is None


def test_a_compressed_message_is_a_model_call():
    """Never free: it may say anything."""
    assert recognise("POST", "/v1/messages", gzip.compress(body(model="m", messages=[])), JSON) is CLAUDE


@pytest.mark.parametrize("late", [0, None])
def test_an_input_that_the_end_of_a_stream_leaves_out_is_that_of_its_start(late):
    """Some send 0 or null there; an output of 0 or null is never covered by an earlier one."""
    tally = Tally()
    CLAUDE.read_event(body(type="message_start", message={"usage": {"input_tokens": 20, "output_tokens": 1}}), tally)
    CLAUDE.read_event(body(type="message_delta", usage={"input_tokens": late, "output_tokens": 10}), tally)
    assert CLAUDE.usage(tally.usage) == Usage(20, 10)


# ---------------------------------------------------------------- OpenAI's other calls


@pytest.mark.parametrize(
    ("members", "cap", "choices"),
    [
        ({}, 16, 1),
        ({"max_tokens": 50, "n": 3}, 50, 3),
        ({"max_tokens": 50, "n": 2, "best_of": 5}, 50, 5),
        ({"max_tokens": 50, "prompt": ["a", "b"], "n": 2}, 50, 4),
        ({"max_tokens": 50, "prompt": [1, 2, 3]}, 50, 1),
        ({"max_tokens": 50, "prompt": [[1, 2], [3]]}, 50, 2),
    ],
)
def test_a_completion_counts_all_answers_it_makes(members, cap, choices):
    """Also those that ``best_of`` throws away, and one for each prompt."""
    call = COMPLETIONS.read_request(body(model="m", **members))
    assert (call.model, call.output_cap, call.choices) == ("m", cap, choices)


def test_a_streamed_completion_is_asked_for_its_usage_like_chat():
    asking = asking_usage(COMPLETIONS, body(model="m", prompt="x", stream=True))
    assert asking is not None
    assert json.loads(asking)["stream_options"] == {"include_usage": True}
    assert asking_usage(COMPLETIONS, asking) is None


def test_the_text_of_a_completion_stream_is_seen():
    tally = Tally()
    COMPLETIONS.read_event(body(choices=[{"text": "word"}]), tally)
    COMPLETIONS.read_event(body(choices=[{"text": "", "finish_reason": "stop"}]), tally)
    assert tally.seen_output == 1


def test_an_embedding_holds_no_output():
    call = EMBEDDINGS.read_request(body(model="m", input=["x"]))
    assert call.output_cap == 0
    assert EMBEDDINGS.usage({"prompt_tokens": 8, "total_tokens": 8}) == Usage(8)


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete", "response.failed"])
def test_every_end_of_a_responses_stream_carries_the_bill(end):
    tally = Tally()
    RESPONSES.read_event(body(type="response.created", response={"usage": None}), tally)
    RESPONSES.read_event(body(type="response.output_text.delta", delta="word"), tally)
    assert (tally.final, tally.seen_output) == (False, 1)
    usage = {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30, "input_tokens_details": {"cached_tokens": 5}}
    RESPONSES.read_event(body(type=end, response={"usage": usage}), tally)
    assert tally.final
    assert RESPONSES.usage(tally.usage) == Usage(20, 10, cached=5)


@pytest.mark.parametrize("value", [None, -1, "30", 30.5, True, [], {}], ids=repr)
def test_a_responses_usage_with_one_wrong_number_is_missing(value):
    for member in ("input_tokens", "output_tokens", "total_tokens"):
        assert RESPONSES.usage({"input_tokens": 20, "output_tokens": 10, "total_tokens": 30, member: value}) is None


def test_a_responses_call_declares_its_cap_in_its_own_way():
    call = RESPONSES.read_request(body(model="m", max_output_tokens=70, input="x", stream=True))
    assert (call.model, call.output_cap, call.cap_at) == ("m", 70, ("max_output_tokens",))


@pytest.mark.parametrize("wire", FAMILIES, ids=lambda wire: f"{wire.provider} {wire.path_end}")
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:20])
def test_hostile_bodies_break_no_other_reader(wire, text):
    wire.read_request(text)
    wire.read_answer(text)
    wire.read_event(text, Tally())


# ---------------------------------------------------------------- Gemini

GEMINI_USAGE: dict[str, object] = {
    "promptTokenCount": 20,
    "toolUsePromptTokenCount": 3,
    "candidatesTokenCount": 10,
    "thoughtsTokenCount": 7,
    "cachedContentTokenCount": 5,
    "totalTokenCount": 40,
}


def test_gemini_thinking_and_tools_are_beside_and_cached_content_is_inside():
    assert GEMINI.usage(GEMINI_USAGE) == Usage(23, 17, cached=5, reasoning=7, tokens=40)
    assert GEMINI.usage({"promptTokenCount": 20, "candidatesTokenCount": 10}) == Usage(20, 10)


@pytest.mark.parametrize("value", [None, -1, "30", 30.5, True, [], {}], ids=repr)
def test_a_gemini_usage_with_one_wrong_number_is_missing(value):
    for member in GEMINI_USAGE:
        assert GEMINI.usage({**GEMINI_USAGE, member: value}) is None
    assert GEMINI.usage({"promptTokenCount": 20}) is None


def test_gemini_names_its_model_in_the_path_and_its_cap_in_the_configuration():
    assert GEMINI.model_of is not None
    assert GEMINI.model_of("/v1beta/models/gemini-2.0-flash:streamGenerateContent") == "gemini-2.0-flash"
    call = GEMINI.read_request(body(contents=[], generationConfig={"maxOutputTokens": 50, "candidateCount": 2}))
    assert (call.output_cap, call.choices) == (50, 2)


def test_the_last_chunk_of_a_gemini_stream_is_its_bill():
    tally = Tally()
    part = {"content": {"parts": [{"text": "word"}]}}
    GEMINI.read_event(body(candidates=[part], usageMetadata={"promptTokenCount": 20}), tally)
    assert (tally.final, tally.seen_output) == (False, 1)
    GEMINI.read_event(body(candidates=[{**part, "finishReason": "STOP"}], usageMetadata=GEMINI_USAGE), tally)
    assert tally.final
    assert tally.usage == GEMINI_USAGE


def test_what_a_gemini_stream_says_after_its_end_is_its_bill():
    tally = Tally()
    GEMINI.read_event(body(candidates=[{"finishReason": "STOP"}], usageMetadata={"promptTokenCount": 20}), tally)
    GEMINI.read_event(body(usageMetadata=GEMINI_USAGE), tally)
    assert (tally.final, tally.usage) == (True, GEMINI_USAGE)


def test_a_prompt_that_gemini_blocks_is_billed_all_the_same():
    tally, usage = Tally(), {"promptTokenCount": 20, "totalTokenCount": 20}
    GEMINI.read_event(body(promptFeedback={"blockReason": "SAFETY"}, usageMetadata=usage), tally)
    assert tally.final
    assert GEMINI.usage(tally.usage) == Usage(20, 0, tokens=20)


def test_a_gemini_stream_as_one_array_is_billed_by_its_last_element():
    parts = [{"usageMetadata": {"promptTokenCount": 20}}, {"usageMetadata": GEMINI_USAGE}]
    assert GEMINI.read_answer(json.dumps(parts).encode()) == GEMINI_USAGE
    assert GEMINI.read_answer(json.dumps(parts[1]).encode()) == GEMINI_USAGE
    assert GEMINI.read_answer(b"[]") is None


# ---------------------------------------------------------------- what is inside and what is beside, by dialect

CONVERSE = bedrock.CONVERSE


@pytest.mark.parametrize(
    ("wire", "said", "usage"),
    [
        (RESPONSES, {"input_tokens_details": {"cached_tokens": 99}}, Usage(20, 10, cached=20)),
        (RESPONSES, {"output_tokens_details": {"reasoning_tokens": 6}}, Usage(20, 10, reasoning=6)),
        (RESPONSES, {"total_tokens": 90}, Usage(20, 10, tokens=90)),
        (RESPONSES, {"total_tokens": 3}, Usage(20, 10)),
        (CLAUDE, {"cache_read_input_tokens": 99}, Usage(119, 10, cached=99)),
        (CLAUDE, {"cache_creation_input_tokens": 99}, Usage(119, 10, written=99)),
        (COHERE, {"cached_tokens": 5}, Usage(20, 10, cached=5)),
        (COHERE, {"cached_tokens": 99}, Usage(20, 10, cached=20)),
        (COHERE, {"cached_tokens": "junk"}, Usage(20, 10)),
        (CONVERSE, {"cacheReadInputTokens": 5, "totalTokens": 30}, Usage(20, 10, cached=5)),
        (CONVERSE, {"cacheReadInputTokens": 5, "totalTokens": 35}, Usage(25, 10, cached=5)),
        (CONVERSE, {"cacheReadInputTokens": 99, "totalTokens": 30}, Usage(20, 10, cached=20)),
        (CONVERSE, {"cacheWriteInputTokens": 7, "totalTokens": 37}, Usage(27, 10, written=7)),
        (CONVERSE, {"totalTokens": 3}, Usage(20, 10)),
        (GEMINI, {"cachedContentTokenCount": 99}, Usage(20, 10, cached=20)),
        (GEMINI, {"thoughtsTokenCount": 6}, Usage(20, 16, reasoning=6)),
        (GEMINI, {"thoughtsTokenCount": 6, "totalTokenCount": 36}, Usage(20, 16, reasoning=6)),
        (GEMINI, {"totalTokenCount": 3}, Usage(20, 10)),
        (OLLAMA, {}, Usage(20, 10)),
        (CHAT, {"prompt_cache_hit_tokens": 5}, Usage(20, 10, cached=5)),  # DeepSeek
        (CHAT, {"prompt_cache_hit_tokens": 99}, Usage(20, 10, cached=20)),
    ],
    ids=named,
)
def test_cached_and_reasoning_tokens_count_as_their_dialect_has_them(wire, said, usage):
    """Inside or beside, and never more of them than there can be."""
    names = {
        RESPONSES: ("input_tokens", "output_tokens"),
        CLAUDE: ("input_tokens", "output_tokens"),
        CONVERSE: ("inputTokens", "outputTokens"),
        GEMINI: ("promptTokenCount", "candidatesTokenCount"),
        OLLAMA: ("prompt_eval_count", "eval_count"),
        CHAT: ("prompt_tokens", "completion_tokens"),
    }
    parts: dict[str, object] = {"tokens": {"input_tokens": 20.0, "output_tokens": 10.0}}
    if wire is not COHERE:
        parts = dict(zip(names[wire], (20, 10), strict=True))
    assert wire.usage({**parts, **said}) == usage


@pytest.mark.parametrize("wire", FAMILIES, ids=lambda wire: f"{wire.provider} {wire.path_end}")
def test_of_two_usages_in_any_dialect_the_last_counts(wire):
    """As any JSON reader has it."""
    name = {"gcp.gemini": "usageMetadata", "ollama": "prompt_eval_count"}.get(wire.provider, "usage")
    read = wire.read_answer(f'{{"{name}": {{"a": 1}}, "{name}": {{"a": 2}}}}'.encode())
    assert str({"a": 2}) in str(read)
    assert str({"a": 1}) not in str(read)
