"""HTTP/2: a hundred streams on one connection, a server that goes away, and one that resets streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest

from pacer import Pacer
from tests.servers import CALLERS, CHAT, LIBRARIES, Caller, answer_json, ask, books, self_signed
from transports import BudgetTransport

STREAMS = 100
HEADERS = [(":status", "200"), ("content-type", "application/json")]
NAMES = [library.__name__ for library in LIBRARIES]
AWAITING = pytest.mark.parametrize("caller", [caller for caller in CALLERS if caller.awaits], ids=NAMES)


Play = Callable[["Provider", int, int], None]


class Provider(asyncio.Protocol):
    """One HTTP/2 connection; ``play(provider, stream, number)`` acts when the request of that number is whole."""

    connections = 0
    requests = 0

    def __init__(self, play: Play) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._play = play

    def connection_made(self, transport: Any) -> None:
        type(self).connections += 1
        self._transport = transport
        self.h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.StreamEnded):
                type(self).requests += 1
                self._play(self, event.stream_id, type(self).requests)
        self._flush()

    def answer(self, stream: int) -> None:
        self.h2.send_headers(stream, HEADERS)
        self.h2.send_data(stream, answer_json(), end_stream=True)
        self._flush()

    def _flush(self) -> None:
        self._transport.write(self.h2.data_to_send())


async def serve(folder: Path, play: Play) -> tuple[Any, Any, str]:
    """A server, the class that counts what it heard, and its URL."""
    heard = type("Heard", (Provider,), {})
    tls: ssl.SSLContext = self_signed(folder)
    tls.set_alpn_protocols(["h2"])
    server = await asyncio.get_running_loop().create_server(lambda: heard(play), "127.0.0.1", 0, ssl=tls)
    return server, heard, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}{CHAT}"


def bare(caller: Caller) -> Any:
    kind = caller.library.AsyncHTTPTransport if caller.awaits else caller.library.HTTPTransport
    return kind(verify=False, http2=True)


async def told(caller: Caller, transport: Any, url: str, calls: int) -> list[Any]:
    """What ``calls`` callers at once get: the bytes, or the class of the error."""

    def block() -> list[Any]:
        with caller.library.Client(transport=transport, timeout=10) as client, ThreadPoolExecutor(calls) as threads:
            return [outcome(posted) for posted in [threads.submit(client.post, url, json=ask()) for _ in range(calls)]]

    def outcome(posted: Any) -> Any:
        error = posted.exception()
        return type(error) if error else posted.result().content

    if not caller.awaits:
        return await asyncio.to_thread(block)
    async with caller.library.AsyncClient(transport=transport, timeout=10) as client:
        ended = await asyncio.gather(*(client.post(url, json=ask()) for _ in range(calls)), return_exceptions=True)
        return [type(one) if isinstance(one, BaseException) else one.content for one in ended]


async def both(caller: Caller, folder: Path, play: Play, calls: int) -> tuple[Pacer, list[Any]]:
    """The same for the callers without us and with us: our books, and what they get.

    Three attempts: where threads share a connection of httpcore that is being reset, now and then one call of some
    hundred runs into its half-made state (AttributeError, or a reset that was another stream's).
    """
    for _ in range(3):
        pacer, found = Pacer(), []
        for transport in (bare(caller), BudgetTransport(pacer=pacer, verify=False, http2=True)):
            server, _, url = await serve(folder, play)
            async with server:
                found.append(sorted(await told(caller, transport, url, calls), key=repr))
        if found[0] == found[1]:
            break
    assert found[0] == found[1]
    assert books(pacer)[2:] == (0, 0)
    assert pacer.status().calls == calls
    return pacer, found[1]


@AWAITING
def test_a_hundred_streams_of_one_connection_are_booked_each(caller, tmp_path):
    """All of them are open at once, answered in reverse; each is metered by itself."""
    pacer, waiting, in_flight = Pacer(), list[int](), list[int]()
    transport = BudgetTransport(pacer=pacer, verify=False, http2=True)

    def play(provider: Provider, stream: int, number: int) -> None:
        waiting.append(stream)
        if number == STREAMS:
            in_flight.append(books(pacer)[3])
            for one in reversed(waiting):
                provider.answer(one)

    async def main() -> None:
        server, heard, url = await serve(tmp_path, play)
        async with server:
            assert await told(caller, transport, url, STREAMS) == [answer_json()] * STREAMS
        assert (heard.connections, heard.requests) == (1, STREAMS)

    asyncio.run(main())
    assert in_flight == [STREAMS]
    assert books(pacer) == (30 * STREAMS, 0, 0, 0)
    assert pacer.status().calls == STREAMS


def test_a_stream_that_is_reset_before_its_answer_is_unknown(caller, tmp_path):
    """It was heard whole; the error is the library's."""

    def play(provider: Provider, stream: int, number: int) -> None:
        provider.h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)

    pacer, found = asyncio.run(both(caller, tmp_path, play, 1))
    assert found == [caller.library.RemoteProtocolError]
    assert books(pacer)[0] == 0
    assert books(pacer)[1] > 500


