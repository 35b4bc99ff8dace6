"""The real SDKs, each plain and streamed, blocking and awaiting, with the transport put in as their users put it in."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anthropic
import cohere
import groq
import httpx
import httpx2
import huggingface_hub
import ollama
import openai
import pytest
from google import genai
from mistralai.client import Mistral

from pacer import Pacer
from tests.sdks.dialects import MODEL, TEXT
from tests.sdks.provider import MISTRAL, Provider
from transports import BudgetTransport

CALLS = 3
CAP = 64
ASK: list[Any] = [{"role": "user", "content": "Say hello to whoever listens on this machine, please."}]


@dataclass(frozen=True)
class Desk:
    """What one call is made with: the provider's address, our transport, and the way it shall go."""

    url: str
    transport: BudgetTransport
    awaits: bool
    streamed: bool
    kept: list[object] = field(default_factory=list)

    def either(self, blocking: Any, awaiting: Any) -> Any:
        return awaiting if self.awaits else blocking

    def client(self, library: Any) -> Any:
        return self.either(library.Client, library.AsyncClient)(transport=self.transport, timeout=10)


# ---------------------------------------------------------------- how the transport goes in, and one call


def openai_client(desk: Desk, library: Any = httpx2) -> Any:
    kind = desk.either(openai.OpenAI, openai.AsyncOpenAI)
    return kind(api_key="k", base_url=f"{desk.url}/v1", http_client=desk.client(library))


def openai_chat(desk: Desk, library: Any = httpx2) -> Any:
    completions = openai_client(desk, library).chat.completions
    return completions.create(model=MODEL, messages=ASK, max_completion_tokens=CAP, stream=desk.streamed)


def openai_chat_on_httpx(desk: Desk) -> Any:
    return openai_chat(desk, httpx)


def openai_responses(desk: Desk) -> Any:
    made = openai_client(desk).responses
    return made.create(model=MODEL, input=ASK[0]["content"], max_output_tokens=CAP, stream=desk.streamed)


def openai_embeddings(desk: Desk) -> Any:
    return openai_client(desk).embeddings.create(model=MODEL, input=ASK[0]["content"])


def anthropic_messages(desk: Desk) -> Any:
    kind = desk.either(anthropic.Anthropic, anthropic.AsyncAnthropic)
    client = kind(api_key="k", base_url=desk.url, http_client=desk.client(httpx2))
    return client.messages.create(model=MODEL, messages=ASK, max_tokens=CAP, stream=desk.streamed)


def google_genai(desk: Desk, library: Any = httpx2) -> Any:
    options = {desk.either("httpx_client", "httpx_async_client"): desk.client(library)}
    client = genai.Client(api_key="k", http_options=genai.types.HttpOptions(base_url=desk.url, **options))
    models = desk.either(client.models, client.aio.models)
    generate = models.generate_content_stream if desk.streamed else models.generate_content
    return generate(model=MODEL, contents=ASK[0]["content"], config={"max_output_tokens": CAP})


def google_genai_on_httpx(desk: Desk) -> Any:
    return google_genai(desk, httpx)


def mistral(desk: Desk) -> Any:
    client = Mistral(
        api_key="k", server_url=MISTRAL, **{desk.either("client", "async_client"): desk.client(httpx2)}
    ).chat
    calls = client.stream, client.stream_async, client.complete, client.complete_async
    call = desk.either(*(calls[:2] if desk.streamed else calls[2:]))
    return call(model=MODEL, messages=ASK, max_tokens=CAP)


def cohere_chat(desk: Desk) -> Any:
    kind = desk.either(cohere.ClientV2, cohere.AsyncClientV2)
    client = kind(api_key="k", base_url=desk.url, httpx_client=desk.client(httpx))
    return (client.chat_stream if desk.streamed else client.chat)(model=MODEL, messages=ASK, max_tokens=CAP)


def groq_chat(desk: Desk) -> Any:
    kind = desk.either(groq.Groq, groq.AsyncGroq)
    client = kind(api_key="k", base_url=desk.url, http_client=desk.client(httpx))
    return client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=CAP, stream=desk.streamed)


def ollama_chat(desk: Desk) -> Any:
    client = desk.either(ollama.Client, ollama.AsyncClient)(host=desk.url, transport=desk.transport)
    return client.chat(model=MODEL, messages=ASK, options={"num_predict": CAP}, stream=desk.streamed)


def huggingface_chat(desk: Desk) -> Any:
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=desk.transport))
    huggingface_hub.set_async_client_factory(lambda: httpx2.AsyncClient(transport=desk.transport))
    kind = desk.either(huggingface_hub.InferenceClient, huggingface_hub.AsyncInferenceClient)
    client = kind(base_url=f"{desk.url}/v1", api_key="k")
    desk.kept.append(client)  # a client that nobody holds any more closes its streams
    return client.chat_completion(ASK, model=MODEL, max_tokens=CAP, stream=desk.streamed)


