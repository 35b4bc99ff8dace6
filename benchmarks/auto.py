"""Added time per call of a client that knows nothing of us, in a process with ``install()``; no-op transport, blocking.

What is no model call is what matters here: all other traffic of the program. Both subjects take turns in each round.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import httpx

from benchmarks.overhead import answer, question
from transports import install, uninstall

ROUNDS = 31
CALLS = 300
TOOL_CALL = json.dumps({"query": "harbour " * 120}).encode()


class Noop(httpx.BaseTransport):
    """Answers at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "application/json"}, content=self._body)


def report() -> None:
    """Print a row for each kind of call."""
    print("Added time per call in a process with install(), no-op transport; medians of", ROUNDS, "rounds [p10 .. p90]")
    with httpx.Client(transport=Noop(b"{}")) as client, httpx.Client(transport=Noop(answer(1))) as model:
        address = "http://tool.test/v1/search?q=harbour"
        row("GET, no model call (aim: +5 us)", partial(client.get, address))
        row("POST of 1 KB, no model call (aim: +5 us)", partial(client.post, address, content=TOOL_CALL))
        row("POST of 1 KB, a model call", partial(model.post, "http://m.test/v1/chat/completions", content=question(1)))
    row("the first call of a new client", first_call, calls=100)
    print()


def first_call() -> None:
    """A client for one call."""
    httpx.Client(transport=Noop(b"{}"), trust_env=False).get("http://tool.test/")


def row(name: str, call: Callable[[], object], calls: int = CALLS) -> None:
    """Measure and print one kind of call."""
    plain, paced = list[float](), list[float]()
    for number in range(-1, ROUNDS):
        taken = times(call, calls)
        install()
        call()  # the first one makes what the others use
        with_ours = times(call, calls)
        uninstall()
        if number >= 0:
            plain.append(taken)
            paced.append(with_ours)
    added = sorted(mine - base for mine, base in zip(paced, plain, strict=True))
    middle = statistics.median(added)
    spread = f"[{added[len(added) // 10]:+7.1f} .. {added[-1 - len(added) // 10]:+7.1f}]"
    print(f"  {name:42} {statistics.median(plain):8.1f} us  {middle:+8.1f} us {spread}")


def times(call: Callable[[], object], calls: int) -> float:
    """Microseconds per call."""
    gc.collect()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls * 1e6
