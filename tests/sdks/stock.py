"""Stock scripts: ``python stock.py NAME`` asks a model with one SDK as its own documentation does it, in all its ways.

Keys and addresses come from the environment, and nothing here knows of a budget. Each way makes a short question and
then one that is very long; what it says, or the error that the SDK shows, is one line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

MODEL = "m"
CAP = 64
SHORT = "Say hello to whoever listens on this machine, please."
LONG = "Sum up: " + "the tide came in at six and two boats left with nets and salt, " * 400

Ways = list[Callable[[str], Any]]
"""Functions, blocking or awaitable, from a question to the text of the answer."""


def turns(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def delta(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""


def as_openai(client: Any, awaiting: Any, **cap: int) -> Ways:
    """Chats of an SDK that is made like OpenAI's."""

    def ask(question: str) -> str:
        answer = client.chat.completions.create(model=MODEL, messages=turns(question), **cap)
        return answer.choices[0].message.content

    def stream(question: str) -> str:
        chunks = client.chat.completions.create(model=MODEL, messages=turns(question), stream=True, **cap)
        return "".join(map(delta, chunks))

    async def aask(question: str) -> str:
        answer = await awaiting.chat.completions.create(model=MODEL, messages=turns(question), **cap)
        return answer.choices[0].message.content

    async def astream(question: str) -> str:
        chunks = await awaiting.chat.completions.create(model=MODEL, messages=turns(question), stream=True, **cap)
        return "".join([delta(chunk) async for chunk in chunks])

    return [ask, stream, aask, astream]


def openai_both() -> Ways:
    """Chats and responses."""
    import openai

    client, awaiting = openai.OpenAI(), openai.AsyncOpenAI()

    def respond(question: str) -> str:
        return client.responses.create(model=MODEL, input=question, max_output_tokens=CAP).output_text

    async def arespond(question: str) -> str:
        events = await awaiting.responses.create(model=MODEL, input=question, max_output_tokens=CAP, stream=True)
        return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])

    return [*as_openai(client, awaiting, max_completion_tokens=CAP), respond, arespond]


def groq_chat() -> Ways:
    import groq

    return as_openai(groq.Groq(), groq.AsyncGroq(), max_tokens=CAP)


def anthropic_messages() -> Ways:
    import anthropic

    client, awaiting = anthropic.Anthropic(), anthropic.AsyncAnthropic()

    def ask(question: str) -> str:
        answer = client.messages.create(model=MODEL, messages=turns(question), max_tokens=CAP)
        return "".join(block.text for block in answer.content if block.type == "text")

    def stream(question: str) -> str:
        with client.messages.stream(model=MODEL, messages=turns(question), max_tokens=CAP) as events:
            return "".join(events.text_stream)

    async def aask(question: str) -> str:
        answer = await awaiting.messages.create(model=MODEL, messages=turns(question), max_tokens=CAP)
        return "".join(block.text for block in answer.content if block.type == "text")

    async def astream(question: str) -> str:
        async with awaiting.messages.stream(model=MODEL, messages=turns(question), max_tokens=CAP) as events:
            return "".join([text async for text in events.text_stream])

    return [ask, stream, aask, astream]


def google_genai() -> Ways:
    """With the HTTP library that it chooses itself: awaiting it is aiohttp, where that is installed."""
    from google import genai

    client = genai.Client()
    said: Any = {"model": MODEL, "config": {"max_output_tokens": CAP}}

    def ask(question: str) -> Any:
        return client.models.generate_content(contents=question, **said).text

    def stream(question: str) -> str:
        chunks = client.models.generate_content_stream(contents=question, **said)
        return "".join(chunk.text or "" for chunk in chunks)

    async def aask(question: str) -> Any:
        return (await client.aio.models.generate_content(contents=question, **said)).text

    async def astream(question: str) -> str:
        chunks = await client.aio.models.generate_content_stream(contents=question, **said)
        return "".join([chunk.text or "" async for chunk in chunks])

    return [ask, stream, aask, astream]


def google_genai_without_aiohttp() -> Ways:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # as if it were not installed
    return google_genai()


def google_genai_on_aiohttp() -> Ways:
    return google_genai()[2:]


