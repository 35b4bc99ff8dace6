"""A task cancelled at any await: nothing stays held, and only what was sent is booked."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from pacer import Pacer
from tests.servers import Answer, Inner, answer_json, ask, books, chunked, ok, whole
from transports import BudgetTransport

URL = "/v1/chat/completions"


class Provider:
    """A raw HTTP server that answers one request at a time, and knows whether it heard the body."""

    def __init__(self) -> None:
        self.heard = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:")
                await reader.readexactly(length)
                self.heard += 1
                body = b"".join(chunk for chunk in ok().chunks if isinstance(chunk, bytes))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_cancelled_after_any_number_of_steps(library: Any):
    """Before the request is sent it costs nothing; afterwards what the provider may bill is booked; nothing is held."""

    async def main() -> list[int]:
        provider = Provider()
        server = await asyncio.start_server(provider, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{URL}"
        booked = []
        async with library.AsyncClient(transport=BudgetTransport(pacer=(warm := Pacer()))) as client:
            await client.post(url, json=ask())
            assert warm.status().spent > 0
        for steps in range(80):
            pacer = Pacer(ceiling=100_000)
            before = provider.heard
            async with library.AsyncClient(transport=BudgetTransport(pacer=pacer)) as client:
                task = asyncio.ensure_future(client.post(url, json=ask()))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                status = pacer.status()
                assert (status.held, status.in_flight, status.waiting) == (0, 0, 0)
                booked.append(status.spent + status.unknown)
                if provider.heard > before:
                    assert booked[-1] > 0
        server.close()
        return booked

    booked = asyncio.run(main())
    assert booked[0] == 0
    assert booked[-1] > 0


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_cancelled_while_its_end_is_written_it_gives_its_connection_back(library: Any, tmp_path: Path):
    """The answer is there, but not yet the caller's: nobody else would ever close it."""

    class Impatient(Inner):
        async def handle_async_request(self, request: Any) -> Any:
            busy.execute("BEGIN IMMEDIATE")  # nobody can write the end of the call
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # takes effect where the task waits next
            return self.handle_request(request)

    pacer = Pacer(ceiling=100_000, store=f"sqlite:{tmp_path}/books.db")
    busy = sqlite3.connect(tmp_path / "books.db", isolation_level=None)
    inner = Impatient(Answer([b"{}"], status=400))
    request = library.Request("POST", "http://model.test" + URL, json=ask())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(BudgetTransport(inner, pacer=pacer).handle_async_request(request))
    busy.close()
    assert inner.bodies[0].closed == 1
    assert books(pacer) == (0, 0, 0, 0)
    pacer.close()


