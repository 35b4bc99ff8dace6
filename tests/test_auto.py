"""Every client of the process is paced by ``install``, and by nothing after ``uninstall``."""

from __future__ import annotations

import copy
import gc
import itertools
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

import transports
from pacer import LimitsConflict, Pacer, SettingsError
from pacer.pacer import join
from pacer.settings import load
from tests.servers import CALLERS, LIBRARIES, URL, Caller, Inner, Server, answer_json, ask, ok, whole
from transports import BudgetTransport, auto

ROOT = Path(__file__).parent.parent
KINDS = [(library, name) for library in LIBRARIES for name in ("Client", "AsyncClient")]
_names = (f"auto-{number}" for number in itertools.count())


@pytest.fixture
def run() -> Iterator[str]:
    """The name of a run that nobody has used; after the test nothing is installed."""
    yield next(_names)
    transports.uninstall()


def budget(run: str) -> Pacer:
    """The pacer that ``install`` joined."""
    return join(load(run=run))


def spent(run: str) -> int:
    return budget(run).status().spent


def choices() -> list[Any]:
    return [getattr(library, name).__dict__["_transport_for_url"] for library, name in KINDS]


def kept(client: Any) -> list[Any]:
    """The transports of ours that a client owns."""
    return list(vars(client).get("_token_pacer_kept", {}).values())


def posted(caller: Caller, client: Any, url: str = URL, **kwargs: Any) -> Any:
    """One model call, whose answer is read."""
    kwargs.setdefault("json", ask())
    return caller.run(lambda: client.post(url, **kwargs), lambda: client.post(url, **kwargs))


def client_of(caller: Caller, *args: Any, **kwargs: Any) -> Any:
    kind = caller.library.AsyncClient if caller.awaits else caller.library.Client
    return kind(*args, **kwargs)


def blocking(**kwargs: Any) -> Any:
    return httpx.Client(**kwargs)


def test_a_client_of_each_kind_is_paced_whenever_it_was_made(caller, run):
    before = client_of(caller, transport=Inner(ok()))
    transports.install(run=run)
    after = client_of(caller, transport=Inner(ok()))
    for client in (before, after, before):
        assert posted(caller, client).extensions["pacer"].charged == 30
    assert spent(run) == 90


def test_a_ceiling_refuses_and_the_inner_transport_never_hears_of_it(caller, run):
    inner = Inner(ok())
    transports.install(run=run, ceiling=0)
    assert posted(caller, client_of(caller, transport=inner)).status_code == 402
    assert inner.requests == []


def test_the_functions_and_the_import_system_are_the_very_same_afterwards(run):
    functions, finders = choices(), list(sys.meta_path)
    transports.install(run=run)
    assert not {id(one) for one in choices()} & {id(one) for one in functions}
    transports.uninstall()
    assert all(now is before for now, before in zip(choices(), functions, strict=True))
    assert len(sys.meta_path) == len(finders)
    assert all(now is before for now, before in zip(sys.meta_path, finders, strict=True))
    transports.uninstall()


def test_a_client_that_was_paced_has_nothing_of_ours_after_uninstall(caller, run):
    client = client_of(caller, transport=Inner(ok()))
    there = set(vars(client))
    transports.install(run=run)
    posted(caller, client)
    assert set(vars(client)) > there
    transports.uninstall()
    assert set(vars(client)) == there
    assert "pacer" not in posted(caller, client).extensions
    assert spent(run) == 30


def test_who_has_patched_over_ours_keeps_his_and_ours_does_nothing(run, monkeypatch):
    transports.install(run=run)
    ours = httpx.Client.__dict__["_transport_for_url"]
    theirs = lambda client, url: ours(client, url)  # noqa: E731
    httpx.Client._transport_for_url = theirs  # type: ignore[method-assign]
    try:
        transports.uninstall()
        assert httpx.Client.__dict__["_transport_for_url"] is theirs
        assert "pacer" not in blocking(transport=Inner(ok())).post(URL, json=ask()).extensions
    finally:
        httpx.Client._transport_for_url = ours.__wrapped__  # type: ignore[method-assign]
    assert spent(run) == 0


def test_after_another_install_a_client_belongs_to_the_new_run(run):
    other = next(_names)
    client = blocking(transport=Inner(ok()))
    for name in (run, other):
        transports.install(run=name)
        client.post(URL, json=ask())
        transports.uninstall()
    assert (spent(run), spent(other)) == (30, 30)


