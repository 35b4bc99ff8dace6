"""OpenAI's completions and embeddings, ``POST .../completions`` and ``.../embeddings``: answers and usage as chat's.

A completion without ``max_tokens`` ends after 16 tokens (OpenAI's API reference); ``best_of`` makes more answers than
it returns, and several prompts in one request are answered each. An embedding has no output.
"""

from __future__ import annotations

from typing import Any

import msgspec

from transports.wire import format as f
from transports.wire import openai_chat as chat

DEFAULT_MAX_TOKENS = 16


class _Request(msgspec.Struct):
    model: Any = None
    prompt: Any = None
    max_tokens: Any = None
    n: Any = None
    best_of: Any = None
    stream: Any = None
    stream_options: Any = None


_request = msgspec.json.Decoder(_Request)


def _read_completion(body: bytes, ask_usage: bool) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.Call(
        model=f.model(said.model),
        output_cap=f.output_cap(said.max_tokens) or DEFAULT_MAX_TOKENS,
        choices=_prompts(said.prompt) * max(f.choices(said.n), f.choices(said.best_of)),
    )
    if said.stream is True and ask_usage:
        call.body_asking_usage = chat.asking_usage(body, said.stream_options)
    return call


def _prompts(prompt: object) -> int:
    """How many texts are to be completed; a list of numbers is one text in tokens."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _read_embedding(body: bytes, ask_usage: bool) -> f.Call:
    said = f.decoded(_request, body)
    return f.Call(f.model(said.model) if said is not None else "unknown", output_cap=0)


COMPLETIONS = f.Wire("openai", "/completions", _read_completion, f.usage_of, chat.read_event, chat.usage)
EMBEDDINGS = f.Wire("openai", "/embeddings", _read_embedding, f.usage_of, chat.read_event, chat.usage)
