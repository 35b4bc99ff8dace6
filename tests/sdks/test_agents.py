"""Real frameworks whose agents run agents: a call is booked on the one that made it, and on all above that one."""

from __future__ import annotations

import asyncio
import operator
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypedDict

import agents
import httpx
import httpx2
import openai
import pydantic_ai
import pytest
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from pacer import Agent, Pacer
from tests.sdks.desk import CAP
from tests.sdks.dialects import MODEL, TOOL, Dialect, Tokens
from tests.sdks.provider import Provider
from tests.servers import Connection
from transports import BudgetTransport

BELOW = {"planner": ["researcher", "critic"], "researcher": ["reader"], "critic": [], "reader": []}
MEET = 30  # seconds until those who must run at once give up on each other


class Office(Provider):
    """Keeps ``bills`` by agent, too: each prompt says whose it is."""

    def __init__(self) -> None:
        super().__init__()
        self.bills: list[tuple[str, int]] = []

    def _billed(self, dialect: Dialect, body: bytes) -> Tokens:
        tokens = super()._billed(dialect, body)
        (name,) = set(re.findall(rb"I am the (\w+)", body))
        self.bills.append((name.decode(), tokens.given + tokens.made))
        return tokens

    def billed(self, name: str) -> tuple[int, int]:
        """The calls that an agent made itself, and their tokens."""
        bills = [tokens for whose, tokens in self.bills if whose == name]
        return len(bills), sum(bills)


@pytest.fixture
def office(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """A provider beside the one that is the proxy; in no test may our header reach it."""
    read, heads = Connection.read, []

    def overheard(connection: Connection) -> tuple[str, bytes] | None:
        if (request := read(connection)) is not None:
            heads.append(request[0].lower())
        return request

    monkeypatch.setattr(Connection, "read", overheard)
    with Office() as office:
        yield office
    assert len(heads) == office.calls > 0
    assert [head for head in heads if "x-pacer" in head] == office.strays == []


@dataclass
class Crew:
    """The agents of one budget, as they were opened, and where they find their model."""

    url: str
    budget: Pacer
    hired: dict[str, Agent] = field(default_factory=dict)

    def agent(self, name: str) -> Agent:
        """A scope below the one at hand, kept to see how it stood when it was left."""
        self.hired[name] = self.budget.agent(name)
        return self.hired[name]

    def client(self, kind: Any) -> Any:
        return kind(transport=BudgetTransport(pacer=self.budget), timeout=10)


def nothing_is_left(office: Office, budget: Pacer) -> None:
    """What was billed is spent, and all else has been given back."""
    now = budget.status()
    assert (now.spent, now.unknown, now.held, now.carved, now.in_flight) == (office.bill, 0, 0, 0, 0)
    assert (now.calls, now.agents) == (office.calls, ())


# ---------------------------------------------------------------- agents that run others in a tool


def in_tools(ask: Callable[..., Any], *, blocks: bool = False) -> Callable[[Crew], None]:
    """Each agent is asked by ``ask(crew, prompt, tools)``; the tool, which may block, runs those below it at once."""

    async def work(crew: Crew, names: list[str]) -> None:
        meeting = asyncio.Barrier(len(names))

        async def one(name: str) -> None:
            with crew.agent(name):
                await asyncio.wait_for(meeting.wait(), MEET)
                await ask(crew, f"I am the {name}.", tools(crew, BELOW[name]))

        await asyncio.gather(*map(one, names))

    def tools(crew: Crew, below: list[str]) -> list[Any]:
        async def awaiting(town: str) -> str:
            await work(crew, below)
            return town

        def blocking(town: str) -> str:
            asyncio.run(work(crew, below))
            return town

        return [blocking if blocks else awaiting] if below else []

    return lambda crew: asyncio.run(work(crew, ["planner"]))


async def openai_agents(crew: Crew, prompt: str, tools: list[Any], *, streams: bool = False) -> None:
    async with crew.client(httpx2.AsyncClient) as http_client:
        client = openai.AsyncOpenAI(base_url=f"{crew.url}/v1", api_key="k", http_client=http_client)
        model = agents.OpenAIResponsesModel(MODEL, client)
        named = [agents.function_tool(tool, name_override=TOOL) for tool in tools]
        agent = agents.Agent("a", model=model, model_settings=agents.ModelSettings(max_tokens=CAP), tools=named)
        if not streams:
            await agents.Runner.run(agent, prompt)
            return
        async for _ in agents.Runner.run_streamed(agent, prompt).stream_events():
            pass


async def pydantic(crew: Crew, prompt: str, tools: list[Any]) -> None:
    async with crew.client(httpx2.AsyncClient) as http_client:
        provider = OpenAIProvider(base_url=f"{crew.url}/v1", api_key="k", http_client=http_client)
        model = OpenAIChatModel(MODEL, provider=provider)
        named = [pydantic_ai.Tool(tool, name=TOOL) for tool in tools]
        await pydantic_ai.Agent(model, model_settings={"max_tokens": CAP}, tools=named).run(prompt)


# ---------------------------------------------------------------- nodes of a graph


class State(TypedDict):
    """What the nodes of a graph add to."""

    done: Annotated[list[str], operator.add]


def graph(crew: Crew, model: Any, names: list[str], blocks: bool) -> Any:
    """A node for each of them, all in one step; who leads others asks, runs their graph, and asks again."""
    meeting, meeting_of_tasks = threading.Barrier(len(names), timeout=MEET), asyncio.Barrier(len(names))

    def steps(name: str) -> list[Any]:
        asked = RunnableLambda(lambda state: f"I am the {name}.") | model
        below = BELOW[name]
        return [asked, graph(crew, model, below, blocks), asked] if below else [asked]

    def blocking(name: str, state: State) -> State:
        with crew.agent(name):
            meeting.wait()
            for step in steps(name):
                step.invoke(state)
        return {"done": [name]}

    async def awaiting(name: str, state: State) -> State:
        with crew.agent(name):
            await asyncio.wait_for(meeting_of_tasks.wait(), MEET)
            for step in steps(name):
                await step.ainvoke(state)
        return {"done": [name]}

    nodes = StateGraph(State)
    for name in names:
        nodes.add_node(name, partial(blocking if blocks else awaiting, name))
        nodes.add_edge(START, name)
    return nodes.compile()


def in_graphs(crew: Crew, *, awaits: bool, blocks: bool) -> None:
    async def awaiting(model: Any) -> None:
        async with crew.client(httpx.AsyncClient) as client:
            await graph(crew, model(http_async_client=client), ["planner"], blocks).ainvoke({"done": []})

    with crew.client(httpx.Client) as client:
        url = f"{crew.url}/v1"
        model = partial(ChatOpenAI, model=MODEL, base_url=url, api_key="k", max_tokens=CAP, http_client=client)
        if awaits:
            asyncio.run(awaiting(model))
        else:
            graph(crew, model(), ["planner"], blocks).invoke({"done": []})


FRAMEWORKS: dict[str, Callable[[Crew], None]] = {
    "openai-agents": in_tools(openai_agents),
    "openai-agents, blocking tools": in_tools(openai_agents, blocks=True),
    "openai-agents, streamed": in_tools(partial(openai_agents, streams=True)),
    "pydantic-ai": in_tools(pydantic),
    "pydantic-ai, blocking tools": in_tools(pydantic, blocks=True),
    "langgraph invoke": partial(in_graphs, awaits=False, blocks=True),
    "langgraph ainvoke": partial(in_graphs, awaits=True, blocks=False),
    "langgraph ainvoke, blocking nodes": partial(in_graphs, awaits=True, blocks=True),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_agent_pays_its_own_calls_and_those_below_it(office: Office, framework: str):
    """Agents run by agents, side by side: each stands at its own bill and what those below came to; nothing is held."""
    crew = Crew(office.url, Pacer(ceiling=100_000, wrap_up_reserve=500))
    FRAMEWORKS[framework](crew)
    left = {name: agent.status() for name, agent in crew.hired.items()}
    for name, below in BELOW.items():
        now, (calls, tokens) = left[name], office.billed(name)
        assert calls == (2 if below else 1)  # who leads others is asked before and after
        assert now.spent == tokens + sum(left[each].spent for each in below)
        assert now.calls == calls + sum(left[each].calls for each in below)
        assert {each.name: each.spent for each in now.finished} == {each: left[each].spent for each in below}
    assert [(each.name, each.spent) for each in crew.budget.status().finished] == [("planner", office.bill)]
    nothing_is_left(office, crew.budget)


# ---------------------------------------------------------------- threads that know no context


def pool(calls: list[Callable[[], object]]) -> None:
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(call) for call in calls]:
            done.result()


def executor(calls: list[Callable[[], object]]) -> None:
    async def run() -> None:
        await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(None, call) for call in calls))

    asyncio.run(run())


