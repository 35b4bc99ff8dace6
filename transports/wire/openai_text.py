"""OpenAI's completions and embeddings, ``POST .../completions`` and ``.../embeddings``: answers and usage as chat's.

A completion without ``max_tokens`` ends after 16 tokens (OpenAI's API reference); ``best_of`` makes more answers than
it returns, and several prompts in one request are answered each. An embedding has no output.
"""

from __future__ import annotations

from transports.wire import format as f
from transports.wire import openai_chat as chat

DEFAULT_MAX_TOKENS = 16


def _read_completion(body: bytes) -> f.Call:
    said = f.members(body)
    if said is None:
        return f.Call()
    call = f.call(said, ("max_tokens",), choices=("n",))
    if call.output_cap is None:
        call.output_cap = DEFAULT_MAX_TOKENS
    call.choices = _prompts(said.at("prompt")) * max(call.choices, f.count(said.at("best_of")))
    call.usage_at = chat.usage_switch(said)
    return call


def _prompts(prompt: object) -> int:
    """How many texts are to be completed; a list of numbers is one text in tokens."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _read_embedding(body: bytes) -> f.Call:
    said = f.members(body)
    return f.Call("unknown" if said is None else f.model(said.at("model")), output_cap=0)


COMPLETIONS = f.Wire("openai", "/completions", _read_completion, f.usage_of, chat.read_event, chat.usage)
EMBEDDINGS = f.Wire("openai", "/embeddings", _read_embedding, f.usage_of, chat.read_event, chat.usage)
