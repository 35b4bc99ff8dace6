"""Whose call it is: scopes carried by the context, bound, or named by a header; limits, wrap-ups, live changes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import httpx2
import openai
import pytest

import pacer
from pacer import CeilingReached, LimitsConflict, Pacer, SettingsError, Threshold
from pacer.register import RUNS_REMEMBERED
from pacer.scope import DEEPEST, HEADER
from pacer.usage import AccountStatus
from tests.servers import URL, Caller, Inner, ask, ok
from transports import BudgetTransport

COST = 30
"""Tokens of each answer."""
_runs = itertools.count()


class Budget:
    """A pacer of its own, and a blocking and an awaiting client over one transport of it."""

    def __init__(self, **given: Any) -> None:
        self.pacer = Pacer(**given)
        self.inner = Inner(ok())
        self.transport = BudgetTransport(self.inner, pacer=self.pacer)
        self.client = httpx.Client(transport=self.transport)
        self.awaiting = httpx2.AsyncClient(transport=self.transport)

    def call(self, client: Any = None, **more: Any) -> Any:
        return (client or self.client).post(URL, json=ask(more.pop("max_tokens", 500)), **more)

    async def acall(self) -> None:
        await self.awaiting.post(URL, json=ask())

    def spent(self) -> dict[str, int]:
        """What every agent spent, by its path, those that have ended by their names."""
        return dict(_spent(self.pacer.status(), ""))


def _spent(row: AccountStatus, path: str) -> Iterator[tuple[str, int]]:
    for agent in row.agents:
        yield f"{path}{agent.name}", agent.spent
        yield from _spent(agent, f"{path}{agent.name}/")
    for gone in row.finished:
        yield f"{path}{gone.name}", gone.spent


# ---------------------------------------------------------------- carried by the context


def test_calls_belong_to_the_scope_they_are_made_in_and_to_all_above_it():
    budget = Budget()
    with budget.pacer.agent("planner") as planner:
        budget.call()
        with budget.pacer.agent("worker") as worker:
            budget.call()
            assert (worker.status().spent, planner.status().spent) == (COST, 2 * COST)
        budget.call()
    budget.call()
    assert budget.pacer.status().spent == 4 * COST
    assert budget.spent() == {"planner": 3 * COST}


def test_tasks_and_threads_started_inside_carry_the_scope_along():
    budget = Budget()

    async def work(name: str, calls: int) -> None:
        async with budget.pacer.agent(name):
            await asyncio.gather(*(budget.acall() for _ in range(calls)))
            await asyncio.to_thread(budget.call)

    async def main() -> None:
        with budget.pacer.agent("planner"):
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(work(f"worker {number}", number))
            assert budget.spent() == {"planner": 6 * COST} | {
                f"planner/worker {number}": (number + 1) * COST for number in range(3)
            }

    asyncio.run(main())


def test_a_decorated_function_is_a_new_agent_in_each_call():
    budget = Budget()

    @budget.pacer.agent("blocking")
    def work(number: int) -> int:
        budget.call()
        return number

    @budget.pacer.agent("awaiting")
    async def awork(number: int) -> int:
        await budget.acall()
        return number

    async def main() -> list[int]:
        return [await awork(1), await awork(2)]

    assert work(7) == 7
    assert asyncio.run(main()) == [1, 2]
    finished = {row.name: (row.agents, row.spent) for row in budget.pacer.status().finished}
    assert finished == {"blocking": (1, COST), "awaiting": (2, 2 * COST)}


def test_a_generator_cannot_be_an_agent():
    """Its context would leak to whoever iterates."""

    def stream() -> Iterator[int]:
        yield 1

    async def astream() -> AsyncIterator[int]:
        yield 1

    for function in (stream, astream):
        with pytest.raises(TypeError, match="is a generator"):
            Pacer().agent("streaming")(function)


def test_a_scope_closed_in_another_context_changes_nothing_there():
    """As async generators are when a loop ends."""
    budget = Budget()
    scope = budget.pacer.agent("agent")
    contextvars.copy_context().run(scope.__enter__)
    with budget.pacer.agent("here") as here:
        scope.__exit__(None, None, None)
        budget.call()
        assert here.status().spent == COST


def test_a_call_after_the_end_of_its_agent_belongs_to_what_is_above():
    """A task that outlives its agent is neither free nor broken."""
    budget = Budget()
    with budget.pacer.agent("planner") as planner:
        with budget.pacer.agent("worker"):
            late = contextvars.copy_context()
        late.run(budget.call)
        assert planner.status().spent == COST


def test_scopes_of_another_pacer_do_not_touch_it():
    budget, other = Budget(), Budget()
    with budget.pacer.agent("mine") as mine, other.pacer.agent("theirs") as theirs:
        budget.call()
        other.call()
        assert (mine.status().spent, theirs.status().spent) == (COST, COST)


def test_an_agent_that_nobody_can_end_any_more_ends_by_itself():
    budget = Budget(ceiling=10_000)
    agent = budget.pacer.agent("lost", reserve=1_000)
    bound = BudgetTransport(budget.inner, pacer=budget.pacer, scope=agent)
    budget.call(httpx.Client(transport=bound))
    assert budget.pacer.status().carved == 1_000
    del agent, bound
    gc.collect()
    assert (budget.pacer.status().carved, budget.pacer.status().agents) == (0, ())


def test_a_scope_may_be_entered_again_while_it_is_open_and_is_a_new_agent_later():
    budget = Budget()
    agent = budget.pacer.agent("agent")
    with agent:
        with agent:
            budget.call()
        budget.call()
        assert agent.status().spent == 2 * COST
    with agent:
        assert agent.status().spent == 0


@pytest.mark.parametrize("kind", ["run", "agent"])
def test_a_scope_may_be_left_by_a_garbage_collection_under_the_lock(kind: str):
    """A generator inside a scope that is collected while its own thread is at the books."""
    budget = Budget()
    scope = budget.pacer.run("nightly") if kind == "run" else budget.pacer.agent("agent")

    def inside(itself: list[Any]) -> Iterator[None]:
        with scope:
            yield

    itself: list[Any] = []
    itself.append(inside(itself))
    contextvars.Context().run(next, itself[0])
    del itself
    scope.store.do(lambda admission, now: gc.collect())
    assert budget.pacer.status().agents == ()


def test_threads_that_use_an_agent_first_at_once_share_one_account():
    budget = Budget()
    agent = budget.pacer.agent("agent")
    opening, barrier = agent._open, threading.Barrier(2)

    def open_together() -> Any:
        barrier.wait(timeout=10)
        return opening()

    agent._open = open_together  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: agent.account, range(2))
    assert one is other
    assert len(budget.pacer.status().agents) == 1


# ---------------------------------------------------------------- runs


def test_a_run_has_a_ceiling_and_books_of_its_own_and_goes_on_where_it_was():
    budget = Budget(ceiling=100_000)
    for spent in (COST, 2 * COST):
        with budget.pacer.run("nightly", ceiling=5_000) as nightly:
            budget.call()
            assert (nightly.status().spent, nightly.status().ceiling) == (spent, 5_000)
    assert budget.pacer.status().spent == 0
    with pytest.raises(LimitsConflict, match=r"ceiling=5000 .* ceiling=6000"):
        budget.pacer.run("nightly", ceiling=6_000).status()


def test_the_modules_own_functions_are_those_of_the_processs_pacer(monkeypatch: pytest.MonkeyPatch):
    name = f"test-scope-{next(_runs)}"
    monkeypatch.setenv("PACER_RUN", name)
    monkeypatch.setenv("PACER_AGENT_CEILING", "50k")
    transport = BudgetTransport(Inner(ok()))
    with pacer.run(f"{name}-nightly") as nightly, pacer.agent("worker") as worker:
        httpx.Client(transport=transport).post(URL, json=ask())
        assert (nightly.status().spent, worker.status().ceiling) == (COST, 50_000)
    with pacer.agent("alone"):
        httpx.Client(transport=transport).post(URL, json=ask())
    assert transport.pacer.status().spent == COST


def test_a_decorator_opens_no_budget_before_its_function_is_called(monkeypatch: pytest.MonkeyPatch):
    """It stands in a module long before a transport says which limits there are."""
    name = f"test-scope-{next(_runs)}"
    monkeypatch.setenv("PACER_RUN", name)

    @pacer.agent("worker")
    def work() -> None:
        httpx.Client(transport=transport).post(URL, json=ask())

    transport = BudgetTransport(Inner(ok()), ceiling=9_000)
    work()
    assert [row.spent for row in transport.pacer.status().finished] == [COST]
    own = Budget()
    with own.pacer.run("mine") as mine:
        transport = own.transport
        work()
        assert [row.spent for row in mine.status().finished] == [COST]


# ---------------------------------------------------------------- bound and named


def test_a_bound_client_is_its_agents_where_no_context_reaches(caller: Caller):
    budget = Budget()
    with budget.pacer.agent("agent") as agent:
        outside = contextvars.Context()
        bound = outside.run(lambda: BudgetTransport(budget.inner, pacer=budget.pacer, scope=agent))
        outside.run(lambda: caller.send(bound, json=ask()))
        outside.run(lambda: caller.send(budget.transport, json=ask(), headers=agent.headers))
        assert agent.status().spent == 2 * COST


def test_clients_of_httpx_and_of_sdks_can_be_bound():
    budget = Budget()
    sdk = openai.OpenAI(http_client=httpx2.Client(transport=budget.transport), api_key="k", base_url="http://m.test/v1")
    with budget.pacer.agent("agent") as agent, ThreadPoolExecutor(1) as threads:
        threads.submit(budget.call, agent.bind(budget.client)).result()
        chat: Any = agent.bind(sdk).chat.completions
        threads.submit(chat.create, model="m", messages=[{"role": "user", "content": "?"}], max_tokens=9).result()
        threads.submit(budget.call).result()
        assert (agent.status().spent, budget.pacer.status().spent) == (2 * COST, 3 * COST)
        with pytest.raises(TypeError, match=r"object cannot be bound: give `scope.headers`"):
            agent.bind(object())


def test_an_agent_is_there_as_long_as_a_client_that_is_bound_to_it():
    """Who makes the client may hold nothing else of the agent; its ceiling must not go with it."""
    budget = Budget()
    bound = budget.pacer.agent("agent", ceiling=10).bind(budget.client)
    gc.collect()
    assert budget.call(bound).headers["x-pacer-limit"] == "agent_ceiling"
    del bound
    gc.collect()
    assert [gone.refused for gone in budget.pacer.status().finished] == [1]


def test_a_scope_of_the_context_counts_below_the_bound_one_only():
    budget = Budget()
    with budget.pacer.agent("outer") as outer:
        client = httpx.Client(transport=BudgetTransport(budget.inner, pacer=budget.pacer, scope=outer))
        with budget.pacer.agent("inner") as inner:
            budget.call(client)
        assert inner.status().spent == outer.status().spent == COST
    with budget.pacer.agent("elsewhere") as elsewhere:
        budget.call(client)
        assert elsewhere.status().spent == 0
    with pytest.raises(SettingsError, match="scope="):
        BudgetTransport(budget.inner, pacer=Pacer(), scope=outer)


@pytest.mark.parametrize(
    "content", [json.dumps(ask()).encode(), iter([json.dumps(ask()).encode()])], ids=["bytes", "iterator"]
)
@pytest.mark.parametrize("url", [URL, "http://model.test/v1/models"])
def test_the_header_names_an_agent_and_goes_no_further(url: str, content: Any):
    """The caller's own request keeps it, the provider never sees it; also where nothing is metered."""
    budget = Budget()
    request = httpx.Request("POST", url, content=content, headers={HEADER: "caf%C3%A9", "x-other": "1"})
    budget.client.send(request)
    (sent,) = budget.inner.requests
    assert HEADER not in sent.headers
    assert sent.headers["x-other"] == "1"
    assert request.headers[HEADER] == "caf%C3%A9"
    if url == URL:
        assert list(budget.spent()) == ["café"]


