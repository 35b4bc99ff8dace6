"""The transports below ours: what a client would have built itself, from the environment and the settings."""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import Any

import httpx
import httpx2
import pytest
import trio

from pacer import Pacer
from tests.servers import (
    CALLERS,
    CHAT,
    LIBRARIES,
    Caller,
    Connection,
    Inner,
    Server,
    answer_json,
    ask,
    books,
    closed_port,
    ok,
    self_signed,
    whole,
)
from transports import BudgetTransport, inner

ANSWER = whole(answer_json(), "content-type: application/json")
AWAITING = [caller for caller in CALLERS if caller.awaits]
NAMES = [library.__name__ for library in LIBRARIES]


def built(caller: Caller, transport: inner.Inner, url: str) -> Any:
    """The transport that the library brings, below what keeps it open."""
    library = caller.library

    async def below() -> Any:
        return transport.transport(library, library.URL(url), awaits=True)

    return caller.run(lambda: transport.transport(library, library.URL(url), awaits=False), below).transport


def inner_of(**options: Any) -> inner.Inner:
    return inner.Inner(None, **{"verify": True, "http2": False, "limits": None, **options})


# ---------------------------------------------------------------- what is built


def test_each_client_gets_the_transport_of_its_library_and_kind(caller):
    """One object serves all four; the same one again for the next request."""
    one = inner_of()
    kind = caller.library.AsyncHTTPTransport if caller.awaits else caller.library.HTTPTransport
    assert type(built(caller, one, "http://a.test")) is kind
    if not caller.awaits:
        assert built(caller, one, "http://a.test") is built(caller, one, "http://b.test")


def test_a_given_transport_is_used_as_it_is(caller):
    """For every request."""
    given = Inner(ok())
    one = inner.Inner(given, verify=True, http2=False, limits=None)
    url = caller.library.URL("http://a.test")
    assert one.transport(caller.library, url, awaits=caller.awaits) is given


def test_the_pool_is_that_of_the_sdks(caller):
    """1,000 connections and 100 kept alive, not the 100 and 20 of the bare library."""
    pool = built(caller, inner_of(), "http://a.test")._pool
    assert (pool._max_connections, pool._max_keepalive_connections) == (1_000, 100)


@pytest.mark.parametrize("library", LIBRARIES, ids=NAMES)
def test_limits_of_either_library_are_taken(caller, library):
    """For both kinds of clients, whichever they were made with."""
    limits = library.Limits(max_connections=7, max_keepalive_connections=3, keepalive_expiry=2.5)
    pool = built(caller, inner_of(limits=limits), "http://a.test")._pool
    assert (pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry) == (7, 3, 2.5)


@pytest.mark.parametrize("http2", [False, True])
def test_http2_is_off_until_asked_for(caller, http2):
    """As in a bare client."""
    assert built(caller, inner_of(http2=http2), "http://a.test")._pool._http2 is http2


def test_certificates_are_checked(caller):
    """Unless the caller says otherwise; their own context is taken as it is."""
    context = built(caller, inner_of(), "https://a.test")._pool._ssl_context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert built(caller, inner_of(verify=False), "https://a.test")._pool._ssl_context.verify_mode is ssl.CERT_NONE
    own = ssl.create_default_context()
    assert built(caller, inner_of(verify=own), "https://a.test")._pool._ssl_context is own


