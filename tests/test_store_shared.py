"""The process's side of shared books: what it makes of a vault that is away, has forgotten, or is changed by others."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest

import pacer
from pacer import CeilingReached, LimitsConflict, Pacer, StoreError, StoreUnavailable
from pacer.entry import Limit, Look, Settle
from pacer.ledger import Account
from pacer.shared import SharedAdmission
from pacer.store.journal import Journal
from pacer.store.sqlite import SqliteVault
from pacer.store.vault import Away, Vault
from pacer.ticket import Caller, Ticket, gates_of
from pacer.usage import Settlement, Usage
from tests.engine import Clock, Desk, Seat, call, granted, place_of
from tests.servers import LIBRARIES, URL, Inner, answer_json, ask, ok
from tests.shelves import SHELVES, Shelf
from transports import BudgetTransport

RATE = (Limit("tokens_per_second", "tokens", 10.0, 1.0, 100.0),)


@pytest.fixture(params=SHELVES)
def shelf(request: pytest.FixtureRequest) -> Iterator[Shelf]:
    """A store of each kind."""
    with SHELVES[request.param]() as shelf:
        yield shelf


class Process:
    """One of those who share a run; what it writes is written when it calls :meth:`work`."""

    def __init__(self, shelf: Shelf, ceiling: int | None = 1_000, limits: tuple[Limit, ...] = (), **options: Any):
        self.vault: Any = shelf.open_vault("run")
        self.clock = Clock()
        opened = self.vault.open("run", ceiling, limits)
        self.account = Account("run", opened.run.ceiling, parent=Account("pacer", kind="pacer"))
        self.admission = SharedAdmission(self.account, gates_of(opened.limits, self.clock.now), self.vault.member)
        self.desk = Desk(
            self.admission,
            self.vault,
            opened.limits,
            Journal("run", self.vault.member),
            **{"lease": 60.0, "failure": "refuse", "grace": 2.0, "clock": self.clock, **options},
        )
        self.desk.see(opened)

    def work(self) -> None:
        self.desk._exchange(patient=True)
        self.desk._look_around()

    def offer(self, worst: int) -> Ticket:
        ticket = self.desk.offer(call(worst), object(), Caller(self.account))
        if ticket.decision is None:
            self.desk.sit(ticket, Seat(self.clock), asks=ticket.is_asking)
        return ticket

    def ask(self, worst: int) -> Ticket:
        ticket = self.offer(worst)
        self.work()
        return ticket

    def settle(self, ticket: Ticket, spent: int) -> None:
        finish(self, ticket, spent)
        self.work()

    def pass_time(self, shelf: Shelf, seconds: float) -> None:
        shelf.advance(seconds)
        self.clock.now += seconds
        self.desk.tick()


def finish(process: Process, ticket: Ticket, spent: int) -> None:
    """A settlement that is not written yet, if somebody else is at the vault."""
    usage = Usage(tokens=spent)
    process.desk.settle(place_of(ticket), usage, usage, Settlement(spent, 0, "provider"))


def spent_in(shelf: Shelf) -> int:
    (row,) = shelf.open_vault("run").rows()
    return row.sums()["spent"]


@pytest.fixture(autouse=True)
def _a_state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# ---------------------------------------------------------------- one run


def test_what_one_holds_the_other_waits_for_until_it_looks(shelf):
    one, two = Process(shelf), Process(shelf)
    first = one.ask(900)
    waiting = two.ask(200)
    assert waiting.decision is None
    assert two.desk.status().held == 900
    one.settle(first, 100)
    two.pass_time(shelf, 0.1)
    two.work()
    assert granted(waiting)


def test_what_one_has_spent_the_other_is_refused_for(shelf):
    one, two = Process(shelf), Process(shelf)
    one.settle(one.ask(900), 900)
    two.pass_time(shelf, 1.0)
    assert isinstance(two.ask(200).decision, CeilingReached)
    assert two.ask(100).decision is not None


def test_others_are_a_part_of_the_sums_of_the_run(shelf):
    one, two = Process(shelf), Process(shelf)
    one.settle(one.ask(300), 250)
    two.ask(100)
    status = two.desk.status()
    assert (status.spent, status.held, status.remaining, status.calls) == (250, 100, 650, 1)


def test_a_ceiling_a_pause_and_rates_change_in_all_processes(shelf):
    one, two = Process(shelf, limits=RATE), Process(shelf)
    one.desk.post(lambda admission, now: admission.set_ceiling(one.account, 50))
    one.desk.post(lambda admission, now: admission.set_paused(one.account, True))
    one.desk.post(lambda admission, now: admission.set_limits([Limit("tokens_per_second", "tokens", 5, 1.0, 50)], now))
    one.work()
    two.pass_time(shelf, 1.0)
    waiting = two.ask(40)
    assert (two.account.ceiling, two.account.paused, two.admission.tokens_per_second()) == (50, True, 5.0)
    assert waiting.decision is None
    one.desk.post(lambda admission, now: admission.set_paused(one.account, False))
    one.work()
    two.pass_time(shelf, 0.1)
    two.work()
    two.work()
    assert granted(waiting)


def test_who_changes_nothing_for_all_waits_for_nobodys_change(shelf):
    """Nor does it take the word that the change is written from who waits for that."""
    process, told = Process(shelf), list[str]()
    with process.desk._wire:
        process.desk.post(lambda admission, now: admission.set_ceiling(process.account, 50))
        process.admission.outbox[-1].done = lambda: told.append("written")
        process.desk.do(lambda admission, now: None)
    process.work()
    assert told == ["written"]


def test_who_is_put_back_gives_no_tokens_that_the_rate_has_not(shelf):
    one, two = Process(shelf, 100, RATE), Process(shelf)
    one.ask(10)
    two.ask(60)
    waiting = one.ask(40)  # where it asks from, nothing is known of the 60 yet
    assert waiting.decision is None
    assert one.admission.gates[0].bucket.level(one.clock.now) == pytest.approx(30.0)


def test_what_is_given_back_elsewhere_lets_who_waits_for_the_rate_go_sooner(shelf):
    one, two = Process(shelf, ceiling=None, limits=RATE), Process(shelf)
    first = one.ask(100)
    waiting = two.ask(80)
    assert waiting.wait is not None
    assert waiting.wait.seconds == pytest.approx(8.0)
    one.settle(first, 10)
    two.pass_time(shelf, 0.1)
    two.work()
    assert granted(waiting)


def in_debt(shelf: Shelf) -> list[tuple[Process, Ticket]]:
    """Two processes with a call each that waits for the rate, for five seconds and for ten."""
    assert granted(Process(shelf, None, RATE).ask(100))
    processes = [Process(shelf), Process(shelf)]
    return [(process, process.ask(50)) for process in processes]


def looks(process: Process, shelf: Shelf, seconds: float) -> None:
    process.pass_time(shelf, seconds)
    process.work()


@pytest.mark.parametrize("leaves", [0, 1], ids=["before", "behind"])
def test_who_gives_up_lets_the_other_go_when_the_tokens_are_there(leaves, shelf):
    """B10: not before, who came first never waited for what one behind had taken; and not later."""
    both = in_debt(shelf)
    (leaver, leaving), (other, waiting) = both[leaves], both[1 - leaves]
    leaver.desk.leave(leaving)
    leaver.work()
    looks(other, shelf, 4.9)
    assert waiting.decision is None
    looks(other, shelf, 0.2)
    assert granted(waiting)


# ---------------------------------------------------------------- away


def cut_off(process: Process) -> None:
    def exchange(*_: object, **__: object) -> None:
        raise Away("it cannot be reached")

    process.vault.exchange = exchange


def fail(process: Process) -> None:
    """One attempt of the clerk that does not come through."""
    with pytest.raises(Away) as failed:
        process.work()
    process.desk._fail(failed.value)


def test_a_store_that_is_away_is_waited_for_as_long_as_the_grace(shelf, caplog):
    process = Process(shelf)
    cut_off(process)
    ticket = process.offer(10)
    fail(process)
    process.pass_time(shelf, 1.9)
    fail(process)
    assert ticket.decision is None
    process.pass_time(shelf, 0.2)
    fail(process)
    assert isinstance(ticket.decision, StoreUnavailable)
    assert "cannot be reached" in str(ticket.decision)
    fail_again = process.offer(10)
    process.pass_time(shelf, 2.1)
    fail(process)
    assert isinstance(fail_again.decision, StoreUnavailable)
    assert caplog.text.count("its store is away") == 1
    assert process.admission.waiting == 0


def test_a_store_is_back_when_something_went_through_not_when_there_was_nothing_to_write(shelf):
    process = Process(shelf)
    exchange = process.vault.exchange
    cut_off(process)
    process.offer(10)
    fail(process)
    process.desk._come_back()
    assert process.desk._away_since is not None
    process.vault.exchange = exchange
    process.work()
    process.desk._come_back()
    assert process.desk._away_since is None


def test_calls_that_go_without_it_are_booked_when_it_is_back(shelf):
    process = Process(shelf, failure="pass", ceiling=100)
    exchange = process.vault.exchange
    cut_off(process)
    ticket = process.offer(10)
    fail(process)
    process.pass_time(shelf, 2.1)
    fail(process)
    assert granted(ticket)
    next_one = process.offer(20)
    assert granted(next_one)
    with pytest.raises(Away):
        process.settle(ticket, 7)
    process.vault.exchange = exchange
    process.work()
    process.desk._come_back()
    process.settle(next_one, 5)
    assert spent_in(shelf) == process.account.spent == 12
    assert process.desk.status().unshared == 2


@pytest.mark.parametrize(("failure", "level"), [("refuse", 0.0), ("pass", -30.0)])
def test_an_outage_makes_no_tokens(failure, level, shelf):
    """Others go on while one is cut off; what its calls took of the rate is taken there when it is back, and no more
    comes back than was taken.
    """
    process, other = Process(shelf, None, RATE, failure=failure), Process(shelf, None)
    exchange = process.vault.exchange
    cut_off(process)
    ticket = process.offer(40)
    fail(process)
    process.pass_time(shelf, 2.1)
    fail(process)
    assert granted(ticket) == (failure == "pass")
    assert granted(other.ask(100))
    if granted(ticket):
        with pytest.raises(Away):
            process.settle(ticket, 30)
    process.vault.exchange = exchange
    process.work()
    assert other.vault.exchange([Look("run")]).levels["tokens"] == pytest.approx(level)


def test_settlements_of_an_outage_outlive_their_process(shelf):
    process = Process(shelf)
    ticket = process.ask(100)
    cut_off(process)
    with pytest.raises(Away):
        process.settle(ticket, 60)
    process.desk._fail(Away("it cannot be reached"))
    process.desk._journal.leave()
    Process(shelf).desk.work_off_the_dead()
    assert spent_in(shelf) == 60


def test_a_journal_is_kept_while_what_is_in_it_is_on_its_way(shelf):
    process = Process(shelf)
    ticket = process.ask(100)
    clerk = threading.Thread(target=process.desk._come_back)

    def exchange(*_: object, **__: object) -> None:
        clerk.start()
        clerk.join(0.2)  # it waits for the vault, or does its work at once
        raise Away("it cannot be reached")

    with process.desk._wire:
        finish(process, ticket, 60)
    process.desk._keep()
    process.vault.exchange = exchange
    with pytest.raises(Away):
        process.work()
    clerk.join()
    process.desk._journal.leave()
    Process(shelf).desk.work_off_the_dead()
    assert spent_in(shelf) == 60


def test_an_error_of_ours_lets_nothing_go_and_nobody_hang(shelf, caplog):
    process = Process(shelf)

    def exchange(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    process.vault.exchange = exchange
    ticket = process.ask(10)
    assert isinstance(ticket.decision, StoreUnavailable)
    assert "ZeroDivisionError" in str(ticket.decision)
    assert isinstance(process.offer(10).decision, StoreUnavailable)


# ---------------------------------------------------------------- forgotten


def test_a_run_that_was_ended_lets_nothing_more_go(shelf, caplog):
    process = Process(shelf)
    ticket = process.ask(100)
    shelf.open_vault("run").end("run")
    asked = process.ask(10)
    assert isinstance(asked.decision, StoreUnavailable)
    assert "start again" in str(asked.decision)
    process.settle(ticket, 10)
    assert isinstance(process.offer(10).decision, StoreUnavailable)
    assert caplog.text.count("nothing more is let go") == 1


@pytest.mark.parametrize("asks_before", [True, False])
def test_nobody_waits_for_the_end_of_a_call_to_be_written_into_books_that_are_gone(asks_before, shelf):
    """Who reads an answer waits there for its settlement; it would for ever."""
    process = Process(shelf)
    ticket, seat = process.ask(100), Seat(process.clock)
    shelf.open_vault("run").end("run")
    with process.desk._wire:  # somebody else is at the vault
        finish(process, ticket, 10)
    if asks_before:
        assert process.desk.when_written(place_of(ticket), seat)
    process.work()
    assert seat.wakes == asks_before
    assert not process.desk.when_written(place_of(ticket), seat)


def test_a_store_that_was_removed_is_told_once_and_not_asked_all_the_time(tmp_path, caplog):
    process = Process(_File(tmp_path), lease=60.0)
    process.ask(100)
    for file in tmp_path.iterdir():
        file.unlink()
    for _ in range(3):
        process.clock.now += 30.0
        assert process.desk._work() == 20.0
    assert caplog.text.count("nothing more is let go") == 1


def test_books_that_know_less_than_before_are_not_relied_on(tmp_path):
    process = Process(_File(tmp_path))
    process.settle(process.ask(100), 100)
    books = process.vault._books
    books.execute("UPDATE runs SET sums = '[40,0,0,0,0,0,0,0,0,0,0,0]'")
    refused = process.ask(10).decision
    assert isinstance(refused, StoreUnavailable)
    assert "less was spent" in str(refused)


def test_a_run_that_was_ended_and_is_entered_again_is_a_store_error(shelf):
    process = Process(shelf)
    run = process.desk.run("other", 1_000)
    ticket = process.desk.offer(call(100), object(), Caller(run))
    process.work()
    process.settle(ticket, 60)
    shelf.open_vault("run").end("other")
    with pytest.raises(StoreError, match=r"run other: less was spent .* start again"):
        process.desk.run("other", 1_000)
    assert isinstance(process.desk.offer(call(1), object(), Caller(run)).decision, StoreUnavailable)


def test_a_run_that_is_entered_again_while_it_goes_on_loses_nothing(shelf):
    """What is seen when it is opened may be old before it is taken in."""
    process = Process(shelf)
    ticket = process.ask(100)
    at_vault = process.desk._at_vault

    def slowly(do: Any) -> Any:
        done = at_vault(do)
        process.settle(ticket, 60)  # by another thread, which has the vault next
        return done

    with patch.object(process.desk, "_at_vault", slowly):
        assert process.desk.run("run", 1_000) is process.account
    process.work()
    assert granted(process.ask(10))
    assert process.desk.status().spent == 60


def test_a_bill_whose_hold_the_store_has_lost_is_booked(tmp_path):
    process = Process(_File(tmp_path))
    ticket = process.ask(100)
    process.vault._books.execute("DELETE FROM holds")
    process.vault._books.execute("UPDATE runs SET sums = '[0,0,0,0,0,0,0,0,0,0,0,0]'")
    process.settle(ticket, 60)
    process.work()
    assert spent_in(_File(tmp_path)) == process.account.spent == 60


def test_a_repeated_settlement_whose_answer_was_lost_is_booked_once(shelf):
    process = Process(shelf)
    ticket = process.ask(100)
    exchange = process.vault.exchange

    def lose_the_answer(entries: Any, **options: Any) -> None:
        exchange(entries, **options)
        raise Away("its answer was lost")

    process.vault.exchange = lose_the_answer
    with pytest.raises(Away):
        process.settle(ticket, 60)
    process.vault.exchange = exchange
    process.work()
    assert spent_in(shelf) == process.account.spent == 60


def test_a_settlement_beside_that_of_a_run_that_was_ended_is_booked_once(shelf):
    """The first was written when the second failed: it comes again, and finds no hold."""
    process = Process(shelf)
    other = process.desk.run("other", 1_000)
    first, second = process.ask(100), process.desk.offer(call(100), object(), Caller(other))
    process.work()
    shelf.open_vault("run").end("other")
    with process.desk._wire:  # somebody else is at the vault: both go in one exchange
        finish(process, first, 60)
        finish(process, second, 60)
    process.work()
    assert spent_in(shelf) == process.account.spent == 60


def test_a_settlement_beside_a_run_that_knows_less_than_before_is_booked_once(tmp_path):
    process = Process(_File(tmp_path))
    other = process.desk.run("other", 1_000)
    second = process.desk.offer(call(100), object(), Caller(other))
    process.work()
    process.settle(second, 60)
    first = process.ask(100)
    process.vault._books.execute("UPDATE runs SET sums = '[0,0,0,0,0,0,0,0,0,0,0,0]' WHERE name = 'other'")
    with process.desk._wire:
        finish(process, first, 60)
        process.desk.offer(call(100), object(), Caller(other))
    process.work()
    process.work()
    status = process.desk.status()
    assert (status.spent, status.held, status.in_flight) == (60, 0, 0)
    assert process.vault.exchange([Look("run")]).runs["run"].sums[0] == 60


class _File:
    """A store in one file."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "books.db")

    def open_vault(self, pacer: str = "run", lease: float = 60.0) -> Vault:
        return SqliteVault(self._path, pacer, lease)

    def advance(self, seconds: float) -> None:
        raise AssertionError("time goes by itself here")

    age = advance

    def close(self) -> None:
        """Nothing to close."""