def test_a_name_in_a_header_is_one_agent_for_all_calls_and_such_names_are_bounded():
    budget = Budget(wrap_up_reserve=100, agent_ceiling=9_000)
    for number in range(300):
        budget.call(headers={HEADER: f"agent {number}"})
        budget.call(headers={HEADER: f"agent {number}"})
    status = budget.pacer.status()
    assert len(status.agents) == 256
    assert {row.spent for row in status.agents} == {2 * COST}
    assert (status.carved, {row.ceiling for row in status.agents}) == (0, {9_000})
    assert sum(row.agents for row in status.finished) == 44


def test_a_name_in_a_header_may_be_that_of_the_agent_at_hand():
    budget = Budget()
    with budget.pacer.agent("agent") as agent:
        budget.call(headers={HEADER: "agent"})
        assert (agent.status().spent, agent.status().agents) == (COST, ())
        budget.call(headers={HEADER: "below"})
        assert [row.name for row in agent.status().agents] == ["below"]
    assert budget.pacer.status().agents == ()


def test_a_client_bound_to_an_agent_that_has_ended_calls_for_what_is_above():
    budget = Budget()
    with budget.pacer.agent("outer") as outer:
        with budget.pacer.agent("inner") as inner:
            bound = httpx.Client(transport=BudgetTransport(budget.inner, pacer=budget.pacer, scope=inner))
            headers = inner.headers
        contextvars.Context().run(budget.call, bound)
        assert (outer.status().spent, outer.status().agents) == (COST, ())
        budget.call(headers=headers)
        assert outer.status().spent == 2 * COST


