"""A network with faults: the caller gets what it gets without us, the books are closed, and the next call works."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pacer import Pacer
from tests.servers import CHAT, LIBRARIES, Caller, Connection, Server, answer_json, ask, books, chunked, whole
from transports import BudgetTransport

JSON = "content-type: application/json"
ANSWER = whole(answer_json(), JSON)
HEAD = f"HTTP/1.1 200 OK\r\n{JSON}\r\n".encode()
BYTES = [answer_json()[at : at + 1] for at in range(len(answer_json()))]
FAULT = {"x-fault": "yes"}


class Faulty(Server):
    """Plays its fault to a request that asks for it, on a connection that ends then; answers all others."""

    def __init__(self, fault: bytes, *, resets: bool = False, hangs: bool = False) -> None:
        super().__init__(self._play_fault)
        self._fault = fault
        self._resets = resets
        self._hangs = hangs

    def _play_fault(self, connection: Connection) -> None:
        while self.hear(connection):
            if "x-fault" not in self.heard[-1]:
                connection.write(ANSWER)
                continue
            connection.write(self._fault)
            if self._hangs:
                connection.read()  # until the caller has had enough
            if self._resets:
                connection.reset()
            return


def told(caller: Caller, transport: Any, url: str, **options: Any) -> tuple[Any, ...]:
    """What one caller gets for a request: the raw bytes, and status and headers or the class of the error."""
    got: list[bytes] = []
    try:
        response, _ = caller.stream(transport, url=url, into=got, json=ask(), **options)
    except caller.library.TransportError as error:
        return b"".join(got), type(error)
    return b"".join(got), response.status_code, response.headers.raw


def through(caller: Caller, server: Server, **options: Any) -> Pacer:
    """The fault without us and with us: the same for the caller, nothing stays open, and the next call works."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer, verify=False)
    with server:
        expected = told(caller, caller.bare(), server.url + CHAT, headers=FAULT, **options)
        assert told(caller, transport, server.url + CHAT, headers=FAULT, **options) == expected
        spent, unknown, held, in_flight = books(pacer)
        assert (held, in_flight, pacer.status().calls) == (0, 0, 1)
        assert caller.send(transport, url=server.url + CHAT, json=ask()).content == answer_json()
        assert books(pacer) == (spent + 30, unknown, 0, 0)
    return pacer


# ---------------------------------------------------------------- odd, but whole

WHOLE = {
    "one byte a chunk": chunked(BYTES, JSON),
    "trailers": chunked(BYTES, JSON, end=b"0\r\nx-usage: 999\r\n\r\n"),
    "chunk extensions": chunked(BYTES, JSON).replace(b"\r\n1\r\n", b"\r\n1;x=y\r\n"),
    "ended by closing": HEAD + b"\r\n" + answer_json(),
    "connection: close": whole(answer_json(), JSON, "connection: close"),
    "100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER,
    "103 Early Hints": b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n" + ANSWER,
    "three times 1xx": b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 102 Processing\r\n\r\n" * 2 + ANSWER,
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"\r\n" + answer_json(),
}


@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE)
def test_an_odd_answer_that_is_whole_is_metered_exactly(caller, answer):
    """However it is framed, and whatever came before it."""
    pacer = through(caller, Faulty(answer))
    assert books(pacer) == (60, 0, 0, 0)


@pytest.mark.parametrize("tells_first", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["silent", "100 Continue"])
def test_expect_continue_passes(caller, tells_first):
    """The header of the caller goes out, and no 1xx is taken for the answer."""
    pacer = Pacer()
    with Server(tells_first + ANSWER) as server:
        expecting = {"expect": "100-continue"}
        response = caller.send(
            BudgetTransport(pacer=pacer, verify=False), url=server.url + CHAT, json=ask(), headers=expecting
        )
        assert "expect: 100-continue" in server.heard[0].lower()
    assert (response.status_code, response.content) == (200, answer_json())
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content", "200 OK"])
def test_an_answer_without_a_body_is_unknown(caller, status):
    """It was not refused, so it may have been billed."""
    pacer = through(caller, Faulty(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()))
    assert books(pacer)[1] > 400


# ---------------------------------------------------------------- broken

