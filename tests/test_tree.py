"""Agents in a run: their ceilings, spawns, reserves, turns and ends, in the engine with a hand-set clock."""

from __future__ import annotations

import itertools

import pytest

from pacer.entry import Limit
from pacer.errors import CeilingReached, WaitTooLong
from pacer.ledger import FINISHED_REMEMBERED, OTHERS, Account
from pacer.register import RUNS_REMEMBERED
from pacer.ticket import Caller, Ticket
from tests.engine import Engine, call, granted, place_of

pytestmark = pytest.mark.usefixtures("each_store")


def offer(engine: Engine, agent: Account, worst: int, *, wraps_up: bool = False, least: int = -1) -> Ticket:
    return engine.offer(call(worst, least=least), caller=Caller(agent, wraps_up=wraps_up))


# ---------------------------------------------------------------- ceilings


def test_what_a_child_costs_is_on_every_account_above_it_once():
    engine = Engine(ceiling=1_000)
    parent = engine.agent("parent", ceiling=500)
    child = engine.agent("child", parent=parent)
    engine.settle(offer(engine, child, 100), 60, 40, "partial")
    for node in (child, parent, engine.account, engine.admission.register.root):
        assert (node.spent, node.unknown, node.held, node.calls) == (60, 40, 0, 1)


def test_a_child_can_only_narrow():
    """Its own ceiling may be larger than its parent's, which binds all the same."""
    engine = Engine(ceiling=10_000)
    parent = engine.agent("parent", ceiling=300)
    child = engine.agent("child", parent=parent, ceiling=5_000)
    refusal = offer(engine, child, 301).decision
    assert isinstance(refusal, CeilingReached)
    assert (refusal.limit, refusal.amount, refusal.agent) == ("agent_ceiling", 300, "parent/child")
    assert granted(offer(engine, child, 300))


def test_an_agent_that_is_short_itself_blocks_nobody_else():
    engine = Engine(ceiling=10_000)
    short, other = engine.agent("short", ceiling=100), engine.agent("other")
    first = offer(engine, short, 100)
    waiting = offer(engine, short, 50)
    assert waiting.wait is not None
    assert waiting.wait.limit == "agent_ceiling"
    assert granted(offer(engine, other, 500))
    assert waiting.decision is None
    engine.settle(first, 50)
    assert granted(waiting)


def test_whoever_is_short_of_the_run_holds_up_all_in_it_and_no_other_run():
    engine = Engine(ceiling=1_000)
    one, two = engine.agent("one"), engine.agent("two")
    other_run = engine.store.run("other", None)
    first = offer(engine, one, 900)
    large, small = offer(engine, two, 400), offer(engine, one, 50)
    assert large.decision is small.decision is None
    assert granted(offer(engine, other_run, 5_000))
    engine.settle(first, 100)
    assert granted(large)
    assert granted(small)


def test_whoever_is_short_of_the_run_is_not_overtaken_by_calls_to_other_models():
    engine = Engine(ceiling=1_000)
    one, two = engine.agent("one"), engine.agent("two")
    first = offer(engine, one, 700)
    large = engine.offer(call(400, model="m"), caller=Caller(two))
    small = engine.offer(call(50, model="n"), caller=Caller(one))
    assert large.decision is small.decision is None
    engine.settle(first, 100)
    assert granted(large)
    assert granted(small)


def test_whoever_is_short_of_room_holds_up_nobody_while_its_own_server_pauses():
    """It could not go even with room; when the pause is over it is its turn again."""
    engine = Engine()
    agent = engine.agent("agent", ceiling=100)
    answered, _ = engine.offer(call(10, model="a")), offer(engine, agent, 60)
    large = engine.offer(call(80, model="a"), caller=Caller(agent))
    small, last = (engine.offer(call(30, model="b"), caller=Caller(agent)) for _ in range(2))
    assert large.decision is small.decision is last.decision is None
    engine.answer(answered, 429, 5.0)
    assert granted(small)
    engine.advance(6.0)
    engine.settle(small, 0)
    assert large.decision is last.decision is None


def test_whoever_waited_for_its_server_has_its_turn_before_who_came_later_and_is_short_of_room():
    engine = Engine()
    agent = engine.agent("agent", ceiling=100)
    answered, _ = engine.offer(call(10, model="a")), offer(engine, agent, 60)
    engine.answer(answered, 429, 5.0)
    small = engine.offer(call(30, model="a"), caller=Caller(agent))
    large = engine.offer(call(80, model="b"), caller=Caller(agent))
    assert small.decision is large.decision is None
    engine.advance(6.0)
    assert granted(small)
    assert large.decision is None


