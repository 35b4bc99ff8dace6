"""What headers say of a provider's limits, and that the next calls heed it."""

from __future__ import annotations

import gzip
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacer import Pacer, WaitTooLong
from pacer.usage import Allowance, Word
from tests.servers import URL, Answer, Caller, Inner, answer_json, ask, books
from transports import BudgetTransport
from transports.limits import LONGEST_WAIT_SECONDS, retry_after_seconds, retry_info, word_of

NOW = 1_700_000_000.0
JSON = {"content-type": "application/json"}


def word(**headers: str) -> Word | None:
    """The word of headers; an underscore stands for a hyphen."""
    return word_of({name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}, NOW)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("120ms", 0.12), ("2m59.56s", 179.56), ("1h2m3s", 3_723.0), ("30", 30.0)],
)
def test_openai_azure_and_groq_say_what_is_left(reset, seconds):
    said = word(
        x_ratelimit_limit_requests="60",
        x_ratelimit_remaining_requests="59",
        x_ratelimit_reset_requests=reset,
        x_ratelimit_limit_tokens="150000",
        x_ratelimit_remaining_tokens="149984",
        x_ratelimit_reset_tokens=reset,
    )
    assert said is not None
    assert said.pause_seconds is None
    told = [(each.kind, each.remaining, each.limit) for each in said.allowances]
    assert told == [("requests", 59, 60), ("tokens", 149_984, 150_000)]
    assert [each.reset_seconds for each in said.allowances] == pytest.approx([seconds, seconds])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("requests", "requests"), ("tokens", "tokens"), ("input_tokens", "input"), ("output_tokens", "output")],
)
def test_anthropic_says_until_when(name, kind):
    start = f"anthropic_ratelimit_{name}"
    said = word(**{f"{start}_limit": "50", f"{start}_remaining": "2", f"{start}_reset": "2023-11-14T22:13:50Z"})
    assert said == Word(None, (Allowance(kind, 2, 50, 30.0),))


def test_mistral_counts_tokens():
    said = word(ratelimitbysize_limit="500000", ratelimitbysize_remaining="9", ratelimitbysize_reset="28")
    assert said == Word(None, (Allowance("tokens", 9, 500_000, 28.0),))


@pytest.mark.parametrize("junk", ["", "nan", "inf", "-1", "soon", "9" * 400, "\xff", "1e300"])
def test_numbers_that_make_no_sense_count_as_not_said(junk):
    headers = {
        b"x-ratelimit-remaining-tokens": junk.encode("latin-1"),
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-reset-tokens": b"1s",
    }
    assert word_of(headers, NOW) is None
    assert word(x_ratelimit_remaining="3", x_ratelimit_reset="1700000060000") is None  # OpenRouter's: of no kind


@given(st.dictionaries(
    st.sampled_from([b"retry-after", b"retry-after-ms", b"x-ratelimit-remaining-tokens", b"x-ratelimit-limit-tokens",
                     b"x-ratelimit-reset-tokens", b"anthropic-ratelimit-tokens-remaining",
                     b"anthropic-ratelimit-tokens-reset"]),
    st.binary(max_size=30) | st.sampled_from([b"1", b"0", b"1s", b"1e400", b"0001-01-01T00:00:00Z"]),
))  # fmt: skip
def test_no_header_crashes(headers):
    said = word_of(headers, NOW)
    for allowance in said.allowances if said else ():
        assert allowance.remaining >= 0
        assert 0 <= allowance.reset_seconds < float("inf")


GEMINI = "http://model.test/v1beta/models/{}:generateContent"


def paused(caller: Caller, answer: Answer, url: str = URL) -> Any:
    """One call that gets ``answer``, then one that would rather be refused than wait."""
    pacer = Pacer(max_wait=0.5)
    transport = BudgetTransport(Inner(answer), pacer=pacer, refusal="raise")
    assert caller.send(transport, url=url.format("m"), json=ask()).status_code == answer.status
    with pytest.raises(WaitTooLong) as refused:
        caller.send(transport, url=url.format("m"), json=ask())
    other = caller.send(transport, url=url.format("another"), json=ask(model="another"))
    assert other.status_code == answer.status, "a model of its own has a lane of its own"
    assert books(pacer)[2:] == (0, 0)
    assert "paused by the provider for" in repr(pacer) or answer.status == 200
    return refused.value


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_wait_that_a_provider_asks_for_holds_back_everybody(caller, status):
    refused = paused(caller, Answer([b"{}"], {**JSON, "retry-after": "20"}, status))
    assert refused.limit == "server_pause"
    assert 19 < refused.retry_after_seconds <= 22


