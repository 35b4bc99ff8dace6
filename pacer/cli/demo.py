"""``make demo``: a fan-out of agents on a real model, first bare, then paced and capped; both receipts side by side.

The witness between the pacer and the network writes down the usage that the server itself reports, with plain ``json``;
the books have to equal it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import openai
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pacer import Pacer
from pacer.cli.model_server import ModelServer
from transports import BudgetTransport, Receipt

MODEL = "gemma-3-270m"
LONGEST_ANSWER = 8
SUB_AGENTS = 2
BURST_SECONDS = 2.0
REFRESH_SECONDS = 0.25
CONTEXT = (
    "You are one of many agents. Each of you gets the minutes of the harbour council and answers in one word. " * 6
)


@dataclass
class Seen:
    """One call as the network saw it: when it was sent, and the usage that the server reported."""

    sent_at: float
    tokens: int = 0


class Witness(httpx2.AsyncBaseTransport):
    """The network, and a record of every call that reached it."""

    def __init__(self) -> None:
        self._network = httpx2.AsyncHTTPTransport()
        self.seen: list[Seen] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and read along."""
        seen = Seen(time.monotonic())
        self.seen.append(seen)
        response = await self._network.handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Reading(response.stream, seen)
        return response

    async def aclose(self) -> None:
        """Close the network."""
        await self._network.aclose()

    @property
    def tokens(self) -> int:
        """The sum of all usage reported by the server."""
        return sum(seen.tokens for seen in self.seen)


class _Reading(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, seen: Seen) -> None:
        self._inner = inner
        self._seen = seen

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = b""
        async for chunk in self._inner:
            body += chunk
            self._seen.tokens = reported_tokens(body)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def reported_tokens(body: bytes) -> int:
    """``usage.total_tokens`` of an answer or of the last stream event that has it; 0 as long as there is none."""
    for line in reversed(body.split(b"\n")):
        text = line.removeprefix(b"data: ")
        if b'"usage"' in text:
            try:
                return int((json.loads(text)["usage"] or {})["total_tokens"])
            except (ValueError, KeyError):
                continue  # the event goes on in the next chunk
    return 0


@dataclass
class Run:
    """One fan-out and what came of it."""

    name: str
    seconds: float = 0.0
    answers: int = 0
    refusals: int = 0
    witness: Witness = field(default_factory=Witness)
    receipts: list[Receipt] = field(default_factory=list)

    async def note(self, response: httpx2.Response) -> None:
        """Keep the receipt of an admitted call; the bare run has none."""
        if "pacer" in response.extensions:
            self.receipts.append(response.extensions["pacer"])


class Fleet:
    """Agents that answer in one word; every third one asks two sub-agents, which stream."""

    def __init__(self, run: Run, transport: httpx2.AsyncBaseTransport, url: str, stream_options: object) -> None:
        self._run = run
        self._stream_options = stream_options
        http_client = httpx2.AsyncClient(transport=transport, event_hooks={"response": [run.note]}, timeout=600)
        self._client = openai.AsyncOpenAI(
            api_key="unused", base_url=f"{url}/v1", http_client=http_client, max_retries=0
        )

    async def work(self, agents: int) -> None:
        """Send them all at once, and wait for the last."""
        started = time.monotonic()
        async with self._client:
            await asyncio.gather(*(self._agent(number) for number in range(agents)))
        self._run.seconds = time.monotonic() - started

    async def _agent(self, number: int) -> None:
        if await self._ask(f"Agent {number}: name a ship.", streams=False) and number % 3 == 0:
            asks = (self._ask(f"Sub-agent {number}.{n}: name a port.", streams=True) for n in range(SUB_AGENTS))
            await asyncio.gather(*asks)

    async def _ask(self, question: str, *, streams: bool) -> bool:
        """One call; whether it was let through."""
        try:
            await (self._streamed(question) if streams else self._plain(question))
        except openai.APIStatusError as error:
            if error.status_code != 402:
                raise
            self._run.refusals += 1
            return False
        self._run.answers += 1
        return True

    async def _plain(self, question: str) -> None:
        await self._client.chat.completions.create(
            model=MODEL, max_tokens=LONGEST_ANSWER, messages=[{"role": "user", "content": CONTEXT + question}]
        )

    async def _streamed(self, question: str) -> None:
        stream = await self._client.chat.completions.create(
            model=MODEL,
            max_tokens=LONGEST_ANSWER,
            messages=[{"role": "user", "content": CONTEXT + question}],
            stream=True,
            extra_body=self._stream_options,
        )
        async for _ in stream:
            pass