def test_a_server_with_a_certificate_of_its_own_is_refused(caller, tmp_path):
    """By default; nothing was sent to it. Who switches the check off, or trusts the certificate, gets the answer."""
    pacer = Pacer()
    with Server(ANSWER, tls=self_signed(tmp_path)) as server:
        with pytest.raises(caller.library.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            caller.send(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=ask())
        assert books(pacer) == (0, 0, 0, 0)
        assert server.heard == []
        trusting = ssl.create_default_context(cafile=str(tmp_path / "both.pem"))
        for verify in (False, trusting):
            transport = BudgetTransport(pacer=pacer, verify=verify)
            assert caller.send(transport, url=server.url + CHAT, json=ask()).content == answer_json()
    assert books(pacer) == (60, 0, 0, 0)


def test_only_the_librarys_own_transport_is_trusted_to_report_sending():
    """A transport that does not say how far a request got may have sent it."""
    for library in LIBRARIES:
        assert inner_of().reports_sending(library)
        for given in (library.HTTPTransport(), library.AsyncHTTPTransport()):
            assert inner.Inner(given, verify=True, http2=False, limits=None).reports_sending(library)
        assert not inner.Inner(Inner(ok()), verify=True, http2=False, limits=None).reports_sending(library)


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_of_the_environment_is_used(monkeypatch, caller, name, scheme):
    """The proxy gets the request with its whole URL; the host itself does not exist."""
    with Server(ANSWER) as proxy:
        monkeypatch.setenv(name, f"{scheme}127.0.0.1:{proxy.port}")
        pacer = Pacer()
        response = caller.send(BudgetTransport(pacer=pacer), url="http://model.invalid" + CHAT, json=ask())
        assert response.content == answer_json()
        (head,) = proxy.heard
        assert head.startswith(f"POST http://model.invalid{CHAT} HTTP/1.1\r\n")
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize(
    ("no_proxy", "proxied"),
    [("127.0.0.1", 0), ("*", 0), ("127.0.0.1:PORT", 0), ("model.invalid,127.0.0.1", 0), ("other.test", 1), ("", 1)],
)
def test_no_proxy_goes_past_it(monkeypatch, caller, no_proxy, proxied):
    """The server is asked directly."""
    with Server(ANSWER) as proxy, Server(ANSWER) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy.replace("PORT", str(server.port)))
        caller.send(BudgetTransport(pacer=Pacer()), url=server.url + CHAT, json=ask())
        assert (len(proxy.heard), len(server.heard)) == (proxied, 1 - proxied)


def test_an_https_request_is_tunnelled(monkeypatch, caller):
    """The proxy sees CONNECT and nothing of the request; refused there, the call costs nothing."""

    def play(connection: Connection) -> None:
        proxy.hear(connection)
        connection.write(whole(b"", status="403 Forbidden"))

    with Server(play) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        pacer = Pacer()
        with pytest.raises(caller.library.ProxyError):
            caller.send(BudgetTransport(pacer=pacer), url="https://model.invalid" + CHAT, json=ask())
        (head,) = proxy.heard
        assert head.startswith("CONNECT model.invalid:443 HTTP/1.1\r\n")
    assert books(pacer) == (0, 0, 0, 0)


def test_the_proxy_of_another_scheme_is_not_used(monkeypatch, caller):
    """``HTTPS_PROXY`` is for https only."""
    with Server(ANSWER) as proxy, Server(ANSWER) as server:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        caller.send(BudgetTransport(pacer=Pacer()), url=server.url + CHAT, json=ask())
        assert (len(proxy.heard), len(server.heard)) == (0, 1)


def test_a_given_transport_knows_its_own_proxies(monkeypatch, caller):
    """The environment is not looked at."""
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed_port()}")
    given = Inner(ok())
    assert caller.send(BudgetTransport(given, pacer=Pacer()), json=ask()).status_code == 200
    assert len(given.requests) == 1


# ---------------------------------------------------------------- closing


def test_a_closed_transport_works_again_and_keeps_its_books(caller):
    """Some stacks close the client after each call; the budget does not end with a connection. Twice is fine."""
    pacer = Pacer(ceiling=10_000)
    transport = BudgetTransport(pacer=pacer)

    async def close_twice() -> None:
        await transport.aclose()
        await transport.aclose()

    def close() -> None:
        transport.close()
        transport.close()

    with Server(ANSWER) as server:
        for calls in (1, 2, 3):
            assert caller.send(transport, url=server.url + CHAT, json=ask()).status_code == 200
            assert books(pacer) == (30 * calls, 0, 0, 0)
            caller.run(close, close_twice)


