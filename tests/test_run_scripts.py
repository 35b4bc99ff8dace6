"""A stock script with twenty agents below ``pacer run``: paced, capped and billed by a real model's own count; and
byte for byte as it was where no limit is set.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from pacer.cli.model_server import ModelServer
from tests.commands import ROOT, RUN, environment, told
from tests.servers import Connection, Server, answer_json, chunked, whole

FAN_OUT = ROOT / "tests" / "stock" / "fan_out.py"
AGENTS, CALLS_OF_AN_AGENT = 20, 3


def ran(url: str, *before: str) -> subprocess.CompletedProcess[str]:
    """The script with the provider at ``url``, with these words before its command."""
    words = [*before, sys.executable, str(FAN_OUT), str(AGENTS)]
    there = environment(OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY="k")
    return subprocess.run(words, capture_output=True, text=True, env=there, timeout=100)


def paced(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return ran(url, *RUN, *options, "--")


# -------------------------------------------------------------------- a real model


class Relay(Server):
    """Stands before a model, and keeps when each call came and the tokens that it was billed."""

    request_queue_size = AGENTS

    def __init__(self, model: ModelServer) -> None:
        super().__init__(self._pass_on)
        self.billed: list[tuple[float, int]] = []
        self._model = model

    def _pass_on(self, connection: Connection) -> None:
        request = connection.read()
        assert request is not None
        came_at, target = time.monotonic(), request[0].split()[1]
        answer = httpx.post(self._model.url + target, content=request[1], timeout=90, trust_env=False)
        self.billed.append((came_at, int(re.findall(r'"total_tokens":(\d+)', answer.text)[-1])))
        kind = answer.headers["content-type"]
        connection.write(whole(answer.content, f"content-type: {kind}", "connection: close"))


def largest_draw(billed: list[tuple[float, int]], rate: float) -> float:
    """The most tokens that the calls of any stretch of time were billed beyond what its seconds gave."""
    calls = sorted(billed)
    return max(
        sum(tokens for _, tokens in calls[first : last + 1]) - rate * (calls[last][0] - calls[first][0])
        for first in range(len(calls))
        for last in range(first, len(calls))
    )


@pytest.mark.model
@pytest.mark.xdist_group("model")
def test_twenty_agents_are_paced_and_capped_and_the_receipt_is_the_models_bill():
    """Ten seconds and more: the rate has to bind for some time, and the model to make some twenty answers."""
    ceiling, rate, burst = 1_200, 200, 300
    limits = ("--ceiling", str(ceiling), "--tokens-per-second", str(rate), "--burst", str(burst))
    with ModelServer() as model, Relay(model) as relay:
        before = model.tokens_served()
        done = paced(relay.url, *limits)
        bill = model.tokens_served() - before
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == AGENTS
    assert told(done.stderr, "tokens spent") == bill
    assert (told(done.stderr, "calls"), told(done.stderr, "unknown")) == (len(relay.billed), 0)
    assert ceiling - 150 < bill <= ceiling
    assert told(done.stderr, "refused") == done.stdout.count("stopped with 402") > 0
    on_the_way = 0.5  # seconds that a call may take from the transport to the relay, where another takes none
    assert largest_draw(relay.billed, rate) <= burst + rate * on_the_way


# -------------------------------------------------------------------- byte for byte


class Recorder(Server):
    """Answers each question by what was asked, refuses an agent, and keeps all that came, byte for byte."""

    request_queue_size = AGENTS  # else some would have to try again, and say so in a header

    def __init__(self) -> None:
        super().__init__(self._serve)
        self.came: Counter[tuple[str, bytes]] = Counter()

    def _serve(self, connection: Connection) -> None:
        request = connection.read()
        assert request is not None
        self.came[request] += 1
        connection.write(_answer(request[1]))

    def take(self) -> Counter[tuple[str, bytes]]:
        """What came since the last time."""
        came, self.came = self.came, Counter()
        return came


def _answer(body: bytes) -> bytes:
    said = msgspec.json.decode(body)
    text = said["messages"][0]["content"]
    if text.startswith("Page 7."):
        return whole(b'{"error": {"message": "no"}}', "content-type: application/json", status="401 Unauthorized")
    if not said.get("stream"):
        return whole(answer_json(model=text), "content-type: application/json", "connection: close")
    events: list[Any] = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in text.split()]
    if said.get("stream_options"):
        events.append({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}})
    lines = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events]
    return chunked([*lines, b"data: [DONE]\n\n"], "content-type: text/event-stream", "connection: close")


def unasked(came: Counter[tuple[str, bytes]]) -> Counter[tuple[str, bytes]]:
    """The requests without what asks a stream for its usage, and sees to it that this can be taken out of it again."""
    plain: Counter[tuple[str, bytes]] = Counter()
    for (head, body), times in came.items():
        said = msgspec.json.decode(body)
        said.pop("stream_options", None)
        plain[re.sub(r"(?im)^(content-length|accept-encoding): .*\n", "", head), msgspec.json.encode(said)] += times
    return plain


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


def same(bare: subprocess.CompletedProcess[str], wrapped: subprocess.CompletedProcess[str]) -> bool:
    return (bare.returncode, bare.stdout, bare.stderr) == (wrapped.returncode, wrapped.stdout, wrapped.stderr)


@pytest.mark.processes
def test_without_limits_every_request_and_all_that_the_script_says_is_as_it_is_bare(recorder):
    """With ``include_usage=off`` not a byte is different on the wire; as it is by default, streams ask for their usage,
    and the script sees nothing of that.
    """
    bare = ran(recorder.url)
    on_the_wire = recorder.take()
    assert on_the_wire.total() == (AGENTS - 1) * CALLS_OF_AN_AGENT + 1
    assert "stopped with 401" in bare.stdout
    assert same(bare, paced(recorder.url, "--quiet", "--include-usage", "off"))
    assert recorder.take() == on_the_wire
    assert same(bare, paced(recorder.url, "--quiet"))
    asking = recorder.take()
    assert (asking - on_the_wire).total() == AGENTS - 1  # the streams alone
    assert unasked(asking) == unasked(on_the_wire)