@pytest.mark.parametrize("nesting", ["siblings", "chain", "grandchildren"])
def test_sixteen_that_each_want_all_that_is_left_never_get_more_than_that(nesting: str):
    engine = Engine(ceiling=1_000)
    agents: list[Account] = []
    for number in range(16):
        parent = {
            "siblings": None,
            "chain": agents[-1] if agents else None,
            "grandchildren": agents[0] if agents else None,
        }
        agents.append(engine.agent(f"{number}", parent=parent[nesting]))
    tickets = [offer(engine, agent, 1_000) for agent in agents]
    assert [granted(ticket) for ticket in tickets].count(True) == 1
    engine.leave(tickets[5])  # one is cancelled while its siblings wait
    spent = 0
    while open_ones := [ticket for ticket in tickets if granted(ticket) and place_of(ticket).settlement is None]:
        assert len(open_ones) == 1
        spent += 0 if spent else 300
        engine.settle(open_ones[0], 300 if spent == 300 and not engine.account.spent else 0)
    assert engine.account.spent == 300
    assert all(isinstance(ticket.decision, CeilingReached) for ticket in tickets[1:] if ticket is not tickets[5])


def test_own_answers_that_are_open_in_another_agent_do_not_stand_in_the_way_here():
    """Only what a task holds of the same account makes it wait for itself."""
    engine = Engine(ceiling=10_000)
    one, two = engine.agent("one"), engine.agent("two", ceiling=600)
    engine.offer(call(500), "task", Caller(one))
    blocking = engine.offer(call(300), "other task", Caller(two))
    mine = engine.offer(call(400), "task", Caller(two))
    assert mine.decision is None
    engine.settle(blocking, 0)
    assert granted(mine)


# ---------------------------------------------------------------- spawns


def test_an_agents_first_call_needs_the_threshold_as_room_in_the_run():
    engine = Engine(ceiling=1_000, spawn_threshold=500)
    at_work = engine.agent("at work")
    first = offer(engine, at_work, 600)
    newcomer = offer(engine, engine.agent("new"), 10)
    assert newcomer.wait is not None
    assert newcomer.wait.limit == "spawn_threshold"
    assert granted(offer(engine, at_work, 300))
    engine.settle(first, 100)
    assert granted(newcomer)


def test_a_spawn_below_an_agent_at_work_holds_up_no_other_agent():
    engine = Engine(ceiling=1_000, spawn_threshold=500)
    parent, other = engine.agent("parent"), engine.agent("other")
    for agent in (parent, other):
        engine.settle(offer(engine, agent, 10), 0)
    offer(engine, other, 600)
    spawn = offer(engine, engine.agent("child", parent=parent), 10)
    assert spawn.decision is None
    assert granted(offer(engine, other, 100))


def test_who_has_no_hope_after_a_spawn_learns_it_at_once():
    """What the newcomer carved out was what the other waited for; it came first because the other had its turn."""
    engine = Engine(ceiling=1_000)
    all_of_it = engine.offer(call(1_000))
    agent = engine.agent("agent")
    served = offer(engine, agent, 100)
    engine.settle(all_of_it, 0)
    assert granted(served)
    blocking = engine.offer(call(850))
    waiting = offer(engine, agent, 750)
    spawn = offer(engine, engine.agent("new", reserve=300), 50)
    assert waiting.decision is spawn.decision is None
    engine.settle(blocking, 0)
    assert granted(spawn)
    assert isinstance(waiting.decision, CeilingReached)


def test_who_has_waited_too_long_for_room_is_told_whose_room_it_was():
    engine = Engine(ceiling=1_000, max_wait=5.0, spawn_threshold=500)
    agent = engine.agent("agent", ceiling=300)
    offer(engine, agent, 300)
    first, second = offer(engine, agent, 100), engine.offer(call(300))
    assert granted(second)
    third = offer(engine, engine.agent("new"), 10)
    engine.advance(5.1)
    assert isinstance(first.decision, WaitTooLong)
    assert (first.decision.limit, first.decision.amount, first.decision.held) == ("agent_ceiling", 300, 300)
    assert isinstance(third.decision, WaitTooLong)
    assert (third.decision.limit, third.decision.amount) == ("spawn_threshold", 1_000)
    assert "a larger PACER_CEILING or" in str(third.decision)


