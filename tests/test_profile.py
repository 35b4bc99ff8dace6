"""The providers' ways of counting change what the buckets take and get back, and nothing else."""

from __future__ import annotations

import pytest

from pacer import Pacer
from pacer.profile import PROFILES
from pacer.settings import Profile
from pacer.ticket import Reservation
from pacer.usage import Estimate, Usage
from tests.engine import Clock

HOSTS = {
    "openai": "api.openai.com",
    "azure": "mine.openai.azure.com",
    "anthropic": "api.anthropic.com",
    "gemini": "generativelanguage.googleapis.com",
    "bedrock": "bedrock-runtime.eu-west-1.amazonaws.com",
    "groq": "api.groq.com",
    "none": "model.test",
}
USED = Usage(120, 30, cached=50, written=10)


def pacer_of(profile: Profile) -> Pacer:
    return Pacer(tokens_per_second=1, burst=10_000, ceiling=10_000, profile=profile, clock=Clock())


def admitted(pacer: Pacer, model: str = "m", server: str = "") -> Reservation:
    """A call of 100 + 40 expected tokens with an output cap of 500."""
    call = Estimate(100, 40, 700, model=model, server=server, output_cap=500)
    with pytest.raises(StopIteration) as end:
        next(pacer.admit(call))
    place = end.value.value
    assert isinstance(place, Reservation)
    return place


def taken(pacer: Pacer) -> float:
    available = pacer.status().tokens_available
    assert available is not None
    return 10_000 - available


@pytest.mark.parametrize(
    ("name", "model", "at_arrival", "in_the_end"),
    [
        ("none", "m", 140, 150),
        ("openai", "m", 500, 500),
        ("azure", "m", 600, 600),
        ("anthropic", "m", 100, 100),
        ("gemini", "m", 100, 120),
        ("bedrock", "nova", 600, 100),
        ("bedrock", "eu.anthropic.claude-opus-4", 600, 220),
        ("groq", "m", 140, 100),
    ],
)
@pytest.mark.parametrize("by_host", [False, True])
def test_each_provider_counts_in_its_own_way(name: Profile, model, at_arrival, in_the_end, by_host):
    """What the rate takes when the call comes and when it has ended; the books hold the bill all the same."""
    pacer = pacer_of("host" if by_host else name)
    place = admitted(pacer, model, HOSTS[name] if by_host else "")
    assert taken(pacer) == at_arrival
    assert pacer.status().held == 700
    pacer.settle(place, USED)
    assert taken(pacer) == in_the_end
    assert pacer.status().spent == 150


@pytest.mark.parametrize("name", PROFILES)
def test_a_call_that_cost_nothing_gives_back_all_it_took(name: Profile):
    pacer = pacer_of(name)
    pacer.void(admitted(pacer))
    assert taken(pacer) == 0


def test_an_end_that_nobody_saw_gives_nothing_back():
    """The buckets keep at least what counted at arrival."""
    pacer = pacer_of("bedrock")
    pacer.settle_unseen(admitted(pacer), "partial", Usage(30, 5), 100)
    assert taken(pacer) == 600


def test_no_host_is_recognised_unasked():
    pacer = pacer_of("none")
    admitted(pacer, server="api.openai.com")
    assert taken(pacer) == 140


def test_reasoning_that_only_the_total_tells_counts_as_output():
    pacer = pacer_of("bedrock")
    pacer.settle(admitted(pacer), Usage(100, 10, tokens=150))
    assert taken(pacer) == 150
