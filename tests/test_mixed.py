"""Calls of all dialects, plain and streamed, against a loopback provider that keeps its own bill and has its faults."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pacer import Pacer
from tests.dialects import DIALECTS
from tests.servers import Connection, Server, chunked, whole
from transports import BudgetTransport

CALLS = 2_500
THREADS = 4
FAULTS = ["none"] * 26 + ["no usage", "cut", "500", "400"]


class Provider:
    """Answers as each request's ``x-test`` header says, and writes down what it bills."""

    def __init__(self) -> None:
        self.bill = 0
        self._lock = threading.Lock()

    def play(self, connection: Connection) -> None:
        while (request := connection.read()) is not None:
            test = next(line for line in request[0].splitlines() if line.lower().startswith("x-test:"))
            if not self._answer(connection, json.loads(test.split(":", 1)[1])):
                return

    def _answer(self, connection: Connection, test: dict[str, Any]) -> bool:
        fault = test["fault"]
        if fault in ("500", "400"):
            connection.write(whole(b"{}", status=f"{fault} No"))
            return True
        with self._lock:
            self.bill += test["given"] + test["made"]
        dialect = DIALECTS[test["dialect"]]
        usage = {} if fault == "no usage" else dialect.usage(test["given"], test["made"])
        if not test["streamed"]:
            text = whole(dialect.answer(usage), "content-type: application/json")
        else:
            text = chunked(dialect.stream(usage), f"content-type: {dialect.kind}")
        connection.write(text[: len(text) // 2] if fault == "cut" else text)
        return bool(fault != "cut")


def call(client: httpx.Client, url: str, number: int) -> tuple[str, int, Any]:
    """One call: what went wrong on purpose, the tokens it was billed, and its receipt."""
    rng = random.Random(number)
    name, fault, streamed = rng.choice(list(DIALECTS)), rng.choice(FAULTS), rng.random() < 0.5
    dialect = DIALECTS[name]
    # As many tokens as the text really may have, and never more output than its cap.
    text, made = "word " * rng.randint(20, 200), rng.randint(6, 60)
    given = len(text) // 4
    said = {"model": name, "messages": [{"role": "user", "content": text}], "stream": streamed, **dialect.cap(60)}
    test = {"dialect": name, "fault": fault, "streamed": streamed, "given": given, "made": made}
    receipt = None
    try:
        with client.stream(
            "POST",
            url + (dialect.streamed_path if streamed else dialect.path),
            json=said,
            headers={"x-test": json.dumps(test)},
        ) as response:
            receipt = response.extensions["pacer"]
            response.read()
    except httpx.RemoteProtocolError:
        assert fault == "cut"
    return fault, given + made, receipt


@pytest.mark.parametrize("include_usage", ["on", "off"])
def test_the_books_are_the_bill(include_usage):
    """Where usage was sent, to the token; where it was not, the bill is between what is spent and that with unknown."""
    pacer, provider = Pacer(ceiling=10**9), Provider()
    transport = BudgetTransport(pacer=pacer, include_usage=include_usage)
    with (
        Server(provider.play) as server,
        httpx.Client(transport=transport, timeout=60) as client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        ended = list(threads.map(lambda number: call(client, server.url, number), range(CALLS)))
    for fault, billed, receipt in ended:
        if fault == "none":
            assert (receipt.charged, receipt.unknown, receipt.source) == (billed, 0, "provider")
        elif fault in ("500", "400"):
            assert (receipt.charged, receipt.unknown) == (0, 0)
        elif receipt is not None:
            assert receipt.source in ("estimate", "partial")
            assert receipt.charged <= billed <= receipt.charged + receipt.unknown
    now = pacer.status()
    assert (now.held, now.in_flight) == (0, 0)
    assert provider.bill == sum(billed for fault, billed, _ in ended if fault not in ("500", "400"))
    assert now.spent <= provider.bill <= now.spent + now.unknown
    assert now.unknown <= 0.1 * provider.bill