def test_hostile_names_stay_names(caplog: pytest.LogCaptureFixture):
    """In the log and in headers they are quoted; of a long one 128 characters are kept."""
    name = "x\r\nforged: 1\x00\ud800" + "{}../" * 2_000
    budget = Budget(ceiling=10, on_limit="refuse")
    with budget.pacer.agent(name) as agent:
        response = budget.call()
        assert len(agent.name) == 128
    assert response.status_code == 402
    assert "\n" not in response.headers["x-pacer-agent"]
    assert response.headers["x-pacer-agent"].startswith("x%0D%0Aforged%3A%201%00")
    assert json.loads(budget.pacer.status().json())["finished"][0]["refused"] == 1
    assert all("\nforged" not in record.getMessage() for record in caplog.records)


# ---------------------------------------------------------------- narrowing


def test_a_call_is_cut_to_what_one_call_may_cost_or_refused():
    budget = Budget()
    with pacer.limit(tokens=400), pacer.limit(tokens="1k"):
        assert budget.call().extensions["pacer"].reserved == 400
        assert json.loads(budget.inner.requests[0].content)["max_tokens"] < 400
        assert budget.pacer.agent("any").limits.call == 400
    with pacer.limit(tokens=5):
        refused = budget.call()
    assert (refused.status_code, refused.headers["x-pacer-limit"]) == (402, "call_limit")
    assert budget.call().extensions["pacer"].reserved > 500


