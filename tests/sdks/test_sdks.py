"""Real SDKs and frameworks, plain and streamed, blocking and awaiting, with the transport put in as users put it in."""

from __future__ import annotations

import pytest

from pacer import Pacer
from tests.sdks import clients, frameworks
from tests.sdks.desk import Desk, Way, say
from tests.sdks.dialects import TEXT
from tests.sdks.provider import Provider
from transports import BudgetTransport

SAID = 3
KIND, STYLE = ("sync", "async"), ("plain", "stream")  # by whether it awaits, and whether it streams

pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning"),  # litellm's own types
    # openai-agents ends the generators of its loop after each run_sync, and uses the loop again.
    pytest.mark.filterwarnings("ignore:asynchronous generator .* was scheduled after:ResourceWarning"),
]

each_way = pytest.mark.parametrize(
    ("way", "awaits", "streamed"),
    [
        pytest.param(way, awaits, streamed, id=f"{name}-{KIND[awaits]}-{STYLE[streamed]}")
        for name, way in {**clients.WAYS, **frameworks.WAYS}.items()
        for awaits in (False, True)
        for streamed in (False, True)
        if way.has(awaits=awaits, streamed=streamed)
    ],
)


@each_way
def test_the_books_are_the_bill(provider: Provider, way: Way, awaits: bool, streamed: bool):
    """The text arrives, and the provider's own bill is booked to the token, call by call."""
    pacer = Pacer(ceiling=100_000)
    desk = Desk(provider.url, BudgetTransport(pacer=pacer), awaits, streamed)
    assert say(way, desk, SAID) == [TEXT] * SAID
    now = pacer.status()
    assert (now.spent, now.unknown, now.held, now.in_flight) == (provider.bill, 0, 0, 0)
    assert (now.calls, now.unmetered, now.failed) == (provider.calls, 0, 0)
    assert provider.calls == SAID * way.rounds


@each_way
def test_a_ceiling_is_tried_once_and_its_message_is_shown(provider: Provider, way: Way, awaits: bool, streamed: bool):
    """With the SDK's own retries: one attempt, nothing sent, and the text of the error says how to go on."""
    pacer = Pacer(ceiling=10, run="nightly")
    desk = Desk(provider.url, BudgetTransport(pacer=pacer), awaits, streamed)
    with pytest.raises(Exception, match=r"nightly.*PACER_CEILING"):
        say(way, desk)
    now = pacer.status()
    assert (now.refused, now.spent, now.unknown, now.held, provider.calls) == (1, 0, 0, 0, 0)


@pytest.mark.parametrize("awaits", [False, True], ids=["sync", "async"])
def test_mistral_streams_from_its_other_regions(provider: Provider, awaits: bool):
    """Mistral refuses ``stream_options`` on each of its hosts, and needs none to tell the usage."""
    pacer = Pacer()
    desk = Desk(provider.url, BudgetTransport(pacer=pacer), awaits, streamed=True)
    assert say(clients.MISTRAL_IN_EUROPE, desk) == [TEXT]
    assert (pacer.status().spent, pacer.status().unknown) == (provider.bill, 0)
