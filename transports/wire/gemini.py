"""Gemini, ``POST .../models/{model}:generateContent`` and ``:streamGenerateContent``, also in Vertex AI's paths.

Thinking is reported beside the candidates' tokens, and what tools put into the prompt beside the prompt's; cached
content is inside the prompt's. In a stream every chunk may carry usage so far: the bill is the one with a
``finishReason`` or a ``blockReason``, or the last one after it. Without ``alt=sse`` a stream is one JSON array.
Embeddings have no output and report no usage.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pacer.usage import Usage
from transports.wire import format as f


class _Request(msgspec.Struct):
    generationConfig: Any = None
    generation_config: Any = None


class _Candidate(msgspec.Struct):
    content: Any = None
    finishReason: Any = None


class _Answer(msgspec.Struct):
    usageMetadata: Any = None
    candidates: list[_Candidate] | None = None
    promptFeedback: Any = None


_ENDS = (":generateContent", ":streamGenerateContent")
_EMBED_ENDS = (":embedContent", ":batchEmbedContents")
_request = msgspec.json.Decoder(_Request)
_answer = msgspec.json.Decoder(_Answer)
_answers = msgspec.json.Decoder(list[_Answer])


def _read_request(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    name, config = "generationConfig", said.generationConfig
    if said.generation_config is not None:
        name, config = "generation_config", said.generation_config
    caps = [((name, cap), f.inside(config, cap)) for cap in ("maxOutputTokens", "max_output_tokens")]
    return f.call(None, *caps, choices=f.inside(config, "candidateCount"))


def _read_embedding(body: bytes) -> f.Call:
    return f.Call(output_cap=0)


def _read_answer(body: bytes) -> dict[str, object] | None:
    if body.lstrip().startswith(b"["):
        parts = f.decoded(_answers, body)
        said = parts[-1] if parts else None
    else:
        said = f.decoded(_answer, body)
    return said.usageMetadata if said is not None and isinstance(said.usageMetadata, dict) else None


def _read_event(data: bytes, tally: f.Tally) -> bool:
    said = f.decoded(_answer, data)
    if said is None:
        return False
    candidates = said.candidates or []
    tally.seen_output += sum(1 for candidate in candidates if candidate.content)
    if said.usageMetadata is not None:
        was_final = tally.final
        f.believed(tally, said.usageMetadata)
        ends = [candidate.finishReason for candidate in candidates]
        tally.final = was_final or any(ends) or bool(f.inside(said.promptFeedback, "blockReason"))
    return False


def _usage(said: dict[str, object]) -> Usage | None:
    names = ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    prompt, tools, output, thoughts = (f.tokens(said.get(name, 0)) for name in names)
    total, cached = f.tokens(said.get("totalTokenCount", 0)), f.tokens(said.get("cachedContentTokenCount", 0))
    if prompt is None or tools is None or output is None or thoughts is None or total is None or cached is None:
        return None
    if prompt == 0 or output + thoughts + total == 0:
        return None
    return Usage(prompt + tools, output + thoughts, min(prompt, cached), thoughts, total)


WIRE = f.Wire(
    "gcp.gemini",
    _ENDS,
    _read_request,
    _read_answer,
    _read_event,
    _usage,
    f.model_before(*_ENDS),
    mark=b'"usageMetadata"',
)
EMBEDDINGS = f.Wire(
    "gcp.gemini",
    _EMBED_ENDS,
    _read_embedding,
    _read_answer,
    _read_event,
    _usage,
    f.model_before(*_EMBED_ENDS),
)