def test_a_spawn_without_hope_is_refused_and_says_why():
    engine = Engine(ceiling=1_000, spawn_threshold=500)
    at_work = engine.agent("at work")
    engine.settle(offer(engine, at_work, 600), 600)
    refusal = offer(engine, engine.agent("new"), 10).decision
    assert isinstance(refusal, CeilingReached)
    assert refusal.limit == "spawn_threshold"
    assert "PACER_SPAWN_THRESHOLD" in str(refusal)
    assert granted(offer(engine, at_work, 400))


def test_agents_at_work_go_before_spawns():
    engine = Engine(rate=10, burst=100, ceiling=10_000, spawn_threshold=1)
    at_work = engine.agent("at work")
    offer(engine, at_work, 100)
    offer(engine, at_work, 10)  # a call that others share a rate with has its place when it comes to the head
    spawn, working = offer(engine, engine.agent("new"), 50), offer(engine, at_work, 50)
    engine.advance(6.01)
    assert granted(working)
    assert spawn.decision is None
    engine.advance(5.0)
    assert granted(spawn)


# ---------------------------------------------------------------- wrap-ups


def test_a_reserve_is_out_of_reach_for_everybody_else():
    engine = Engine(ceiling=1_000)
    agent, sibling = engine.agent("agent", reserve=300), engine.agent("sibling")
    child = engine.agent("child", parent=agent)
    engine.settle(offer(engine, agent, 100), 100)
    assert engine.account.carved == 300
    for who in (agent, sibling, child, engine.account):
        assert isinstance(offer(engine, who, 601).decision, CeilingReached)
    assert isinstance(offer(engine, child, 650, wraps_up=False).decision, CeilingReached)


def test_a_wrap_up_is_exempt_from_every_ceiling():
    """The run is full and the agent is over its own ceiling: what was carved out is there all the same."""
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", ceiling=500, reserve=200)
    engine.settle(offer(engine, agent, 300), 800)
    refusal = offer(engine, agent, 100).decision
    assert isinstance(refusal, CeilingReached)
    assert refusal.wrap_up == 200
    assert "wrap_up" in str(refusal)
    closing = offer(engine, agent, 200, wraps_up=True)
    assert granted(closing)
    assert (engine.account.carved, engine.account.held) == (0, 200)
    engine.settle(closing, 150)
    assert (engine.account.carved, engine.account.spent, engine.account.wrap_ups) == (50, 950, 1)


def test_a_wrap_up_is_cut_to_what_is_left_of_the_reserve():
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", reserve=200)
    engine.settle(offer(engine, agent, 700), 700)
    closing = offer(engine, agent, 900, wraps_up=True, least=100)
    assert place_of(closing).call.worst == 200


def test_a_second_wrap_up_waits_for_the_first_and_blocks_nobody():
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", reserve=200)
    engine.settle(offer(engine, agent, 700), 700)
    first, second = (offer(engine, agent, 200, wraps_up=True) for _ in range(2))
    assert granted(first)
    assert second.wait is not None
    assert second.wait.limit == "wrap_up_reserve"
    assert granted(offer(engine, engine.agent("other"), 50))
    assert granted(offer(engine, agent, 50))
    engine.settle(first, 0)
    assert granted(second)


def test_a_second_wrap_up_for_which_the_first_leaves_nothing_is_refused_at_once():
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", reserve=200)
    engine.settle(offer(engine, agent, 800), 800)
    first, second = (offer(engine, agent, 200, wraps_up=True) for _ in range(2))
    assert second.decision is None
    engine.settle(first, 200)
    assert isinstance(second.decision, CeilingReached)


def test_a_wrap_up_that_waits_while_its_agent_ends_is_refused_if_there_is_no_other_room():
    """What was kept for it is everybody's again, and still not enough under the agent's own ceiling."""
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", ceiling=500, reserve=200)
    engine.settle(offer(engine, agent, 300), 450)
    engine.store.do(lambda admission, now: admission.set_paused(agent, True))
    closing = offer(engine, agent, 200, wraps_up=True)
    assert closing.decision is None
    engine.end(agent)
    assert isinstance(closing.decision, CeilingReached)


