"""What every way of calling a model shares: what it is made with, how its text is read, and how it is walked."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transports import BudgetTransport

CAP = 64
PROMPT = "Say hello to whoever listens on this machine, please."
ASK: list[Any] = [{"role": "user", "content": PROMPT}]


@dataclass(frozen=True)
class Desk:
    """What one call is made with: the provider's address, our transport, and the way it shall go."""

    url: str
    transport: BudgetTransport
    awaits: bool
    streamed: bool
    kept: list[object] = field(default_factory=list)

    def either(self, blocking: Any, awaiting: Any) -> Any:
        return awaiting if self.awaits else blocking

    def client(self, library: Any) -> Any:
        return self.either(library.Client, library.AsyncClient)(transport=self.transport, timeout=10)


@dataclass(frozen=True)
class Way:
    """One API of an SDK: its call, and the text of a whole answer and of an event of a streamed one, if it has them.

    ``rounds`` is how often the model is asked for one answer.
    """

    call: Callable[[Desk], Any]
    whole: Callable[[Any], str]
    piece: Callable[[Any], str | None] | None = None
    rounds: int = 1
    streams_blocking: bool = True

    def has(self, *, awaits: bool, streamed: bool) -> bool:
        """Whether it goes this way, too."""
        return not streamed or (self.piece is not None and (awaits or self.streams_blocking))

    def say(self, desk: Desk) -> str:
        """One blocking call."""
        answer = self.call(desk)
        return self._joined(answer) if desk.streamed else self.whole(answer)

    async def asay(self, desk: Desk) -> str:
        """One awaited call."""
        answer = self.call(desk)
        if inspect.isawaitable(answer):
            answer = await answer
        return self._joined([event async for event in answer]) if desk.streamed else self.whole(answer)

    def _joined(self, events: Any) -> str:
        assert self.piece is not None
        return "".join(self.piece(event) or "" for event in events)


def say(way: Way, desk: Desk, calls: int = 1) -> list[str]:
    """Some calls one after the other, with one transport that is closed at the end."""
    with desk.transport, asyncio.Runner() as loop:
        asyncio.set_event_loop(loop.get_loop())  # some frameworks block by running the loop of their thread
        try:
            return loop.run(_asay(way, desk, calls)) if desk.awaits else [way.say(desk) for _ in range(calls)]
        finally:
            loop.run(desk.transport.aclose())


async def _asay(way: Way, desk: Desk, calls: int) -> list[str]:
    return [await way.asay(desk) for _ in range(calls)]
