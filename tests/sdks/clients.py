"""The SDKs: how the transport goes into each, one call of each API, and where the text stands in what it gives."""

from __future__ import annotations

from typing import Any

import anthropic
import cohere
import groq
import httpx
import httpx2
import huggingface_hub
import ollama
import openai
from google import genai
from mistralai.client import Mistral

from tests.sdks.desk import ASK, CAP, PROMPT, Desk, Way
from tests.sdks.dialects import MODEL, TEXT, VECTOR
from tests.sdks.provider import MISTRAL, MISTRAL_EU


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
    return made.create(model=MODEL, input=PROMPT, max_output_tokens=CAP, stream=desk.streamed)


def openai_embeddings(desk: Desk) -> Any:
    return openai_client(desk).embeddings.create(model=MODEL, input=PROMPT)


def anthropic_messages(desk: Desk) -> Any:
    kind = desk.either(anthropic.Anthropic, anthropic.AsyncAnthropic)
    client = kind(api_key="k", base_url=desk.url, http_client=desk.client(httpx2))
    return client.messages.create(model=MODEL, messages=ASK, max_tokens=CAP, stream=desk.streamed)


def google_genai(desk: Desk, library: Any = httpx2) -> Any:
    options = {desk.either("httpx_client", "httpx_async_client"): desk.client(library)}
    client = genai.Client(api_key="k", http_options=genai.types.HttpOptions(base_url=desk.url, **options))
    models = desk.either(client.models, client.aio.models)
    generate = models.generate_content_stream if desk.streamed else models.generate_content
    return generate(model=MODEL, contents=PROMPT, config={"max_output_tokens": CAP})


def google_genai_on_httpx(desk: Desk) -> Any:
    return google_genai(desk, httpx)


def mistral(desk: Desk, server: str = MISTRAL) -> Any:
    client = Mistral(
        api_key="k", server_url=server, **{desk.either("client", "async_client"): desk.client(httpx2)}
    ).chat
    calls = client.stream, client.stream_async, client.complete, client.complete_async
    call = desk.either(*(calls[:2] if desk.streamed else calls[2:]))
    return call(model=MODEL, messages=ASK, max_tokens=CAP)


def mistral_in_europe(desk: Desk) -> Any:
    return mistral(desk, MISTRAL_EU)


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
    "openai embeddings": Way(openai_embeddings, lambda r: TEXT if r.data[0].embedding == VECTOR else ""),
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
MISTRAL_IN_EUROPE = Way(mistral_in_europe, chat_whole, lambda e: chat_piece(e.data))