def test_who_waits_for_what_a_wrap_up_holds_is_refused_when_that_is_given_up():
    """It goes back into the reserve, as from a wrap-up that has ended: nobody else can ever have it."""
    engine = Engine(ceiling=300)
    agent, other = engine.agent("agent", reserve=200), engine.agent("other")
    engine.settle(offer(engine, agent, 10), 10)
    closing = offer(engine, agent, 200, wraps_up=True)
    waiting = offer(engine, other, 150)
    assert waiting.decision is None
    engine.leave(closing)
    assert isinstance(waiting.decision, CeilingReached)


def test_a_wrap_up_waits_for_the_rate_and_goes_past_those_who_wait_for_room():
    engine = Engine(rate=10, burst=100, ceiling=300)
    agent, other = engine.agent("agent", reserve=100), engine.agent("other")
    open_call = offer(engine, agent, 100)
    offer(engine, other, 100)
    stuck = offer(engine, other, 100)
    engine.advance(9.9)
    closing = offer(engine, agent, 100, wraps_up=True)
    assert closing.decision is None
    engine.advance(20.0)
    assert granted(closing)
    assert stuck.decision is None
    engine.settle(open_call, 0)
    assert granted(stuck)


def test_a_wrap_up_is_not_held_up_by_those_who_wait_for_the_run():
    engine = Engine(ceiling=300)
    agent, other = engine.agent("agent", reserve=100), engine.agent("other")
    engine.settle(offer(engine, agent, 100), 100)
    offer(engine, other, 100)
    stuck = offer(engine, other, 50)
    first, second = (offer(engine, agent, 100, wraps_up=True) for _ in range(2))
    engine.settle(first, 0)
    assert granted(second)
    assert stuck.decision is None


def test_an_agent_that_ends_before_its_first_call_could_go_carves_nothing_out():
    engine = Engine(ceiling=1_000)
    blocking = engine.offer(call(900))
    agent = engine.agent("agent", reserve=300)
    waiting = offer(engine, agent, 200)
    engine.end(agent)
    engine.settle(blocking, 0)
    assert granted(waiting)
    assert engine.account.carved == 0


def test_a_reserve_goes_back_when_its_agent_ends():
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", reserve=400)
    engine.settle(offer(engine, agent, 100), 100)
    other = engine.agent("other")
    assert isinstance(offer(engine, other, 501).decision, CeilingReached)
    engine.end(agent)
    assert engine.account.carved == 0
    assert granted(offer(engine, other, 900))


def test_what_an_open_wrap_up_did_not_use_is_everybodys_after_its_agent_has_ended():
    engine = Engine(ceiling=1_000)
    agent = engine.agent("agent", reserve=400)
    engine.settle(offer(engine, agent, 100), 100)
    closing = offer(engine, agent, 400, wraps_up=True)
    engine.end(agent)
    engine.settle(closing, 100)
    assert (engine.account.carved, engine.account.held, engine.account.remaining) == (0, 0, 800)


def test_a_childs_first_call_carves_out_what_its_parent_keeps_too():
    engine = Engine(ceiling=1_000)
    parent = engine.agent("parent", reserve=300)
    child = engine.agent("child", parent=parent, reserve=200)
    assert isinstance(offer(engine, child, 501).decision, CeilingReached)
    assert granted(offer(engine, child, 500))
    assert (engine.account.carved, parent.left, child.left) == (500, 300, 200)


def test_a_reserve_that_a_sibling_carved_out_meanwhile_is_not_needed_twice():
    engine = Engine(ceiling=1_000)
    blocking = engine.offer(call(700))
    parent = engine.agent("parent", reserve=300)
    one = offer(engine, engine.agent("one", parent=parent), 250)
    two = offer(engine, engine.agent("two", parent=parent), 400)
    engine.settle(blocking, 100)
    assert granted(one)
    assert two.decision is None
    engine.settle(one, 0)
    assert granted(two)


# ---------------------------------------------------------------- turns


def flood(engine: Engine) -> tuple[list[Ticket], list[Ticket]]:
    """One agent floods the line with large calls, then another one comes with small ones."""
    many, few = engine.agent("many"), engine.agent("few")
    offer(engine, many, 1_000)
    return [offer(engine, many, 1_000) for _ in range(200)], [offer(engine, few, 10) for _ in range(20)]


def test_a_flood_delays_itself_only():
    """Each small call waits at most two fair turns, and all together take as long as ever."""
    engine = Engine(rate=1_000, burst=1_000)
    large, small = flood(engine)
    started = engine.clock.now
    engine.advance(205.0)
    waited = [place_of(ticket).granted_at - started for ticket in small]
    assert waited[0] <= 2.1
    assert all(later - earlier <= 2.1 for earlier, later in itertools.pairwise(waited))
    assert place_of(large[-1]).granted_at - started == pytest.approx(200.2, abs=0.1)