@pytest.mark.parametrize("twice", [False, True])
def test_cancelled_while_waiting_lets_the_next_one_go(twice: bool):
    """In the line, or granted and not yet awake; a second cancellation changes nothing."""

    async def main() -> None:
        gate = asyncio.Event()

        class Inner(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                await gate.wait()
                return httpx.Response(200, json={"usage": {"prompt_tokens": 10, "completion_tokens": 10}})

        for steps in range(12):
            gate.clear()
            pacer = Pacer(ceiling=1_000)
            async with httpx.AsyncClient(transport=BudgetTransport(Inner(), pacer=pacer)) as client:
                tasks = [asyncio.ensure_future(client.post("http://a.test" + URL, json=ask(600))) for _ in range(3)]
                while pacer.status().waiting < 2:
                    await asyncio.sleep(0)
                gate.set()
                for _ in range(steps):
                    await asyncio.sleep(0)
                for _ in range(1 + twice):
                    tasks[1].cancel()
                first, _, third = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(first, httpx.Response)
            assert isinstance(third, httpx.Response)
            assert (first.status_code, third.status_code) == (200, 200)
            assert (pacer.status().held, pacer.status().waiting) == (0, 0)

    asyncio.run(main())


# ---------------------------------------------------------------- a thousand of two thousand

CALLS, CANCELLED, WAVE = 2_000, 1_000, 100
ROOM = 12_000
"""Tokens for each wave: not enough for the worst cases of all, more than they can take."""
LAUNCHED, CHUNK, CLOSING = "some steps after the launch", "in the middle of the answer", "in aclose"
SENT = "http11.send_request_body.started"
POINTS = [
    LAUNCHED,
    "connection.connect_tcp.started",
    "http11.send_request_headers.started",
    "http11.send_request_headers.complete",
    SENT,
    "http11.send_request_body.complete",
    "http11.receive_response_headers.started",
    "http11.receive_response_headers.complete",
    CHUNK,
    CLOSING,
]
"""In the order in which a call comes by. Who is to be cancelled where it does not come by is cancelled at the next."""


class Billing:
    """Reads each request to its end, bills it and makes the answer, whether anybody is still there or not."""

    def __init__(self) -> None:
        self.bills: dict[int, int] = {}
        self.ended: list[asyncio.Event] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ended.append(ended := asyncio.Event())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                said = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
                await reader.readexactly(int(said[b"content-length"]))
                given, made = json.loads(said[b"x-bill"])
                self.bills[int(said[b"x-call"])] = given + made
                usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
                if b"x-streamed" not in said:
                    writer.write(whole(answer_json(usage), "content-type: application/json"))
                    continue
                words = [b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'] * 5
                bill = b'data: {"choices": [], "usage": %s}\n\n' % json.dumps(usage).encode()
                for piece in chunked([*words, bill], "content-type: text/event-stream").split(b"data: ")[:-1]:
                    writer.write(piece + b"data: ")
                    await asyncio.sleep(0)
                writer.write(chunked([bill]).partition(b"data: ")[2])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            ended.set()


@dataclass
class Call:
    """One call, and where it is to be cancelled, if at all."""

    number: int
    rng: random.Random
    point: str | None
    twice: bool = False
    sent: bool = False
    receipt: Any = field(default=None)

    async def run(self, client: Any, url: str) -> int:
        text, made, streamed = "word " * self.rng.randint(20, 60), self.rng.randint(1, 60), self.rng.random() < 0.5
        headers = {"x-call": str(self.number), "x-bill": json.dumps([len(text) // 4, made])}
        if streamed:
            headers["x-streamed"] = "yes"
        said = ask(60, messages=[{"role": "user", "content": text}], stream=streamed)
        async with client.stream(
            "POST", url, json=said, headers=headers, extensions={"trace": self._trace}
        ) as response:
            status: int = response.status_code
            if status != 200:
                return status
            self.receipt = response.extensions["pacer"]
            left = self.rng.randint(0, 4)
            async for _ in response.aiter_raw(64):
                await self._by(CHUNK)
                if self.point == CLOSING and left == 0:
                    break
                left -= 1
            if self.point in (CLOSING, LAUNCHED):  # also who was too quick for the others
                self._cancel()
        return status

    async def _trace(self, name: str, info: object) -> None:
        self.sent = self.sent or name == SENT
        if name in POINTS:
            await self._by(name)

    async def _by(self, point: str) -> None:
        """The call comes by a point."""
        if self.point not in (None, LAUNCHED, CLOSING) and POINTS.index(point) >= POINTS.index(str(self.point)):
            self._cancel()
            await asyncio.sleep(0)

    def _cancel(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.point = None
        task.cancel()
        if self.twice:
            asyncio.get_running_loop().call_soon(task.cancel)


def calls_of(rng: random.Random) -> list[Call]:
    doomed = set(rng.sample(range(CALLS), CANCELLED))
    return [
        Call(number, rng, rng.choice(POINTS) if number in doomed else None, rng.random() < 0.3)
        for number in range(CALLS)
    ]


async def cancel_on_the_way(calls: list[Call], tasks: list[asyncio.Task[int]], rng: random.Random) -> None:
    """Those that are cancelled by somebody else, some loop steps after the launch, wherever they are."""
    for call, task in zip(calls, tasks, strict=True):
        if call.point == LAUNCHED:
            task.cancel()
            if call.twice:
                asyncio.get_running_loop().call_soon(task.cancel)
            for _ in range(rng.randint(0, 2)):
                await asyncio.sleep(0)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_thousand_of_two_thousand_are_cancelled_anywhere(library: Any):
    """Nothing is held or waits, the bill is within the books, what was not sent is not in them, and the rest of the
    ceiling can be spent to the last call that fits. The ceiling is raised wave by wave: some of each have to wait.
    """
    rng, provider, pacer = random.Random(7), Billing(), Pacer(ceiling=0)
    transport = BudgetTransport(pacer=pacer, output_cap="leave")
    calls = calls_of(rng)

    async def main() -> None:
        server = await asyncio.start_server(provider, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{URL}"
        async with library.AsyncClient(transport=transport, timeout=60) as client:
            results: list[object] = []
            for at in range(0, CALLS, WAVE):
                wave = calls[at : at + WAVE]
                pacer.set_ceiling(pacer.status().spent + pacer.status().unknown + ROOM)
                tasks = [asyncio.ensure_future(call.run(client, url)) for call in wave]
                await asyncio.sleep(0)
                assert pacer.status().waiting > 0
                await cancel_on_the_way(wave, tasks, rng)
                results += await asyncio.gather(*tasks, return_exceptions=True)
            now, billed = pacer.status(), sum(provider.bills.values())
            assert [type(one) for one in results].count(asyncio.CancelledError) == CANCELLED
            assert results.count(200) == CALLS - CANCELLED
            assert (now.held, now.in_flight, now.waiting, now.refused) == (0, 0, 0, 0)
            assert now.spent <= billed <= now.spent + now.unknown
            sent = {call.number for call in calls if call.sent}
            assert set(provider.bills) <= sent
            assert now.calls == len(sent) < CALLS - 100
            last = Call(CALLS, rng, None)
            while await last.run(client, url) == 200:
                assert last.receipt.source == "provider"
            remaining = pacer.status().remaining
            assert remaining is not None
            assert 0 <= remaining < 2 * last.receipt.reserved
        server.close()
        async with asyncio.timeout(10):
            for ended in provider.ended:  # no connection was left open
                await ended.wait()

    asyncio.run(main())
