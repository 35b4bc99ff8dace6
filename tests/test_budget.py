"""BudgetTransport: one object for all clients; each request is booked once and passes untouched."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from pacer import LimitsConflict, Pacer, SettingsError
from pacer.estimate import measure
from tests.servers import (
    CALLERS,
    CHAT,
    URL,
    Answer,
    Caller,
    Inner,
    Server,
    answer_json,
    ask,
    books,
    ok,
    whole,
)
from transports import BudgetTransport

ANSWER = whole(answer_json(), "content-type: application/json")
_runs = itertools.count()


@pytest.fixture
def run() -> str:
    """A run that nobody else joins."""
    return f"test-budget-{next(_runs)}"


# ---------------------------------------------------------------- one object, all clients


def test_the_answer_is_of_the_library_that_asked():
    """One object in all four clients, one budget."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(ok()), pacer=pacer)
    for number, caller in enumerate(CALLERS, 1):
        response = caller.send(transport, json=ask())
        assert type(response) is caller.library.Response
        assert books(pacer) == (30 * number, 0, 0, 0)


def test_what_is_no_request_is_refused_at_once():
    """With a word on what is taken."""
    with pytest.raises(TypeError, match="requests of httpx or httpx2"):
        BudgetTransport(Inner(ok()), pacer=Pacer()).handle_request(object())


def test_the_sdks_own_clients_take_it():
    """anthropic's refuse heirs of httpx's transports; this one has no base class."""
    transport = BudgetTransport(Inner(ok()), pacer=Pacer())
    assert type(transport).__mro__ == (BudgetTransport, object)
    for kind in (openai.DefaultHttpxClient, anthropic.DefaultHttpxClient):
        with kind(transport=transport) as client:
            assert client.post(URL, json=ask()).content == answer_json()

    async def call() -> None:
        for kind in (openai.DefaultAsyncHttpxClient, anthropic.DefaultAsyncHttpxClient):
            async with kind(transport=transport) as client:
                assert (await client.post(URL, json=ask())).content == answer_json()

    asyncio.run(call())
    assert books(transport.pacer) == (120, 0, 0, 0)


def test_it_is_a_context_of_its_own(caller: Caller):
    """``with transport`` closes what is below."""
    inner = Inner(ok())
    transport = BudgetTransport(inner, pacer=Pacer())

    def block() -> None:
        with transport as entered:
            assert entered is transport

    async def wait() -> None:
        async with transport as entered:
            assert entered is transport

    caller.run(block, wait)
    assert inner.closed == 1


def test_its_repr_is_the_operators_line():
    """How the budget stands, without a secret."""
    transport = BudgetTransport(Inner(ok()), pacer=Pacer(run="nightly", ceiling=5_000))
    line = "0 spent + 0 unknown + 0 held of 5,000 | 0 in flight, 0 waiting"
    assert repr(transport) == f"<BudgetTransport <Pacer nightly: {line}>>"


# ---------------------------------------------------------------- whose budget


def test_transports_of_one_run_share_one_pacer(run):
    """Five in a stack are one budget, not five; another run is another."""
    first = BudgetTransport(run=run, ceiling=9_000)
    assert BudgetTransport(run=run).pacer is first.pacer
    assert BudgetTransport(run=run, ceiling="9k", retries=2, refusal="raise", include_usage="off").pacer is first.pacer
    assert BudgetTransport(run=run + "-other").pacer is not first.pacer


def test_a_run_is_joined_by_the_environment_too(monkeypatch, run):
    """``BudgetTransport()`` with everything from ``PACER_*``."""
    monkeypatch.setenv("PACER_RUN", run)
    monkeypatch.setenv("PACER_CEILING", "700")
    first = BudgetTransport()
    assert (first.pacer.name, first.pacer.status().ceiling) == (run, 700)
    assert BudgetTransport(run=run).pacer is first.pacer


def test_other_limits_for_an_open_run_are_a_conflict(run):
    """Both values are named; neither wins in silence, and the open run keeps its own."""
    first = BudgetTransport(run=run, ceiling=9_000)
    with pytest.raises(LimitsConflict, match=r"ceiling=9000.*ceiling=8000"):
        BudgetTransport(run=run, ceiling=8_000)
    with pytest.raises(LimitsConflict, match=r"tokens_per_second=None.*tokens_per_second=5"):
        BudgetTransport(run=run, tokens_per_second=5)
    assert first.pacer.status().ceiling == 9_000