def in_own_scope(client: openai.OpenAI, agent: Agent, over: Any) -> Any:
    def create(**said: Any) -> Any:
        with agent.agent("helper"):
            return client.chat.completions.create(**said)

    return create


# How a call is made that is an agent's: with the client of all of them, or ``over`` the connections of all of them.
BOUND: dict[str, Callable[[openai.OpenAI, Agent, Any], Any]] = {
    "client": lambda client, agent, over: agent.bind(client).chat.completions.create,
    "headers": lambda client, agent, over: partial(client.chat.completions.create, extra_headers=agent.headers),
    "transport": lambda client, agent, over: client.with_options(http_client=over(agent)).chat.completions.create,
    "own scope": in_own_scope,
    "nothing": lambda client, agent, over: client.chat.completions.create,
}


@pytest.mark.parametrize("at_once", [pool, executor])
@pytest.mark.parametrize("bound", BOUND)
def test_a_thread_without_context_calls_for_whom_it_is_bound_to(office: Office, at_once: Any, bound: str):
    """By a bound client, headers, a transport, or a scope below it opened there; by nothing it is the run's alone."""
    budget = Pacer(ceiling=100_000, wrap_up_reserve=500)
    with httpx2.HTTPTransport(verify=False) as wire:

        def over(scope: Agent | None) -> Any:
            return httpx2.Client(transport=BudgetTransport(wire, pacer=budget, scope=scope))

        client = openai.OpenAI(base_url=f"{office.url}/v1", api_key="k", http_client=over(None))

        def call(agent: Agent) -> Any:
            ask = [{"role": "user", "content": f"I am the {agent.name}."}]
            return partial(BOUND[bound](client, agent, over), model=MODEL, messages=ask, max_completion_tokens=CAP)

        with budget.agent("planner") as planner, budget.agent("critic") as critic:
            at_once([call(agent) for agent in (planner, critic) for _ in range(3)])
    bills = {name: office.billed(name) for name in ("planner", "critic")}
    assert [calls for calls, _ in bills.values()] == [3, 3]
    if bound == "nothing":
        bills = dict.fromkeys(bills, (0, 0))
    assert (critic.status().calls, critic.status().spent) == bills["critic"]
    assert planner.status().spent == bills["planner"][1] + critic.status().spent
    nothing_is_left(office, budget)
