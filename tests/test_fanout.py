"""The promise of the house: sixteen calls of 500 tokens at once against a ceiling of 1,000. Two pass."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import httpx2
import pytest

from pacer import Pacer
from transports import BudgetTransport

ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 400, "total_tokens": 500}}'
QUESTION = {"model": "m", "max_tokens": 400, "messages": [{"role": "user", "content": "name a ship"}]}
ASYNC_LIBRARIES = {"httpx": [httpx], "httpx2": [httpx2], "mixed": [httpx, httpx2]}


class Server(ThreadingHTTPServer):
    """Answers after a random while, and keeps the bill: the prompt is 100 tokens, with what it adds to each of them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pause = threading.Event()
        self.calls: list[int] = []
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/chat/completions"


class Answering(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.calls.append(500)
        self.server.pause.wait(self.server.rng.random() * 0.05)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(params=range(4), ids=lambda seed: f"timing{seed}")
def server(request: pytest.FixtureRequest):
    server = Server(request.param)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def check(statuses: list[int], server: Server, pacer: Pacer) -> None:
    assert sorted(statuses) == [200] * 2 + [402] * 14
    status = pacer.status()
    assert status.spent == sum(server.calls) == 1_000
    assert (status.unknown, status.held, status.in_flight, status.waiting, status.refused) == (0, 0, 0, 0, 14)


def in_tasks(libraries: list[Any], url: str, transport: BudgetTransport) -> list[int]:
    async def main() -> list[int]:
        clients = [library.AsyncClient(transport=transport) for library in libraries]
        answers = await asyncio.gather(
            *(clients[number % len(clients)].post(url, json=QUESTION) for number in range(16))
        )
        for client in clients:
            await client.aclose()
        return [answer.status_code for answer in answers]

    return asyncio.run(main())


def in_threads(libraries: list[Any], url: str, transport: BudgetTransport) -> list[int]:
    clients = [library.Client(transport=transport) for library in libraries]
    with ThreadPoolExecutor(16) as pool:
        posts = [pool.submit(clients[number % len(clients)].post, url, json=QUESTION) for number in range(16)]
        statuses = [post.result().status_code for post in posts]
    for client in clients:
        client.close()
    return statuses


@pytest.mark.parametrize("libraries", ASYNC_LIBRARIES.values(), ids=ASYNC_LIBRARIES)
@pytest.mark.parametrize("fan_out", [in_tasks, in_threads])
def test_two_of_sixteen_pass(
    fan_out: Callable[[list[Any], str, BudgetTransport], list[int]], libraries: list[Any], server: Server
):
    """Exactly two; fourteen refused without reaching the server; the books equal the server's bill."""
    pacer = Pacer(ceiling=1_000)
    check(fan_out(libraries, server.url, BudgetTransport(pacer=pacer)), server, pacer)


def test_tasks_and_threads_of_both_libraries_share_one_budget(server: Server):
    """Half of the callers are threads, half are tasks of another thread's loop."""
    pacer = Pacer(ceiling=1_000)
    transport = BudgetTransport(pacer=pacer)

    async def tasks() -> list[int]:
        async with httpx2.AsyncClient(transport=transport) as client:
            answers = await asyncio.gather(*(client.post(server.url, json=QUESTION) for _ in range(8)))
        return [answer.status_code for answer in answers]

    with httpx.Client(transport=transport) as client, ThreadPoolExecutor(9) as pool:
        loop = pool.submit(asyncio.run, tasks())
        posts = [pool.submit(client.post, server.url, json=QUESTION) for _ in range(8)]
        statuses = [post.result().status_code for post in posts] + loop.result()
    check(statuses, server, pacer)