def test_closing_closes_what_is_below(caller):
    """A given transport is closed with us; a built one lets go of its connections."""
    given = Inner(ok())
    caller.send(BudgetTransport(given, pacer=Pacer()), json=ask())
    assert given.closed == 1
    ended = threading.Event()

    def play(connection: Connection) -> None:
        server.hear(connection)
        connection.write(ANSWER)
        assert connection.read() is None
        ended.set()

    with Server(play) as server:
        caller.send(BudgetTransport(pacer=Pacer()), url=server.url + CHAT, json=ask())
        assert ended.wait(10)


@pytest.mark.parametrize("caller", AWAITING, ids=NAMES)
@pytest.mark.parametrize("closes", [True, False])
def test_one_transport_serves_one_event_loop_after_the_other(caller, closes):
    """Connections belong to a loop; the transport and its books do not. A connection left behind is not used again."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer)

    async def call(url: str) -> int:
        client = caller.library.AsyncClient(transport=transport)
        response = await client.post(url, json=ask(), headers={} if closes else {"connection": "close"})
        if closes:
            await client.aclose()
        status: int = response.status_code
        return status

    with Server(ANSWER) as server:
        assert [asyncio.run(call(server.url + CHAT)) for _ in range(3)] == [200, 200, 200]
    assert books(pacer) == (90, 0, 0, 0)


@pytest.mark.parametrize("caller", AWAITING, ids=NAMES)
def test_one_transport_serves_one_trio_run_after_the_other(caller):
    """And asyncio after that; no part of it belongs to one of them."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer)

    async def call(url: str) -> int:
        async with caller.library.AsyncClient(transport=transport) as client:
            status: int = (await client.post(url, json=ask())).status_code
            return status

    with Server(ANSWER) as server:
        assert [trio.run(call, server.url + CHAT) for _ in range(2)] == [200, 200]
        assert asyncio.run(call(server.url + CHAT)) == 200
    assert books(pacer) == (90, 0, 0, 0)


def test_one_transport_serves_all_four_clients_at_once():
    """Nested: no client's request disturbs another's, and one closing leaves the others open."""
    pacer = Pacer()
    transport = BudgetTransport(pacer=pacer)

    async def call(url: str) -> list[str]:
        async with httpx.AsyncClient(transport=transport) as third, httpx2.AsyncClient(transport=transport) as fourth:
            with httpx.Client(transport=transport) as first, httpx2.Client(transport=transport) as second:
                found = [first.post(url, json=ask()), second.post(url, json=ask())]
            found += [await third.post(url, json=ask()), await fourth.post(url, json=ask())]
            return [type(response).__module__ for response in found]

    with Server(ANSWER) as server:
        kinds = asyncio.run(call(server.url + CHAT))
    assert [name.partition(".")[0] for name in kinds] == ["httpx", "httpx2", "httpx", "httpx2"]
    assert books(pacer) == (120, 0, 0, 0)


def test_one_client_closing_cuts_no_answer_of_another(caller):
    """Some frameworks close or drop their client after each call; the paid answer of a neighbour still arrives."""
    pacer, rest = Pacer(), threading.Event()
    transport = BudgetTransport(pacer=pacer)

    def play(connection: Connection) -> None:
        connection.read()
        connection.write(ANSWER[:-9])
        rest.wait(10)
        connection.write(ANSWER[-9:])

    def blocking(url: str) -> bytes:
        neighbour = caller.library.Client(transport=transport)
        with (
            caller.library.Client(transport=transport) as client,
            client.stream("POST", url, json=ask()) as response,
        ):
            neighbour.close()
            rest.set()
            return bytes(response.read())

    async def awaiting(url: str) -> bytes:
        neighbour = caller.library.AsyncClient(transport=transport)
        async with (
            caller.library.AsyncClient(transport=transport) as client,
            client.stream("POST", url, json=ask()) as response,
        ):
            await neighbour.aclose()
            rest.set()
            return bytes(await response.aread())

    with Server(play) as server:
        url = server.url + CHAT
        assert caller.run(lambda: blocking(url), lambda: awaiting(url)) == answer_json()
    assert books(pacer) == (30, 0, 0, 0)
