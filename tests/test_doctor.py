"""``pacer doctor``: what it finds here, and what it says of it."""

from __future__ import annotations

import json
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

from pacer import Pacer
from pacer.cli import doctor, sdks
from pacer.cli.main import app
from tests.valkey import Valkey, free_port


@pytest.fixture
def doctored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command as typed, where the only Python is this one."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def run(*words: str, **variables: str) -> Result:
        return CliRunner().invoke(app, ["doctor", *words], env={"COLUMNS": "80", **variables})

    return run


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Distributions are there by their metadata, before those that really are."""
    monkeypatch.syspath_prepend(tmp_path / "shelf")

    def put(name: str, version: str, *required: str) -> None:
        place = tmp_path / "shelf" / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in required)]
        (place / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, "", ""]))

    return put


def found(name: str) -> sdks.Found:
    (one,) = sdks.installed([name])
    return one


# -------------------------------------------------------------------- SDKs


def test_all_is_well_here(doctored):
    """The SDKs of this environment stand on httpx2, nothing is set, and all that is needed is there."""
    result = doctored()
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {row.split()[0]: row.split()[2:4] for row in result.stdout.splitlines() if row}
    assert (rows["openai"], rows["anthropic"]) == (["httpx2", "yes"], ["httpx2", "yes"])
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_library_is_that_of_the_installed_version(shelf):
    shelf("openai", "1.50.0", "httpx<1,>=0.23.0", 'aiohttp>=3; extra == "aiohttp"')
    assert (found("openai").library, found("openai").covered, found("openai").cure) == ("httpx", "yes", "")
    shelf("huggingface-hub", "0.20.0", "requests", "not a requirement !!", 'aiohttp; extra == "inference"')
    assert (found("huggingface-hub").library, found("huggingface-hub").covered) == ("requests", "no")
    assert "newer release" in found("huggingface-hub").cure
    shelf("xai-sdk", "1.21.0", "aiohttp<4", "grpcio<2", "requests<3")
    assert (found("xai-sdk").library, found("xai-sdk").covered) == ("grpcio", "no")
    shelf("cohere", "99.0", "httpx-sse")
    assert (found("cohere").library, found("cohere").covered) == ("", "unknown")


def test_calls_that_go_another_way_are_told_where_that_way_is_there(shelf):
    shelf("google-genai", "3.6.1", "httpx2<3", "google-auth[requests]", "requests")
    assert (found("google-genai").covered, found("google-genai").gaps) == ("yes", ())
    shelf("aiohttp", "3.14.5")
    (gap,) = found("google-genai").gaps
    assert (found("google-genai").covered, gap.library) == ("partly", "aiohttp")
    assert "httpx_async_client" in gap.cure
    shelf("dspy", "3.4.1", "litellm")
    shelf("litellm", "1.110.2", "httpx[http2]", "openai", "aiohttp", "boto3")
    assert (found("litellm").covered, found("dspy").covered, found("dspy").through) == ("yes", "partly", ("litellm",))


def test_a_version_that_cannot_be_read_meets_nothing(shelf):
    shelf("dspy", "not a version", "litellm")
    assert found("dspy").gaps == ()
    assert not sdks.is_met("dspy>=0")


def test_realtime_is_told_and_no_reason_to_fail(shelf, doctored):
    shelf("websockets", "16.1")
    result = doctored()
    assert result.exit_code == 0
    assert "realtime sessions go by websockets" in result.stdout
    assert found("openai").covered == "yes"


def test_a_framework_is_covered_as_what_it_calls_by(shelf):
    shelf("boto3", "1.44.8", "botocore")
    shelf("crewai", "1.15.0", "openai<3", "httpx")
    assert (found("boto3").covered, found("crewai").through) == ("no", ("openai", "anthropic", "boto3"))
    assert found("crewai").covered == "partly"
    shelf("langchain-aws", "1.9.1", "boto3")
    assert found("langchain-aws").covered == "no"
    shelf("langchain-groq", "1.1.3", "groq")
    assert (found("langchain-groq").through, found("langchain-groq").covered) == ((), "unknown")


def test_what_is_not_covered_fails_and_has_a_cure(shelf, doctored):
    shelf("boto3", "1.44.8\x1b[2J", "botocore")
    result = doctored()
    assert result.exit_code == 1
    assert "1.44.8\\x1b[2J" in result.stdout
    assert "call Bedrock by anthropic's AnthropicBedrock" in " ".join(result.stdout.split())
    assert "\x1b" not in result.stdout


# -------------------------------------------------------------------- settings


def test_settings_in_force_are_shown_without_secrets(doctored):
    variables = {"PACER_CEILING": "500k", "PACER_BURST": "9", "pacer_tokens_per_second": "2k"}
    result = doctored("--json", PACER_STORE="redis://me:secret@127.0.0.1:1/0?x=secret", **variables)
    report = json.loads(result.stdout)
    told = {check["name"]: (check["state"], check["text"]) for check in report["settings"]}
    assert told == {
        "PACER_BURST": ("ok", "9"),
        "PACER_CEILING": ("ok", "500k"),
        "PACER_STORE": ("ok", "redis://127.0.0.1:1/0"),
        "pacer_tokens_per_second": ("ok", "2k"),
    }
    assert "secret" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PACER_CELING": "5"}, "PACER_CELING is unknown: did you mean PACER_CEILING?"),
        ({"PACER_CEILING": "much"}, "PACER_CEILING: ceiling='much' is not accepted: give a whole number"),
        ({"PACER_BURST": "5"}, "burst=5 (PACER_BURST) needs a rate"),
        ({"PACER_RUN": "a b"}, "run='a b' is not accepted"),
    ],
)
def test_wrong_settings_are_told(doctored, variables, message):
    result = doctored(**variables)
    assert result.exit_code == 2
    assert message in " ".join(result.stdout.split())


def test_of_several_wrong_settings_each_is_told(doctored):
    report = json.loads(doctored("--json", PACER_CELING="5", PACER_RUN="a b", PACER_LEASE="60").stdout)
    assert [check["state"] for check in report["settings"]] == ["wrong", "ok", "wrong"]
    assert report["store"] == []


# -------------------------------------------------------------------- the store


def store_of(result: Result) -> list[tuple[str, str]]:
    return [(check["state"], check["text"]) for check in json.loads(result.stdout)["store"]]


def test_a_store_in_a_file(doctored, tmp_path):
    place = tmp_path / "books.db"
    store = f"sqlite:{place}"
    assert store_of(doctored("--json", "--store", store)) == [("ok", "not there yet: the first run makes it")]
    assert not place.exists()
    Pacer(store=store, run="nightly").close()
    assert store_of(doctored("--json", PACER_STORE=store)) == [("ok", "runs in it: 1")]
    place.chmod(0o644)
    result = doctored("--json", PACER_STORE=store)
    assert store_of(result)[1] == ("warning", "others may look into it (mode 644): chmod 600")
    assert result.exit_code == 1
    place.write_text("something else")
    result = doctored(PACER_STORE=store)
    assert result.exit_code == 2
    assert "is no SQLite file" in " ".join(result.stdout.split())


def test_a_server_that_is_not_there_is_wrong(doctored):
    result = doctored("--json", PACER_STORE=f"redis://:secret@127.0.0.1:{free_port()}/0")
    ((state, text),) = store_of(result)
    assert (result.exit_code, state) == (2, "wrong")
    assert "is away" in text
    assert "secret" not in result.stdout + result.stderr


def test_a_server_is_told_by_its_version_and_by_what_may_lose_budgets(doctored):
    with Valkey(appendonly="yes") as server:
        result = doctored("--json", PACER_STORE=server.url)
        ((state, text),) = store_of(result)
        assert (result.exit_code, state) == (0, "ok")
        assert text.startswith("answers: Valkey 9.")
    options = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no", "requirepass": "secret"}
    with Valkey(**options) as server:
        result = doctored("--json", PACER_STORE=server.url)
        (_, *warned) = store_of(result)
        assert (result.exit_code, result.stderr, [state for state, _ in warned]) == (1, "", ["warning"] * 2)
        assert "appendonly is no" in warned[0][1]
        assert "maxmemory-policy is allkeys-lru" in warned[1][1]
        assert "secret" not in result.stdout


def test_a_server_that_lets_us_do_no_more_than_we_need_is_fine(doctored):
    with Valkey() as server, redis.Redis.from_url(server.url) as operator:
        operator.execute_command("ACL", "SETUSER", "agent", "on", ">secret", "~pacer:*", "+hget")
        url = server.url.replace("redis://", "redis://agent:secret@")
        result = doctored("--json", PACER_STORE=url)
        assert store_of(result) == [("ok", "answers; INFO is not allowed, so its settings are not known")]
        result = doctored("--json", PACER_STORE=url.replace("secret", "guess"))
        assert result.exit_code == 2
        assert "does not let us in" in result.stdout
        assert "guess" not in result.stdout


# -------------------------------------------------------------------- Pythons, dependencies, proxies


def test_a_python_is_started_as_a_run_would_start_it(doctored, tmp_path):
    """The one that a command would find may have no token-pacer, or look at no environment."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I "$@"\n')
    (tmp_path / "python").chmod(0o755)
    venv.create(tmp_path / "venv", with_pip=False)
    (tmp_path / "python3").symlink_to(tmp_path / "venv" / "bin" / "python")
    result = doctored("--json", PYTHONPATH="")
    ours, isolated, foreign = json.loads(result.stdout)["pythons"]
    assert (result.exit_code, ours["name"], ours["state"]) == (1, sys.executable, "ok")
    assert (isolated["name"], isolated["state"]) == (str(tmp_path / "python"), "warning")
    assert isolated["text"].endswith("does not look at PYTHONPATH or has no site: NOT PACED")
    assert foreign["text"].endswith("token-pacer is not installed there: NOT PACED")


def test_a_python_that_cannot_be_started_is_told(doctored, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    assert json.loads(doctored("--json").stdout)["pythons"][1]["text"] == "cannot be started"


def test_dependencies_out_of_range_are_told(doctored, shelf):
    shelf("tenacity", "8.0")
    result = doctored()
    assert result.exit_code == 1
    assert "tenacity: 8.0, but token-pacer needs >=9" in result.stdout
    told = {check.name: check.state for check in doctor._dependencies()}
    assert (told["tenacity"], told["httpx"], told["redis"]) == ("warning", "ok", "ok")
    assert "pytest" not in told


def test_proxies_are_shown_without_what_opens_them(doctored):
    variables = {"HTTPS_PROXY": "http://me:secret@proxy.internal:3128/?k=secret", "no_proxy": "localhost"}
    result = doctored("--json", ALL_PROXY="http://[", **variables)
    told = {check["name"]: check["text"] for check in json.loads(result.stdout)["proxies"]}
    assert told == {
        "ALL_PROXY": "cannot be read",
        "HTTPS_PROXY": "http://proxy.internal:3128",
        "no_proxy": "localhost",
    }
    assert result.exit_code == 0
