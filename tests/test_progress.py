"""Was it sent? What an error or a cancellation costs depends on how far the request had got."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pacer import Pacer
from tests.servers import CALLERS, CHAT, Answer, Connection, Inner, Server, answer_json, ask, books, closed_port, whole
from transports import BudgetTransport

ANSWER = whole(answer_json(), "content-type: application/json")
AWAITING = [caller for caller in CALLERS if caller.awaits]
NAMES = ["httpx", "httpx2"]


@pytest.mark.parametrize("below", ["ours", "theirs"])
def test_a_refused_connection_costs_nothing(caller, below):
    """Nothing was sent, whichever transport found out."""
    theirs = caller.library.AsyncHTTPTransport() if caller.awaits else caller.library.HTTPTransport()
    pacer = Pacer()
    transport = BudgetTransport(theirs if below == "theirs" else None, pacer=pacer)
    with pytest.raises(caller.library.ConnectError):
        caller.send(transport, url=f"http://127.0.0.1:{closed_port()}{CHAT}", json=ask())
    assert books(pacer) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["ConnectError", "ConnectTimeout", "PoolTimeout"])
def test_an_error_before_any_connection_costs_nothing(caller, name):
    """Also below a transport that tells nothing of its progress."""
    error, pacer = getattr(caller.library, name)("no"), Pacer()
    with pytest.raises(type(error)) as caught:
        caller.send(BudgetTransport(Inner(Answer(error=error)), pacer=pacer), json=ask())
    assert caught.value is error
    assert books(pacer) == (0, 0, 0, 0)


def test_a_connection_that_fails_after_one_that_was_sent_counts_as_sent(caller):
    """A transport below ours tries again where the first answer was lost; the provider may bill what it heard."""

    class Stubborn(Inner):
        def handle_request(self, request: Any) -> Any:
            with pytest.raises(caller.library.RemoteProtocolError):
                below.handle_request(request)
            request.url = gone
            return below.handle_request(request)

        async def handle_async_request(self, request: Any) -> Any:
            with pytest.raises(caller.library.RemoteProtocolError):
                await below.handle_async_request(request)
            request.url = gone
            return await below.handle_async_request(request)

    below, pacer = caller.bare(), Pacer()
    gone = caller.library.URL(f"http://127.0.0.1:{closed_port()}{CHAT}")
    with Server(lambda connection: connection.read() and None) as server, pytest.raises(caller.library.ConnectError):
        caller.send(BudgetTransport(Stubborn(), pacer=pacer), url=server.url + CHAT, json=ask())
    assert books(pacer)[0] == 0
    assert books(pacer)[1] > 500
    assert books(pacer)[2:] == (0, 0)


@pytest.mark.parametrize("name", ["ReadError", "ReadTimeout", "WriteError", "RemoteProtocolError"])
def test_any_other_error_counts_as_sent_where_nobody_tells(caller, name):
    """Nothing is surely on the bill, the worst case may be; the exception is unchanged."""
    error, pacer = getattr(caller.library, name)("no"), Pacer()
    with pytest.raises(type(error)) as caught:
        caller.send(BudgetTransport(Inner(Answer(error=error)), pacer=pacer), json=ask())
    assert caught.value is error
    spent, unknown, held, in_flight = books(pacer)
    assert spent == 0
    assert unknown > 500
    assert (held, in_flight) == (0, 0)


@pytest.mark.parametrize("kind", ["closed", "reset"])
def test_a_connection_lost_before_the_answer_counts_as_sent(caller, kind):
    """The provider heard the question and may bill it."""

    def play(connection: Connection) -> None:
        server.hear(connection)
        if kind == "reset":
            connection.reset()

    pacer = Pacer()
    with Server(play) as server, pytest.raises((caller.library.RemoteProtocolError, caller.library.ReadError)):
        caller.send(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=ask())
    assert books(pacer)[0] == 0
    assert books(pacer)[1] > 500
    assert books(pacer)[2:] == (0, 0)


@pytest.mark.parametrize("caller", AWAITING, ids=NAMES)
@pytest.mark.parametrize("at", ["connection.connect_tcp.started", "http11.send_request_headers.complete"])
def test_a_call_cancelled_before_its_body_left_costs_nothing(caller, at):
    """Cancelled while it connects, or between head and body: nothing that could be billed was sent."""
    pacer = Pacer()

    async def play(url: str) -> None:
        there = asyncio.Event()

        async def trace(name: str, info: dict[str, Any]) -> None:
            if name == at:
                there.set()
                await asyncio.Event().wait()

        async with caller.library.AsyncClient(transport=BudgetTransport(pacer=pacer)) as client:
            call = asyncio.create_task(client.post(url, json=ask(), extensions={"trace": trace}))
            await there.wait()
            assert books(pacer)[3] == 1
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert books(pacer) == (0, 0, 0, 0)

    with Server(ANSWER) as server:
        asyncio.run(play(server.url + CHAT))


@pytest.mark.parametrize("caller", AWAITING, ids=NAMES)
def test_a_call_cancelled_after_it_was_sent_is_unknown(caller):
    """The server has the question and thinks; nobody will see its bill."""
    pacer = Pacer()

    async def play() -> None:
        heard = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            heard.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{CHAT}"
        async with server, caller.library.AsyncClient(transport=BudgetTransport(pacer=pacer), timeout=10) as client:
            call = asyncio.create_task(client.post(url, json=ask()))
            await heard.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert books(pacer)[0] == 0
            assert books(pacer)[1] > 500
            assert books(pacer)[2:] == (0, 0)

    asyncio.run(play())