BROKEN = {
    "closed before any byte": b"",
    "half a head": HEAD,
    "a head and nothing": HEAD + b"content-length: 99\r\n\r\n",
    "no HTTP": b"\x00\x01\x02 busy\r\n\r\n",
    "shorter than its length": whole(answer_json() + b"x", JSON)[:-1],
    "shorter than its length by half": ANSWER[:-100],
    "chunks without an end": chunked(BYTES, JSON, end=b""),
    "a chunk cut": chunked(BYTES, JSON, end=b"ff\r\n{"),
    "a chunk of no size": chunked(BYTES, JSON, end=b"size\r\n{"),
    "two lengths": HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}  ",
    "a length below zero": HEAD + b"content-length: -1\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_the_callers_error_and_unknown(caller, answer):
    """The same error after the same bytes; the question was heard, so the whole worst case may be on the bill."""
    pacer = through(caller, Faulty(answer))
    spent, unknown, *_ = books(pacer)
    assert spent >= 30
    assert unknown > 400
    assert spent - 30 + unknown > 500


@pytest.mark.parametrize("answer", [b"", HEAD, ANSWER[:-100], chunked(BYTES, JSON, end=b"")])
def test_a_reset_is_the_callers_error_and_unknown(caller, answer):
    """A TCP reset at any place."""
    pacer = through(caller, Faulty(answer, resets=True))
    assert books(pacer)[1] > 400


@pytest.mark.parametrize("answer", [b"", HEAD, ANSWER[:-100], chunked(BYTES, JSON, end=b"")])
def test_a_hanging_answer_ends_by_the_callers_timeout(caller, answer):
    """Their patience, their error; the model may have gone on."""
    pacer = through(caller, Faulty(answer, hangs=True), timeout=caller.library.Timeout(10, read=0.03))
    assert books(pacer)[1] > 400


@pytest.mark.parametrize("billed", [0, 30, 500])
def test_a_bill_that_nobody_saw_is_within_the_books(caller, billed):
    """Closed before the first byte: whether it was billed, only the provider knows."""
    pacer = Pacer()
    with Faulty(b"") as server, pytest.raises(caller.library.RemoteProtocolError):
        caller.send(BudgetTransport(pacer=pacer, verify=False), url=server.url + CHAT, json=ask(), headers=FAULT)
    spent, unknown, held, in_flight = books(pacer)
    assert spent == 0
    assert billed <= unknown
    assert (held, in_flight) == (0, 0)


def test_a_provider_in_trouble_spends_nothing_and_is_not_asked_again(caller):
    """Twenty answers with 500: twenty requests, no retry of ours, and the ceiling is as free as before."""
    pacer = Pacer(ceiling=700)
    transport = BudgetTransport(pacer=pacer, verify=False)
    with Faulty(whole(b"<html>oops</html>", "content-type: text/html", status="500 Oops")) as server:
        for _ in range(20):
            got = told(caller, transport, server.url + CHAT, headers=FAULT)
            assert got[:2] == (b"<html>oops</html>", 500)
        assert len(server.heard) == 20
        assert books(pacer) == (0, 0, 0, 0)
        assert (pacer.status().failed, pacer.status().calls) == (20, 0)
        assert caller.send(transport, url=server.url + CHAT, json=ask()).status_code == 200


# ---------------------------------------------------------------- elsewhere


