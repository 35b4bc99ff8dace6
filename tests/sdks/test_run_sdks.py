"""Stock scripts of real SDKs below ``pacer run``: each call is seen, and a ceiling is shown as the SDK shows errors."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pacer import Pacer
from tests.commands import paced, told
from tests.sdks import stock
from tests.sdks.dialects import TEXT
from tests.sdks.provider import Provider

CEILING = "3k"
"""Room for all that a script asks but its long questions."""
Said = list[tuple[str, str, str]]
"""Way, question and text of each answer."""


def ran(provider: Provider, store: str, name: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, that finds the provider by the SDK's own variables alone."""
    keys = ("OPENAI", "ANTHROPIC", "GOOGLE", "GROQ", "CO")
    there = {f"{key}_API_KEY": "k" for key in keys}
    there |= dict.fromkeys(("OPENAI_BASE_URL", "OPENAI_API_BASE"), f"{provider.url}/v1")
    there |= dict.fromkeys(
        ("ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "GROQ_BASE_URL", "CO_API_URL", "OLLAMA_HOST"), provider.url
    )
    limits = ("--ceiling", CEILING, "--store", store, "--run", "nightly")
    return paced(*limits, "--", sys.executable, str(stock.__file__), name, **there)


def said(done: subprocess.CompletedProcess[str]) -> Said:
    """What the script says, but for what the SDK itself has to say."""
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) >= 4, done.stdout + done.stderr
    return [(way, question, text) for way, question, text in lines]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'books.db'}"


@pytest.mark.parametrize("name", stock.SCRIPTS)
def test_each_way_is_seen_and_capped_and_the_books_are_the_bill(provider: Provider, store: str, name: str):
    """Short questions are booked to the token; long ones are tried once, and refused in the SDK's own kind of error."""
    done = ran(provider, store, name)
    answers = said(done)
    for way, question, text in answers:
        if question == "short":
            assert text == TEXT, way
        else:
            assert "nightly" in text, way
            assert "PACER_CEILING" in text, way
    with closing(Pacer(store=store, run="nightly")) as budget:
        now = budget.status()
    assert (now.spent, now.unknown, now.held) == (provider.bill, 0, 0)
    assert now.calls == provider.calls == told(done.stderr, "refused") == len(answers) / 2


@pytest.mark.parametrize("name", stock.UNSEEN)
def test_what_goes_over_another_library_is_not_seen_and_the_end_says_so(provider: Provider, store: str, name: str):
    """It is answered beyond the ceiling, and stands in no book."""
    done = ran(provider, store, name)
    answers = said(done)
    assert {text for _, _, text in answers} == {TEXT}
    assert provider.calls == len(answers)
    with closing(Pacer(store=store, run="nightly")) as budget:
        assert (budget.status().calls, budget.status().spent) == (0, 0)
    assert "NO MODEL CALL WAS SEEN" in done.stderr