def mistral() -> Ways:
    from mistralai.client import Mistral

    chat = Mistral(api_key="k", server_url="http://api.mistral.ai").chat

    def ask(question: str) -> Any:
        return chat.complete(model=MODEL, messages=turns(question), max_tokens=CAP).choices[0].message.content

    def stream(question: str) -> str:
        with chat.stream(model=MODEL, messages=turns(question), max_tokens=CAP) as events:
            return "".join(delta(event.data) for event in events)

    async def aask(question: str) -> Any:
        answer = await chat.complete_async(model=MODEL, messages=turns(question), max_tokens=CAP)
        return answer.choices[0].message.content

    async def astream(question: str) -> str:
        async with await chat.stream_async(model=MODEL, messages=turns(question), max_tokens=CAP) as events:
            return "".join([delta(event.data) async for event in events])

    return [ask, stream, aask, astream]


def cohere_chat() -> Ways:
    import cohere

    client, awaiting = cohere.ClientV2(), cohere.AsyncClientV2()
    said: Any = {"model": MODEL, "max_tokens": CAP}

    def ask(question: str) -> Any:
        return client.chat(messages=turns(question), **said).message.content[0].text

    def stream(question: str) -> str:
        events = client.chat_stream(messages=turns(question), **said)
        return "".join(event.delta.message.content.text for event in events if event.type == "content-delta")

    async def aask(question: str) -> Any:
        return (await awaiting.chat(messages=turns(question), **said)).message.content[0].text

    async def astream(question: str) -> str:
        events = awaiting.chat_stream(messages=turns(question), **said)
        return "".join([event.delta.message.content.text async for event in events if event.type == "content-delta"])

    return [ask, stream, aask, astream]


def ollama_chat() -> Ways:
    """By the functions of the module, whose client is made when it is imported."""
    import ollama

    def ask(question: str) -> Any:
        return ollama.chat(model=MODEL, messages=turns(question), options={"num_predict": CAP}).message.content

    def stream(question: str) -> str:
        parts = ollama.chat(model=MODEL, messages=turns(question), options={"num_predict": CAP}, stream=True)
        return "".join(part.message.content or "" for part in parts)

    async def aask(question: str) -> Any:
        client = ollama.AsyncClient()
        answer = await client.chat(model=MODEL, messages=turns(question), options={"num_predict": CAP})
        return answer.message.content

    async def astream(question: str) -> str:
        client = ollama.AsyncClient()
        parts = await client.chat(model=MODEL, messages=turns(question), options={"num_predict": CAP}, stream=True)
        return "".join([part.message.content or "" async for part in parts])

    return [ask, stream, aask, astream]


def huggingface() -> Ways:
    import os

    from huggingface_hub import AsyncInferenceClient, InferenceClient

    url = os.environ["OPENAI_BASE_URL"]
    return as_openai(
        InferenceClient(base_url=url, api_key="k"), AsyncInferenceClient(base_url=url, api_key="k"), max_tokens=CAP
    )


def langchain() -> Ways:
    from langchain_openai import ChatOpenAI

    return as_langchain(ChatOpenAI(model=MODEL, max_tokens=CAP))


def langchain_anthropic() -> Ways:
    """Which takes no client."""
    from langchain_anthropic import ChatAnthropic

    return as_langchain(ChatAnthropic(model=MODEL, max_tokens=CAP))


def as_langchain(model: Any) -> Ways:
    def ask(question: str) -> Any:
        return model.invoke(question).content

    def stream(question: str) -> str:
        return "".join(chunk.text for chunk in model.stream(question))

    async def aask(question: str) -> Any:
        return (await model.ainvoke(question)).content

    async def astream(question: str) -> str:
        return "".join([chunk.text async for chunk in model.astream(question)])

    return [ask, stream, aask, astream]