@pytest.mark.parametrize("given", [{"ceiling": 5}, {"run": "x"}, {"tokens_per_second": 5}, {"max_wait": 1}])
def test_a_pacer_of_ones_own_brings_its_limits(given):
    """Limits beside it are a mistake; what is the transport's own affair may be given."""
    pacer = Pacer(ceiling=100)
    with pytest.raises(SettingsError, match=next(iter(given))):
        BudgetTransport(pacer=pacer, **given)
    assert BudgetTransport(pacer=pacer, retries=1, refusal="raise").pacer is pacer


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"inner": "http://a"}, "inner=str .*: give a transport"),
        ({"inner": httpx.Client(transport=httpx.HTTPTransport())}, "inner=Client .*: give a transport"),
        ({"inner": httpx.HTTPTransport}, "inner=type .*: give a transport"),
        ({"pacer": "nightly"}, r"pacer='nightly' .*: give a Pacer\(...\)"),
        ({"scope": "nightly"}, r"scope='nightly' .*: give what pacer.run\(\)"),
        ({"scope": Pacer(run="theirs").run("theirs")}, "scope=<Run theirs: .*: give one of <Pacer"),
    ],
)
def test_what_cannot_be_used_is_told_when_it_is_made(given, told):
    """Not by a call, which would be booked as one that may have been sent."""
    with pytest.raises(SettingsError, match=told):
        BudgetTransport(**given)


# ---------------------------------------------------------------- what is no model call


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("GET", CHAT, b""),
        ("DELETE", "/v1/files/f", b""),
        ("POST", "/v1/files", b"\x00\x01"),
        ("POST", "/v1/messages/count_tokens", b'{"model": "m", "messages": []}'),
        ("POST", "/v1/messages/batches", b'{"model": "m", "requests": [], "messages": []}'),
        ("POST", "/v1/batches", b'{"input_file_id": "f", "endpoint": "/v1/chat/completions"}'),
        ("GET", "/health", b""),
        ("POST", "/hook", b'{"text": "model"}'),
    ],
)
def test_what_is_no_model_call_passes_untouched(caller, method, path, body):
    """The very request goes in, the very bytes and headers come out; it is counted, and costs nothing."""
    pacer, inner = Pacer(ceiling=0), Inner(Answer([b"one", b"", b"two"], {"x-kept": "yes"}, 201))
    mark = object()
    response = caller.send(
        BudgetTransport(inner, pacer=pacer),
        method,
        "http://a.test" + path,
        content=body,
        headers={"content-type": "application/json"},
        extensions={"mark": mark},
    )
    assert (response.status_code, response.content, dict(response.headers)) == (201, b"onetwo", {"x-kept": "yes"})
    assert "pacer" not in response.extensions
    assert inner.requests[0] is response.request
    assert inner.requests[0].content == body
    assert inner.requests[0].extensions["mark"] is mark
    assert "trace" not in inner.requests[0].extensions
    assert books(pacer) == (0, 0, 0, 0)
    assert (pacer.status().unmetered, pacer.status().calls) == (1, 0)


def test_a_model_call_goes_out_as_it_came(caller):
    """Its request object is the same before and after, and so are headers and body on the wire."""
    pacer = Pacer()
    with Server(ANSWER) as server:
        bare = caller.library.AsyncHTTPTransport() if caller.awaits else caller.library.HTTPTransport()
        plain = caller.send(bare, url=server.url + CHAT, json=ask())
        response = caller.send(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=ask())
        assert server.heard[0] == server.heard[1]
        assert server.bodies[0] == server.bodies[1]
    assert response.headers.raw == plain.headers.raw
    assert set(response.extensions) - set(plain.extensions) == {"pacer"}
    assert set(response.request.extensions) == set(plain.request.extensions)


def test_the_callers_own_trace_function_is_called_as_ever(caller):
    """Blocking or awaiting, with the same events, and it is still theirs afterwards."""
    heard: list[str] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        heard.append(name)

    async def trace_async(name: str, info: dict[str, Any]) -> None:
        heard.append(name)

    extensions = {"trace": trace_async if caller.awaits else trace}
    with Server(ANSWER) as server:
        bare = caller.library.AsyncHTTPTransport() if caller.awaits else caller.library.HTTPTransport()
        caller.send(bare, url=server.url + CHAT, json=ask(), extensions=extensions)
        plain, heard = heard, []
        paced = caller.send(BudgetTransport(pacer=Pacer()), url=server.url + CHAT, json=ask(), extensions=extensions)
    assert paced.request.extensions["trace"] is extensions["trace"]
    sent = [name for name in plain if "http11.send" in name]
    assert [name for name in heard if "http11.send" in name] == sent
    assert len(sent) >= 4