def test_install_twice_is_fine_and_with_other_settings_an_error(run):
    transports.install(run=run, ceiling=1_000)
    transports.install(run=run, ceiling=1_000)
    transports.install(run=run)
    with pytest.raises(LimitsConflict, match="ceiling"):
        transports.install(run=run, ceiling=5)
    with pytest.raises(SettingsError, match="retries=2 is not accepted"):
        transports.install(run=run, retries=2)
    with pytest.raises(SettingsError, match=r"run=\S+ is not accepted"):
        transports.install(run=next(_names))
    with pytest.raises(SettingsError, match="did you mean ceiling"):
        transports.install(celing=1)  # type: ignore[call-arg]


def test_wrong_settings_patch_nothing():
    functions, finders = choices(), list(sys.meta_path)
    with pytest.raises(SettingsError):
        transports.install(ceiling="much")
    assert (choices(), sys.meta_path) == (functions, finders)


def test_settings_come_from_the_environment_those_of_a_transport_too(run, monkeypatch):
    monkeypatch.setenv("PACER_RUN", run)
    monkeypatch.setenv("PACER_CEILING", "0")
    monkeypatch.setenv("PACER_REFUSAL", "raise")
    transports.install()
    with pytest.raises(transports.budget.BudgetExceeded):  # type: ignore[attr-defined]
        blocking(transport=Inner(ok())).post(URL, json=ask())


# -------------------------------------------------------------------- not twice


class Wrapper:
    """A transport of somebody else, with another one in it."""

    def __init__(self, inner: Any) -> None:
        self.next = [inner]

    def handle_request(self, request: Any) -> Any:
        return self.next[0].handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        return await self.next[0].handle_async_request(request)


class Slotted:
    """The same, without a dictionary."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: Any) -> Any:
        return self.inner.handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        return await self.inner.handle_async_request(request)


@pytest.mark.parametrize("around", [lambda one: one, Wrapper, Slotted, lambda one: Wrapper(Slotted(one))])
def test_a_client_that_has_a_budget_is_not_paced_twice(caller, run, around):
    transports.install(run=run)
    own = Pacer()
    client = client_of(caller, transport=around(BudgetTransport(Inner(ok()), pacer=own)))
    posted(caller, client)
    assert (own.status().spent, spent(run)) == (30, 0)
    assert kept(client) == []


class Forwarding:
    """A transport that sends through a client of its own."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def handle_request(self, request: Any) -> Any:
        return self._client.send(request)

    async def handle_async_request(self, request: Any) -> Any:
        return await self._client.send(request)


def test_a_client_behind_a_client_is_paced_once(caller, run):
    transports.install(run=run)
    client = client_of(caller, transport=Forwarding(client_of(caller, transport=Inner(ok()))))
    posted(caller, client)
    assert spent(run) == 30
    own = Pacer()
    inner = client_of(caller, transport=BudgetTransport(Inner(ok()), pacer=own))
    posted(caller, client_of(caller, transport=Forwarding(inner)))
    assert (own.status().spent, spent(run)) == (30, 30)


def test_a_mounted_budget_is_left_alone_and_the_rest_is_paced(caller, run):
    transports.install(run=run)
    own = Pacer()
    mounts = {"all://own.test": BudgetTransport(Inner(ok()), pacer=own)}
    client = client_of(caller, transport=Inner(ok()), mounts=mounts)
    posted(caller, client, "http://own.test/v1/chat/completions")
    assert (own.status().spent, spent(run)) == (30, 0)
    posted(caller, client)
    assert (own.status().spent, spent(run)) == (30, 30)


def test_a_budget_that_names_no_pacer_is_the_same_budget(run):
    transports.install(run=run)
    blocking(transport=BudgetTransport(Inner(ok()), run=run)).post(URL, json=ask())
    blocking(transport=Inner(ok())).post(URL, json=ask())
    assert spent(run) == 60


# -------------------------------------------------------------------- the client's own transport


def test_mounts_and_proxies_choose_as_before(caller, run):
    first, second = Inner(ok()), Inner(ok())
    transports.install(run=run)
    client = client_of(caller, transport=first, mounts={"all://other.test": second})
    for host in ("model.test", "other.test", "other.test"):
        posted(caller, client, f"http://{host}/v1/chat/completions")
    assert (len(first.requests), len(second.requests)) == (1, 2)
    assert spent(run) == 90