def test_a_limit_and_a_wrap_up_hold_in_decorated_functions_and_coroutine_functions():
    """A coroutine function has only begun when it returns; a generator goes on wherever it is iterated."""
    budget = Budget(wrap_up_reserve=300)

    @pacer.limit(tokens=5)
    def blocking() -> int:
        status: int = budget.call().status_code
        return status

    @pacer.limit(tokens=5)
    async def awaiting() -> int:
        return (await budget.awaiting.post(URL, json=ask(500))).status_code

    @pacer.wrap_up()
    async def wraps_up() -> None:
        await budget.awaiting.post(URL, json=ask(50))

    async def in_an_agent() -> None:
        async with budget.pacer.agent("agent") as agent:
            await budget.acall()
            await asyncio.gather(wraps_up(), wraps_up())
            assert agent.status().wrap_ups == 2

    assert blocking() == asyncio.run(awaiting()) == 402
    asyncio.run(in_an_agent())
    assert budget.call().status_code == 200
    with pytest.raises(TypeError, match="is a generator"):

        @pacer.limit(tokens=5)
        def iterates() -> Iterator[int]:
            yield 1


def test_the_limits_in_force_are_the_narrowest():
    budget = Budget(ceiling=10_000, tokens_per_second=100)
    with (
        budget.pacer.agent("outer", ceiling=300) as outer,
        budget.pacer.agent("inner", ceiling=5_000, weight=2) as inner,
    ):
        limits = inner.limits
        assert (limits.ceiling, limits.ceiling_of, limits.remaining) == (300, "outer", 300)
        assert (limits.weight, limits.share, limits.tokens_per_second) == (2.0, 1.0, 100.0)
        assert outer.limits.ceiling == 300


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ceiling": -1}, r"^ceiling=-1 is not accepted"),
        ({"ceiling": "abc"}, r"^ceiling='abc' is not accepted: give a whole number"),
        ({"reserve": 1.5}, r"^reserve=1.5"),
        ({"weight": 0}, r"weight=0 .* from 0.001 to 1000"),
        ({"weight": float("nan")}, r"weight=nan"),
        ({"weight": True}, r"weight=True"),
        ({"ceiling": 100, "reserve": 200}, r"reserve=200 .* its ceiling of 100"),
    ],
)
def test_bad_values_are_named(given: dict[str, Any], told: str):
    with pytest.raises(SettingsError, match=told):
        Pacer().agent("agent", **given).status()


