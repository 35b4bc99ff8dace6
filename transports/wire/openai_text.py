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
    max_tokens: Any = None
    n: Any = None
    best_of: Any = None
    prompt: Any = None
    stream: Any = None
    stream_options: Any = None


_request = msgspec.json.Decoder(_Request)


def _read_completion(body: bytes) -> f.Call:
    said = f.decoded(_request, body)
    if said is None:
        return f.Call()
    call = f.call(said.model, (("max_tokens",), said.max_tokens), choices=said.n)
    if call.output_cap is None:
        call.output_cap = DEFAULT_MAX_TOKENS
    call.choices = _prompts(said.prompt) * max(call.choices, f.count(said.best_of))
    if said.stream is True:
        call.usage_at = chat.usage_switch(said.stream_options)
    return call


def _prompts(prompt: object) -> int:
    """How many texts are to be completed; a list of numbers is one text in tokens."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


COMPLETIONS = f.Wire(
    "openai", "/completions", _read_completion, f.usage_of, chat.read_event, chat.usage, mark=chat.MARK
)
EMBEDDINGS = f.Wire("openai", "/embeddings", f.embedding, f.usage_of, chat.read_event, chat.usage, mark=chat.MARK)
