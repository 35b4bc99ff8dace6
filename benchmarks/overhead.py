"""Added time per call over bare httpx through a no-op transport, async, tracing off; peers beside it, in one run.

All subjects take turns in each round, so that whatever else the machine does hits all of them.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx

from benchmarks import peers
from pacer import Pacer
from transports import BudgetTransport

ROUNDS = 15
URL = "https://api.openai.com/v1/chat/completions"  # never contacted; some peers look at the host
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
LAST = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":200,"completion_tokens":200,"total_tokens":400}}\n\n'
STREAM = [CHUNK] * 199 + [LAST + b"data: [DONE]\n\n"]
TOKENS_A_KILOBYTE = 200
"""What prose is billed. A bill that no text of this size could have would be a lesson about the model each time."""


class Body(httpx.AsyncByteStream):
    """A body that has to be read, as from the network."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


class Noop(httpx.AsyncBaseTransport):
    """Answers at once."""

    def __init__(self, chunks: list[bytes], content_type: str) -> None:
        self._chunks = chunks
        self._headers = {"content-type": content_type}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=self._headers, stream=Body(self._chunks))


@dataclass(frozen=True)
class Case:
    """One kind of call, how often a round makes it, and what it may cost more.

    ``parses``: the caller reads lines and their JSON, as an SDK does; else it only takes the bytes.
    """

    name: str
    body: bytes
    chunks: list[bytes]
    content_type: str
    calls: int
    aim: str
    parses: bool = False


def cases() -> list[Case]:
    """Plain calls of three sizes, and a stream of 200 chunks whose caller did or did not ask for usage."""
    plain = [
        Case(f"{kilobytes} KB", question(kilobytes), [answer(kilobytes)], "application/json", calls, aim)
        for kilobytes, calls, aim in ((1, 200, "+25 us"), (20, 100, "+60 us"), (200, 40, "+130 us"))
    ]
    asked, unasked = {"stream_options": {"include_usage": True}}, dict[str, object]()
    streamed = [
        Case(name, question(1, stream=True, **options), STREAM, "text/event-stream", 20, aim, parses)
        for name, options, aim, parses in (
            ("200 chunks, taken as bytes", asked, "", False),
            ("200 chunks, read as an SDK reads them", asked, "+12 %", True),
            ("200 chunks, read as an SDK reads them, usage hidden", unasked, "", True),
        )
    ]
    return plain + streamed


def question(kilobytes: int, **more: object) -> bytes:
    """A chat request of about that size."""
    words = "The harbour council met on Tuesday and heard the pilot. "
    text = words * (max(1, kilobytes * 1_024 - 200) // len(words))
    request = {"model": "gpt-4o-mini", "max_tokens": 400, "messages": [{"role": "user", "content": text}], **more}
    return json.dumps(request).encode()


def answer(kilobytes: int) -> bytes:
    """A chat answer, and the bill for a question of about that size."""
    prompt_tokens = TOKENS_A_KILOBYTE * kilobytes
    message = {"role": "assistant", "content": "word " * 40}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-4o-mini",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 40, "total_tokens": prompt_tokens + 40},
        }
    ).encode()


def subjects() -> dict[str, Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport]]:
    """Ways to put something around the no-op transport, bare httpx first."""
    return {
        "bare httpx": lambda noop: noop,
        "BudgetTransport, no limits": lambda noop: BudgetTransport(noop, pacer=Pacer()),
        "BudgetTransport, paced and capped": lambda noop: BudgetTransport(
            noop, pacer=Pacer(tokens_per_second=1e12, ceiling=10**15)
        ),
        **peers.around(),
    }


async def measure() -> None:
    """Print one table a case."""
    print("Added time per call, async, no-op transport; medians of", ROUNDS, "rounds [p10 .. p90]")
    for missing in peers.missing():
        print(" ", missing)
    for case in cases():
        times = await times_of(case)
        print(f"\n{case.name}" + (f"   (aim: {case.aim})" if case.aim else ""))
        bare = times["bare httpx"]
        for name, taken in times.items():
            added = sorted(mine - base for mine, base in zip(taken, bare, strict=True))
            middle, base = statistics.median(taken), statistics.median(bare)
            spread = f"[{added[len(added) // 10]:+7.1f} .. {added[-1 - len(added) // 10]:+7.1f}]"
            print(f"  {name:36} {middle:8.1f} us  {middle - base:+8.1f} us {spread}  x {middle / base:.2f}")
    print()


async def times_of(case: Case) -> dict[str, list[float]]:
    """Microseconds per call in each round, by subject."""
    clients = {
        name: httpx.AsyncClient(transport=around(Noop(case.chunks, case.content_type)))
        for name, around in subjects().items()
    }
    times: dict[str, list[float]] = {name: [] for name in clients}
    for client in clients.values():
        await calls(client, case)
    for _ in range(ROUNDS):
        for name, client in clients.items():
            gc.collect()
            times[name].append(await calls(client, case))
    for client in clients.values():
        await client.aclose()
    return times


async def calls(client: httpx.AsyncClient, case: Case) -> float:
    """Microseconds per call."""
    headers = {"content-type": "application/json", "authorization": "Bearer none"}
    started = time.perf_counter()
    for _ in range(case.calls):
        async with client.stream("POST", URL, content=case.body, headers=headers) as response:
            if case.parses:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        json.loads(line[6:])
            else:
                async for _ in response.aiter_bytes():
                    pass
    return (time.perf_counter() - started) / case.calls * 1e6
