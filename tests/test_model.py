"""The real SDKs on a real model: the books equal the server's usage, however a call ends, and nothing stays held."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

import pacer
from pacer import Pacer
from pacer.cli.model_server import ModelServer
from transports import BudgetTransport

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model")]

ONE_WORD: Any = [{"role": "user", "content": "Name a ship in one word."}]
NOT_KEPT = httpx2.Limits(max_keepalive_connections=0)  # see ModelServer
LONG: Any = [{"role": "user", "content": "Tell the story of a ship, slowly."}]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def budget() -> Pacer:
    return Pacer(ceiling=100_000)


def openai_client(server: ModelServer, budget: Pacer) -> openai.AsyncOpenAI:
    http_client = httpx2.AsyncClient(transport=BudgetTransport(pacer=budget, limits=NOT_KEPT), timeout=60)
    return openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", http_client=http_client)


def anthropic_client(server: ModelServer, budget: Pacer) -> anthropic.AsyncAnthropic:
    http_client = httpx2.AsyncClient(transport=BudgetTransport(pacer=budget, limits=NOT_KEPT), timeout=60)
    return anthropic.AsyncAnthropic(api_key="k", base_url=server.url, http_client=http_client)


def nothing_held(budget: Pacer) -> bool:
    status = budget.status()
    return (status.held, status.in_flight, status.waiting) == (0, 0, 0)


def drop(streams: list[Any]) -> None:
    """Forget the only reference that is left."""
    streams.clear()
    gc.collect()


def test_openai_plain(server: ModelServer, budget: Pacer):
    async def main() -> int:
        async with openai_client(server, budget) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="g", messages=ONE_WORD, max_tokens=n) for n in (4, 5, 6, 7))
            )
        return sum(answer.usage.total_tokens for answer in answers if answer.usage is not None)

    bill = asyncio.run(main())
    assert budget.status().spent == bill > 0
    assert budget.status().unknown == 0
    assert nothing_held(budget)


def test_a_profile_takes_what_its_provider_would_count_and_the_books_the_bill(server: ModelServer):
    """As Gemini counts: the rate knows the input only. What the call taught can be looked at."""
    budget = Pacer(tokens_per_minute=1, burst=10_000, ceiling=100_000, profile="gemini")

    async def main() -> Any:
        async with openai_client(server, budget) as client:
            answer = await client.chat.completions.create(model="g", messages=ONE_WORD, max_tokens=40)
            return answer.usage

    usage = asyncio.run(main())
    available = budget.status().tokens_available
    assert available is not None
    assert 10_000 - available == pytest.approx(usage.prompt_tokens, abs=2)
    assert budget.status().spent == usage.total_tokens > usage.prompt_tokens + 10
    (known,) = budget.learned()
    assert (known.model, known.calls) == ("g", 1)
    assert nothing_held(budget)


def test_a_run_that_cannot_fund_its_agents_ends_with_a_report_of_each_that_started(server: ModelServer):
    """Twenty agents, every third with a nested one. Each that started finishes or hands back its wrap-up, nothing goes
    over the ceiling, and the status tells which is which.
    """
    budget = Pacer(ceiling=2_000, spawn_threshold=300, wrap_up_reserve=80)
    ends: dict[str, str] = {}

    async def ask(client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(model="g", messages=ONE_WORD, max_tokens=6)

    async def work(client: openai.AsyncOpenAI, number: int) -> None:
        async with budget.agent(name := f"agent {number}") as agent:
            try:
                for _ in range(4):
                    await ask(client)
                    if number % 3 == 0:
                        async with budget.agent("checker", reserve=0):
                            await ask(client)
                ends[name] = "finished"
            except openai.APIStatusError as refused:
                if refused.status_code != httpx2.codes.PAYMENT_REQUIRED:
                    raise
                ends[name] = "not started"
                if agent.status().calls:
                    with pacer.wrap_up():
                        await ask(client)
                    ends[name] = "wrapped up"

    async def main() -> None:
        async with openai_client(server, budget) as client:
            await asyncio.gather(*(work(client, number) for number in range(20)))

    before = server.tokens_served()
    asyncio.run(main())
    now = budget.status()
    assert now.spent == server.tokens_served() - before <= 2_000
    assert (now.unknown, now.held, now.carved, now.agents) == (0, 0, 0, ())
    assert set(ends.values()) >= {"wrapped up", "not started"}
    for row in now.finished:
        if row.name in ends:
            told = "not started" if not row.calls else "wrapped up" if row.wrap_ups else "finished"
            assert told == ends[row.name]
    assert len(ends) == 20


def test_openai_blocking(server: ModelServer, budget: Pacer):
    with openai.OpenAI(
        api_key="k",
        base_url=f"{server.url}/v1",
        http_client=httpx2.Client(transport=BudgetTransport(pacer=budget, limits=NOT_KEPT), timeout=60),
    ) as client:
        answer = client.chat.completions.create(model="g", messages=ONE_WORD, max_tokens=4)
    assert answer.usage is not None
    assert budget.status().spent == answer.usage.total_tokens


@pytest.mark.parametrize("asked", [True, False])
def test_openai_streamed(server: ModelServer, budget: Pacer, asked: bool):
    """The usage chunk is read either way, and seen only by a caller who asked for it."""
    options = {"stream_options": {"include_usage": True}} if asked else {}

    async def main() -> list[int]:
        async with openai_client(server, budget) as client:
            stream: Any = await client.chat.completions.create(
                model="g", messages=ONE_WORD, max_tokens=6, temperature=0, stream=True, extra_body=options
            )
            return [chunk.usage.total_tokens async for chunk in stream if chunk.usage is not None]

    seen = asyncio.run(main())
    status = budget.status()
    assert status.spent > 6
    assert status.unknown == 0
    assert seen == ([status.spent] if asked else [])
    assert nothing_held(budget)


def test_anthropic_plain_and_streamed(server: ModelServer, budget: Pacer):
    async def main() -> int:
        async with anthropic_client(server, budget) as client:
            plain = await client.messages.create(model="g", messages=ONE_WORD, max_tokens=5)
            async with client.messages.stream(model="g", messages=ONE_WORD, max_tokens=5) as stream:
                streamed = await stream.get_final_message()
        used = [plain.usage, streamed.usage]
        return sum(u.input_tokens + (u.cache_read_input_tokens or 0) + u.output_tokens for u in used)

    bill = asyncio.run(main())
    assert budget.status().spent == bill > 10
    assert budget.status().unknown == 0
    assert nothing_held(budget)


def test_openai_responses_plain_and_streamed(server: ModelServer, budget: Pacer):
    async def main() -> int:
        async with openai_client(server, budget) as client:
            plain = await client.responses.create(model="g", input="Name a ship in one word.", max_output_tokens=5)
            stream = await client.responses.create(model="g", input="Name a port.", max_output_tokens=5, stream=True)
            ends = [event.response async for event in stream if event.type == "response.completed"]
        return sum(each.usage.total_tokens for each in (plain, *ends) if each.usage is not None)

    bill = asyncio.run(main())
    assert budget.status().spent == bill > 20
    assert (budget.status().calls, budget.status().unknown) == (2, 0)
    assert nothing_held(budget)


def test_openai_completions_plain_and_streamed(server: ModelServer, budget: Pacer):
    """By the server's own count: an answer need not tell its caller."""
    served = server.tokens_served()

    async def main() -> None:
        async with openai_client(server, budget) as client:
            await client.completions.create(model="g", prompt="A ship is", max_tokens=5)
            async for _ in await client.completions.create(model="g", prompt="A port is", max_tokens=5, stream=True):
                pass

    asyncio.run(main())
    assert budget.status().spent == server.tokens_served() - served > 10
    assert (budget.status().calls, budget.status().unknown) == (2, 0)
    assert nothing_held(budget)


