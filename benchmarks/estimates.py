"""How far the input estimate is off, on a mixed trace and three made-up tokenisers, beside bytes / 4."""

from __future__ import annotations

import base64
import email.message
import inspect
import json
import random
import re
import statistics
import string
import subprocess
from collections.abc import Callable

from pacer.estimate import Estimator, measure
from pacer.usage import Usage

CALLS = 600
WARM = 50
Tokeniser = Callable[[str], int]


def tokeniser(letters: int, digits: int, per_sign: int, han: float, overhead: int) -> Tokeniser:
    """Cuts words after ``letters``, numbers after ``digits``, runs of signs after ``per_sign``."""
    words = rf" ?[a-z]{{1,{letters}}}| ?[A-Z][a-z]{{0,{letters - 1}}}"
    pieces = re.compile(
        rf"{words}|\d{{1,{digits}}}|[^\w\s]{{1,{per_sign}}}|\s+|_",
        re.ASCII,
    )

    def count(text: str) -> int:
        foreign = sum(1 for sign in text if ord(sign) > 127)
        return overhead + round(foreign * han) + len(pieces.findall(text))

    return count


TOKENISERS = {
    "a": tokeniser(6, 3, 2, 0.8, 7),
    "b": tokeniser(4, 1, 1, 1.3, 4),
    "c": tokeniser(8, 3, 4, 0.6, 20),
}


def prose(rng: random.Random, size: int) -> str:
    return _part(rng, _PROSE, size)


def code(rng: random.Random, size: int) -> str:
    return _part(rng, _CODE, size)


def records(rng: random.Random, size: int) -> str:
    rows: list[dict[str, object]] = []
    while len(json.dumps(rows)) < size:
        name = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 12)))
        rows.append({"id": rng.randrange(10**6), "name": name, "score": rng.random(), "tags": ["red", "blue"]})
    return json.dumps(rows)


def chinese(rng: random.Random, size: int) -> str:
    return "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(size // 3))


def encoded(rng: random.Random, size: int) -> str:
    return base64.b64encode(rng.randbytes(size * 3 // 4)).decode()


def _part(rng: random.Random, text: str, size: int) -> str:
    start = rng.randrange(max(1, len(text) - size))
    return text[start : start + size]


_CODE = "".join(inspect.getsource(module) for module in (email.message, json.decoder, subprocess))
_PROSE = " ".join(
    inspect.getdoc(each) or ""
    for module in (email.message, statistics, random, json, subprocess)
    for each in (module, *vars(module).values())
    if each is module or inspect.getmodule(each) is module
)
KINDS = (prose, code, records, chinese, encoded)


def errors() -> tuple[list[float], list[float], list[float], float]:
    """Relative errors when cold, after fifty calls, and of bytes / 4; the share of calls above the safe estimate."""
    rng = random.Random(20)
    estimator = Estimator()
    cold, warm, naive, under = [], [], [], 0
    for number in range(CALLS * len(TOKENISERS)):
        name = rng.choice(list(TOKENISERS))
        text = "\n".join(rng.choice(KINDS)(rng, rng.randint(200, 8_000)) for _ in range(rng.randint(1, 3)))
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
        true = TOKENISERS[name](text)
        counts = measure(body)
        expected, safe = estimator.input(name, counts)
        (warm if number >= WARM * len(TOKENISERS) else cold).append(abs(expected - true) / true)
        naive.append(abs(len(body) / 4 - true) / true)
        under += true > safe
        estimator.learn(name, counts, Usage(true, 10))
    return cold, warm, naive, under / (CALLS * len(TOKENISERS))


def report() -> None:
    """Print the table."""
    cold, warm, naive, under = errors()
    print("error of the input estimate        p50       p95")
    for title, found in ("the first 50 calls", cold), ("after 50 calls", warm), ("bytes / 4", naive):
        percent = statistics.quantiles(found, n=100)
        print(f"{title:28} {percent[49]:9.1%} {percent[94]:9.1%}")
    print(f"calls above the safe estimate: {under:.2%}\n")
