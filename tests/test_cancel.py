"""A task cancelled at any await: nothing stays held, and only what was sent is booked."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import pytest

from pacer import Pacer
from tests.servers import ask, ok
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
