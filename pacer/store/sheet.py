"""One transaction in the tables of the vault in SQLite: what an exchange needs is read once, worked on as plain values
and written once at the end. Nothing here knows the file; ``execute`` is that of a connection.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, assert_never

import msgspec

from pacer.entry import (
    SUMS,
    Answer,
    Carve,
    Change,
    Entry,
    Held,
    Hold,
    Late,
    Limit,
    Look,
    Missing,
    Release,
    RunBooks,
    Settle,
    Short,
    Verdict,
    Withdraw,
)
from pacer.store.vault import KEPT_SECONDS, Forgotten, RunRow
from pacer.usage import Kind

SPENT, UNKNOWN, HELD, CARVED = (SUMS.index(name) for name in ("spent", "unknown", "held", "carved"))
CALLS, IN_FLIGHT = SUMS.index("calls"), SUMS.index("in_flight")
INDEX = {name: index for index, name in enumerate(SUMS)}

OPEN, LAPSED, TOMBSTONE = range(3)

# The epoch of a run is its key: whoever knows it finds that very run or none. Sums and levels are JSON lists, in the
# order of SUMS and of the limits; all buckets of a pacer are refilled together and have one stamp.
TABLES = (
    """CREATE TABLE pacers (name TEXT PRIMARY KEY, limits TEXT NOT NULL, levels TEXT NOT NULL,
    refunds TEXT NOT NULL, stamp REAL NOT NULL, paused INTEGER NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE runs (epoch INTEGER PRIMARY KEY, pacer TEXT NOT NULL, name TEXT NOT NULL, ceiling INTEGER,
    paused INTEGER NOT NULL, numbers INTEGER NOT NULL, sums TEXT NOT NULL, used_at REAL NOT NULL,
    UNIQUE (pacer, name))""",
    "CREATE INDEX runs_by_use ON runs (used_at)",
    """CREATE TABLE holds (run INTEGER NOT NULL, id TEXT NOT NULL, member TEXT NOT NULL, amount INTEGER NOT NULL,
    acts_at REAL NOT NULL, setting TEXT NOT NULL, state INTEGER NOT NULL, PRIMARY KEY (run, id)) WITHOUT ROWID""",
    """CREATE TABLE carves (run INTEGER NOT NULL, id TEXT NOT NULL, member TEXT NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (run, id)) WITHOUT ROWID""",
    """CREATE TABLE claims (run INTEGER NOT NULL, member TEXT NOT NULL, number INTEGER NOT NULL,
    amount INTEGER NOT NULL, PRIMARY KEY (run, member)) WITHOUT ROWID""",
    """CREATE TABLE members (id TEXT PRIMARY KEY, pacer TEXT NOT NULL, deadline REAL NOT NULL, lease REAL NOT NULL,
    status TEXT NOT NULL) WITHOUT ROWID""",
)

_to_json = msgspec.json.Encoder().encode
_read_sums = msgspec.json.Decoder(list[int]).decode
_read_levels = msgspec.json.Decoder(list[float]).decode
_read_limits = lru_cache(maxsize=64)(msgspec.json.Decoder(tuple[Limit, ...]).decode)


class _Run:
    """A run as it stands inside a transaction. ``claim`` is ours, number and amount; ``ahead`` what is before it."""

    __slots__ = ("ahead", "ceiling", "claim", "epoch", "is_changed", "numbers", "paused", "sums")

    def __init__(self, epoch: int, ceiling: int | None, paused: bool, numbers: int, sums: list[int]) -> None:
        self.epoch = epoch
        self.ceiling = ceiling
        self.paused = paused
        self.numbers = numbers
        self.sums = sums
        self.claim: tuple[int, int] | None = None
        self.ahead = 0
        self.is_changed = False

    @property
    def gone(self) -> int:
        """Tokens that do not come back when open calls settle."""
        return self.sums[SPENT] + self.sums[UNKNOWN] + self.sums[CARVED]

    def books(self) -> RunBooks:
        return RunBooks(self.ceiling, bool(self.paused), self.ahead, tuple(self.sums))


class _Rates:
    """A pacer and its buckets, refilled up to the time of the transaction."""

    __slots__ = ("is_changed", "levels", "limits", "paused", "refunds", "revision")

    def __init__(
        self, limits: tuple[Limit, ...], levels: list[float], refunds: list[int], paused: bool, revision: int
    ) -> None:
        self.limits = limits
        self.levels = levels
        self.refunds = refunds
        self.paused = paused
        self.revision = revision
        self.is_changed = False

    def refill(self, seconds: float) -> None:
        self.levels = [
            min(limit.burst, level + seconds * limit.amount / limit.per)
            for limit, level in zip(self.limits, self.levels, strict=True)
        ]

    def wait(self, takes: Mapping[Kind, int]) -> tuple[str, float]:
        """The setting that makes one wait longest, and for how many seconds; the rule is that of a bucket."""
        setting, longest = "", 0.0
        for limit, level in zip(self.limits, self.levels, strict=True):
            if limit.kind in takes:
                short = min(takes[limit.kind], limit.burst) - level
                seconds = short * limit.per / limit.amount if short > 1e-6 else 0.0
                if seconds > longest:
                    setting, longest = limit.setting, seconds
        return setting, longest

    def take(self, amounts: Mapping[Kind, int]) -> None:
        for index, limit in enumerate(self.limits):
            if limit.kind in amounts:
                self.levels[index] -= amounts[limit.kind]
                self.is_changed = True

    def give_back(self, amounts: Mapping[Kind, int], *, is_refund: bool) -> None:
        """Below 0 it is taken; never above the burst. A refund lets those go sooner who wait."""
        for index, limit in enumerate(self.limits):
            if limit.kind in amounts:
                self.levels[index] = min(limit.burst, self.levels[index] + amounts[limit.kind])
                self.refunds[index] += amounts[limit.kind] if is_refund else 0
                self.is_changed = True

    def replace(self, limits: tuple[Limit, ...]) -> None:
        """Other limits; a kind that was limited before keeps its level."""
        if limits == self.limits:
            return
        old = self.by_kind()
        given = self.refunds_by_kind()
        self.levels = [min(old.get(limit.kind, limit.burst), limit.burst) for limit in limits]
        self.refunds = [given.get(limit.kind, 0) for limit in limits]
        self.limits = limits
        self.revision += 1
        self.is_changed = True

    def by_kind(self) -> dict[Kind, float]:
        return {limit.kind: level for limit, level in zip(self.limits, self.levels, strict=True)}

    def refunds_by_kind(self) -> dict[Kind, int]:
        return {limit.kind: given for limit, given in zip(self.limits, self.refunds, strict=True)}


class Sheet:
    """One transaction: what was read in it, what it comes to, and the writing of it at the end."""

    __slots__ = ("_epochs", "_execute", "_is_swept", "_member", "_rates", "_runs", "now", "pacer")

    def __init__(
        self, execute: Callable[..., Any], pacer: str, member: str, epochs: Mapping[str, int], now: float
    ) -> None:
        self._execute = execute
        self._member = member
        self._epochs = epochs
        self._rates: _Rates | None = None
        self._runs: dict[str, _Run] = {}
        self._is_swept = False
        self.pacer = pacer
        self.now = now

    # ---------------------------------------------------------------- reading and writing

    def rates(self) -> _Rates:
        """The pacer of this vault."""
        if self._rates is None:
            row = self._execute(
                "SELECT limits, levels, refunds, stamp, paused, revision FROM pacers WHERE name = ?", (self.pacer,)
            ).fetchone()
            if row is None:
                raise Forgotten(f"it does not know the pacer {self.pacer} any more")
            self._rates = self.rates_of(*row)
        return self._rates

    def rates_of(self, limits: str, levels: str, refunds: str, stamp: float, paused: int, revision: int) -> _Rates:
        """A pacer by its row. A stamp of later is written again as of now, or no bucket would fill until then."""
        rates = _Rates(_read_limits(limits), _read_levels(levels), _read_sums(refunds), bool(paused), revision)
        rates.refill(max(0.0, self.now - stamp))
        rates.is_changed = stamp > self.now
        return rates

    def run(self, name: str) -> _Run:
        """A run of this pacer, the very one that this vault opened."""
        run = self._runs.get(name)
        if run is None:
            epoch = self._epochs.get(name) or self.epoch_of(name)
            try:
                run = self._runs[name] = self.run_of(epoch)
            except Forgotten as gone:
                raise Forgotten(f"it does not know run {name} any more", name) from gone
        return run

    def epoch_of(self, name: str) -> int:
        """The epoch of a run as it is now; 0 if there is none."""
        row = self._execute("SELECT epoch FROM runs WHERE pacer = ? AND name = ?", (self.pacer, name)).fetchone()
        return 0 if row is None else int(row[0])

    def run_of(self, epoch: int) -> _Run:
        """The run of that epoch."""
        row = self._execute(
            """SELECT ceiling, paused, numbers, sums, EXISTS (SELECT 1 FROM claims WHERE run = epoch)
            FROM runs WHERE epoch = ?""",
            (epoch,),
        ).fetchone()
        if row is None:
            raise Forgotten("a run is gone")
        run = _Run(epoch, row[0], row[1], row[2], _read_sums(row[3]))
        if row[4]:
            self._read_claims(run)
        return run

    def _read_claims(self, run: _Run) -> None:
        claims = self._execute(
            """SELECT c.member, c.number, c.amount FROM claims AS c LEFT JOIN members AS m ON m.id = c.member
            WHERE c.run = ? AND (c.member = ? OR m.deadline > ?)""",
            (run.epoch, self._member, self.now),
        ).fetchall()
        run.claim = next((tuple(claim) for member, *claim in claims if member == self._member), None)
        run.ahead = sum(
            amount
            for member, number, amount in claims
            if member != self._member and (run.claim is None or number < run.claim[0])
        )

    def write(self) -> None:
        """Write what has changed."""
        for run in self._runs.values():
            if run.is_changed:
                self._write_run(run)
        rates = self._rates
        if rates is not None and rates.is_changed:
            self._execute(
                """UPDATE pacers SET limits = ?, levels = ?, refunds = ?, stamp = ?, paused = ?, revision = ?
                WHERE name = ?""",
                (
                    *(_text(rates.limits), _text(rates.levels), _text(rates.refunds)),
                    *(self.now, rates.paused, rates.revision, self.pacer),
                ),
            )

    def _write_run(self, run: _Run) -> None:
        self._execute(
            "UPDATE runs SET ceiling = ?, paused = ?, numbers = ?, sums = ? WHERE epoch = ?",
            (run.ceiling, run.paused, run.numbers, _text(run.sums), run.epoch),
        )
        run.is_changed = False

    # ---------------------------------------------------------------- entries

    def enter(self, entry: Entry) -> Verdict | None:
        """Write one entry into the books."""
        match entry:
            case Hold():
                return self._hold(entry)
            case Settle():
                return self._settle(entry)
            case Release():
                run = self.run(entry.run)
                for name in entry.ids:
                    self._release(run, name)
            case Withdraw():
                self._withdraw(self.run(entry.run))
            case Look():
                self._look(self.run(entry.run), entry.needs)
            case Change():
                self._change(entry)
            case _:
                assert_never(entry)
        return None

    def answer(self, verdicts: list[Verdict | None]) -> Answer:
        """What the whole exchange comes to."""
        rates = self.rates()
        runs = {name: run.books() for name, run in self._runs.items()}
        return Answer(verdicts, runs, rates.by_kind(), rates.refunds_by_kind(), rates.paused, rates.revision)

    def _hold(self, entry: Hold) -> Verdict:
        run = self.run(entry.run)
        row = self._execute(
            "SELECT amount, acts_at, setting FROM holds WHERE run = ? AND id = ?", (run.epoch, entry.id)
        ).fetchone()
        if row is not None:  # a tombstone, too: what was settled before must not be held for ever now
            return Held(row[0], max(0.0, row[1] - self.now), row[2])
        if run.paused or self.rates().paused:
            return Short()
        if entry.reserve:
            return self._grant(run, entry, entry.worst, [])
        carves = [carve for carve in entry.carves if self._carved(run, carve.id) is None] if entry.carves else []
        extra = sum(carve.amount for carve in carves)
        amount = _fitting(run, entry, extra)
        if amount is None and not self._is_swept:
            self.sweep()
            return self._hold(entry)
        if amount is None:
            self._claim(run, max(entry.least + extra, entry.room))
            return Short()
        return self._grant(run, entry, amount, carves)

    def _grant(self, run: _Run, entry: Hold, amount: int, carves: Sequence[Carve]) -> Held | Late:
        rates = self.rates()
        setting, seconds = rates.wait(entry.takes)
        if entry.patience is not None and seconds > entry.patience:
            return Late(setting, seconds)
        rates.take(entry.takes)
        self._execute(
            "INSERT INTO holds (run, id, member, amount, acts_at, setting, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run.epoch, entry.id, self._member, amount, self.now + seconds, setting, OPEN),
        )
        run.sums[HELD] += amount
        run.sums[IN_FLIGHT] += 1
        run.is_changed = True
        if entry.reserve:
            self._draw(run, entry.reserve, entry.worst)
        for carve in carves:
            self._execute(
                "INSERT INTO carves (run, id, member, amount) VALUES (?, ?, ?, ?)",
                (run.epoch, carve.id, self._member, carve.amount),
            )
            run.sums[CARVED] += carve.amount
        self._withdraw(run)
        return Held(amount, seconds, setting)

    def _carved(self, run: _Run, name: str) -> int | None:
        row = self._execute("SELECT amount FROM carves WHERE run = ? AND id = ?", (run.epoch, name)).fetchone()
        return None if row is None else int(row[0])

    def _draw(self, run: _Run, name: str, amount: int) -> None:
        """Take from a carve, at most what it has; a negative amount goes back into it."""
        carved = self._carved(run, name)
        if carved is not None:
            drawn = min(amount, carved)
            self._execute("UPDATE carves SET amount = amount - ? WHERE run = ? AND id = ?", (drawn, run.epoch, name))
            run.sums[CARVED] -= drawn
            run.is_changed = True

    def _claim(self, run: _Run, need: int) -> None:
        """Stand in line for room under the ceiling, if open holds can make it."""
        if run.ceiling is None or run.ceiling - run.gone < need:
            self._withdraw(run)
            return
        if run.claim is None:
            run.numbers += 1
            run.is_changed = True
        claim = (run.numbers if run.claim is None else run.claim[0]), need
        if claim != run.claim:  # who only looks whether it is its turn writes nothing
            run.claim = claim
            self._execute(
                "INSERT OR REPLACE INTO claims (run, member, number, amount) VALUES (?, ?, ?, ?)",
                (run.epoch, self._member, *claim),
            )

    def _look(self, run: _Run, needs: int) -> None:
        if needs and run.ceiling is not None and needs > run.ceiling - run.gone - run.sums[HELD] - run.ahead:
            self._claim(run, needs)

    def _withdraw(self, run: _Run) -> None:
        if run.claim is not None:
            self._execute("DELETE FROM claims WHERE run = ? AND member = ?", (run.epoch, self._member))
            self._read_claims(run)

    def _settle(self, entry: Settle) -> Missing | None:
        run = self.run(entry.run)
        key = run.epoch, entry.id
        row = self._execute("SELECT amount, state, acts_at FROM holds WHERE run = ? AND id = ?", key).fetchone()
        if row is None:
            if entry.is_held:
                return Missing()
            self._execute(
                """INSERT INTO holds (run, id, member, amount, acts_at, setting, state)
                VALUES (?, ?, '', 0, 0, '', ?)""",
                (*key, TOMBSTONE),
            )
        elif row[1] == TOMBSTONE:
            return None
        else:
            self._execute("DELETE FROM holds WHERE run = ? AND id = ?", key)
            held, count = (HELD, IN_FLIGHT) if row[1] == OPEN else (UNKNOWN, CALLS)
            run.sums[held] -= row[0]
            run.sums[count] -= 1
        for name, amount in entry.booked.items():
            run.sums[INDEX[name]] += amount
        run.is_changed = True
        if entry.gives_back:
            back = entry.gives_back.items()
            # Who gives up before its time may have come after those who wait: they never waited for what it took.
            was_due = bool(entry.booked) or row is None or row[2] <= self.now
            taken = {kind: amount for kind, amount in back if row is not None or amount < 0}
            self.rates().give_back(taken, is_refund=was_due)
        if entry.returned:
            self._draw(run, entry.reserve, -entry.returned)
        return None

    def _release(self, run: _Run, name: str) -> None:
        carved = self._carved(run, name)
        if carved is not None:
            self._execute("DELETE FROM carves WHERE run = ? AND id = ?", (run.epoch, name))
            run.sums[CARVED] -= carved
            run.is_changed = True

    def _change(self, entry: Change) -> None:
        kept = msgspec.UNSET
        changed: _Run | _Rates
        if entry.run:
            changed = run = self.run(entry.run)
            run.ceiling = run.ceiling if entry.ceiling is kept else entry.ceiling
        else:
            changed = rates = self.rates()
            if entry.limits is not kept:
                rates.replace(entry.limits)
        changed.paused = changed.paused if entry.paused is kept else entry.paused
        changed.is_changed = True

    # ---------------------------------------------------------------- members and what is over

    def live(self, lease: float, status: str) -> None:
        """Prolong the lease of this member, which is made if it is not there (any more)."""
        self._execute(
            "INSERT OR REPLACE INTO members (id, pacer, deadline, lease, status) VALUES (?, ?, ?, ?, ?)",
            (self._member, self.pacer, self.now + lease, lease, status),
        )

    def use(self, epochs: Iterable[int]) -> None:
        """Note the time of day at which these runs were used."""
        used_at = time.time()
        for epoch in epochs:
            self._execute("UPDATE runs SET used_at = ? WHERE epoch = ?", (used_at, epoch))

    def sweep(self) -> None:
        """Book what members hold whose lease has run out."""
        self._is_swept = True
        # A deadline of before a step back of the clock is as late as one given now.
        self._execute("UPDATE members SET deadline = ? + lease WHERE deadline > ? + lease", (self.now, self.now))
        dead = self._execute("SELECT id FROM members WHERE deadline <= ?", (self.now,)).fetchall()
        if not dead:
            return
        self.write()
        for (member,) in dead:
            self._lapse(member)
            self.drop(member)
            self._execute("DELETE FROM members WHERE id = ?", (member,))
        self._runs = {name: self.run_of(run.epoch) for name, run in self._runs.items()}

    def _lapse(self, member: str) -> None:
        key = member, OPEN
        rows = self._execute(
            "SELECT run, SUM(amount), COUNT(*) FROM holds WHERE member = ? AND state = ? GROUP BY run", key
        ).fetchall()
        for epoch, amount, count in rows:
            run = self.run_of(epoch)
            run.sums[HELD] -= amount
            run.sums[IN_FLIGHT] -= count
            run.sums[UNKNOWN] += amount
            run.sums[CALLS] += count
            self._write_run(run)
        self._execute("UPDATE holds SET state = ? WHERE member = ? AND state = ?", (LAPSED, *key))

    def drop(self, member: str) -> None:
        """Remove the carves and claims of a member."""
        rows = self._execute("SELECT run, SUM(amount) FROM carves WHERE member = ? GROUP BY run", (member,)).fetchall()
        for epoch, amount in rows:
            run = self.run_of(epoch)
            run.sums[CARVED] -= amount
            self._write_run(run)
        self._execute("DELETE FROM carves WHERE member = ?", (member,))
        self._execute("DELETE FROM claims WHERE member = ?", (member,))

    def leave(self) -> None:
        """The member goes; what it holds lapses when next somebody looks."""
        self.drop(self._member)
        self._execute("UPDATE members SET deadline = ? WHERE id = ?", (self.now, self._member))

    def clear_out(self) -> None:
        """Remove runs that were not used for long, and the pacers that lose their last run with them."""
        rows = self._execute(
            "SELECT epoch, pacer, sums FROM runs WHERE used_at < ?", (time.time() - KEPT_SECONDS,)
        ).fetchall()
        for epoch, pacer, text in rows:
            sums = _read_sums(text)
            if not sums[IN_FLIGHT] and not sums[CARVED]:
                self.remove(epoch, pacer)

    def remove(self, epoch: int, pacer: str) -> None:
        """Remove a run and all that belongs to it, and its pacer with the last one."""
        self._execute("DELETE FROM runs WHERE epoch = ?", (epoch,))
        self._execute("DELETE FROM holds WHERE run = ?", (epoch,))
        self._execute("DELETE FROM carves WHERE run = ?", (epoch,))
        self._execute("DELETE FROM claims WHERE run = ?", (epoch,))
        self._execute(
            "DELETE FROM pacers WHERE name = ? AND NOT EXISTS (SELECT 1 FROM runs WHERE pacer = pacers.name)", (pacer,)
        )

    # ---------------------------------------------------------------- whole runs

    def create(self, run: str, ceiling: int | None, limits: tuple[Limit, ...]) -> int:
        """Make the pacer and the run if they are not there; the epoch of the run."""
        levels = [limit.burst for limit in limits]
        self._execute(
            """INSERT OR IGNORE INTO pacers (name, limits, levels, refunds, stamp, paused, revision)
            VALUES (?, ?, ?, ?, ?, 0, 0)""",
            (self.pacer, _text(limits), _text(levels), _text([0] * len(limits)), self.now),
        )
        self._execute(
            """INSERT OR IGNORE INTO runs (epoch, pacer, name, ceiling, paused, numbers, sums, used_at)
            VALUES (?, ?, ?, ?, 0, 0, ?, 0)""",
            (1 + secrets.randbits(62), self.pacer, run, ceiling, _text([0] * len(SUMS))),
        )
        return self.epoch_of(run)

    def rows(self) -> list[RunRow]:
        """Every run of the file."""
        pacers = {
            name: self.rates_of(*row)
            for name, *row in self._execute("SELECT name, limits, levels, refunds, stamp, paused, revision FROM pacers")
        }
        members: dict[str, tuple[str, ...]] = {}
        for pacer, status in self._execute("SELECT pacer, status FROM members WHERE status <> '' ORDER BY id"):
            members[pacer] = (*members.get(pacer, ()), status)
        found = self._execute("SELECT pacer, name, epoch, used_at FROM runs ORDER BY used_at, pacer, name").fetchall()
        return [
            RunRow(
                pacer,
                name,
                self.run_of(epoch).books(),
                pacers[pacer].limits,
                {str(kind): level for kind, level in pacers[pacer].by_kind().items()},
                used_at,
                members.get(pacer, ()),
            )
            for pacer, name, epoch, used_at in found
        ]


def _fitting(run: _Run, entry: Hold, extra: int) -> int | None:
    """Tokens that may be held under the ceiling, ``extra`` carved out along with them; None if it is too little."""
    if run.ceiling is None:
        return entry.worst
    room = run.ceiling - run.gone
    amount = min(entry.worst, room - extra)
    if amount < entry.least or max(amount + extra, entry.room) > room - run.sums[HELD] - run.ahead:
        return None
    return amount


def _text(value: object) -> str:
    return _to_json(value).decode()
