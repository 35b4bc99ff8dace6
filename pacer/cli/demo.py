"""``make demo``: a fan-out of agents against a real model on loopback, first bare, then paced and capped.

Every third of the one-word agents calls two sub-agents. A live table shows the budget at work; a receipt puts both runs
side by side and checks the pacer's books against the model server's own count, the ceiling and the rate. The exit code
is 0 only if all of them hold.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import httpx2
import openai
from openai import AsyncOpenAI, omit
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pacer.cli.model_server import MODEL, ModelServer
from pacer.cli.watch import Speed
from pacer.errors import SettingsError
from pacer.pacer import Pacer
from transports import BudgetTransport, Receipt

AGENTS = 20
TOKENS_PER_SECOND = 150.0
CEILING_PER_AGENT = 200
"""The default ceiling: room for about four of five calls."""
BURST_SECONDS = 2.0
OUTPUT_TOKENS = 16
SPEED_SECONDS = 5.0
"""The live table shows the speed of this last stretch."""
ROUNDING = 1e-3
"""Tokens by which sums of floats may be off."""

NOTE = (
    "You are agent number {number} of a fleet that reads the log of a harbour. The entry for your pier says: the tide "
    "came in at six, two boats left with nets and salt, one came back early with a torn sail, and the pilot wrote that "
    "the wind had turned from south to west before noon. The crane on the quay stood still for want of a part, so the "
    "crates of oranges were carried by hand, and the clerk counted them twice because the first sum was wrong. {task}"
)
TASKS = ("Name the weather in one word.", "Name the cargo in one word.", "Name the mood in one word.")


@dataclass(frozen=True, slots=True)
class Call:
    """One answered call: when it was let go and what the rate gave for it, when it ended and what it used (tokens)."""

    started_at: float
    taken: int
    ended_at: float
    used: int


@dataclass
class Fleet:
    """Agents that ask the model for one word, and the sub-agents that every third of them calls in afterwards.

    ``asks_usage``: streams ask for their usage themselves, since nothing below does.
    """

    agents: int
    url: str
    transport: httpx2.AsyncBaseTransport
    asks_usage: bool
    calls: list[Call] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    in_flight: int = 0
    refused: int = 0

    async def run(self) -> None:
        """Send all agents at once, and wait for the last."""
        hooks = {"response": [self._keep_receipt]}
        async with httpx2.AsyncClient(transport=self.transport, event_hooks=hooks) as http:
            client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", http_client=http, max_retries=0)
            async with asyncio.TaskGroup() as group:
                for number in range(self.agents):
                    group.create_task(self._agent(client, number))

    async def _keep_receipt(self, response: httpx2.Response) -> None:
        if "pacer" in response.extensions:
            self.receipts.append(response.extensions["pacer"])

    async def _agent(self, client: AsyncOpenAI, number: int) -> None:
        first, *others = (NOTE.format(number=number, task=task) for task in TASKS)
        if await self._answered(self._ask(client, first)) and number % 3 == 0:
            await asyncio.gather(*(self._answered(self._ask_streaming(client, prompt)) for prompt in others))

    async def _answered(self, asking: Awaitable[int]) -> bool:
        """Whether there was an answer; an agent that is refused has nothing more to do."""
        started = time.monotonic()
        self.in_flight += 1
        try:
            used = await asking
        except openai.APIStatusError as error:
            if error.status_code != httpx2.codes.PAYMENT_REQUIRED:
                raise
            self.refused += 1
            return False
        finally:
            self.in_flight -= 1
        self.calls.append(Call(started, used, time.monotonic(), used))
        return True

    async def _ask(self, client: AsyncOpenAI, prompt: str) -> int:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=OUTPUT_TOKENS
        )
        return answer.usage.total_tokens if answer.usage else 0

    async def _ask_streaming(self, client: AsyncOpenAI, prompt: str) -> int:
        used = 0
        async for chunk in await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=OUTPUT_TOKENS,
            stream=True,
            stream_options={"include_usage": True} if self.asks_usage else omit,
        ):
            used = chunk.usage.total_tokens if chunk.usage else used
        return used


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: its calls, ``booked`` tokens by our own side, ``served`` tokens by the server's count."""

    calls: list[Call]
    refused: int
    seconds: float
    booked: int
    served: int


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and the numbers that tell."""

    holds: bool
    text: str


def bare_run(server: ModelServer, agents: int, console: Console) -> Outcome:
    """The fleet with a client as it comes."""
    fleet = Fleet(agents, server.url, _network(), asks_usage=True)
    seconds, served = _watched(fleet, server, _live(console, lambda: bare_table(fleet)))
    return Outcome(fleet.calls, fleet.refused, seconds, sum(call.used for call in fleet.calls), served)


def paced_run(server: ModelServer, agents: int, console: Console, pacer: Pacer) -> Outcome:
    """The same fleet, with the transport that is all the difference."""
    speed = Speed(SPEED_SECONDS)
    fleet = Fleet(agents, server.url, BudgetTransport(_network(), pacer=pacer), asks_usage=False)
    seconds, served = _watched(fleet, server, _live(console, lambda: paced_table(pacer, speed)))
    calls = [_as_call(receipt) for receipt in fleet.receipts]
    return Outcome(calls, fleet.refused, seconds, pacer.status().spent, served)


def _as_call(receipt: Receipt) -> Call:
    assert receipt.settled_at is not None
    assert receipt.charged is not None
    return Call(receipt.admitted_at, receipt.paced, receipt.settled_at, receipt.charged)


def _network() -> httpx2.AsyncHTTPTransport:
    return httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))  # see ModelServer


def _live(console: Console, table: Callable[[], Table]) -> Live:
    return Live(get_renderable=table, console=console, transient=True)


def _watched(fleet: Fleet, server: ModelServer, live: AbstractContextManager[object]) -> tuple[float, int]:
    """Run the fleet under the live table: the seconds it took and the tokens the server counted."""
    before, started = server.tokens_served(), time.monotonic()
    with live:
        asyncio.run(fleet.run())
    return time.monotonic() - started, server.tokens_served() - before


def bare_table(fleet: Fleet) -> Table:
    """The live table of the bare run."""
    tokens = sum(call.used for call in fleet.calls)
    return _one_row(answered=f"{len(fleet.calls)}", tokens=f"{tokens:,}", in_flight=f"{fleet.in_flight}")


def paced_table(pacer: Pacer, speed: Speed) -> Table:
    """The live table of the paced run."""
    now = pacer.status()
    tokens_per_second = speed.at(time.monotonic(), now.spent)
    return _one_row(
        tokens_per_second=f"{tokens_per_second:,.0f} of {now.tokens_per_second:,.0f}",
        spent=f"{now.spent:,}",
        held=f"{now.held:,}",
        remaining=f"{now.remaining:,}",
        in_flight=f"{now.in_flight}",
        waiting=f"{now.waiting}",
        next_in="" if now.next_seconds is None else f"{now.next_seconds:.1f} s",
        refused=f"{now.refused}",
    )


def _one_row(**cells: str) -> Table:
    table = Table(*(name.replace("_", " ") for name in cells))
    table.add_row(*cells.values())
    return table


def largest_second(calls: Iterable[Call]) -> int:
    """The most tokens used by calls that were let go within one second."""
    window: deque[Call] = deque()
    largest = inside = 0
    for call in sorted(calls, key=lambda call: call.started_at):
        window.append(call)
        inside += call.used
        while call.started_at - window[0].started_at >= 1.0:
            inside -= window.popleft().used
        largest = max(largest, inside)
    return largest


def largest_draw(calls: Sequence[Call], rate: float) -> float:
    """The most tokens any stretch of time took beyond its rate x seconds and beyond what ended calls gave back in it.

    Tokens leave the bucket at the grant as expected, and the difference to those used comes back when the call ends. No
    stretch, of one second or any other length, can then start with more than the burst or end deeper in debt than one
    larger call leaves: the draw is at most max(burst, largest call).
    """
    moves = [(call.started_at, True, call.taken) for call in calls]
    moves += [(call.ended_at, False, call.used - call.taken) for call in calls]
    drawn, lowest, largest = 0, math.inf, 0.0
    for at, is_grant, tokens in sorted(moves):
        if is_grant:
            lowest = min(lowest, drawn - rate * at)
            largest = max(largest, drawn + tokens - rate * at - lowest)
        drawn += tokens
    return largest


def check_books(outcome: Outcome, pacer: Pacer) -> Check:
    """What the pacer booked is what the server counted, to the token, and no call is left open or unknown."""
    now = pacer.status()
    holds = outcome.booked == outcome.served and now.unknown == now.held == now.in_flight == 0
    return Check(
        holds,
        f"books: {outcome.booked:,} spent + {now.unknown:,} unknown + {now.held:,} held; "
        f"the server counted {outcome.served:,}",
    )


def check_ceiling(outcome: Outcome, pacer: Pacer) -> Check:
    """Nobody counted more than the ceiling."""
    ceiling = pacer.settings.ceiling or 0
    most = max(outcome.booked, outcome.served)
    return Check(most <= ceiling, f"ceiling: {most:,} of {ceiling:,}, {outcome.refused} calls refused")


def check_rate(outcome: Outcome, pacer: Pacer) -> Check:
    """No stretch of time drew more than the bucket can hold: see :func:`largest_draw`."""
    rate, burst = pacer.settings.tokens_per_second or 0.0, pacer.settings.burst or 0.0
    draw = largest_draw(outcome.calls, rate)
    most = max(burst, *(call.taken for call in outcome.calls), 0)
    return Check(
        draw <= most + ROUNDING,
        f"rate: no window of time drew more than {draw:,.1f} tokens beyond {rate:,g}/s; {most:,.0f} are allowed",
    )


def receipt(bare: Outcome, paced: Outcome, spans: InMemorySpanExporter) -> Table:
    """Both runs side by side."""
    table = Table("", "bare", "paced and capped", title="receipt")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, show in _ROWS.items():
        table.add_row(name, show(bare), show(paced))
    table.add_row("waits, and seconds waited by all together", "none", waits(spans))
    return table


_ROWS: dict[str, Callable[[Outcome], str]] = {
    "calls answered": lambda run: f"{len(run.calls):,}",
    "calls refused": lambda run: f"{run.refused:,}",
    "seconds": lambda run: f"{run.seconds:.1f}",
    "tokens per second": lambda run: f"{run.served / run.seconds:,.0f}",
    "most tokens let go within one second": lambda run: f"{largest_second(run.calls):,}",
    "tokens, our books (bare: the answers' usage)": lambda run: f"{run.booked:,}",
    "tokens, the server's own count": lambda run: f"{run.served:,}",
}


def waits(spans: InMemorySpanExporter) -> str:
    """Number and total seconds of the ``pacer.wait`` spans."""
    seconds = [
        (span.end_time - span.start_time) / 1e9
        for span in spans.get_finished_spans()
        if span.name == "pacer.wait" and span.start_time is not None and span.end_time is not None
    ]
    return f"{len(seconds)}, {sum(seconds):,.1f} s"


def record_spans() -> InMemorySpanExporter:
    """Set up the OpenTelemetry SDK, as the application does whose spans the pacer's are."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def show_both(pacer: Pacer, agents: int) -> bool:
    """Run the fleet both ways and print the receipt; whether all checks hold."""
    console, spans = Console(), record_spans()
    console.print("Starting the model (its first start puts together 253 MB in the cache) ...")
    with ModelServer() as server:
        console.print(f"Bare: {agents} agents ask at once ...")
        bare = bare_run(server, agents, console)
        console.print(f"Paced and capped: {pacer!r} ...")
        paced = paced_run(server, agents, console, pacer)
    console.print(receipt(bare, paced, spans))
    checks = [check(paced, pacer) for check in (check_books, check_ceiling, check_rate)]
    for check in checks:
        console.print("[green]ok[/]    " if check.holds else "[red]FAILED[/]", check.text, soft_wrap=True)
    return all(check.holds for check in checks)


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pacer.cli.demo", description="A fan-out of agents, bare and paced")
    parser.add_argument("--agents", type=int, default=AGENTS, help="every third calls two sub-agents (%(default)s)")
    parser.add_argument("--tokens-per-second", type=float, default=TOKENS_PER_SECOND, help="the rate (%(default)g)")
    parser.add_argument("--ceiling", type=int, help=f"tokens for the whole run ({CEILING_PER_AGENT} per agent)")
    chosen = parser.parse_args()
    rate, ceiling = chosen.tokens_per_second, chosen.ceiling
    try:
        pacer = Pacer(
            tokens_per_second=rate,
            burst=rate * BURST_SECONDS,
            ceiling=chosen.agents * CEILING_PER_AGENT if ceiling is None else ceiling,
            run="demo",
        )
        return 0 if show_both(pacer, chosen.agents) else 1
    except SettingsError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
