"""What a program pays that knows nothing of us: for each call in a process with ``install()``, and for its start.

What is no model call is what matters here: all other traffic of the program. Both subjects take turns in each round.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import httpx

from benchmarks.overhead import answer, question
from transports import install, uninstall

ROUNDS = 31
CALLS = 300
STARTS = 11
TOOL_CALL = json.dumps({"query": "harbour " * 120}).encode()


class Noop(httpx.BaseTransport):
    """Answers at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "application/json"}, content=self._body)


def report() -> None:
    """Print a row for each kind of call, and for each kind of start."""
    print("CPU per call, blocking, no-op transport, and what install() adds; medians of", ROUNDS, "rounds [p10 .. p90]")
    with httpx.Client(transport=Noop(b"{}")) as client, httpx.Client(transport=Noop(answer(1))) as model:
        address = "http://tool.test/v1/search?q=harbour"
        row("GET, no model call (aim: +5 us)", partial(client.get, address))
        row("POST of 1 KB, no model call (aim: +5 us)", partial(client.post, address, content=TOOL_CALL))
        row("POST of 1 KB, a model call", partial(model.post, "http://m.test/v1/chat/completions", content=question(1)))
    row("the first call of a new client", first_call, calls=100)
    print(f"Start and end of a process, and what pacer run adds; medians of {STARTS} (the least)")
    start("python -c pass (aim: +150 ms)", "pass")
    start("python -c 'import httpx'", "import httpx")
    start("python -c 'import openai'", "import openai")
    print()


def first_call() -> None:
    """A client for one call."""
    httpx.Client(transport=Noop(b"{}"), trust_env=False).get("http://tool.test/")


def row(name: str, call: Callable[[], object], calls: int = CALLS) -> None:
    """Measure and print one kind of call; which subject begins changes from round to round."""
    plain, paced = list[float](), list[float]()
    for number in range(ROUNDS):
        for is_paced in (True, False) if number % 2 else (False, True):
            (paced if is_paced else plain).append(times(call, calls, is_paced))
    added = sorted(mine - base for mine, base in zip(paced, plain, strict=True))
    middle = statistics.median(added)
    spread = f"[{added[len(added) // 10]:+7.1f} .. {added[-1 - len(added) // 10]:+7.1f}]"
    print(f"  {name:42} {statistics.median(plain):8.1f} us  {middle:+8.1f} us {spread}")


def times(call: Callable[[], object], calls: int, is_paced: bool) -> float:
    """Microseconds of CPU per call."""
    if is_paced:
        install()
    call()  # the first one makes what the others use
    gc.collect()
    started = time.process_time()
    for _ in range(calls):
        call()
    taken = time.process_time() - started
    uninstall()
    return taken / calls * 1e6


def start(name: str, code: str) -> None:
    """Measure and print one kind of start."""
    bare = [sys.executable, "-c", code]
    paced = [sys.executable, "-m", "pacer.cli", "run", "--quiet", "--", *bare]
    took(bare), took(paced)  # compiled, as an installed package is
    plain, ours = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(STARTS):
        plain.append(took(bare))
        ours.append(took(paced))
    said = []
    for unit, there, with_us in zip(("elapsed", "CPU"), zip(*plain, strict=True), zip(*ours, strict=True), strict=True):
        added = statistics.median(with_us) - statistics.median(there)
        least = min(with_us) - min(there)
        said.append(f"{statistics.median(there):6.0f} ms {added:+5.0f} ms ({least:+.0f}) {unit}")
    print(f"  {name:34} {', '.join(said)}")


def took(command: Sequence[str]) -> tuple[float, float]:
    """Milliseconds that passed, and those of CPU, children included."""
    there = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=there)
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return elapsed * 1e3, used * 1e3