def test_turns_go_by_what_calls_have_cost_not_by_what_was_expected():
    """Two agents expect the same, one uses a tenth of it: it gets the more calls, and both get the same tokens."""
    engine = Engine(rate=1_000, burst=1_000)
    large, small = engine.agent("large"), engine.agent("small")
    offer(engine, engine.account, 1_000)
    tickets = {agent: [offer(engine, agent, 1_000) for _ in range(300)] for agent in (large, small)}
    for _ in range(60):
        engine.advance(1.0)
        for agent, used in ((large, 1_000), (small, 100)):
            for ticket in tickets[agent]:
                if granted(ticket) and place_of(ticket).settlement is None:
                    engine.settle(ticket, used)
    assert abs(small.spent - large.spent) <= 3_000  # a call each, and one that has its place in a shared rate already


def test_who_leaves_after_its_grant_gives_its_turn_back_too():
    engine = Engine(rate=10, burst=100)
    a, b = engine.agent("a"), engine.agent("b")
    offer(engine, a, 100)
    first, second = offer(engine, a, 60), offer(engine, a, 50)
    other, last = offer(engine, b, 50), offer(engine, b, 50)
    engine.advance(6.01)
    assert granted(first)
    engine.leave(first)
    engine.advance(4.1)
    assert granted(second)
    assert granted(other)
    assert last.decision is None


def test_a_call_of_five_bursts_gets_its_turn_among_small_ones():
    engine = Engine(rate=100, burst=100)
    big, busy = engine.agent("big"), engine.agent("busy")
    offer(engine, busy, 100)
    for _ in range(100):
        offer(engine, busy, 10)
    large = offer(engine, big, 500)
    engine.advance(3.0)
    assert granted(large)


def test_finish_first_lets_the_agent_that_started_first_go_first():
    engine = Engine(rate=10, burst=100, order="finish_first")
    old, new = engine.agent("old"), engine.agent("new")
    engine.settle(offer(engine, old, 1), 1)
    engine.settle(offer(engine, new, 99), 99)
    offer(engine, old, 10)
    later, sooner = offer(engine, new, 50), offer(engine, old, 50)
    engine.advance(6.01)
    assert granted(sooner)
    assert later.decision is None


def test_a_deadline_holds_for_who_is_overtaken_too():
    """Not the next to go but its patience is over: refused at that moment, without any other event."""
    engine = Engine(rate=10, burst=100, max_wait=10.5)
    a, c, d = (engine.agent(name) for name in "acd")
    offer(engine, a, 100)
    first, overtaken = offer(engine, a, 40), offer(engine, a, 50)
    others = [offer(engine, c, 20), offer(engine, d, 20)]
    engine.advance(7.1)
    next_one = offer(engine, c, 30)
    engine.advance(3.2)
    assert all(granted(ticket) for ticket in [first, *others])
    assert overtaken.decision is next_one.decision is None
    engine.advance(0.3)
    assert isinstance(overtaken.decision, WaitTooLong)
    assert next_one.decision is None
    engine.advance(2.2)
    assert granted(next_one)


# ---------------------------------------------------------------- changes


def test_a_paused_account_waits_and_goes_on_at_once():
    engine = Engine()
    agent, other = engine.agent("agent"), engine.agent("other")
    engine.store.do(lambda admission, now: admission.set_paused(agent, True))
    waiting = offer(engine, engine.agent("child", parent=agent), 10)
    assert waiting.wait is not None
    assert waiting.wait.limit == "paused"
    assert granted(offer(engine, other, 10))
    engine.store.do(lambda admission, now: admission.set_paused(agent, False))
    assert granted(waiting)


def test_a_pause_is_a_refusal_for_who_may_not_wait():
    engine = Engine(may_wait=False)
    engine.store.do(lambda admission, now: admission.set_paused(engine.account, True))
    refusal = engine.offer(call(10)).decision
    assert isinstance(refusal, WaitTooLong)
    assert refusal.limit == "paused"


def test_an_agents_ceiling_may_change_while_it_waits():
    engine = Engine()
    agent = engine.agent("agent", ceiling=100)
    offer(engine, agent, 100)
    waiting, hopeless = offer(engine, agent, 50), offer(engine, agent, 90)
    engine.set_ceiling(80, agent)
    assert waiting.decision is None
    assert isinstance(hopeless.decision, CeilingReached)
    engine.set_ceiling(150, agent)
    assert granted(waiting)