@pytest.mark.parametrize("tokens", [None, -1, 1.5, "many"])
def test_a_bad_limit_for_one_call_is_named(tokens: Any):
    """No number is a mistake too: taken for 0 it would refuse every call."""
    told = f"^tokens={tokens!r} is not accepted: give a whole number"
    with pytest.raises(SettingsError, match=told):
        pacer.limit(tokens=tokens)


def test_bad_names_are_named():
    for name in ("", None, 7):
        with pytest.raises(SettingsError, match="name="):
            Pacer().agent(name)  # type: ignore[arg-type]
    for name in ("../x", "a\nb", "", "x" * 129):
        with pytest.raises(SettingsError, match="run="):
            Pacer().run(name)


def test_nesting_has_an_end():
    """A recursion that opens agents without end is told so, and all of them can be seen and ended."""
    budget = Budget()
    scope: Any = budget.pacer.agent("0")
    scopes = [scope]
    while len(scope.account.path) < DEEPEST:
        scopes.append(scope := scope.agent("deeper"))
    with pytest.raises(SettingsError, match=f"'too deep' has {len(scopes)} agents above it"):
        scope.agent("too deep").status()
    assert budget.pacer.status().json()
    for each in reversed(scopes):
        each.end()
    assert budget.pacer.status().agents == ()


# ---------------------------------------------------------------- room, wrap-up, changes


def test_room_for_more_and_how_many_calls_are_left():
    budget = Budget(ceiling=1_000, wrap_up_reserve=50, spawn_threshold=100)
    run = budget.pacer.run(budget.pacer.name)
    assert run.forecast() is None
    assert [run.room_for(number) for number in (6, 7)] == [True, False]
    assert [run.room_for(2, tokens=each) for each in (450, 451)] == [True, False]
    budget.call(max_tokens=20)
    assert run.forecast() == (1_000 - COST) // COST


def test_an_agent_that_is_cut_off_still_hands_back_its_report():
    budget = Budget(ceiling=2_000)
    with budget.pacer.agent("agent", reserve=700):
        while (answer := budget.call()).status_code == 200:
            budget.pacer.set_ceiling(max(1_000, (budget.pacer.status().ceiling or 0) - 400))
        assert answer.headers["x-pacer-wrap-up"] == "700"
        assert "pacer.wrap_up()" in answer.json()["error"]["message"]
        with pacer.wrap_up():
            assert budget.call().status_code == 200
            with budget.pacer.agent("child"):
                assert budget.call().status_code == 402
    assert budget.pacer.status().wrap_ups == 1
    assert budget.pacer.status().carved == 0


def test_a_wrap_up_without_a_reserve_is_an_ordinary_call():
    budget = Budget(ceiling=1_000)
    with pacer.wrap_up():
        assert budget.call().status_code == 200
    with budget.pacer.agent("agent"), pacer.wrap_up():
        assert budget.call().status_code == 200
    assert budget.pacer.status().wrap_ups == 0


def test_who_wraps_up_spends_its_own_reserve_only():
    budget = Budget(ceiling=3_000)
    with budget.pacer.agent("other", reserve=700) as other:
        budget.call()
        with budget.pacer.run("default").agent("agent", reserve=700), pacer.wrap_up():
            budget.call(headers=other.headers)
            assert (other.status().wrap_ups, other.status().reserve, other.status().calls) == (0, 700, 2)


def test_a_client_that_is_bound_to_an_agent_wraps_up_for_it_where_no_agent_was_entered():
    budget = Budget(ceiling=1_000)
    agent = budget.pacer.agent("agent", reserve=700)
    bound = agent.bind(budget.client)
    while (answer := budget.call(bound, max_tokens=100)).status_code == 200:
        assert agent.status().wrap_ups == 0
    assert "pacer.wrap_up()" in answer.json()["error"]["message"]
    with budget.pacer.run("default"), pacer.wrap_up():
        assert budget.call(bound, max_tokens=100).status_code == 200
    with budget.pacer.agent("other"), pacer.wrap_up():
        assert budget.call(bound, max_tokens=100).status_code == 402
    assert agent.status().wrap_ups == 1


