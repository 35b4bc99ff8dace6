"""Retries: which answers earn another try, when, and what each try costs. The way is driven by hand; nobody sleeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pacer import Pacer
from pacer.flow import Park, Pause
from tests.engine import Clock
from tests.servers import CHAT, LIBRARIES, URL, Inner, answer_json, ask, body_stream, books, ok
from transports import BudgetTransport
from transports.budget import Send
from transports.limits import LONGEST_WAIT_SECONDS
from transports.retry import Discard

JSON = {"content-type": "application/json"}
RETRIED = [429, 502, 503, 504, 529]


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@dataclass
class Driver:
    """Walks the way of one request: answers each ``Send`` from a list, writes down the pauses instead of sleeping. Time
    moves by what was waited."""

    library: Any
    ceiling: int | None = None
    clock: Clock = field(default_factory=Clock)
    pacer: Pacer = field(init=False)
    pauses: list[float] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    discarded: list[Any] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pacer = Pacer(clock=self.clock, ceiling=self.ceiling)

    def walk(self, *answers: Any, retries: int = 2, request: Any = None, **options: Any) -> Any:
        transport = BudgetTransport(Inner(ok()), pacer=self.pacer, retries=retries, **options)
        left = list(answers)
        way = transport._way(request or self.library.Request("POST", URL, json=ask()), awaits=False)
        step = next(way)
        try:
            while True:
                match step:
                    case Send(outgoing, _):
                        self.sent.append(outgoing)
                        self.in_flight.append(self.pacer.status().in_flight)
                        answer = left.pop(0)
                        step = way.throw(answer) if isinstance(answer, Exception) else way.send(answer)
                    case Pause(seconds):
                        self.pauses.append(seconds)
                        self.clock.now += seconds
                        step = way.send(None)
                    case Park(store, ticket):  # the lane's own pause, longer than that of this call
                        assert ticket.wait is not None
                        assert ticket.wait.limit == "server_pause"
                        self.clock.now += ticket.wait.seconds or 0.0
                        store.tick()
                        step = way.send(None)
                    case Discard(response):
                        response.close()
                        self.discarded.append(response)
                        step = way.send(None)
                    case _:
                        raise AssertionError(f"an unexpected step: {step!r}")
        except StopIteration as end:
            assert left == []
            return end.value

    def answer(self, status: int = 200, **headers: str) -> Any:
        """An answer whose body is a stream, as from the network."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        stream = body_stream(self.library, [answer_json()])
        return self.library.Response(status, headers={**JSON, **named}, stream=stream)


@pytest.mark.parametrize("status", RETRIED)
def test_a_busy_provider_is_asked_again(library, status):
    """The same request, a new place for it; the answer that nobody reads is closed; the books hold one bill."""
    driver = Driver(library)
    busy, good = driver.answer(status), driver.answer()
    response = driver.walk(busy, good)
    assert response is good
    assert driver.discarded == [busy]
    assert busy.stream.closed == 1
    assert [request.content for request in driver.sent] == [driver.sent[0].content] * 2
    assert driver.in_flight == [1, 1]
    assert len(driver.pauses) == 1
    assert response.read() == answer_json()
    assert books(driver.pacer) == (30, 0, 0, 0)
    assert (driver.pacer.status().calls, driver.pacer.status().failed) == (1, 1)


@pytest.mark.parametrize("error", ["ConnectError", "ConnectTimeout", "ReadError", "RemoteProtocolError"])
def test_a_broken_connection_is_tried_again(library, error):
    """Each try is its own reservation: an unsent one costs nothing, a sent one up to its worst case."""
    driver = Driver(library)
    response = driver.walk(getattr(library, error)("gone"), driver.answer())
    response.read()
    assert len(driver.sent) == 2
    assert driver.discarded == []
    spent, unknown, held, in_flight = books(driver.pacer)
    if error.startswith("Connect"):
        assert (spent, unknown) == (30, 0)
    else:
        assert spent == 30
        assert unknown > 500
    assert (held, in_flight) == (0, 0)


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 402, 403, 404, 408, 409, 413, 422, 500, 501])
def test_any_other_answer_is_final(library, status):
    """A mistake of the caller does not get better, and a 500 may have been billed."""
    driver = Driver(library)
    response = driver.walk(driver.answer(status))
    assert response.status_code == status
    assert driver.pauses == []
    response.close()


