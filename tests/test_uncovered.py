"""Model calls that no transport sees: noticed, and otherwise left alone."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pacer.cli import run, uncovered
from tests.servers import Connection, Server, answer_json, whole
from transports.wire import FAMILIES, recognise

ROOT = Path(__file__).parent.parent
LOOKS = {"PYTHONPATH": f"{run.SITE}{os.pathsep}{ROOT}"}

# One call without a library of others.
CALL = """
import sys, urllib.request
def call(path="/v1/chat/completions?key=secret", data=b"{}"):
    return urllib.request.urlopen(URL + path, data=data).read()
"""


@pytest.fixture
def server() -> Iterator[Server]:
    def play(connection: Connection) -> None:
        while connection.read() is not None:
            connection.write(whole(answer_json(), "content-type: application/json"))

    with Server(play) as provider:
        yield provider


@pytest.fixture
def looked_on(tmp_path: Path, server: Server) -> Any:
    """Runs a program in a Python as ``pacer run`` starts it; what was noticed, and what the program printed."""

    def look(code: str, **variables: str) -> tuple[tuple[str, ...], str]:
        there = {**os.environ, **LOOKS, uncovered.DIRECTORY: str(tmp_path), **variables}
        program = f"URL = {server.url!r}\n{textwrap.dedent(code)}"
        done = subprocess.run([sys.executable, "-c", program], env=there, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return uncovered.read(tmp_path), done.stdout

    return look


# -------------------------------------------------------------------- what is a model call


def test_a_path_is_a_model_call_here_where_it_is_one_for_the_transport():
    ends = {end for wire in FAMILIES for end in ([wire.path_end] if isinstance(wire.path_end, str) else wire.path_end)}
    others = (
        "/converse-stream",
        "/embed",
        "/chat",
        "/tokenize",
        "/count_tokens",
        "/files",
        "/v1/threads/1/messages",
        "",
    )
    for end in {*ends, *others, *uncovered.CALL_ENDS}:
        path = f"/model/x{end}"
        assert uncovered.is_call("POST", path) == (recognise("POST", path, None, {}) is not None), path
        assert not uncovered.is_call("GET", path)


@pytest.mark.parametrize(
    ("method", "is_one"),
    [
        ("/xai_api.Chat/GetCompletion", True),
        ("/xai_api.Chat/GetCompletionChunk", True),
        ("/xai_api.Chat/GetStoredCompletion", False),
        ("/xai_api.Models/ListLanguageModels", False),
        ("/google.ai.generativelanguage.v1beta.GenerativeService/StreamGenerateContent", True),
        ("/google.ai.generativelanguage.v1beta.GenerativeService/CountTokens", False),
        ("/google.ai.generativelanguage.v1beta.ModelService/GetModel", False),
        ("/google.cloud.aiplatform.v1.PredictionService/GenerateContent", True),
        ("/grpc.health.v1.Health/Check", False),
    ],
)
def test_what_is_a_model_call_on_grpc(method: str, is_one: bool):
    assert uncovered.is_rpc(method) is is_one


# -------------------------------------------------------------------- what is noticed


def test_calls_of_the_standard_library_are_counted_by_host_and_nothing_else_is_written(looked_on, tmp_path, server):
    seen, said = looked_on(CALL + "print(len({call() for _ in range(3)})); call('/v1/files'); call(data=None)")
    assert (seen, said) == (("3 calls to 127.0.0.1 by http.client",), "1\n")
    assert (tmp_path / uncovered.FILE).read_text() == "http.client 127.0.0.1\n" * 3
    assert (tmp_path / uncovered.FILE).stat().st_mode & 0o777 == 0o600


def test_a_call_through_a_proxy_is_told_by_the_host_it_is_for(looked_on, server):
    code = CALL.replace("URL +", "'http://user:pass@api.example.com:80' +") + "call()"
    assert looked_on(code, HTTP_PROXY=server.url)[0] == ("1 call to api.example.com by http.client",)


def test_a_process_that_is_killed_has_told_all_and_its_children_count_once(looked_on):
    code = """
    import os, signal
    call()
    if os.fork() == 0:
        call()
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    os._exit(0)
    """
    assert looked_on(CALL + textwrap.dedent(code))[0] == ("2 calls to 127.0.0.1 by http.client",)


GRPC = """
import asyncio, grpc
from concurrent import futures
CALLS = ("/xai_api.Chat/GetCompletion", "/xai_api.Models/ListLanguageModels")
class Service(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method.endswith("Chunk"):
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter((b"a", b"b")))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"answer")
server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Service(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    for name in CALLS:
        ask = channel.unary_unary(name)
        print(ask(b"q"), ask.with_call(b"q")[0], ask.future(b"q").result())
    print(*channel.unary_stream(CALLS[0] + "Chunk")(b"q"))
async def main():
    async with grpc.aio.insecure_channel(f"dns:///127.0.0.1:{port}") as channel:
        for name in CALLS:
            print(await channel.unary_unary(name)(b"q"))
        print([part async for part in channel.unary_stream(CALLS[0] + "Chunk")(b"q")])
asyncio.run(main())
server.stop(None).wait()
"""


def test_calls_on_grpc_are_noticed_blocking_and_awaiting_plain_and_streamed(looked_on):
    seen, said = looked_on(GRPC)
    assert said.splitlines() == [
        *["b'answer' b'answer' b'answer'"] * 2,
        "b'a' b'b'",
        *["b'answer'"] * 2,
        "[b'a', b'b']",
    ]
    assert seen == ("6 calls to 127.0.0.1 by grpc",)


# -------------------------------------------------------------------- what is left alone

BEHIND = """
import httpx, urllib.request
from transports import BudgetTransport
class Old(httpx.BaseTransport):
    def handle_request(self, request):
        asked = urllib.request.Request(str(request.url), request.read(), dict(request.headers))
        with urllib.request.urlopen(asked) as answer:
            return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.read())