# ---------------------------------------------------------------- closed


def test_nobody_waits_in_the_line_of_a_store_that_was_closed(shelf):
    """Not even for room that another process had just now: nobody looks any more whether it has it still."""
    process = Process(shelf, 100)
    assert granted(Process(shelf).ask(85))
    waiting = process.ask(50)
    assert waiting.decision is None
    process.desk.close()
    assert isinstance(waiting.decision, StoreUnavailable)
    assert isinstance(process.offer(50).decision, StoreUnavailable)


# ---------------------------------------------------------------- whole pacers


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'books.db'}"


def test_the_settlement_is_in_the_store_before_the_caller_sees_the_end(tmp_path):
    """B11, blocking and awaiting, also where a clerk writes it; read already by the inner transport, or streamed."""
    books = _File(tmp_path)
    with closing(Pacer(store=f"sqlite:{tmp_path / 'books.db'}", run="run")) as budget:
        budget._store._vault.__class__ = type("Far", (SqliteVault,), {"is_quick": False})  # type: ignore[attr-defined]
        read_already = httpx.MockTransport(lambda request: httpx.Response(200, content=answer_json()))
        for number, inner in enumerate((read_already, Inner(ok())), start=1):
            with httpx.Client(transport=BudgetTransport(inner, pacer=budget)) as client:
                client.post(URL, json=ask())
            assert spent_in(books) == 30 * number

        async def call_once() -> None:
            async with httpx.AsyncClient(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client:
                await client.post(URL, json=ask())

        asyncio.run(call_once())
        assert spent_in(books) == 90


def test_a_store_that_is_away_is_a_503_that_may_be_tried_again(store):
    with closing(Pacer(store=store, run="run", store_grace=0)) as budget:
        budget._store._vault.exchange = _nobody  # type: ignore[attr-defined]
        for library in LIBRARIES:
            with library.Client(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client:
                response = client.post(URL, json=ask())
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "budget_store_unavailable"


def _nobody(*_: object, **__: object) -> None:
    raise Away("it cannot be reached")


def test_another_limit_for_the_same_run_is_an_error_that_shows_both(store):
    with closing(Pacer(store=store, run="run", ceiling=100, tokens_per_second=5)):
        with pytest.raises(LimitsConflict, match=r"ceiling=100 and was joined with ceiling=200"):
            Pacer(store=store, run="run", ceiling=200)
        with pytest.raises(LimitsConflict, match=r"tokens_per_second=5.0 and was joined with tokens_per_second=6.0"):
            Pacer(store=store, run="run", tokens_per_second=6)
        with pytest.raises(LimitsConflict, match=r"requests_per_minute=None and was joined"):
            Pacer(store=store, run="run", requests_per_minute=60)
        with closing(Pacer(store=store, run="run")) as joined:
            assert (joined.status().ceiling, joined.status().tokens_per_second) == (100, 5.0)
        with closing(Pacer(store=store, run="run", ceiling=300, update_limits=True)) as changed:
            assert (changed.status().ceiling, changed.status().tokens_per_second) == (300, 5.0)


def test_further_runs_of_a_pacer_are_shared_too(store):
    with closing(Pacer(store=store, run="run")) as one, closing(Pacer(store=store, run="run")) as two:
        with one.run("nightly", ceiling=100) as run:
            assert run.account.ceiling == 100
        with two.run("nightly") as again:
            assert again.account.ceiling == 100
        with pytest.raises(LimitsConflict), two.run("nightly", ceiling=200):
            pass


def test_a_store_that_cannot_be_opened_is_one_clear_line(tmp_path):
    (tmp_path / "file.db").write_text("not a database, and long enough to be looked at as one " * 40)
    with pytest.raises(StoreError, match="no SQLite file"):
        Pacer(store=f"sqlite:{tmp_path / 'file.db'}")
    with pytest.raises(StoreError) as error:
        Pacer(store="redis://user:geheim@127.0.0.1:1/0")
    assert "127.0.0.1:1" in str(error.value)
    assert "geheim" not in str(error.value)


def test_a_password_is_in_no_error_of_the_settings(monkeypatch):
    with pytest.raises(pacer.SettingsError) as error:
        Pacer(store="redi://user:geheim@host")
    assert "geheim" not in str(error.value)
    assert "redi://host" in str(error.value)


def test_a_closed_pacer_refuses(store):
    budget = Pacer(store=store, run="run", refusal="raise")
    budget.close()
    budget.close()
    with (
        httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client,
        pytest.raises(StoreUnavailable, match="left by close"),
    ):
        client.post(URL, json=ask())


def test_the_log_is_told_once_of_an_outage_and_its_end(store, caplog):
    caplog.set_level(logging.WARNING, "pacer")
    with closing(Pacer(store=store, run="run", store_grace=0)) as budget:
        vault = budget._store._vault  # type: ignore[attr-defined]
        exchange, vault.exchange = vault.exchange, _nobody
        with httpx.Client(transport=BudgetTransport(Inner(ok()), pacer=budget)) as client:
            for _ in range(3):
                assert client.post(URL, json=ask()).status_code == 503
            vault.exchange = exchange
            assert client.post(URL, json=ask()).status_code == 200
    assert caplog.text.count("is away") == 1
    assert caplog.text.count("store is back") == 1


def test_who_joins_after_a_pacer_was_closed_opens_the_run_again(store):
    first = BudgetTransport(store=store, run="joined")
    first.pacer.close()
    second = BudgetTransport(store=store, run="joined")
    assert second.pacer is not first.pacer
    with closing(second.pacer):
        assert second.pacer.status().spent == 0


def test_a_journal_of_a_run_that_is_gone_stands_in_nobodys_way(shelf):
    process = Process(shelf)
    ticket = process.ask(100)
    cut_off(process)
    with pytest.raises(Away):
        process.settle(ticket, 60)
    process.desk._fail(Away("it cannot be reached"))
    process.desk._journal.leave()
    shelf.open_vault("run").end("run")
    Process(shelf).desk.work_off_the_dead()
    left: list[Settle] = []
    Journal("run", "another").work_off(left.extend)
    assert (left, spent_in(shelf)) == ([], 0)