def langgraph_nodes() -> Ways:
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, MessagesState, StateGraph

    model = ChatOpenAI(model=MODEL, max_tokens=CAP)

    def blocking(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def awaiting(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def graph(node: Any) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("ask", node)
        builder.add_edge(START, "ask")
        builder.add_edge("ask", END)
        return builder.compile()

    def ask(question: str) -> Any:
        return graph(blocking).invoke({"messages": turns(question)})["messages"][-1].content

    def stream(question: str) -> str:
        parts = graph(blocking).stream({"messages": turns(question)}, stream_mode="messages")
        return "".join(chunk.content for chunk, _ in parts)

    async def aask(question: str) -> Any:
        return (await graph(awaiting).ainvoke({"messages": turns(question)}))["messages"][-1].content

    async def astream(question: str) -> str:
        parts = graph(awaiting).astream({"messages": turns(question)}, stream_mode="messages")
        return "".join([chunk.content async for chunk, _ in parts])

    return [ask, stream, aask, astream]


def pydantic_agent() -> Ways:
    import pydantic_ai

    agent = pydantic_ai.Agent(f"openai-chat:{MODEL}", model_settings={"max_tokens": CAP})

    def ask(question: str) -> str:
        return agent.run_sync(question).output

    async def aask(question: str) -> str:
        return (await agent.run(question)).output

    async def astream(question: str) -> str:
        async with agent.run_stream(question) as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    return [ask, aask, astream]


def openai_agents() -> Ways:
    """Below it is the Responses API. Not ``run_sync``, whose event loop the SDK's one client could not leave again."""
    import agents

    agent = agents.Agent("greeter", model=MODEL, model_settings=agents.ModelSettings(max_tokens=CAP))

    async def aask(question: str) -> str:
        return (await agents.Runner.run(agent, question)).final_output

    async def astream(question: str) -> str:
        running = agents.Runner.run_streamed(agent, question)
        async for _ in running.stream_events():
            pass
        return running.final_output

    return [aask, astream]


def litellm_both() -> Ways:
    """OpenAI's kind and the others, which go other ways; awaiting it is aiohttp behind httpx."""
    import litellm

    def of(model: str) -> Ways:
        said: Any = {"model": f"{model}/{MODEL}", "max_tokens": CAP}

        def ask(question: str) -> Any:
            return litellm.completion(messages=turns(question), **said).choices[0].message.content

        def stream(question: str) -> str:
            return "".join(map(delta, litellm.completion(messages=turns(question), stream=True, **said)))

        async def aask(question: str) -> Any:
            return (await litellm.acompletion(messages=turns(question), **said)).choices[0].message.content

        async def astream(question: str) -> str:
            chunks = await litellm.acompletion(messages=turns(question), stream=True, **said)
            return "".join([delta(chunk) async for chunk in chunks])

        return [ask, stream, aask, astream]

    litellm.suppress_debug_info = True
    return [*of("openai"), *of("anthropic")]


SCRIPTS: dict[str, Callable[[], Ways]] = {
    "openai": openai_both,
    "anthropic": anthropic_messages,
    "google-genai": google_genai_without_aiohttp,
    "mistralai": mistral,
    "cohere": cohere_chat,
    "groq": groq_chat,
    "ollama": ollama_chat,
    "huggingface_hub": huggingface,
    "langchain-openai": langchain,
    "langchain-anthropic": langchain_anthropic,
    "langgraph": langgraph_nodes,
    "pydantic-ai": pydantic_agent,
    "openai-agents": openai_agents,
    "litellm": litellm_both,
}
UNSEEN: dict[str, Callable[[], Ways]] = {"google-genai on aiohttp": google_genai_on_aiohttp}
"""Those that a transport of httpx cannot see."""


def report(way: str, question: str, said: object) -> None:
    print(json.dumps([way, "short" if question == SHORT else "long", str(said)]), flush=True)


async def ask_awaiting(ways: Ways) -> None:
    for way in ways:
        for question in (SHORT, LONG):
            try:
                report(way.__name__, question, await way(question))
            except Exception as error:
                report(way.__name__, question, error)


def main() -> None:
    ways = {**SCRIPTS, **UNSEEN}[sys.argv[1]]()
    for way in ways:
        for question in () if inspect.iscoroutinefunction(way) else (SHORT, LONG):
            try:
                report(way.__name__, question, way(question))
            except Exception as error:
                report(way.__name__, question, error)
    asyncio.run(ask_awaiting([way for way in ways if inspect.iscoroutinefunction(way)]))


if __name__ == "__main__":
    main()
