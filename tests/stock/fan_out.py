"""Twenty agents at once, as one writes them with the openai SDK: each reads a page, asks about it, and sums up.

Where the model is, the environment says (OPENAI_BASE_URL, OPENAI_API_KEY). It knows of no budget.
"""

import asyncio
import sys

from openai import APIStatusError, AsyncOpenAI

AGENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
MODEL = "gemma-3-270m"
WORDS = "the tide came in at six and two boats left with nets and salt while the crane on the quay stood still"
TOPICS = ("weather", "cargo", "mood", "wind", "tide")


def page(number: int) -> str:
    """What one agent has to read; no two pages are alike."""
    words = WORDS.split()
    turned = words[number % len(words) :] + words[: number % len(words)]
    return f"Page {number}. " + " ".join(turned)


async def ask(client: AsyncOpenAI, text: str) -> str:
    """One question, and the whole answer."""
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=12, temperature=0
    )
    return answer.choices[0].message.content or ""


async def ask_streaming(client: AsyncOpenAI, text: str) -> str:
    """One question, and the answer piece by piece."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=12, temperature=0, stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def agent(client: AsyncOpenAI, number: int) -> str:
    """An agent and what it found, or where it was stopped."""
    notes: list[str] = []
    try:
        for topic in TOPICS[:2]:
            notes.append(await ask(client, f"{page(number)}\nName the {topic} in one word."))
        notes.append(await ask_streaming(client, f"{page(number)}\nSum up in one sentence."))
    except APIStatusError as error:
        return f"agent {number}: stopped with {error.status_code} after {len(notes)} answers"
    return f"agent {number}: {notes!r}"


async def main() -> None:
    """Let all of them work, and show what they found."""
    async with AsyncOpenAI(default_headers={"connection": "close"}) as client:
        for found in await asyncio.gather(*(agent(client, number) for number in range(AGENTS))):
            print(found)


asyncio.run(main())