@asynccontextmanager
async def shown(run: Run, pacer: Pacer | None, console: Console) -> AsyncIterator[None]:
    """A live table while the block runs."""
    with Live(console=console, auto_refresh=False, transient=True) as live:

        async def refresh() -> None:
            while True:
                live.update(live_table(run, pacer), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

        task = asyncio.create_task(refresh())
        try:
            yield
        finally:
            task.cancel()


def live_table(run: Run, pacer: Pacer | None) -> Table:
    """How the run stands right now."""
    table = Table(title=run.name)
    now = time.monotonic()
    lately = sum(seen.tokens for seen in run.witness.seen if seen.sent_at > now - 1)
    columns = {"tokens/s": f"{lately:,}", "calls": f"{len(run.witness.seen)}", "refused": f"{run.refusals}"}
    if pacer is None:
        columns["spent"] = f"{run.witness.tokens:,}"
    else:
        status = pacer.status()
        columns["tokens/s"] += f" of {status.tokens_per_second:,.0f}"
        columns |= {"spent": f"{status.spent:,}", "held": f"{status.held:,}", "remaining": f"{status.remaining:,}"}
        columns |= {"in flight": str(status.in_flight), "waiting": str(status.waiting)}
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(*columns.values())
    return table


def largest_window(moments: Iterable[tuple[float, int]], seconds: float = 1.0) -> int:
    """The largest sum of amounts in any window of that length."""
    ordered = sorted(moments)
    largest = total = first = 0
    for moment, amount in ordered:
        total += amount
        while ordered[first][0] <= moment - seconds:
            total -= ordered[first][1]
            first += 1
        largest = max(largest, total)
    return largest


def window_allowed(receipts: list[Receipt], rate: float, burst: float) -> tuple[int, float]:
    """What one second admitted at most, and what the books allow for it.

    A full bucket (or one call larger than it) and a second's refill may go. What a settlement gives back to the bucket
    may be handed out again, so it counts against the admissions of its second.
    """
    taken = [(receipt.admitted_at, receipt.paced) for receipt in receipts]
    returned = [
        (receipt.settled_at, min(0, receipt.charged - receipt.paced))
        for receipt in receipts
        if receipt.settled_at is not None and receipt.charged is not None
    ]
    largest_call = max((receipt.paced for receipt in receipts), default=0)
    return largest_window(taken + returned), max(burst, largest_call) + rate


def failures(run: Run, pacer: Pacer, rate: float, burst: float) -> list[str]:
    """What is wrong with the paced run; empty when everything is as promised."""
    status = pacer.status()
    admitted, allowed = window_allowed(run.receipts, rate, burst)
    found = []
    if status.spent != run.witness.tokens or status.unknown or status.held:
        found.append(f"the books say {status.spent:,} (and {status.unknown:,} unknown), the server says otherwise")
    if status.ceiling is not None and run.witness.tokens > status.ceiling:
        found.append(f"the server's bill of {run.witness.tokens:,} is over the ceiling of {status.ceiling:,}")
    if admitted > allowed:
        found.append(f"one second admitted {admitted:,} tokens, the rules allow {allowed:,.0f}")
    return found


def receipt_table(bare: Run, paced: Run, pacer: Pacer, waits: list[float], rate: float, burst: float) -> Table:
    """Both runs side by side."""
    status = pacer.status()
    admitted, allowed = window_allowed(paced.receipts, rate, burst)
    table = Table(title="Receipt")
    for column in ("", bare.name, paced.name):
        table.add_column(column, justify="right" if column else "left")
    runs = (bare, paced)
    table.add_row("calls answered", *(f"{run.answers}" for run in runs))
    table.add_row("calls refused", *(f"{run.refusals}" for run in runs))
    table.add_row("seconds", *(f"{run.seconds:.1f}" for run in runs))
    sent = (largest_window((seen.sent_at, seen.tokens) for seen in run.witness.seen) for run in runs)
    table.add_row("most tokens sent in one second", *(f"{most:,}" for most in sent))
    table.add_row("most admitted in one second, allowed", "", f"{admitted:,} of {allowed:,.0f}")
    table.add_row("calls that waited, seconds together", "", f"{len(waits)}, {sum(waits):.1f}")
    table.add_row("tokens by the server's usage", *(f"{run.witness.tokens:,}" for run in runs))
    table.add_row("tokens by our books", "none kept", f"{status.spent:,} of {status.ceiling or 0:,}")
    return table


def recorded_spans() -> InMemorySpanExporter:
    """Record the spans of this process, as an application would that exports them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def waits_of(exporter: InMemorySpanExporter) -> list[float]:
    """The seconds of each ``pacer.wait`` span."""
    return [
        (span.end_time - span.start_time) / 1e9
        for span in exporter.get_finished_spans()
        if span.name == "pacer.wait" and span.end_time is not None and span.start_time is not None
    ]


async def demo(url: str, agents: int, rate: float, ceiling: int, console: Console) -> list[str]:
    """Both runs and their receipt; returns what went wrong."""
    spans = recorded_spans()
    bare = Run("bare")
    console.print(f"{agents} agents on {MODEL}, with a bare client ...")
    async with shown(bare, None, console):
        await Fleet(bare, bare.witness, url, {"stream_options": {"include_usage": True}}).work(agents)
    burst = BURST_SECONDS * rate
    pacer = Pacer(tokens_per_second=rate, burst=burst, ceiling=ceiling, run="demo")
    paced = Run("paced and capped")
    console.print(f"the same at {rate:,.0f} tokens/s under a ceiling of {ceiling:,} tokens ...")
    async with shown(paced, pacer, console):
        await Fleet(paced, BudgetTransport(paced.witness, pacer=pacer), url, None).work(agents)
    console.print(receipt_table(bare, paced, pacer, waits_of(spans), rate, burst))
    return failures(paced, pacer, rate, burst)


def main() -> int:
    """Run the demo; 0 only if the books agree and every limit was kept."""
    parser = argparse.ArgumentParser(prog="pacer.cli.demo", description=__doc__)
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--tokens-per-second", type=float, default=250.0)
    parser.add_argument("--ceiling", type=int, default=4_000)
    args = parser.parse_args()
    console = Console()
    with ModelServer() as server:
        wrong = asyncio.run(demo(server.url, args.agents, args.tokens_per_second, args.ceiling, console))
    for line in wrong:
        console.print(f"[red]FAILED[/red]: {line}")
    if not wrong:
        console.print("The books equal the server's usage, and no second admitted more than allowed.")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
