"""``output_cap``: the last calls fit with a lowered cap, in each family's own spelling, never where signed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from pacer import Pacer
from tests.servers import CHAT, MESSAGES, Answer, Caller, Inner, answer_json, ask, ok
from transports import BudgetTransport
from transports.wire import edited

NESTED = {"inferenceConfig": {"maxTokens": 900}}
GEMINI = "/v1beta/models/gemini-x:generateContent"
SPELLINGS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "chat": (CHAT, {"max_tokens": 900, "messages": []}, ("max_tokens",)),
    "chat, new name": (CHAT, {"max_completion_tokens": 900, "messages": []}, ("max_completion_tokens",)),
    "responses": ("/v1/responses", {"max_output_tokens": 900, "input": "x"}, ("max_output_tokens",)),
    "completions": ("/v1/completions", {"max_tokens": 900, "prompt": "x"}, ("max_tokens",)),
    "anthropic": (MESSAGES, {"max_tokens": 900, "messages": []}, ("max_tokens",)),
    "bedrock": ("/model/amazon.nova/converse", NESTED, ("inferenceConfig", "maxTokens")),
    "nova": ("/model/amazon.nova/invoke", NESTED, ("inferenceConfig", "maxTokens")),
    "llama": ("/model/meta.llama3/invoke", {"max_gen_len": 900, "prompt": "x"}, ("max_gen_len",)),
    "gemini": (GEMINI, {"generationConfig": {"maxOutputTokens": 900}}, ("generationConfig", "maxOutputTokens")),
    "gemini, python": (
        GEMINI,
        {"generation_config": {"max_output_tokens": 900}},
        ("generation_config", "max_output_tokens"),
    ),
    "cohere": ("/v2/chat", {"max_tokens": 900, "messages": []}, ("max_tokens",)),
    "ollama": ("/api/chat", {"options": {"num_predict": 900}, "messages": []}, ("options", "num_predict")),
    "unknown": ("/brand/new", {"max_output_tokens": 900, "input": "x"}, ("max_output_tokens",)),
}  # fmt: skip


def at(body: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        body = body[name]
    return body


def sent(inner: Inner) -> dict[str, Any]:
    request = inner.requests[-1]
    assert int(request.headers["content-length"]) == len(request.content)
    found: dict[str, Any] = json.loads(request.content)
    return found


def post(pacer: Pacer, inner: Inner, path: str, body: dict[str, Any], **settings: Any) -> Any:
    with httpx.Client(transport=BudgetTransport(inner, pacer=pacer, **settings)) as client:
        return client.post("http://a.test" + path, json={"model": "m", **body})


@pytest.mark.parametrize(("path", "body", "cap_at"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_cap_that_does_not_fit_any_more_is_lowered_in_its_own_place(path, body, cap_at):
    """Everything else of the request stays; the hold is what is left, and the receipt says what went out."""
    pacer, inner = Pacer(ceiling=600), Inner(ok())
    response = post(pacer, inner, path, body)
    assert response.status_code == 200
    cap = at(sent(inner), cap_at)
    assert 256 <= cap < 600
    assert edited(inner.requests[0].content, {cap_at: 900}) == edited(
        json.dumps({"model": "m", **body}).encode(), {cap_at: 900}
    )
    receipt = response.extensions["pacer"]
    assert (receipt.output_cap, receipt.reserved) == (cap, 600)


def test_a_cap_that_fits_is_left_alone(caller: Caller):
    pacer, inner = Pacer(ceiling=100_000), Inner(ok())
    response = caller.send(BudgetTransport(inner, pacer=pacer), json=ask(900))
    assert sent(inner) == ask(900)
    assert inner.requests[0].content == response.request.content
    assert response.extensions["pacer"].output_cap is None


def test_the_lowered_cap_holds_for_each_of_several_choices():
    pacer, inner = Pacer(ceiling=1_200), Inner(ok())
    response = post(pacer, inner, CHAT, {"max_tokens": 900, "n": 3, "messages": []})
    cap = sent(inner)["max_tokens"]
    assert response.extensions["pacer"].reserved - 3 * cap < 150
    assert 300 < cap < 400


def test_what_is_left_must_be_useful():
    """Less than what such answers usually take is not worth its input."""
    inner = Inner(ok())
    assert post(Pacer(ceiling=280), inner, CHAT, {"max_tokens": 900, "messages": []}).status_code == 402
    assert post(Pacer(ceiling=280), inner, CHAT, {"max_tokens": 100, "messages": []}).status_code == 200
    assert len(inner.requests) == 1


@pytest.mark.parametrize(
    ("path", "body", "least"),
    [
        (MESSAGES, {"max_tokens": 9_000, "thinking": {"type": "enabled", "budget_tokens": 2_000}}, 2_001),
        ("/v1/responses", {"max_output_tokens": 9_000, "input": "x"}, 16),
    ],
)
def test_no_cap_goes_below_what_the_api_takes(path, body, least):
    """A thinking budget must stay below the cap, else the provider refuses the call."""
    for ceiling in range(100, 3_000, 100):
        inner = Inner(ok())
        if post(Pacer(ceiling=ceiling), inner, path, body).status_code == 200:
            assert sent(inner)["max_tokens" if path == MESSAGES else "max_output_tokens"] >= least
        else:
            assert ceiling < least + 400


def test_a_declared_cap_is_left_where_asked_to():
    inner = Inner(ok())
    response = post(Pacer(ceiling=600), inner, CHAT, {"max_tokens": 900, "messages": []}, output_cap="leave")
    assert (response.status_code, inner.requests) == (402, [])


@pytest.mark.parametrize("signature", ["AWS4-HMAC-SHA256 Credential=x"])
def test_a_signed_body_is_never_changed(signature):
    """It would be refused: neither its cap nor its switch for usage is ours."""
    inner = Inner(ok())
    transport = BudgetTransport(inner, pacer=Pacer(ceiling=600), output_cap="inject")
    with httpx.Client(transport=transport, headers={"authorization": signature}) as client:
        assert client.post("http://a.test" + CHAT, json=ask(900)).status_code == 402
        assert client.post("http://a.test" + CHAT, json=ask(200, stream=True)).status_code == 200
    assert sent(inner) == ask(200, stream=True)


@pytest.mark.parametrize(
    ("path", "body", "cap_at"),
    [
        (CHAT, {"messages": []}, ("max_completion_tokens",)),
        ("/v1/responses", {"input": "x"}, ("max_output_tokens",)),
        (GEMINI, {"contents": []}, ("generationConfig", "maxOutputTokens")),
        (GEMINI, {"contents": [], "generationConfig": {"topK": 3}}, ("generationConfig", "maxOutputTokens")),
        ("/api/chat", {"messages": [], "options": None}, ("options", "num_predict")),
        ("/api/chat", {"messages": [], "options": {"num_predict": -1}}, ("options", "num_predict")),
    ],
)
def test_a_missing_cap_is_added_where_asked_to(path, body, cap_at):
    """The hold is a hard bound then: what was supposed of the model's answers goes out as the cap."""
    inner = Inner(ok())
    pacer = Pacer(ceiling=100_000)
    response = post(pacer, inner, path, body, output_cap="inject")
    assert at(sent(inner), cap_at) == response.extensions["pacer"].output_cap == 4_096
    tight = Inner(ok())
    assert post(Pacer(ceiling=600), tight, path, body, output_cap="inject").extensions["pacer"].reserved == 600
    assert 256 <= at(sent(tight), cap_at) < 600


def test_no_cap_is_added_unasked_or_without_a_ceiling():
    for pacer, output_cap in ((Pacer(ceiling=100_000), "lower"), (Pacer(), "inject")):
        inner = Inner(ok())
        response = post(pacer, inner, CHAT, {"messages": []}, output_cap=output_cap)
        assert "max_completion_tokens" not in sent(inner)
        assert response.extensions["pacer"].output_cap is None


def test_without_a_cap_to_lower_a_call_that_cannot_fit_is_refused():
    inner = Inner(ok())
    assert post(Pacer(ceiling=600), inner, CHAT, {"messages": []}).status_code == 402


def test_the_last_calls_fit_instead_of_being_refused():
    """Answers of 100 tokens under caps of 900: with ``leave`` most of the ceiling stays unused."""
    spent = {}
    for output_cap in ("leave", "lower"):
        pacer = Pacer(ceiling=3_000)
        usage = {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120}
        inner = Inner(Answer([answer_json(usage)], {"content-type": "application/json"}))
        while post(pacer, inner, CHAT, {"max_tokens": 900, "messages": []}, output_cap=output_cap).status_code == 200:
            pass
        spent[output_cap] = pacer.status().spent
    assert spent == {"leave": 2_160, "lower": 2_880}