def test_an_error_in_the_callers_trace_function_is_theirs(caller):
    """It comes out as it would without us, and the reservation ends."""

    def trace(name: str, info: dict[str, Any]) -> None:
        raise LookupError(name)

    async def trace_async(name: str, info: dict[str, Any]) -> None:
        raise LookupError(name)

    pacer = Pacer()
    extensions = {"trace": trace_async if caller.awaits else trace}
    with Server(ANSWER) as server, pytest.raises(LookupError):
        caller.send(BudgetTransport(pacer=pacer), url=server.url + CHAT, json=ask(), extensions=extensions)
    assert books(pacer) == (0, 0, 0, 0)


# ---------------------------------------------------------------- statuses


@pytest.mark.parametrize("status", [301, 304, 400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 529])
def test_an_error_status_costs_nothing(caller, status):
    """Refused or failed calls are not billed; from 400 on they are counted. The answer passes as it is."""
    pacer = Pacer()
    inner = Inner(Answer([b"no"], {"x-why": "because"}, status))
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask())
    assert (response.status_code, response.content, response.headers["x-why"]) == (status, b"no", "because")
    assert response.extensions["pacer"].source == "void"
    assert books(pacer) == (0, 0, 0, 0)
    assert pacer.status().failed == (1 if status >= 400 else 0)
    assert pacer.status().failed_tokens == (response.extensions["pacer"].reserved if status >= 500 else 0)


@pytest.mark.parametrize("status", [408, 409, 499])
def test_a_status_of_impatience_may_have_been_billed(caller, status):
    """Somebody on the way gave up; the model may not have."""
    pacer = Pacer()
    response = caller.send(BudgetTransport(Inner(Answer([b""], {}, status)), pacer=pacer), json=ask())
    receipt = response.extensions["pacer"]
    assert receipt.source == "partial"
    assert (receipt.charged, receipt.unknown) == (0, receipt.reserved)
    assert books(pacer) == (0, receipt.reserved, 0, 0)


@pytest.mark.parametrize("status", [500, 503, 529])
def test_a_server_error_counts_as_billed_where_that_is_wanted(caller, status):
    """``on_5xx=unknown``: some providers bill them; a refusal of the caller's making still costs nothing."""
    pacer = Pacer()
    transport = BudgetTransport(Inner(Answer([b""], {}, status)), pacer=pacer, on_5xx="unknown")
    receipt = caller.send(transport, json=ask()).extensions["pacer"]
    assert (receipt.charged, receipt.unknown, receipt.source) == (0, receipt.reserved, "partial")
    assert pacer.status().failed == 0
    transport = BudgetTransport(Inner(Answer([b""], {}, 404)), pacer=pacer, on_5xx="unknown")
    caller.send(transport, json=ask())
    assert books(pacer) == (0, receipt.reserved, 0, 0)


@pytest.mark.parametrize("status", [303, 307])
def test_a_followed_redirect_is_booked_once(caller, status):
    """307 comes through again as the model call it was, with all that it says of itself; 303 as a GET that is none."""
    pacer = Pacer()
    inner = Inner(Answer([], {"location": "/moved" + CHAT}, status), ok())
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask(), follow_redirects=True)
    assert response.content == answer_json()
    assert [request.method for request in inner.requests] == ["POST", "POST" if status == 307 else "GET"]
    assert books(pacer) == (30 if status == 307 else 0, 0, 0, 0)
    assert pacer.status().unmetered == (0 if status == 307 else 1)
    if status == 307:
        direct = caller.send(BudgetTransport(Inner(ok()), pacer=Pacer()), json=ask())
        assert response.extensions["pacer"].reserved == direct.extensions["pacer"].reserved


def test_a_followed_redirect_of_a_stream_is_asked_for_its_usage_again(caller):
    """What we put into the first request is not in the one that the library makes of the caller's own."""
    inner = Inner(Answer([], {"location": "/moved" + CHAT}, 307), ok())
    caller.send(BudgetTransport(inner, pacer=Pacer()), json=ask(stream=True), follow_redirects=True)
    assert [json.loads(request.read())["stream_options"] for request in inner.requests] == [{"include_usage": True}] * 2


