"""Libraries that a transport cannot see, in the SDKs that use them: a run says what they sent, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sdks.provider import Provider

ROOT = Path(__file__).parent.parent.parent

GENAI = """
import asyncio, sys
from google import genai
def client(**options):
    return genai.Client(api_key="k", http_options=genai.types.HttpOptions(base_url=sys.argv[1], **options))
async def ask(client):
    print((await client.aio.models.generate_content(model="m", contents="Hi")).text)
"""
OPENAI_REALTIME = """
import asyncio, openai, sys
from websockets.asyncio.server import serve
from websockets.sync.client import connect
async def main():
    async with serve(lambda socket: socket.send('{"type": "session.created"}'), "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = openai.AsyncOpenAI(api_key="k", websocket_base_url=url + "/v1")
        async with client.realtime.connect(model="m") as session:
            print((await session.recv()).type)
        for path in ("/v1/realtime?model=m", "/chatter"):
            await asyncio.to_thread(lambda: connect(url + path).close())
asyncio.run(main())
"""

PROGRAMS = {
    "aiohttp": (
        """
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession(sys.argv[1]) as session:
        for path in ("/v1/chat/completions?key=secret", "/v1/files"):
            async with session.post(path, json={"model": "m"}) as answer:
                await answer.read()
        async with session.get("/v1/chat/completions") as answer:
            print(answer.status)
asyncio.run(main())
""",
        ("404", 0, ("1 call to 127.0.0.1 by aiohttp",)),
    ),
    "requests and urllib3": (
        """
import requests, sys, urllib3
url = sys.argv[1] + "/v1/messages"
print(requests.post(url, json={"model": "m"}).status_code)
urllib3.PoolManager().request("POST", url, json={"model": "m"})
urllib3.PoolManager().request("POST", url, json={"model": "m"})
""",
        ("200", 0, ("2 calls to 127.0.0.1 by urllib3", "1 call to 127.0.0.1 by requests")),
    ),
    "boto3": (
        """
import boto3, sys
keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
client = boto3.client("bedrock-runtime", endpoint_url=sys.argv[1], **keys)
try:
    client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "Hi"}]}])
except client.exceptions.ClientError as error:
    print(error.response["ResponseMetadata"]["HTTPStatusCode"])
""",
        ("404", 0, ("1 call to 127.0.0.1 by botocore",)),
    ),
    "google-genai": (
        GENAI + "c = client(); print(c.models.generate_content(model='m', contents='Hi').text); asyncio.run(ask(c))",
        ("Hello from loopback\nHello from loopback", 1, ("1 call to 127.0.0.1 by aiohttp",)),
    ),
    "google-genai with a client of its own": (
        GENAI + "import httpx2; asyncio.run(ask(client(httpx_async_client=httpx2.AsyncClient())))",
        ("Hello from loopback", 1, ()),
    ),
    "litellm, whose aiohttp stands behind httpx": (
        """
import asyncio, litellm, sys
litellm.suppress_debug_info = True
async def main():
    for model, url in (("anthropic/m", sys.argv[1]), ("openai/m", sys.argv[1] + "/v1")):
        ask = [{"role": "user", "content": "Hi"}]
        answer = await litellm.acompletion(model=model, api_base=url, api_key="k", messages=ask, max_tokens=9)
        print(answer.choices[0].message.content, "aiohttp" in sys.modules)
asyncio.run(main())
""",
        ("Hello from loopback True\nHello from loopback True", 2, ()),
    ),
    "dspy": (
        """
import asyncio, dspy, sys
for engine in ("auto", "litellm"):
    model = dspy.LM("openai/m", engine=engine, api_base=sys.argv[1] + "/v1", api_key="k", cache=False)
    print(*model("Hi"), *asyncio.run(model.acall("Hi")))
""",
        ("\n".join(["Hello from loopback Hello from loopback"] * 2), 2, ("2 calls to 127.0.0.1 by lm15",)),
    ),
    "openai realtime": (OPENAI_REALTIME, ("session.created", 0, ("2 sessions to 127.0.0.1 by websockets",))),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_says_what_an_sdk_sent_past_it(provider: Provider, tmp_path: Path, name: str):
    program, (said, paced, told) = PROGRAMS[name]
    words = [sys.executable, "-m", "pacer.cli", "run", "--", sys.executable, "-c", program, provider.url]
    there = {**os.environ, "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=there, timeout=100)
    provider.strays.clear()  # paths it does not serve
    assert done.stdout.strip() == said, done.stderr
    assert f"{paced} calls, " in done.stderr
    assert told or f" {provider.bill} tokens spent" in done.stderr
    not_paced = [line.removeprefix("pacer: ") for line in done.stderr.splitlines() if "NOT PACED" in line]
    assert not_paced == [f"{line} {'was' if line.startswith('1 ') else 'were'} NOT PACED" for line in told]