def test_a_cancelled_task_books_its_worst_case_and_holds_nothing(server: ModelServer, budget: Pacer):
    async def main() -> None:
        async with openai_client(server, budget) as client:
            task = asyncio.create_task(client.chat.completions.create(model="g", messages=LONG, max_tokens=200))
            while budget.status().in_flight == 0:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert nothing_held(budget)

    asyncio.run(main())
    status = budget.status()
    assert status.spent + status.unknown in range(1) or status.spent + status.unknown >= 200


def test_a_closed_stream_books_what_was_seen_and_the_rest_as_unknown(server: ModelServer, budget: Pacer):
    async def main() -> None:
        async with openai_client(server, budget) as client:
            stream: Any = await client.chat.completions.create(model="g", messages=LONG, max_tokens=200, stream=True)
            async for _ in stream:
                break
            await stream.close()
            assert nothing_held(budget)

    asyncio.run(main())
    status = budget.status()
    assert status.spent > 0
    assert status.unknown > 100
    assert status.spent + status.unknown >= 200


def test_a_stream_that_nobody_closes_settles_when_it_is_collected(server: ModelServer, budget: Pacer):
    client = openai.OpenAI(
        api_key="k",
        base_url=f"{server.url}/v1",
        http_client=httpx2.Client(transport=BudgetTransport(pacer=budget, limits=NOT_KEPT), timeout=60),
    )
    stream: Any = client.chat.completions.create(model="g", messages=LONG, max_tokens=50, stream=True)
    assert budget.status().held > 50
    streams = [stream]
    del stream
    with pytest.warns(ResourceWarning, match="dropped without being read or closed"):
        drop(streams)
    assert nothing_held(budget)
    assert budget.status().unknown >= 50
    client.close()


def test_a_killed_server_leaves_nothing_held(budget: Pacer):
    with ModelServer() as doomed:

        async def main() -> None:
            async with openai_client(doomed, budget) as client:
                stream: Any = await client.chat.completions.create(
                    model="g", messages=LONG, max_tokens=500, stream=True
                )
                await anext(stream)
                doomed.kill()
                with pytest.raises((httpx2.TransportError, openai.APIConnectionError)):
                    [chunk async for chunk in stream]
                with pytest.raises(openai.APIConnectionError):
                    await client.with_options(max_retries=0).chat.completions.create(model="g", messages=ONE_WORD)

        asyncio.run(main())
    assert nothing_held(budget)
    status = budget.status()
    assert status.spent + status.unknown >= 500
    assert status.calls == 1
