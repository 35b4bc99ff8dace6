"""How far the input estimate is off, on a mixed trace and three made-up tokenisers, beside bytes / 4; what it takes."""

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
import timeit
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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


class Errors(NamedTuple):
    """Relative errors when cold, after fifty calls a model, and of bytes / 4; shares of calls outside the bounds."""

    cold: list[float]
    warm: list[float]
    naive: list[float]
    above_safe: float
    below_least: float


def errors(seed: int = 20) -> Errors:
    rng = random.Random(seed)
    estimator = Estimator()
    cold, warm, naive = list[float](), list[float](), list[float]()
    above = below = 0
    for number in range(CALLS * len(TOKENISERS)):
        name = rng.choice(list(TOKENISERS))
        text = "\n".join(rng.choice(KINDS)(rng, rng.randint(200, 8_000)) for _ in range(rng.randint(1, 3)))
        body = asked(name, text)
        true = TOKENISERS[name](text)
        given = measure(body)
        least, expected, safe = estimator.input(name, given)
        (warm if number >= WARM * len(TOKENISERS) else cold).append(abs(expected - true) / true)
        naive.append(abs(len(body) / 4 - true) / true)
        above += true > safe
        below += true < least
        estimator.learn(name, "chat", given, Usage(true, 10))
    calls = CALLS * len(TOKENISERS)
    return Errors(cold, warm, naive, above / calls, below / calls)


def asked(model: str, text: str) -> bytes:
    said = {"model": model, "messages": [{"role": "user", "content": text}]}
    return json.dumps(said, ensure_ascii=False).encode()


def times() -> dict[str, float]:
    """Microseconds, the least of many rounds."""
    rng = random.Random(20)
    bodies = {size: asked("m", prose(rng, size // 2) + code(rng, size // 2)) for size in (1_000, 20_000, 200_000)}
    estimator, given = Estimator(), measure(bodies[20_000])
    usual, odd = Usage(4_000, 300), Usage(5_000, 300)

    def learn_both() -> None:
        estimator.learn("m", "chat", given, odd)
        estimator.learn("m", "chat", given, usual)

    def estimate() -> None:
        estimator.input("m", given)
        estimator.output("m", "chat", None, 1)

    taken = {f"measure {size // 1_000} KB": _microseconds(partial(measure, body)) for size, body in bodies.items()}
    taken["learn, off by a tenth"] = _microseconds(learn_both) / 2
    for _ in range(200):
        estimator.learn("m", "chat", given, usual)
    taken["learn, close enough"] = _microseconds(lambda: estimator.learn("m", "chat", given, usual))
    taken["input and output"] = _microseconds(estimate)
    return taken


def _microseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=200, repeat=40)) / 200 * 1e6


def report() -> None:
    """Print the table."""
    found = errors()
    print("error of the input estimate        p50       p95")
    for title, shares in ("the first 50 calls", found.cold), ("after 50 calls", found.warm), ("bytes / 4", found.naive):
        percent = statistics.quantiles(shares, n=100)
        print(f"{title:28} {percent[49]:9.1%} {percent[94]:9.1%}")
    print(f"calls above the safe estimate: {found.above_safe:.2%}, below the least: {found.below_least:.2%}")
    print(*(f"{title}: {taken:.1f} us" for title, taken in times().items()), sep=", ", end="\n\n")