def test_thresholds_are_told_once_and_again_for_a_new_ceiling(caplog: pytest.LogCaptureFixture):
    budget, told = Budget(ceiling=10_000), list[Threshold]()
    run = budget.pacer.run(budget.pacer.name)
    run.on_threshold(told.append, at=(0.5,))
    run.on_threshold(lambda threshold: 1 / 0, at=(0.5,))
    budget.call()
    assert told == []
    with caplog.at_level(logging.WARNING, "pacer"):
        run.set_ceiling(2 * COST)
    assert [(each.fraction, each.spent, each.ceiling) for each in told] == [(0.5, COST, 2 * COST)]
    assert "a listener of a threshold failed" in caplog.text
    run.set_ceiling(10_000)
    run.set_ceiling(COST)
    assert len(told) == 2
    assert "has booked 100 % of its ceiling: 30 of 30" in caplog.text
    for fraction in (0, -1, float("nan"), True):
        with pytest.raises(SettingsError, match="fractions"):
            run.on_threshold(print, at=(fraction,))


def test_rates_may_change_while_calls_wait():
    budget = Budget(tokens_per_second=1, burst=1)
    budget.call()
    thread = threading.Thread(target=budget.call)
    thread.start()
    while not budget.pacer.status().waiting:
        threading.Event().wait(0)
    budget.pacer.set_rate(tokens_per_minute="60M")
    thread.join(timeout=30)
    assert not thread.is_alive()
    status = budget.pacer.status()
    assert (status.spent, status.tokens_per_second) == (2 * COST, 1e6)
    budget.pacer.set_rate(tokens_per_minute=None, requests_per_minute=600)
    assert budget.pacer.status().tokens_per_second is None
    with pytest.raises(SettingsError, match="max_wait is no rate"):
        budget.pacer.set_rate(max_wait=3)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="requests_per_minute=0"):
        budget.pacer.set_rate(requests_per_minute=0)


def test_a_new_rate_goes_on_with_what_the_bucket_has():
    budget = Budget(tokens_per_second=0.001, burst=50)
    budget.call()
    before = budget.pacer.status().tokens_available
    budget.pacer.set_rate(tokens_per_minute=0.001, burst=1_000)
    assert budget.pacer.status().tokens_available == pytest.approx(before, abs=0.1)


def test_a_pacer_and_a_run_can_be_paused():
    budget = Budget(on_limit="refuse")
    run = budget.pacer.run("one")
    run.pause()
    with run:
        assert budget.call().headers["x-pacer-limit"] == "paused"
    assert budget.call().status_code == 200
    run.resume()
    budget.pacer.pause()
    assert budget.call().status_code == 429
    budget.pacer.resume()
    with run:
        assert budget.call().status_code == 200


def test_a_refusal_says_whose_it_is():
    budget = Budget(refusal="raise", agent_ceiling=10)
    with budget.pacer.agent("outer", ceiling=1_000), budget.pacer.agent("inner") as inner:
        with pytest.raises(CeilingReached, match="agent 'inner' in run 'default'") as raised:
            budget.call()
        assert (raised.value.agent, raised.value.limit, raised.value.amount) == ("outer/inner", "agent_ceiling", 10)
        assert inner.status().refusals == {"agent_ceiling": 1}


def test_the_operators_line():
    budget = Budget(ceiling=10_000)
    with budget.pacer.agent("agent", reserve=500) as agent:
        budget.call()
        assert repr(agent) == "<Agent agent: 30 spent + 0 unknown + 0 held + 500 carved out | 0 in flight, 0 waiting>"
        line = "30 spent + 0 unknown + 0 held + 500 carved out of 10,000 | 1 agent | 0 in flight, 0 waiting"
        assert repr(budget.pacer) == f"<Pacer default: {line}>"
        assert repr(budget.pacer.run("default")) == f"<Run default: {line}>"


def test_a_run_that_nobody_is_in_keeps_its_ceiling_when_it_is_forgotten():
    """Bound to a transport it is never entered, and a thousand others come and go meanwhile."""
    budget = Pacer()
    run = budget.run("bound", ceiling=100)
    client = httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget, scope=run))
    assert client.post(URL, json=ask(500)).status_code == 402
    for number in range(RUNS_REMEMBERED + 1):
        with budget.run(f"run-{number}"):
            pass
    assert client.post(URL, json=ask(500)).status_code == 402
    assert run.status().refused == 1
    with budget.run("bound") as again:
        assert again.account is run.account


def test_what_is_left_of_a_forgotten_run_is_still_below_its_ceiling():
    """A task that was begun in an agent of it outlives both."""
    budget = Pacer()
    client = httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget))
    with budget.run("left", ceiling=100), budget.agent("left"):
        left_behind = contextvars.copy_context()
    for number in range(RUNS_REMEMBERED + 1):
        with budget.run(f"run-{number}"):
            pass
    assert left_behind.run(client.post, URL, json=ask(500)).status_code == 402
