"""A process of the process tests: callers with a budget that its environment alone describes."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import httpx

from pacer.errors import LimitsConflict
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


class Loop:
    """Watches by how many seconds the loop of this process was held up at worst."""

    late = 0.0

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self.late = max(self.late, time.monotonic() - due)


async def work(url: str, callers: int, calls: int | None = None, cap: int = CAP) -> Told:
    """So many callers at once, with so many calls each; otherwise until the budget or the provider ends them."""
    told: Told = []
    loop = Loop()
    watching = asyncio.create_task(loop.watch())
    async with (
        httpx.AsyncClient(transport=BudgetTransport(verify=False), timeout=60) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(_call(client, url, calls, cap, told, loop))
    watching.cancel()
    return told


async def _call(client: httpx.AsyncClient, url: str, calls: int | None, cap: int, told: Told, loop: Loop) -> None:
    for _ in itertools.repeat(None) if calls is None else itertools.repeat(None, calls):
        begun = time.monotonic()
        response = await client.post(url + CHAT, json=ask(cap), headers={"x-late": f"{loop.late:.3f}"})
        told.append((response.status_code, time.monotonic() - begun))
        if response.status_code == 200:
            receipt = response.extensions["pacer"]
            assert BILLED <= receipt.reserved <= RESERVED or cap != CAP, receipt
        if response.status_code == 402 or "x-stop" in response.headers:
            return


def join(pipe: Connection, environment: dict[str, str]) -> None:
    """Join a run, and tell what is in the way."""
    os.environ.update(environment)
    try:
        BudgetTransport()
        pipe.send("")
    except LimitsConflict as error:
        pipe.send(str(error))


# ---------------------------------------------------------------- a process and its children


def spend(url: str) -> None:
    """Call until the ceiling is reached."""
    with httpx.Client(transport=BudgetTransport(verify=False), timeout=60) as client:
        while (status := client.post(url + CHAT, json=ask(CAP)).status_code) == 200:
            pass
    assert status == 402, status


def spend_with_children(url: str, way: str) -> None:
    """Two children come by this way while a call of their parent is open; all go on until the ceiling is reached."""
    with httpx.Client(transport=BudgetTransport(verify=False), timeout=60) as client:
        assert client.post(url + CHAT, json=ask(CAP)).status_code == 200
        with client.stream("POST", url + CHAT, json=ask(CAP)) as response:
            wait = _children_by_fork(url) if way == "os.fork" else _children(url, way)
            spend(url)
            assert response.read()
        wait()


def _children_by_fork(url: str) -> Callable[[], None]:
    pids = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                spend(url)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)

    def wait() -> None:
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0

    return wait


def _children(url: str, way: str) -> Callable[[], None]:
    if way == "subprocess":
        command = [sys.executable, "-m", "tests.worker", url]
        started = [subprocess.Popen(command) for _ in range(2)]

        def wait() -> None:
            assert [child.wait() for child in started] == [0, 0]

        return wait
    processes: Any = multiprocessing.get_context(way)
    children = [processes.Process(target=spend, args=(url,)) for _ in range(2)]
    for child in children:
        child.start()

    def join_them() -> None:
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]

    return join_them


if __name__ == "__main__":
    _, where, *ways = sys.argv
    if ways:
        spend_with_children(where, ways[0])
    else:
        spend(where)
