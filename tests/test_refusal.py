"""A refusal as the caller sees it: an answer that every SDK shows well, tries once, and that says how to go on."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
from typing import Any

import anthropic
import httpx
import openai
import pytest

from pacer import BudgetExceeded, CeilingReached, Pacer, WaitTooLong
from tests.engine import Clock
from tests.servers import LIBRARIES, URL, Caller, Inner, ask, books, ok
from transports import BudgetTransport, refusal

FIRES_RETRIES = re.compile(r"[0-9]|rate.?limit|too many|quota|overloaded|timed? ?out|throttl", re.IGNORECASE)


def full(**options: Any) -> tuple[Pacer, Inner]:
    """A pacer whose ceiling lets nothing of a call through."""
    return Pacer(ceiling=100, run="nightly", **options), Inner(ok())


def busy(**options: Any) -> tuple[Pacer, Inner]:
    """A pacer whose rate was used up by a first call, on a clock that stands still."""
    pacer, inner = Pacer(tokens_per_second=10, burst=10, max_wait=1, clock=Clock(), **options), Inner(ok())
    with httpx.Client(transport=BudgetTransport(inner, pacer=pacer)) as client:
        assert client.post(URL, json=ask()).status_code == 200
    inner.requests.clear()
    return pacer, inner


# ---------------------------------------------------------------- the table


def test_a_ceiling_is_a_402_that_is_not_to_be_retried(caller: Caller):
    """Status, headers and body give the numbers; nothing was sent, nothing was booked."""
    pacer, inner = full()
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask())
    assert type(response) is caller.library.Response
    assert response.status_code == 402
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    said = response.json()
    assert (said["status"], said["title"], said["type"]) == (402, "budget_exceeded", "error")
    numbers = {"limit": "ceiling", "run": "nightly", "amount": 100, "spent": 0, "unknown": 0, "held": 0}
    assert {name: said[name] for name in numbers} == numbers
    assert said["remaining"] == 100
    assert said["asked"] > 500
    for name in (*numbers, "remaining", "asked"):
        assert response.headers[f"x-pacer-{name}"] == str(said[name])
    assert said["error"] == {
        "type": "budget_exceeded",
        "code": "budget_exceeded",
        "message": said["detail"],
        "param": "ceiling",
    }
    assert inner.requests == []
    assert books(pacer) == (0, 0, 0, 0)
    assert pacer.status().refused == 1


def test_a_wait_that_is_too_long_is_a_429_with_the_seconds(caller: Caller):
    """Here waiting helps, and the retry loops of the SDKs understand so."""
    pacer, inner = busy(run="paced")
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask())
    assert response.status_code == 429
    assert "x-should-retry" not in response.headers
    said = response.json()
    assert int(response.headers["retry-after"]) >= 2
    assert (said["status"], said["title"], said["limit"]) == (429, "budget_wait_too_long", "tokens_per_second")
    assert "PACER_TOKENS_PER_SECOND" in said["detail"]
    assert inner.requests == []


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, "1"), (0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (3_600.0, "3600")]
)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_retry_after_is_whole_seconds_rounded_up(library, seconds, header):
    """Never 0, which would be no wait at all."""
    refused = WaitTooLong("m", limit="l", run="r", asked=1, amount=1, retry_after_seconds=seconds)
    assert refusal.answer(refused, library, library.Request("POST", URL)).headers["retry-after"] == header


def test_the_message_of_a_ceiling_fires_no_retry_loop():
    """Neither digits nor words of rates: frameworks look for them in the text. It names the run and the way on."""
    pacer, inner = full()
    open_answer = Pacer(ceiling=700, run="own")
    transport = BudgetTransport(Inner(ok()), pacer=open_answer)
    kept = transport.handle_request(httpx.Request("POST", URL, json=ask()))
    refusing = Pacer(ceiling=700, run="strict", on_limit="refuse")
    strict = BudgetTransport(Inner(ok()), pacer=refusing)
    also_kept = strict.handle_request(httpx.Request("POST", URL, json=ask()))
    for one in (BudgetTransport(inner, pacer=pacer), transport, strict):
        response = one.handle_request(httpx.Request("POST", URL, json=ask()))
        assert response.status_code == 402
        message = response.json()["error"]["message"]
        assert not FIRES_RETRIES.search(message), message
        for word in (one.pacer.name, "PACER_CEILING", "BudgetTransport(ceiling=...)"):
            assert word in message
    kept.close()
    also_kept.close()


def test_no_prompt_and_no_key_is_in_a_refusal(caller: Caller):
    """Numbers and names only."""
    pacer, inner = full()
    body = ask(messages=[{"role": "user", "content": "PROMPT"}])
    url, headers = URL + "?key=QUERYKEY", {"authorization": "Bearer APIKEY"}
    response = caller.send(BudgetTransport(inner, pacer=pacer), url=url, json=body, headers=headers)
    assert response.status_code == 402
    assert not re.search("PROMPT|QUERYKEY|APIKEY", response.text + str(response.headers))


def test_a_refused_call_is_refused_again_at_no_cost(caller: Caller):
    """Frameworks repeat refused calls: the answer stays, and the books stay."""
    pacer, inner = full()
    transport = BudgetTransport(inner, pacer=pacer)
    assert {caller.send(transport, json=ask()).status_code for _ in range(5)} == {402}
    assert books(pacer) == (0, 0, 0, 0)
    assert pacer.status().refused == 5


def test_a_refusal_can_be_raised(caller: Caller):
    """``refusal=raise`` is for callers that own the client; the numbers are on the exception."""
    pacer, inner = full()
    with pytest.raises(CeilingReached) as caught:
        caller.send(BudgetTransport(inner, pacer=pacer, refusal="raise"), json=ask())
    refused = caught.value
    assert isinstance(refused, BudgetExceeded | RuntimeError)
    assert (refused.limit, refused.run, refused.amount, refused.remaining) == ("ceiling", "nightly", 100, 100)
    assert refused.retry_after_seconds is None
    assert inner.requests == []


def test_a_wait_that_is_too_long_can_be_raised(caller: Caller):
    """With the seconds after which it would be worth a try."""
    pacer, inner = busy()
    with pytest.raises(WaitTooLong) as caught:
        caller.send(BudgetTransport(inner, pacer=pacer, refusal="raise"), json=ask())
    assert caught.value.retry_after_seconds is not None
    assert caught.value.retry_after_seconds > 1


# ---------------------------------------------------------------- through the real SDKs, with their default retries

SDKS = ["openai", "openai on httpx", "anthropic"]


class Counting(BudgetTransport):
    """Counts how often the SDK tries."""

    tries = 0

    def handle_request(self, request: Any) -> Any:
        self.tries += 1
        return super().handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        self.tries += 1
        return await super().handle_async_request(request)


def through_sdk(sdk: str, awaits: bool, transport: Any) -> Any:
    """One call by an SDK as its users make it."""
    library = httpx if sdk.endswith("httpx") else LIBRARIES[1]
    client: Any
    if sdk == "anthropic":
        http: Any = anthropic.DefaultAsyncHttpxClient if awaits else anthropic.DefaultHttpxClient
        claude: Any = anthropic.AsyncAnthropic if awaits else anthropic.Anthropic
        client = claude(api_key="k", http_client=http(transport=transport))
        call = lambda: client.messages.create(**ask())  # noqa: E731
    else:
        http_client: Any = (library.AsyncClient if awaits else library.Client)(transport=transport)
        client = (openai.AsyncOpenAI if awaits else openai.OpenAI)(api_key="k", http_client=http_client)
        call = lambda: client.chat.completions.create(**ask())  # noqa: E731
    if not awaits:
        with client:
            return call()

    async def awaited() -> Any:
        async with client:
            return await call()

    return asyncio.run(awaited())


@pytest.mark.parametrize("awaits", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_tries_a_ceiling_once_and_shows_the_message(sdk, awaits):
    """Default ``max_retries``; the text of the exception names the run and how to raise the ceiling."""
    pacer, inner = full()
    transport = Counting(inner, pacer=pacer)
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
        through_sdk(sdk, awaits, transport)
    assert isinstance(caught.value, openai.APIStatusError | anthropic.APIStatusError)
    assert caught.value.status_code == 402
    assert transport.tries == 1
    for words in ("nightly", "token ceiling", "PACER_CEILING"):
        assert words in str(caught.value)
    assert inner.requests == []


@pytest.mark.parametrize("awaits", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_gets_the_answer_of_an_admitted_call(sdk, awaits):
    """The same way with room: what the tests above see is the refusal, not a broken client."""
    claude: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end",
              "stop_sequence": None, "content": [], "usage": {"input_tokens": 20, "output_tokens": 10}}  # fmt: skip
    inner = Inner(ok())
    if sdk == "anthropic":
        inner.answers[0].chunks = [json.dumps(claude).encode()]
    transport = Counting(inner, pacer=Pacer(ceiling=10_000))
    assert through_sdk(sdk, awaits, transport).model == "m"
    assert transport.tries == 1
    assert books(transport.pacer) == (30, 0, 0, 0)


@pytest.mark.parametrize("awaits", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("sdk", SDKS)
def test_a_raised_refusal_through_an_sdk(sdk, awaits):
    """openai 3 lets it pass, once; anthropic tries three times and wraps it (so ``response`` is the default)."""
    pacer, inner = full()
    transport = Counting(inner, pacer=pacer, refusal="raise")
    no_waiting = pytest.MonkeyPatch()
    no_waiting.setattr("anthropic._base_client.SyncAPIClient._calculate_retry_timeout", lambda *a, **k: 0)
    no_waiting.setattr("anthropic._base_client.AsyncAPIClient._calculate_retry_timeout", lambda *a, **k: 0)
    with no_waiting.context(), pytest.raises((CeilingReached, anthropic.APIConnectionError)) as caught:
        through_sdk(sdk, awaits, transport)
    no_waiting.undo()
    refused = caught.value if isinstance(caught.value, CeilingReached) else caught.value.__cause__
    assert isinstance(refused, CeilingReached)
    assert transport.tries == (3 if sdk == "anthropic" else 1)
    assert inner.requests == []
    assert books(pacer) == (0, 0, 0, 0)


@pytest.mark.parametrize("again", [copy.copy, lambda refused: pickle.loads(pickle.dumps(refused))])
def test_a_refusal_comes_back_from_a_worker_process_as_it_was(again: Any):
    """Pools of processes break or hang on an exception that can be sent and not be read."""
    pacer, inner = full(refusal="raise")
    client = httpx.Client(transport=BudgetTransport(inner, pacer=pacer))
    with pytest.raises(CeilingReached) as caught:
        client.post(URL, json=ask())
    refused = again(caught.value)
    assert type(refused) is CeilingReached
    assert (str(refused), vars(refused)) == (str(caught.value), vars(caught.value))