REFUSED = b"""{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED", "details": [
  {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaMetric": "m"}]},
  {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "40.5s"}]}}"""


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("body", [REFUSED, b"[" + REFUSED + b"]\n"], ids=["answer", "stream"])
def test_a_wait_that_gemini_asks_for_in_the_body_is_kept(caller, body, encoding):
    """The caller gets the body as it is."""
    headers = {**JSON, "content-encoding": encoding} if encoding else JSON
    sent = gzip.compress(body) if encoding else body
    refused = paused(caller, Answer([sent[:100], sent[100:]], headers, 429), GEMINI)
    assert 40 < refused.retry_after_seconds <= 45


@pytest.mark.parametrize("body", [
    b"", b"busy", b"[]", b"[" * 100_000, b'{"error": {}}', b'{"error": "quota"}', REFUSED[:-1],
    REFUSED.replace(b"40.5s", b"soon"), REFUSED.replace(b"40.5s", b"-1s"), b" " * 100_000 + REFUSED,
], ids=lambda body: body[:20].decode() or "empty")  # fmt: skip
def test_a_refusal_that_names_no_wait_pauses_for_a_second(caller, body):
    refused = paused(caller, Answer([body], JSON, 429), GEMINI)
    assert 0.5 < refused.retry_after_seconds <= 1.1


def test_a_longer_wait_than_a_minute_is_not_kept():
    assert retry_info(REFUSED.replace(b"40.5s", b"999999s")) == Word(LONGEST_WAIT_SECONDS)


@pytest.mark.parametrize(
    "said", ["nan", "-1", "1e9", "1000000000", "inf", "soon", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", ""]
)
@pytest.mark.parametrize("status", [429, 503])
def test_no_retry_after_stops_a_lane_for_long(caller, status, said):
    """The caller gets the answer as it is; the pause is a minute at most, and a tenth more by chance."""
    pacer = Pacer()
    answer = Answer([b"busy"], {"retry-after": said}, status)
    response = caller.send(BudgetTransport(Inner(answer), pacer=pacer), json=ask())
    assert (response.status_code, response.content, response.headers["retry-after"]) == (status, b"busy", said)
    pause = pacer.status().server_pause_seconds
    assert 0 <= pause <= 1.1 * LONGEST_WAIT_SECONDS
    assert (pause > 0) == (status == 429 or said in ("1e9", "1000000000", "Fri, 31 Dec 9999 23:59:59 GMT"))
    assert books(pacer) == (0, 0, 0, 0)


def test_a_low_remaining_slows_down_before_the_429_comes(caller):
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "1",
               "x-ratelimit-reset-requests": "50s"}  # fmt: skip
    pacer = Pacer(max_wait=0.5)
    transport = BudgetTransport(Inner(Answer([answer_json()], {**JSON, **headers})), pacer=pacer, refusal="raise")
    caller.send(transport, url=URL, json=ask())
    caller.send(transport, url=URL, json=ask())  # the one that is left
    with pytest.raises(WaitTooLong) as refused:
        caller.send(transport, url=URL, json=ask())
    assert refused.value.limit == "server_remaining"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "1000000000"}, 60.0),
        ({"retry-after": "1e9"}, 60.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "NaN"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-inf"}, None),
        ({"retry-after": "9" * 5_000}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": formatdate(NOW + 20, usegmt=True)}, 20.0),
        ({"retry-after": formatdate(NOW - 20, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 10**6, usegmt=True)}, 60.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 60.0),
        ({"retry-after": "Mon, 32 Jan 2024 00:00:00 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "nan", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1e12"}, 60.0),
    ],
    ids=lambda value: str(value)[:60],
)
def test_retry_after_is_believed_within_reason(headers, seconds):
    """Milliseconds, seconds or a date; at most a minute; what makes no sense counts as not said."""
    assert retry_after_seconds(headers.get("retry-after-ms"), headers.get("retry-after"), NOW) == seconds


DATES = st.from_regex(
    r"(Mon, )?[0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,5} [0-9]{1,3}:[0-9]{1,3}(:[0-9]{1,3})?( [-+A-Z0-9]{1,9})?",
    fullmatch=True,
)


@given(st.text(st.characters(codec="latin-1"), max_size=40) | DATES)
def test_no_retry_after_crashes_or_makes_us_wait_long(said):
    """Whatever a provider or proxy writes there."""
    seconds = retry_after_seconds(None, said, NOW)
    assert seconds is None or 0.0 <= seconds <= LONGEST_WAIT_SECONDS