def test_a_stream_that_is_reset_in_the_middle_breaks_no_other(caller, tmp_path):
    """Of four calls at once every second one is cut, on the same connection or not."""

    def play(provider: Provider, stream: int, number: int) -> None:
        if number % 2:
            provider.h2.send_headers(stream, HEADERS)
            provider.h2.send_data(stream, answer_json()[:40])
            provider.h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            provider.answer(stream)

    pacer, found = asyncio.run(both(caller, tmp_path, play, 4))
    assert found.count(answer_json()) == 2
    assert found.count(caller.library.RemoteProtocolError) == 2
    assert books(pacer)[0] > 60
    assert books(pacer)[1] > 2 * 400


def test_a_server_that_goes_away_is_unknown(caller, tmp_path):
    """GOAWAY instead of an answer, and the end of the connection; the next call opens another one."""

    def play(provider: Provider, stream: int, number: int) -> None:
        if number == 1:
            provider.h2.close_connection(last_stream_id=stream)
        else:
            provider.answer(stream)

    async def main() -> None:
        pacer = Pacer()
        transport = BudgetTransport(pacer=pacer, verify=False, http2=True)
        server, heard, url = await serve(tmp_path, play)
        async with server:
            first = await told(caller, transport, url, 1)
            assert first == [caller.library.RemoteProtocolError]
            spent, unknown, held, in_flight = books(pacer)
            assert spent == 0
            assert unknown > 500
            assert (held, in_flight) == (0, 0)
            assert await told(caller, transport, url, 1) == [answer_json()]
            assert heard.connections == 2
        assert books(pacer) == (spent + 30, unknown, 0, 0)

    asyncio.run(main())


@AWAITING
def test_a_stream_cancelled_in_the_middle_breaks_no_other(caller, tmp_path):
    """The cancelled one is unknown beyond what was seen; the other one of the connection is exact."""
    pacer, streams = Pacer(), list[tuple[Provider, int]]()

    async def main() -> None:
        there = asyncio.Event()

        def play(provider: Provider, stream: int, number: int) -> None:
            streams.append((provider, stream))
            if number == 2:
                there.set()

        server, _, url = await serve(tmp_path, play)
        transport = BudgetTransport(pacer=pacer, verify=False, http2=True)
        async with server, caller.library.AsyncClient(transport=transport, timeout=10) as client:
            calls = [asyncio.ensure_future(client.post(url, json=ask())) for _ in range(2)]
            await there.wait()
            calls[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await calls[0]
            assert books(pacer)[3] == 1
            spent, unknown, *_ = books(pacer)
            assert unknown > 400
            provider, stream = streams[1]
            provider.answer(stream)
            assert (await calls[1]).content == answer_json()
        assert books(pacer) == (spent + 30, unknown, 0, 0)

    asyncio.run(main())
