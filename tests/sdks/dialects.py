"""How each API spells an answer of some text or of a tool's call, plain and streamed, and the tokens it is billed.

The shapes are those of the real ones as far as their SDKs look, with what makes them differ: named events, ``[DONE]``,
lines of JSON, where the usage stands and what its numbers include.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PIECES = ("Hel", "lo from ", "loopback")
TEXT = "".join(PIECES)
VECTOR = [0.25, 0.5]
TOOL = "weather"
MODEL = "m"

Json = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """What one call is billed: ``cached`` is a part of ``given``, ``thought`` of ``made``."""

    given: int
    cached: int
    made: int
    thought: int


@dataclass(frozen=True)
class Dialect:
    """One API: its plain answer, the bytes of its streamed one (``None`` if it has none), and their content type."""

    plain: Callable[[Json, Tokens], Json]
    streamed: Callable[[Json, Tokens], list[bytes]] | None = None
    kind: str = "text/event-stream"


def data(*events: object) -> list[bytes]:
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]


def named(*events: Json) -> list[bytes]:
    return [f"event: {event['type']}\n".encode() + data(event)[0] for event in events]


# ---------------------------------------------------------------- OpenAI chat, and who speaks it


def chat_usage(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.given,
        "completion_tokens": tokens.made,
        "total_tokens": tokens.given + tokens.made,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.thought},
    }


def wants_tool(said: Json) -> bool:
    """Whether there are tools, and none has answered yet."""
    turns = said.get("messages") or said.get("input")
    spoken = isinstance(turns, list) and any(t.get("role") == "tool" or "call_id" in t for t in turns)
    return bool(said.get("tools")) and not spoken


def chat_choice(name: str, said: Json) -> Json:
    call = {"id": "t1", "type": "function", "function": {"name": TOOL, "arguments": '{"town": "Rome"}'}}
    if wants_tool(said):
        turn = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call}]}
        return {"index": 0, name: turn, "finish_reason": "tool_calls"}
    return {"index": 0, name: {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}


def chat(said: Json, tokens: Tokens) -> Json:
    return {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL,
            "choices": [chat_choice("message", said)], "usage": chat_usage(tokens)}  # fmt: skip


def chat_chunk(*choices: Json, **more: object) -> Json:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices, **more}


def chat_chunks(said: Json) -> list[Json]:
    """All choices of a stream; the last one has the reason why it ended."""
    end: Json = {"index": 0, "delta": {}, "finish_reason": "tool_calls" if wants_tool(said) else "stop"}
    if wants_tool(said):
        return [{**chat_choice("delta", said), "finish_reason": None}, end]
    turns = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in PIECES)]
    return [*({"index": 0, "delta": turn, "finish_reason": None} for turn in turns), end]


def usage_chunk(said: Json, tokens: Tokens) -> list[Json]:
    """The chunk without choices that only those get who ask for it."""
    asked = (said.get("stream_options") or {}).get("include_usage")
    return [chat_chunk(usage=chat_usage(tokens))] if asked else []


def chat_stream(said: Json, tokens: Tokens) -> list[bytes]:
    chunks = [chat_chunk(choice) for choice in chat_chunks(said)]
    return [*data(*chunks, *usage_chunk(said, tokens)), b"data: [DONE]\n\n"]


def groq_stream(said: Json, tokens: Tokens) -> list[bytes]:
    """Groq tells the usage in its own member of the last chunk, too."""
    *chunks, last = [chat_chunk(choice) for choice in chat_chunks(said)]
    last["x_groq"] = {"id": "g", "usage": chat_usage(tokens)}
    return [*data(*chunks, last, *usage_chunk(said, tokens)), b"data: [DONE]\n\n"]


def mistral_stream(said: Json, tokens: Tokens) -> list[bytes]:
    """Mistral tells the usage beside the last choice, unasked."""
    *chunks, last = [chat_chunk(choice) for choice in chat_chunks(said)]
    return [*data(*chunks, {**last, "usage": chat_usage(tokens)}), b"data: [DONE]\n\n"]


def embeddings(said: Json, tokens: Tokens) -> Json:
    packed = base64.b64encode(struct.pack("<2f", *VECTOR)).decode()
    vector = {"object": "embedding", "index": 0, "embedding": packed if said["encoding_format"] == "base64" else VECTOR}
    usage = {"prompt_tokens": tokens.given, "total_tokens": tokens.given}
    return {"object": "list", "model": MODEL, "data": [vector], "usage": usage}


# ---------------------------------------------------------------- OpenAI Responses


def responses_item(said: Json) -> Json:
    if wants_tool(said):
        return {"id": "f", "type": "function_call", "call_id": "t1", "name": TOOL, "arguments": '{"town": "Rome"}',
                "status": "completed"}  # fmt: skip
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    return {"id": "o", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def responses(said: Json, tokens: Tokens) -> Json:
    usage = {
        "input_tokens": tokens.given,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.made,
        "output_tokens_details": {"reasoning_tokens": tokens.thought},
        "total_tokens": tokens.given + tokens.made,
    }
    return {"id": "r", "object": "response", "created_at": 1, "model": MODEL, "status": "completed", "error": None,
            "output": [responses_item(said)], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "usage": usage}  # fmt: skip


def responses_stream(said: Json, tokens: Tokens) -> list[bytes]:
    done = responses(said, tokens)
    begun = {**done, "status": "in_progress", "output": [], "usage": None}
    item = responses_item(said)
    empty: Json = {"arguments": ""} if "arguments" in item else {"content": []}
    place: Json = {"output_index": 0, "item_id": item["id"]}
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress", **empty}},
        *(_arguments(item, place) if "arguments" in item else _text(item, place)),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    return named(*({**event, "sequence_number": number} for number, event in enumerate(events)))


def _text(item: Json, place: Json) -> list[Json]:
    part = {**place, "content_index": 0}
    empty = {**item["content"][0], "text": ""}
    deltas = [{**part, "type": "response.output_text.delta", "delta": piece, "logprobs": []} for piece in PIECES]
    return [
        {**part, "type": "response.content_part.added", "part": empty},
        *deltas,
        {**part, "type": "response.output_text.done", "text": TEXT, "logprobs": []},
        {**part, "type": "response.content_part.done", "part": item["content"][0]},
    ]


def _arguments(item: Json, place: Json) -> list[Json]:
    said = item["arguments"]
    return [
        {**place, "type": "response.function_call_arguments.delta", "delta": said},
        {**place, "type": "response.function_call_arguments.done", "arguments": said, "name": TOOL},
    ]


# ---------------------------------------------------------------- Anthropic


def messages(said: Json, tokens: Tokens) -> Json:
    return {"id": "a", "type": "message", "role": "assistant", "model": MODEL, "stop_reason": "end_turn",
            "stop_sequence": None, "content": [{"type": "text", "text": TEXT}],
            "usage": {**messages_input(tokens), "output_tokens": tokens.made}}  # fmt: skip


def messages_input(tokens: Tokens) -> Json:
    """What was read from a cache and written to it stands beside the input."""
    written = tokens.cached // 2
    return {"input_tokens": tokens.given - tokens.cached, "cache_creation_input_tokens": written,
            "cache_read_input_tokens": tokens.cached - written}  # fmt: skip


def messages_stream(said: Json, tokens: Tokens) -> list[bytes]:
    """The start has the input and one token of output, the end the output of all."""
    begun = {**messages(said, tokens), "content": [], "stop_reason": None,
             "usage": {**messages_input(tokens), "output_tokens": 1}}  # fmt: skip
    deltas = [{"type": "text_delta", "text": piece} for piece in PIECES]
    return named(
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": tokens.made}},
        {"type": "message_stop"},
    )  # fmt: skip


# ---------------------------------------------------------------- Gemini


def gemini(said: Json, tokens: Tokens) -> Json:
    return gemini_part(TEXT, tokens, finishReason="STOP")


def gemini_part(text: str, tokens: Tokens, **end: str) -> Json:
    """Thoughts stand beside what was made of text; the total has both."""
    candidate = {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}, **end}
    usage = {
        "promptTokenCount": tokens.given,
        "cachedContentTokenCount": tokens.cached,
        "candidatesTokenCount": tokens.made - tokens.thought,
        "thoughtsTokenCount": tokens.thought,
        "totalTokenCount": tokens.given + tokens.made,
    }
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": MODEL, "responseId": "g"}


def gemini_stream(said: Json, tokens: Tokens) -> list[bytes]:
    """Every chunk tells what was used up to it."""
    early = Tokens(tokens.given, tokens.cached, 1, 0)
    *first, last = PIECES
    parts = [*(gemini_part(piece, early) for piece in first), gemini_part(last, tokens, finishReason="STOP")]
    return [b"data: " + json.dumps(part).encode() + b"\r\n\r\n" for part in parts]


# ---------------------------------------------------------------- Cohere


def cohere_usage(tokens: Tokens) -> Json:
    """Fractions by their spelling; what is billed in money leaves out what was cached."""
    return {
        "billed_units": {"input_tokens": float(tokens.given - tokens.cached), "output_tokens": float(tokens.made)},
        "tokens": {"input_tokens": float(tokens.given), "output_tokens": float(tokens.made)},
    }


def cohere(said: Json, tokens: Tokens) -> Json:
    message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
    return {"id": "k", "finish_reason": "COMPLETE", "message": message, "usage": cohere_usage(tokens)}


def cohere_stream(said: Json, tokens: Tokens) -> list[bytes]:
    begun = {"message": {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}}
    deltas = [{"message": {"content": {"text": piece}}} for piece in PIECES]
    return named(
        {"type": "message-start", "id": "k", "delta": begun},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        *({"type": "content-delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": cohere_usage(tokens)}},
    )


# ---------------------------------------------------------------- Ollama


def ollama_line(text: str, **end: object) -> Json:
    return {"model": MODEL, "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": text},
            "done": False, **end}  # fmt: skip


def ollama_end(text: str, tokens: Tokens) -> Json:
    return ollama_line(text, done=True, done_reason="stop", prompt_eval_count=tokens.given, eval_count=tokens.made,
                       total_duration=3, load_duration=1, prompt_eval_duration=1, eval_duration=1)  # fmt: skip


def ollama(said: Json, tokens: Tokens) -> Json:
    return ollama_end(TEXT, tokens)


def ollama_stream(said: Json, tokens: Tokens) -> list[bytes]:
    lines = [*(ollama_line(piece) for piece in PIECES), ollama_end("", tokens)]
    return [json.dumps(line).encode() + b"\n" for line in lines]


CHAT = Dialect(chat, chat_stream)
GROQ = Dialect(chat, groq_stream)
MISTRAL = Dialect(chat, mistral_stream)
RESPONSES = Dialect(responses, responses_stream)
EMBEDDINGS = Dialect(embeddings)
MESSAGES = Dialect(messages, messages_stream)
GEMINI = Dialect(gemini, gemini_stream)
COHERE = Dialect(cohere, cohere_stream)
OLLAMA = Dialect(ollama, ollama_stream, "application/x-ndjson")
