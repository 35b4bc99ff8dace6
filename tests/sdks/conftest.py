"""These tests have an environment of their own (``make test-sdks``): nothing in it may call home."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.sdks.provider import Provider

# Read when the SDKs are imported.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["LANGSMITH_TRACING_V2"] = "false"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else litellm fetches its list of prices
os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider, and the proxy of all that would leave loopback: it must have been asked for nothing else."""
    with Provider() as provider:
        monkeypatch.setenv("HTTP_PROXY", provider.url)
        monkeypatch.setenv("HTTPS_PROXY", provider.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield provider
    assert provider.strays == []
