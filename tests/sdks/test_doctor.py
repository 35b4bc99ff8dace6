"""What ``pacer doctor`` says of each SDK that is installed is what that SDK does, with a client as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anthropic
import cohere
import groq
import httpx
import httpx2
import huggingface_hub
import litellm
import ollama
import openai
import pytest
from google import genai
from langchain_openai import ChatOpenAI
from mistralai.client import Mistral

from pacer.cli import sdks
from tests.sdks.desk import ASK, PROMPT
from tests.sdks.provider import MISTRAL, Provider

pytestmark = pytest.mark.filterwarnings(
    "ignore:Items? .* using the `ReadOnly` qualifier:UserWarning"
)  # litellm's types

ASKED: dict[str, Any] = {"model": "m", "messages": ASK, "max_tokens": 9}


def _langchain(url: str) -> Any:
    return ChatOpenAI(model="m", api_key="k", base_url=f"{url}/v1", max_tokens=9).invoke(PROMPT)


def _google(url: str) -> Any:
    client = genai.Client(api_key="k", http_options=genai.types.HttpOptions(base_url=url))
    return client.models.generate_content(model="m", contents=PROMPT)


async def _litellm(url: str) -> Any:
    return await litellm.acompletion(**{**ASKED, "model": "anthropic/claude-3-5-sonnet"}, api_base=url, api_key="k")


CALLS: dict[str, Callable[[str], Any]] = {
    "openai": lambda url: openai.OpenAI(api_key="k", base_url=f"{url}/v1").chat.completions.create(**ASKED),
    "anthropic": lambda url: anthropic.Anthropic(api_key="k", base_url=url).messages.create(**ASKED),
    "google-genai": _google,
    "mistralai": lambda url: Mistral(api_key="k", server_url=MISTRAL).chat.complete(**ASKED),
    "cohere": lambda url: cohere.ClientV2(api_key="k", base_url=url).chat(**ASKED),
    "groq": lambda url: groq.Groq(api_key="k", base_url=url).chat.completions.create(**ASKED),
    "ollama": lambda url: ollama.Client(host=url).chat(model="m", messages=ASK),
    "huggingface-hub": lambda url: huggingface_hub.InferenceClient(base_url=f"{url}/v1", api_key="k").chat_completion(
        ASK
    ),
    "litellm": lambda url: asyncio.run(_litellm(url)),
    "langchain-openai": _langchain,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_library_that_is_told_is_the_one_that_sends(provider: Provider, monkeypatch: pytest.MonkeyPatch, name: str):
    """Clients of the two libraries are told apart by their own ``send``."""
    sent = set()

    def watch(library: Any, kind: Any) -> None:
        send = kind.send

        def sending(client: Any, *args: Any, **kwargs: Any) -> Any:
            sent.add(library.__name__)
            return send(client, *args, **kwargs)

        monkeypatch.setattr(kind, "send", sending)

    for library in (httpx, httpx2):
        watch(library, library.Client)
        watch(library, library.AsyncClient)
    CALLS[name](provider.url)
    assert provider.calls == 1
    (found,) = sdks.installed([name])
    of = sdks.installed(found.through) or (found,)
    assert sent == {one.library for one in of}
    assert found.covered in ("yes", "partly")


def test_every_sdk_that_is_installed_here_is_tried():
    """The others have calls of their own in test_uncovered.py, or only call through these."""
    there = {found.name for found in sdks.installed() if found.library in sdks.SEEN}
    assert there == CALLS.keys() - {"langchain-openai"}
    unseen = {found.name for found in sdks.installed() if found.library not in sdks.SEEN and not found.through}
    assert unseen == {"boto3"}


def test_gaps_are_those_that_test_uncovered_shows():
    gaps = {(found.name, gap.library) for found in sdks.installed() for gap in found.gaps if gap.counts}
    assert gaps == {("google-genai", "aiohttp"), ("dspy", "lm15")}
