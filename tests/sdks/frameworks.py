"""The frameworks: how the transport goes into each, one question (with a tool where they have agents), and its text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import agents
import httpx
import httpx2
import litellm
import openai
import pydantic_ai
from langchain_openai import ChatOpenAI
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.sdks.clients import chat_piece, chat_whole
from tests.sdks.desk import ASK, CAP, PROMPT, Desk, Way
from tests.sdks.dialects import MODEL


def weather(town: str) -> str:
    """The tool that the provider's dialects ask for before they answer."""
    return f"sunny in {town}"


# ---------------------------------------------------------------- langchain-openai


def langchain(desk: Desk) -> Any:
    http_client = {desk.either("http_client", "http_async_client"): desk.client(httpx)}
    model = ChatOpenAI(model=MODEL, base_url=f"{desk.url}/v1", api_key="k", max_tokens=CAP, **http_client)
    calls = (model.stream, model.astream) if desk.streamed else (model.invoke, model.ainvoke)
    return desk.either(*calls)(PROMPT)


# ---------------------------------------------------------------- pydantic-ai


def pydantic_agent(desk: Desk, model: Any) -> Any:
    client = httpx2.AsyncClient(transport=desk.transport, timeout=10)
    provider = OpenAIProvider(base_url=f"{desk.url}/v1", api_key="k", http_client=client)
    agent = pydantic_ai.Agent(model(MODEL, provider=provider), model_settings={"max_tokens": CAP}, tools=[weather])
    if not desk.streamed:
        return desk.either(agent.run_sync, agent.run)(PROMPT)
    return desk.either(_pydantic_pieces, _pydantic_apieces)(agent)


def _pydantic_pieces(agent: Any) -> Iterator[str]:
    with agent.run_stream_sync(PROMPT) as result:
        yield from result.stream_text(delta=True)


async def _pydantic_apieces(agent: Any) -> AsyncIterator[str]:
    async with agent.run_stream(PROMPT) as result:
        async for piece in result.stream_text(delta=True):
            yield piece


def pydantic_chat(desk: Desk) -> Any:
    return pydantic_agent(desk, OpenAIChatModel)


def pydantic_responses(desk: Desk) -> Any:
    return pydantic_agent(desk, OpenAIResponsesModel)


# ---------------------------------------------------------------- openai-agents


def openai_agent(desk: Desk, model: Any) -> Any:
    http_client = httpx2.AsyncClient(transport=desk.transport, timeout=10)
    client = openai.AsyncOpenAI(base_url=f"{desk.url}/v1", api_key="k", http_client=http_client)
    settings = agents.ModelSettings(max_tokens=CAP)
    tools = [agents.function_tool(weather)]
    agent = agents.Agent("greeter", model=model(MODEL, client), model_settings=settings, tools=tools)
    if desk.streamed:
        return agents.Runner.run_streamed(agent, PROMPT).stream_events()
    return desk.either(agents.Runner.run_sync, agents.Runner.run)(agent, PROMPT)


def agents_chat(desk: Desk) -> Any:
    return openai_agent(desk, agents.OpenAIChatCompletionsModel)


def agents_responses(desk: Desk) -> Any:
    return openai_agent(desk, agents.OpenAIResponsesModel)


def agents_piece(event: Any) -> str:
    """The text among the events; the arguments of the tool are deltas as well."""
    is_text = event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    return event.data.delta if is_text else ""


# ---------------------------------------------------------------- litellm


def litellm_openai(desk: Desk) -> Any:
    """The session of the process, which all of litellm's ways to OpenAI and its kin take."""
    setattr(litellm, desk.either("client_session", "aclient_session"), desk.client(httpx))
    return _litellm(desk, model=f"openai/{MODEL}", api_base=f"{desk.url}/v1")


def litellm_anthropic(desk: Desk) -> Any:
    """The others take litellm's own client."""
    client: Any = AsyncHTTPHandler(transport=desk.transport) if desk.awaits else HTTPHandler(client=desk.client(httpx))
    desk.kept.append(client)  # one that nobody holds any more closes our connections, in use or not
    return _litellm(desk, model=f"anthropic/{MODEL}", api_base=desk.url, client=client)


def _litellm(desk: Desk, **options: Any) -> Any:
    call = desk.either(litellm.completion, litellm.acompletion)
    return call(messages=ASK, api_key="k", max_tokens=CAP, stream=desk.streamed, **options)


WAYS = {
    "langchain-openai": Way(langchain, lambda m: m.content, lambda m: m.content),
    "pydantic-ai chat": Way(pydantic_chat, lambda r: r.output, str, rounds=2),
    "pydantic-ai responses": Way(pydantic_responses, lambda r: r.output, str, rounds=2),
    "openai-agents chat": Way(agents_chat, lambda r: r.final_output, agents_piece, rounds=2, streams_blocking=False),
    "openai-agents responses": Way(
        agents_responses, lambda r: r.final_output, agents_piece, rounds=2, streams_blocking=False
    ),
    "litellm openai": Way(litellm_openai, chat_whole, chat_piece),
    "litellm anthropic": Way(litellm_anthropic, chat_whole, chat_piece),
}