def test_a_proxy_of_the_environment_is_used(caller, run, monkeypatch):
    with Server(whole(answer_json(), "content-type: application/json", "connection: close")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        transports.install(run=run)
        assert posted(caller, client_of(caller)).extensions["pacer"].charged == 30
    assert proxy.heard[0].startswith(f"POST {URL} ")


def test_what_the_client_was_built_with_is_what_it_sends_through(run):
    transports.install(run=run)
    client = httpx.Client(limits=httpx.Limits(max_connections=7), verify=False)
    own = client._transport
    found: Any = client._transport_for_url(httpx.URL(URL))
    assert found.inner is own
    assert client._transport is own


def test_closing_a_client_closes_its_transport_once(caller, run):
    inner = Inner(ok())
    transports.install(run=run)
    client = client_of(caller, transport=inner)
    posted(caller, client)
    caller.run(lambda: client.close(), lambda: client.aclose())
    assert inner.closed == 1


# -------------------------------------------------------------------- other traffic, and what is kept


def test_what_is_no_model_call_passes_and_the_header_of_an_agent_never_leaves(caller, run):
    inner = Inner(ok())
    transports.install(run=run)
    client = client_of(caller, transport=inner)
    for kwargs in ({}, {"headers": {"x-pacer-agent": "scout"}}):
        answer = posted(caller, client, "http://tool.test/search", json={"q": 1}, **kwargs)
        assert "pacer" not in answer.extensions
    get = {"headers": {"x-pacer-agent": "scout"}}
    caller.run(lambda: client.get(URL, **get), lambda: client.get(URL, **get))
    assert ["x-pacer-agent" in request.headers for request in inner.requests] == [False] * 3
    assert (spent(run), budget(run).status().unmetered) == (0, 3)


def test_one_transport_of_ours_for_each_inner_one(run):
    transports.install(run=run)
    client = blocking(transport=Inner(ok()), mounts={"all://other.test": Inner(ok())})
    found = {id(client._transport_for_url(httpx.URL(f"http://{host}/"))) for host in ("a.test", "other.test") * 20}
    assert len(found) == len(kept(client)) == 2


def test_clients_and_their_transports_are_let_go(run):
    """Also where a transport knows its client: nothing of ours keeps them."""
    transports.install(run=run)
    gone: list[Any] = []
    for _ in range(50):
        inner = Inner(ok())
        client = blocking(transport=inner)
        inner.owner = client  # type: ignore[attr-defined]
        client.post(URL, json=ask())
        gone += [weakref.ref(inner), weakref.ref(client), weakref.ref(kept(client)[0])]
    del inner, client
    gc.collect()
    assert [one() for one in gone if one() is not None] == []
    assert auto._installed is not None
    assert len(auto._installed[0]._clients) == 0


def test_a_client_whose_transport_is_always_another_one_keeps_few(run):
    """Each call goes through the very transport that was chosen for it, however often their ids come again."""
    transports.install(run=run)
    client = blocking(transport=Inner(ok()))
    for _ in range(3 * auto.MOST_KEPT):
        client._transport = inner = Inner(ok())
        client.post(URL, json=ask())
        assert len(inner.requests) == 1
    assert len(kept(client)) <= auto.MOST_KEPT


def test_what_a_client_keeps_of_ours_does_not_stand_in_the_way_of_copies(run):
    transports.install(run=run)
    client = blocking(transport=Inner(ok()))
    client.post(URL, json=ask())
    assert dict(copy.deepcopy(vars(client)["_token_pacer_kept"])) == {}
    twin = copy.copy(client)
    assert twin.post(URL, json=ask()).extensions["pacer"].charged == 30


# -------------------------------------------------------------------- libraries that are imported later

LATER = """
import sys
from transports import BudgetTransport, install, uninstall
finders = list(sys.meta_path)
install(run="later", ceiling=0)
assert not {"httpx", "httpx2"} & set(sys.modules)
if "out" in sys.argv:
    uninstall()
    assert sys.meta_path == finders
import LIBRARY as library
assert type(library.__loader__).__name__ == "SourceFileLoader" and library.__spec__.loader is library.__loader__
def answer(request): return library.Response(200, json={})
client = library.Client(transport=library.MockTransport(answer))
print(client.post("http://m.test/v1/chat/completions", json={"model": "m", "messages": []}).status_code)
uninstall()
assert sys.meta_path == finders
assert library.Client._transport_for_url.__module__ == "LIBRARY._client"
assert not hasattr(library.Client._transport_for_url, "__wrapped__")
print(client.post("http://m.test/v1/chat/completions", json={"model": "m", "messages": []}).status_code)
"""


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("words", "codes"), [((), "402\n200\n"), (("out",), "200\n200\n")])
def test_a_library_that_is_imported_later_is_paced_as_well(library, words, codes):
    """``install`` itself imports neither; the module has its own loader, as if nobody had been there."""
    code = LATER.replace("LIBRARY", library.__name__)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert (done.stderr, done.stdout) == ("", codes)


def test_both_libraries_are_patched_in_one_process(run):
    transports.install(run=run)
    for library in (httpx, httpx2):
        library.Client(transport=Inner(ok())).post(URL, json=ask())
    assert spent(run) == 60
    assert len(CALLERS) == len(KINDS)