# ---------------------------------------------------------------- the text that came


@dataclass(frozen=True)
class Way:
    """One API of an SDK: its call, and the text of a whole answer and of an event of a streamed one, if it has them."""

    call: Callable[[Desk], Any]
    whole: Callable[[Any], str]
    piece: Callable[[Any], str | None] | None = None

    def say(self, desk: Desk) -> str:
        """One blocking call."""
        answer = self.call(desk)
        return self._joined(answer) if desk.streamed else self.whole(answer)

    async def asay(self, desk: Desk) -> str:
        """One awaited call."""
        answer = self.call(desk)
        if inspect.isawaitable(answer):
            answer = await answer
        return self._joined([event async for event in answer]) if desk.streamed else self.whole(answer)

    def _joined(self, events: Any) -> str:
        assert self.piece is not None
        return "".join(self.piece(event) or "" for event in events)


def chat_whole(said: Any) -> str:
    text: str = said.choices[0].message.content
    return text


def chat_piece(said: Any) -> str | None:
    """No guard: a chunk without choices must not reach who did not ask for it."""
    text: str | None = said.choices[0].delta.content
    return text


WAYS = {
    "openai chat": Way(openai_chat, chat_whole, chat_piece),
    "openai chat on httpx": Way(openai_chat_on_httpx, chat_whole, chat_piece),
    "openai responses": Way(openai_responses, lambda r: r.output_text, lambda e: getattr(e, "delta", "")),
    "openai embeddings": Way(openai_embeddings, lambda r: TEXT if r.data[0].embedding == [0.25, 0.5] else ""),
    "anthropic": Way(
        anthropic_messages,
        lambda m: m.content[0].text,
        lambda e: e.delta.text if e.type == "content_block_delta" else "",
    ),
    "google-genai": Way(google_genai, lambda r: r.text, lambda r: r.text),
    "google-genai on httpx": Way(google_genai_on_httpx, lambda r: r.text, lambda r: r.text),
    "mistralai": Way(mistral, chat_whole, lambda e: chat_piece(e.data)),
    "cohere": Way(
        cohere_chat,
        lambda r: r.message.content[0].text,
        lambda e: e.delta.message.content.text if e.type == "content-delta" else "",
    ),
    "groq": Way(groq_chat, chat_whole, chat_piece),
    "ollama": Way(ollama_chat, lambda r: r.message.content, lambda r: r.message.content),
    "huggingface_hub": Way(huggingface_chat, chat_whole, chat_piece),
}


def say(way: Way, desk: Desk, calls: int = 1) -> list[str]:
    """Some calls one after the other, with one transport that is closed at the end."""
    if not desk.awaits:
        with desk.transport:
            return [way.say(desk) for _ in range(calls)]

    async def awaited() -> list[str]:
        async with desk.transport:
            return [await way.asay(desk) for _ in range(calls)]

    return asyncio.run(awaited())


KINDS = [
    pytest.param(
        way, awaits, streamed, id=f"{name}-{'async' if awaits else 'sync'}-{'stream' if streamed else 'plain'}"
    )
    for name, way in WAYS.items()
    for awaits in (False, True)
    for streamed in (False, True)
    if way.piece or not streamed
]


@pytest.mark.parametrize(("way", "awaits", "streamed"), KINDS)
def test_the_books_are_the_bill(provider: Provider, way: Way, awaits: bool, streamed: bool):
    """The text arrives, and the provider's own bill is booked to the token, call by call."""
    pacer = Pacer(ceiling=100_000)
    desk = Desk(provider.url, BudgetTransport(pacer=pacer), awaits, streamed)
    assert say(way, desk, CALLS) == [TEXT] * CALLS
    now = pacer.status()
    assert (now.spent, now.unknown, now.held, now.in_flight) == (provider.bill, 0, 0, 0)
    assert (now.calls, now.unmetered, now.failed) == (provider.calls, 0, 0)
    assert provider.calls == CALLS


@pytest.mark.parametrize(("way", "awaits", "streamed"), KINDS)
def test_a_ceiling_is_tried_once_and_its_message_is_shown(provider: Provider, way: Way, awaits: bool, streamed: bool):
    """With the SDK's own retries: one attempt, nothing sent, and the text of the error says how to go on."""
    pacer = Pacer(ceiling=10, run="nightly")
    desk = Desk(provider.url, BudgetTransport(pacer=pacer), awaits, streamed)
    with pytest.raises(Exception, match=r"nightly.*PACER_CEILING"):
        say(way, desk)
    now = pacer.status()
    assert (now.refused, now.spent, now.unknown, now.held, provider.calls) == (1, 0, 0, 0, 0)