def test_a_call_gives_back_to_the_rates_it_took_from():
    """What was let go before there was a rate has nothing to give to it."""
    engine = Engine()
    before = engine.offer(call(100))
    limit = Limit("tokens_per_second", "tokens", 1, 1.0, 100)
    engine.store.do(lambda admission, now: admission.set_limits([limit], now))
    engine.offer(call(100))
    engine.settle(before, 0)
    assert engine.store.status().tokens_available == 0


# ---------------------------------------------------------------- ends


def test_an_ended_agent_is_folded_into_a_summary_by_name():
    engine = Engine()
    for spent in (10, 20):
        agent = engine.agent("worker")
        engine.settle(offer(engine, agent, 100), spent)
        engine.end(agent)
    status = engine.store.status()
    assert status.agents == ()
    assert [(row.name, row.agents, row.calls, row.spent) for row in status.finished] == [("worker", 2, 2, 30)]


def test_an_agent_that_ends_with_an_open_call_is_folded_when_that_ends():
    engine = Engine()
    parent = engine.agent("parent")
    child = engine.agent("child", parent=parent)
    ticket = offer(engine, child, 100)
    engine.end(parent)
    engine.end(child)
    assert [row.name for row in engine.store.status().agents] == ["parent"]
    engine.settle(ticket, 40)
    status = engine.store.status()
    assert (status.agents, [row.spent for row in status.finished]) == ((), [40])


def test_an_ended_agent_is_folded_when_its_last_waiter_is_refused():
    engine = Engine(ceiling=1_000)
    parent = engine.agent("parent")
    agent = engine.agent("agent", parent=parent)
    engine.offer(call(900))
    waiting = offer(engine, agent, 200)
    assert engine.store.status().agents[0].agents[0].waiting == 1
    engine.end(agent)
    engine.set_ceiling(100)
    assert isinstance(waiting.decision, CeilingReached)
    (row,) = engine.store.status().agents
    assert (row.agents, [gone.refused for gone in row.finished]) == ((), [1])


def test_runs_that_nobody_is_in_are_bounded():
    engine = Engine()
    entered = engine.store.run("entered", 100)
    engine.admission.register.enter_run(entered)
    for number in range(RUNS_REMEMBERED + 50):
        run = engine.store.run(f"run-{number}", 100)
        engine.admission.register.enter_run(run)
        engine.settle(offer(engine, run, 10), 10)
        engine.admission.register.leave_run(run)
    root = engine.admission.register.root
    assert not entered.ended
    assert len(root.children) <= RUNS_REMEMBERED
    assert (root.spent, engine.store.run("run-1000", None).spent) == (10 * (RUNS_REMEMBERED + 50), 10)
    assert engine.store.run(engine.account.name, None) is engine.account


def test_names_of_the_finished_are_bounded():
    engine = Engine()
    for number in range(FINISHED_REMEMBERED + 50):
        engine.end(engine.agent(f"agent {number}"))
    finished = engine.store.status().finished
    assert len(finished) == FINISHED_REMEMBERED + 1
    assert (finished[-1].name, finished[-1].agents) == (OTHERS, 50)


def test_the_status_of_a_tree_is_that_of_one_instant():
    engine = Engine(ceiling=1_000, rate=10, burst=100)
    parent = engine.agent("parent", ceiling=500, reserve=50)
    child = engine.agent("child", parent=parent)
    offer(engine, child, 100)
    waiting = offer(engine, parent, 60)
    offer(engine, parent, 900)
    status = engine.store.status()
    (above,) = status.agents
    (below,) = above.agents
    kept = 60 if waiting.place is not None else 0  # in a shared rate it has its place already
    assert (status.held - kept, status.carved, status.remaining, status.waiting) == (100, 50, 850 - kept, 1)
    assert (above.held - kept, above.carved, above.reserve, above.remaining) == (100, 50, 50, 350 - kept)
    assert (above.refusals, above.refused, below.refused) == ({"agent_ceiling": 1}, 1, 0)
    (row,) = status.waits
    assert (row.agent, row.limit, row.tokens, row.since_seconds) == ("parent", "tokens_per_second", 60, 0.0)
    assert row.seconds == pytest.approx(6.0)
    assert waiting.decision is None
    assert engine.store.status(child).waits == ()