# ---------------------------------------------------------------- bodies that cannot be read


def pieces() -> Iterator[bytes]:
    yield from (b'{"model": "m", ', b'"messages": []}')


async def apieces() -> AsyncIterator[bytes]:
    for piece in pieces():
        yield piece


@pytest.mark.parametrize("size", [None, 31])
def test_a_body_that_is_a_stream_passes_unread(caller, size):
    """It is charged by its size where that is told, by a stated default where not, and learned from its usage."""
    pacer, seen = Pacer(), []

    class Reading(Inner):
        def handle_request(self, request):
            seen.append(request.read() if not caller.awaits else b"")
            return super().handle_request(request)

        async def handle_async_request(self, request):
            body = await request.aread()
            response = await super().handle_async_request(request)
            seen[-1] = body
            return response

    headers = {} if size is None else {"content-length": str(size)}
    content = apieces() if caller.awaits else pieces()
    response = caller.send(BudgetTransport(Reading(ok()), pacer=pacer), content=content, headers=headers)
    assert seen in ([b"".join(pieces())], [b"", b"".join(pieces())])
    assert response.extensions["pacer"].reserved > (4_096 + 4_096 if size is None else 4_096)
    assert (response.extensions["pacer"].reserved < 4_200) == (size is not None)
    assert books(pacer) == (30, 0, 0, 0)


def test_a_stream_that_an_auth_flow_has_read_goes_out_with_one_length(caller):
    """Then it is in memory and may be edited; a length beside chunks would be two answers to where it ends."""

    class Auth(caller.library.Auth):  # type: ignore[name-defined]  # of either library
        requires_request_body = True

    inner = Inner(ok())
    content = apieces() if caller.awaits else pieces()
    transport = BudgetTransport(inner, pacer=Pacer(ceiling=1_000), output_cap="inject")
    caller.send(transport, content=content, auth=Auth())
    (request,) = inner.requests
    assert json.loads(request.content)["max_completion_tokens"] > 0
    assert request.headers["content-length"] == str(len(request.content))
    assert "transfer-encoding" not in request.headers


def test_a_file_of_a_form_passes_unread(caller):
    """A multipart upload to a model call is charged by its size; every byte of it arrives."""
    pacer = Pacer()
    with Server(ANSWER) as server:
        files = {"file": ("a.bin", b"\x00" * 40_000)}
        response = caller.send(BudgetTransport(pacer=pacer), url=server.url + CHAT, files=files)
        assert server.bodies[0].count(b"\x00") == 40_000
    assert response.extensions["pacer"].reserved > 40_000 / 4
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("encoding", ["gzip", "x-unheard-of"])
def test_a_compressed_request_goes_out_as_it_is(caller, encoding):
    """Nobody can read its cap: the worst case is the default's, and its bytes are not touched."""
    pacer, inner = Pacer(ceiling=10_000), Inner(ok())
    body = gzip.compress(json.dumps(ask(max_tokens=7, stream=True)).encode())
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    response = caller.send(BudgetTransport(inner, pacer=pacer, output_cap="inject"), content=body, headers=headers)
    assert response.content == answer_json()
    assert inner.requests[0].content == body
    assert response.extensions["pacer"].reserved > 4_096
    assert books(pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("said", [None, 0, -1, "7", 7.5, True, [7], {}])
def test_a_cap_that_makes_no_sense_counts_as_none(caller, said):
    """The provider may refuse it, we do not: the default is held, and the request goes out as it came."""
    pacer, inner = Pacer(), Inner(ok())
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask(said))
    assert json.loads(inner.requests[0].content) == ask(said)
    assert 4_096 < response.extensions["pacer"].reserved < 4_200
    assert books(pacer) == (30, 0, 0, 0)


def test_a_huge_cap_is_lowered_under_a_ceiling_and_bounded_without_one(caller):
    """A thousand million tokens of output are no reason to refuse, and no reason to believe it."""
    for ceiling, most in ((None, 10_000_200), (5_000, 5_000)):
        pacer, inner = Pacer(ceiling=ceiling), Inner(ok())
        response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask(10**9))
        assert 4_000 < response.extensions["pacer"].reserved <= most
        sent = json.loads(inner.requests[0].content)["max_tokens"]
        assert sent == 10**9 if ceiling is None else sent < 5_000
        assert books(pacer) == (30, 0, 0, 0)