def test_a_redirect_to_another_host_is_booked_once_and_takes_no_key_along(caller):
    """The library drops the key there, and nothing of ours brings it back."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer, verify=False)
    with Server(ANSWER) as other:
        moved = whole(b"", f"location: http://localhost:{other.port}{CHAT}", status="307 Moved")
        with Server(moved) as server:
            for below in (caller.bare(), transport):
                response = caller.send(
                    below,
                    url=server.url + CHAT,
                    json=ask(),
                    headers={"authorization": "Bearer KEY"},
                    follow_redirects=True,
                )
                assert response.content == answer_json()
            assert [head.count("Bearer KEY") for head in server.heard] == [1, 1]
            assert [head.count("Bearer KEY") for head in other.heard] == [0, 0]
            assert other.heard[0] == other.heard[1]
            assert other.bodies[0] == other.bodies[1] == server.bodies[0]
    assert books(pacer) == (30, 0, 0, 0)
    assert pacer.status().calls == 1


def test_an_upgrade_passes_unmetered(caller):
    """A websocket is no call a transport can meter: its handshake passes, its stream is the caller's, it is counted."""

    def play(connection: Connection) -> None:
        server.hear(connection)
        connection.write(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nframe")
        ended.wait(10)

    ended = threading.Event()
    pacer = Pacer(ceiling=0)
    transport = BudgetTransport(pacer=pacer, verify=False)
    headers = {"connection": "upgrade", "upgrade": "websocket"}

    def block() -> tuple[int, bytes]:
        with (
            caller.library.Client(transport=transport) as client,
            client.stream("GET", server.url + "/v1/realtime", headers=headers) as response,
        ):
            return response.status_code, response.extensions["network_stream"].read(5, timeout=10)

    async def wait() -> tuple[int, bytes]:
        async with (
            caller.library.AsyncClient(transport=transport) as client,
            client.stream("GET", server.url + "/v1/realtime", headers=headers) as response,
        ):
            return response.status_code, await response.extensions["network_stream"].read(5, timeout=10)

    with Server(play) as server:
        assert caller.run(block, wait) == (101, b"frame")
        ended.set()
    assert books(pacer) == (0, 0, 0, 0)
    assert (pacer.status().unmetered, pacer.status().calls) == (1, 0)


def test_what_is_mounted_goes_past_the_books(caller):
    """As the README says: ``mounts=`` bypass the client's transport, and only their number of calls tells."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer, verify=False)

    def block(url: str) -> None:
        with caller.library.Client(transport=transport, mounts={url: caller.bare()}) as client:
            assert client.post(url + CHAT, json=ask()).status_code == 200

    async def wait(url: str) -> None:
        async with caller.library.AsyncClient(transport=transport, mounts={url: caller.bare()}) as client:
            assert (await client.post(url + CHAT, json=ask())).status_code == 200

    with Server(ANSWER) as server:
        caller.run(lambda: block(server.url), lambda: wait(server.url))
        assert len(server.heard) == 1
        assert (books(pacer), pacer.status().calls) == ((0, 0, 0, 0), 0)
        caller.send(transport, url=server.url + CHAT, json=ask())
    assert (books(pacer), pacer.status().calls) == ((30, 0, 0, 0), 1)


def test_a_transport_needs_no_client_and_no_context(caller):
    """Handed a request directly, never entered and closed by nobody but the test's end."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer, verify=False)

    def block(url: str) -> bytes:
        read: bytes = transport.handle_request(caller.library.Request("POST", url, json=ask())).read()
        transport.close()
        return read

    async def wait(url: str) -> bytes:
        request = caller.library.Request("POST", url, json=ask())
        read: bytes = await (await transport.handle_async_request(request)).aread()
        await transport.aclose()
        return read

    with Server(ANSWER) as server:
        assert caller.run(lambda: block(server.url + CHAT), lambda: wait(server.url + CHAT)) == answer_json()
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_a_client_closed_while_its_call_waits_leaves_nothing_behind(library):
    """Another client's call has the room. As in the library's own pool, who waits goes on when it is their turn, on a
    connection of its own, and closing the transport again closes that one too.
    """
    pacer, connections = Pacer(ceiling=700), list[asyncio.StreamWriter]()

    async def main() -> None:
        heard, go = asyncio.Event(), asyncio.Event()

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(writer)
            await reader.readuntil(b"}]}")
            heard.set()
            await go.wait()
            writer.write(ANSWER)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            left.release()

        left = asyncio.Semaphore(0)
        server = await asyncio.start_server(play, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{CHAT}"
        transport = BudgetTransport(pacer=pacer, verify=False)
        waiting = library.AsyncClient(transport=transport)
        busy = library.AsyncClient(transport=BudgetTransport(pacer=pacer, verify=False))
        async with asyncio.timeout(10), server:
            first = asyncio.ensure_future(busy.post(url, json=ask()))
            await heard.wait()
            second = asyncio.ensure_future(waiting.post(url, json=ask()))
            while not pacer.status().waiting:
                await asyncio.sleep(0)
            await waiting.aclose()
            assert (pacer.status().waiting, len(connections)) == (1, 1)
            go.set()
            assert [(await call).status_code for call in (first, second)] == [200, 200]
            await transport.aclose()
            await left.acquire()
            await busy.aclose()
            await left.acquire()

    asyncio.run(main())
    assert len(connections) == 2
    assert books(pacer) == (60, 0, 0, 0)
    assert pacer.status().waiting == 0
