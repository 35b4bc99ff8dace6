"""A process of the process tests: callers with a budget that its environment alone describes."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import httpx

from tests.servers import CHAT, ask
from transports import BudgetTransport

INPUT, CAP = 20, 80
BILLED = INPUT + CAP
"""Tokens that the provider bills for a call."""
RESERVED = 140
"""Tokens that no call holds more of than these."""

Told = list[tuple[int, float]]
"""Of each call its status, and the seconds it took."""


def start(pipe: Connection, environment: dict[str, str], url: str, callers: int, calls: int | None, cap: int) -> None:
    """Be a worker that tells what it got through ``pipe``, and that does not outlive who holds its other end."""
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    os.environ.update(environment)
    pipe.send(asyncio.run(work(url, callers, calls, cap)))


def _end_with(pipe: Connection) -> None:
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


async def work(url: str, callers: int, calls: int | None = None, cap: int = CAP) -> Told:
    """So many callers at once, with so many calls each; otherwise until the budget or the provider ends them."""
    told: Told = []
    async with (
        httpx.AsyncClient(transport=BudgetTransport(verify=False), timeout=60) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(_call(client, url, calls, cap, told))
    return told


async def _call(client: httpx.AsyncClient, url: str, calls: int | None, cap: int, told: Told) -> None:
    for _ in itertools.repeat(None) if calls is None else itertools.repeat(None, calls):
        begun = time.monotonic()
        response = await client.post(url + CHAT, json=ask(cap))
        told.append((response.status_code, time.monotonic() - begun))
        if response.status_code == 200:
            receipt = response.extensions["pacer"]
            assert BILLED <= receipt.reserved <= RESERVED or cap != CAP, receipt
        if response.status_code == 402 or "x-stop" in response.headers:
            return