def test_an_image_costs_what_its_rule_says_and_never_its_text():
    """200 KB of base64 are one image; the hold is above its bill and stays there as answers teach."""
    image = base64.b64encode(random.Random(3).randbytes(150_000)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 10, "total_tokens": 1_010}
    transport = BudgetTransport(Inner(ok(usage)), pacer=Pacer())
    with httpx.Client(transport=transport) as client:
        body = ask(messages=[{"role": "user", "content": [part]}])
        held = [client.post(URL, json=body).extensions["pacer"].reserved for _ in range(30)]
    assert max(held) < 6_000
    assert min(held) > 1_010
    assert books(transport.pacer) == (30 * 1_010, 0, 0, 0)


def test_a_model_without_output_caps_is_named_once(caplog):
    """Whoever wonders why its calls hold so much finds the reason; its name forges no line of the log."""
    caplog.set_level("INFO", "pacer")
    transport = BudgetTransport(Inner(ok()), pacer=Pacer())
    with httpx.Client(transport=transport) as client:
        for model in ("talker\nERROR all is lost", "talker\nERROR all is lost", "another talker"):
            client.post(URL, json={"model": model, "messages": []})
        client.post(URL, json=ask(model="capped"))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" declare")[0] for line in lines] == [
        r"calls of model 'talker\nERROR all is lost'",
        "calls of model 'another talker'",
    ]
    assert all("4096 tokens" in line and "\n" not in line for line in lines)


def test_an_embedding_holds_no_output(caller):
    """Neither a default cap nor a learned one."""
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    pacer = Pacer()
    url = "http://model.test/v1/embeddings"
    response = caller.send(
        BudgetTransport(Inner(ok(usage)), pacer=pacer), url=url, json={"model": "m", "input": "a word"}
    )
    assert response.extensions["pacer"].reserved < 100
    assert books(pacer) == (8, 0, 0, 0)


# ---------------------------------------------------------------- the receipt


def test_the_receipt_tells_what_became_of_the_call():
    """Nothing is charged as long as the body goes on; afterwards its numbers are final."""
    transport = BudgetTransport(Inner(ok()), pacer=Pacer(clock=lambda: 1_000.0))
    response = transport.handle_request(httpx2.Request("POST", URL, json=ask()))
    receipt = response.extensions["pacer"]
    assert (receipt.charged, receipt.unknown, receipt.source, receipt.waited_seconds) == (None, None, None, 0.0)
    reserved = receipt.reserved
    assert 500 < reserved < 700
    assert repr(receipt) == f"<Receipt None charged + None unknown of {reserved} reserved, from None, waited 0.00 s>"
    response.read()
    assert (receipt.charged, receipt.unknown, receipt.source, receipt.reserved) == (30, 0, "provider", reserved)
    assert repr(receipt) == f"<Receipt 30 charged + 0 unknown of {reserved} reserved, from provider, waited 0.00 s>"


@pytest.mark.parametrize(("n", "worst"), [(1, 500), (8, 4_000)])
def test_the_reservation_holds_the_output_of_all_choices(n, worst):
    """Each of them may be as long as the cap."""
    inner, pacer = Inner(ok()), Pacer()
    with httpx.Client(transport=BudgetTransport(inner, pacer=pacer)) as client:
        reserved = client.post(URL, json=ask(n=n)).extensions["pacer"].reserved
    assert worst < reserved < worst + 200


def test_a_model_that_only_the_path_names_is_learned_by_its_name(caller):
    """Gemini's body does not say which model it is for."""
    usage = {"promptTokenCount": 900, "candidatesTokenCount": 10, "totalTokenCount": 910}
    answer = json.dumps({"usageMetadata": usage}).encode()
    pacer, inner = Pacer(), Inner(Answer([answer], {"content-type": "application/json"}))
    url = "http://a.test/v1beta/models/gemini-x:generateContent"
    caller.send(BudgetTransport(inner, pacer=pacer), url=url, json={"contents": [{"parts": [{"text": "hello"}]}]})
    assert books(pacer) == (910, 0, 0, 0)
    counts = measure(b"hello")
    assert pacer.estimator.input("gemini-x", counts).expected > pacer.estimator.input("gemini-y", counts).expected