@pytest.mark.parametrize("error", ["ReadTimeout", "WriteTimeout", "PoolTimeout", "UnsupportedProtocol"])
def test_any_other_error_is_final(library, error):
    """A timeout was the caller's patience; the very exception comes out."""
    driver, gone = Driver(library), getattr(library, error)("gone")
    with pytest.raises(type(gone)) as caught:
        driver.walk(gone)
    assert caught.value is gone
    assert driver.pauses == []


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_last_answer_is_the_callers(library, retries):
    """Not one try more than allowed, and the last answer is not closed."""
    driver = Driver(library)
    answers = [driver.answer(503) for _ in range(retries + 1)]
    response = driver.walk(*answers, retries=retries)
    assert response is answers[-1]
    assert driver.discarded == answers[:-1]
    assert len(driver.pauses) == retries
    assert response.read() == answer_json()
    assert books(driver.pacer) == (0, 0, 0, 0)
    assert driver.pacer.status().failed == retries + 1


def test_the_last_error_is_the_callers(library):
    """As the inner transport raised it."""
    driver = Driver(library)
    errors = [library.ConnectError(str(number)) for number in range(3)]
    with pytest.raises(library.ConnectError) as caught:
        driver.walk(*errors)
    assert caught.value is errors[-1]
    assert len(driver.pauses) == 2
    assert books(driver.pacer) == (0, 0, 0, 0)


def test_the_pause_is_the_one_the_provider_asks_for(library):
    """Each time; where it asks for none, our own, growing and at most a minute."""
    driver = Driver(library)
    driver.walk(driver.answer(429, retry_after="7"), driver.answer(429, retry_after_ms="1500"), driver.answer()).close()
    assert driver.pauses == [7.0, 1.5]
    driver = Driver(library)
    driver.walk(*(driver.answer(503) for _ in range(20)), driver.answer(), retries=20).close()
    assert all(0 <= pause <= LONGEST_WAIT_SECONDS for pause in driver.pauses)
    assert all(pause <= 0.5 * 2**number for number, pause in enumerate(driver.pauses))
    assert max(driver.pauses) > 0


def test_nothing_is_held_during_the_pause(library):
    """A place is for a call, not for waiting: others use the room meanwhile."""
    driver = Driver(library)
    transport = BudgetTransport(Inner(ok()), pacer=driver.pacer, retries=1)
    way = transport._way(library.Request("POST", URL, json=ask()), awaits=False)
    assert isinstance(next(way), Send)
    assert isinstance(way.send(driver.answer(503)), Discard)
    assert isinstance(way.send(None), Pause)
    assert books(driver.pacer) == (0, 0, 0, 0)
    way.close()
    assert books(driver.pacer) == (0, 0, 0, 0)


def test_a_try_that_the_ceiling_refuses_is_not_repeated(library):
    """The first try ended unknown and took the room; the second is refused, which is final."""
    driver = Driver(library, ceiling=700)
    response = driver.walk(library.ReadError("gone"), retries=5)
    assert response.status_code == 402
    assert (len(driver.sent), len(driver.pauses)) == (1, 1)


def test_a_body_that_can_be_sent_once_only_is_not_sent_again(library):
    """A generator is consumed by the first try."""
    driver = Driver(library)
    request = library.Request("POST", URL, content=iter([b"{}"]))
    assert driver.walk(driver.answer(503), request=request).status_code == 503
    assert driver.pauses == []


def test_what_is_no_model_call_is_not_tried_again(library):
    """It is none of our business."""
    driver = Driver(library)
    request = library.Request("GET", URL.replace(CHAT, "/v1/models"))
    assert driver.walk(driver.answer(503), request=request).status_code == 503


# ---------------------------------------------------------------- what the provider asks for

NOW = 1_700_000_000.0