body = {"model": "m", "messages": []}
for transport in (BudgetTransport(Old()), Old()):
    print(httpx.Client(transport=transport).post(URL + "/v1/chat/completions", json=body).status_code)
"""


def test_what_is_sent_for_a_transport_of_ours_is_paced_and_not_told(looked_on):
    """Whether a user put it there, or ``pacer run`` did."""
    assert looked_on(BEHIND) == ((), "200\n200\n")


ELSEWHERE = """
import asyncio, httpx, urllib.request
from pacer.cli import tally
tally.begin()
def send(request):
    with urllib.request.urlopen(str(request.url), b"{}") as answer:
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.read())
class Threaded(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        return await asyncio.to_thread(send, request)
async def main():
    async with httpx.AsyncClient(transport=Threaded()) as client:
        body = {"model": "m", "messages": []}
        print((await client.post(URL + "/v1/chat/completions", json=body)).status_code)
asyncio.run(main())
"""


def test_so_it_is_where_another_thread_sends_it(looked_on):
    assert looked_on(ELSEWHERE) == ((), "200\n")


HOOK = """
import importlib.util, sys
class Hook:
    at_it = False
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if cls.at_it or name != "http.client":
            return None
        cls.at_it = True
        try:
            return importlib.util.find_spec(name)
        finally:
            cls.at_it = False
sys.meta_path.insert(sys.meta_path.index(next(f for f in sys.meta_path if f.__module__ == "_frozen_importlib")), Hook)
"""


def test_a_call_counts_once_beside_other_hooks_of_imports(looked_on):
    """They ask all finders in their turn, as ours does."""
    assert looked_on(f"{HOOK}{CALL}call()")[0] == ("1 call to 127.0.0.1 by http.client",)


def test_a_call_counts_once_where_the_start_of_python_is_run_twice(looked_on):
    """As it may be below others that have a ``sitecustomize`` of their own."""
    twice = "import runpy, sitecustomize; runpy.run_path(sitecustomize.__file__)\n"
    assert looked_on(f"{twice}{CALL}call()")[0] == ("1 call to 127.0.0.1 by http.client",)


def test_modules_are_loaded_as_they_are_without_it(looked_on, tmp_path):
    code = """
    import http.client, importlib, inspect, sys
    kind = http.client.HTTPConnection.putrequest
    print(http.client.__spec__.loader is http.client.__loader__, type(http.client.__loader__).__name__)
    print("exec_module" in vars(http.client.__loader__), list(inspect.signature(kind).parameters), kind.__qualname__)
    """
    known = "['self', 'method', 'url', 'skip_host', 'skip_accept_encoding'] HTTPConnection.putrequest"
    assert looked_on(code)[1] == f"True SourceFileLoader\nFalse {known}\n"


@pytest.mark.parametrize(
    "harm", ["os.environ.clear()", "shutil.rmtree(os.environ['TOKEN_PACER_TALLY'])", "sys._getframe = None"]
)
def test_a_call_goes_on_whatever_becomes_of_the_looking(looked_on, harm):
    assert looked_on(f"{CALL}\nimport os, shutil\n{harm}\nprint(len(call()) > 0)") == ((), "True\n")


def test_nothing_is_imported_for_it(looked_on):
    code = "import sys; print([name for name in ('http', 'http.client', 'weakref', 'asyncio') if name in sys.modules])"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert looked_on(code)[1] == bare.stdout


# -------------------------------------------------------------------- what is told


def test_what_is_told_has_bounds_and_no_surprises(tmp_path):
    assert uncovered.read(tmp_path) == ()
    lines = [f"aiohttp host{number}\n" for number in range(100)] + ["grpc api.x.ai\n"] * 1_000
    (tmp_path / uncovered.FILE).write_text(
        "".join([*lines, "spoilt\n", "three words here\n", "http\x1b[2J evil\u202e\n"])
    )
    told = uncovered.read(tmp_path)
    assert told[0] == "1,000 calls to api.x.ai by grpc"
    assert (len(told), told[-1]) == (uncovered.MOST_TOLD + 1, "90 calls to other hosts")
    (tmp_path / uncovered.FILE).write_text("http\x1b[2J evil\u202e\nwebsockets a\nwebsockets a\n")
    assert uncovered.read(tmp_path) == ("2 sessions to a by websockets", "1 call to evil? by http?[2j")


@pytest.mark.processes
def test_a_run_says_what_was_not_paced(server, tmp_path):
    """Also where limits met no other call: both are said."""
    program = f"URL = {server.url!r}\n{CALL}\ncall()"
    words = [sys.executable, "-m", "pacer.cli", "run", "--ceiling", "5", "--", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    told = "pacer: 1 call to 127.0.0.1 by http.client was NOT PACED\npacer: NO MODEL CALL WAS SEEN\n"
    assert (done.returncode, done.stderr) == (0, told)


def test_this_process_is_not_looked_at():
    """The tests themselves run without it: what they show is seen in the processes they start."""
    assert not hasattr(http.client.HTTPConnection.putrequest, "__wrapped__")
