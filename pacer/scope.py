"""Whose call it is: runs and agents as scopes that the context of a task or thread carries.

What a context does not carry (some thread pools, some frameworks) is bound instead: ``scope.bind(client)``,
``BudgetTransport(scope=...)``, or ``scope.headers`` with a call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, Self, TypeVar, cast
from urllib.parse import unquote

import msgspec

from pacer import ledger, settings
from pacer.admission import Admission
from pacer.errors import LimitsConflict, SettingsError
from pacer.ledger import DEFAULT_FRACTIONS, Account, Watch
from pacer.register import living
from pacer.settings import Settings
from pacer.store import Store
from pacer.ticket import Caller
from pacer.usage import Limits, Status, Threshold

HEADER = "x-pacer-agent"
"""Names the scope of one request; it is taken off before the request is sent."""
LONGEST_NAME = 128
LEAST_WEIGHT, LARGEST_WEIGHT = 0.001, 1_000.0
DEEPEST = 256
"""Accounts on the way from the pacer to an agent."""

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


class _Frame(msgspec.Struct, frozen=True, eq=False):
    """What holds from here on in a context, and ``by`` what: the scope, the most that one call may hold, and who wraps
    up.
    """

    by: _Context
    scope: Scope | None
    tokens: int | None
    wraps_up: bool
    outer: _Frame | None


_here: ContextVar[_Frame | None] = ContextVar("pacer", default=None)


class _Context(ABC):
    """What holds while it is entered (``with``), and as a decorator in each call of a function."""

    @abstractmethod
    def __enter__(self) -> object:
        """Let it hold from here on."""

    @abstractmethod
    def __exit__(self, *exc_info: object) -> None:
        """What held before holds again."""

    @abstractmethod
    def _another(self) -> Self:
        """One like this, for another call of a decorated function."""

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Decorate a function or coroutine function: each call of it is a context of its own.

        Raises: TypeError for a generator, in which a context would leak to whoever iterates.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: use `with` inside it")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaiting(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self._another():
                    return await function(*args, **kwargs)

            return awaiting  # type: ignore[return-value]  # T is that coroutine

        @functools.wraps(function)
        def blocking(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._another():
                return function(*args, **kwargs)

        return blocking


class Books(msgspec.Struct, frozen=True, eq=False):
    """What a scope needs of its pacer."""

    store: Store
    settings: Settings


class Scope(_Context):
    """A run or an agent: a context (``with``, ``async with``), a decorator, and the way to its account.

    ``books`` gives its pacer's when they are needed first: a decorator may stand there before there is any.
    """

    def __init__(self, books: Callable[[], Books]) -> None:
        self._books = books
        self._account: Account | None = None
        self._inside = 0
        self._counting = threading.RLock()  # a collection may close a generator that is inside, in the midst of this

    @abstractmethod
    def _open(self) -> Account:
        """The account to use from now on."""

    @abstractmethod
    def _begin(self, account: Account) -> None:
        """Somebody is inside."""

    @abstractmethod
    def _close(self, account: Account) -> None:
        """Nobody is inside any more."""

    @functools.cached_property
    def books(self) -> Books:
        """Its pacer's."""
        return self._books()

    @property
    def store(self) -> Store:
        """Where its pacer's books lie."""
        return self.books.store

    @property
    def account(self) -> Account:
        """The account of the scope; opened when it is needed first, a run's also when it was forgotten meanwhile."""
        account = self._account
        if account is None or (account.ended and account.kind == "run"):
            opened = self._open()
            with self._counting:
                if self._account is account:
                    self._account = opened
                account = self._account or opened
            if account is not opened:  # another thread was quicker
                self._close(opened)
        return account

    @property
    def name(self) -> str:
        """The name it was given."""
        return self.account.name

    def __enter__(self) -> Self:
        if self._account is not None and self._account.ended:
            self._account = None
        assert self.account is not None
        outer = _here.get()
        _here.set(_Frame(self, self, outer.tokens if outer else None, False, outer))
        with self._counting:
            is_first = not self._inside
            self._inside += 1
        if is_first:
            self._begin(self.account)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _leave(self)
        with self._counting:
            self._inside -= 1
            is_last = not self._inside
        if is_last:
            self._close(self.account)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__(*exc_info)

    def agent(
        self,
        name: str,
        *,
        ceiling: int | str | None = None,
        weight: float = 1.0,
        reserve: int | str | None = None,
    ) -> Agent:
        """An agent below this scope, whatever the context. See :func:`pacer.agent`. Raises: SettingsError."""
        return Agent(lambda: self.books, name, ceiling, weight, reserve, parent=self)

    # ---------------------------------------------------------------- what it looks like

    def status(self) -> Status:
        """How it stands at this instant, all agents below it included."""
        return self.store.status(self.account)

    @property
    def limits(self) -> Limits:
        """The limits in force here: a child can only narrow what its ancestors allow."""
        frame = _here.get()
        account, call = self.account, frame.tokens if frame else None

        def look(admission: Admission, now: float) -> Limits:
            capped = [node for node in account.path if node.ceiling is not None]
            narrowest = min(capped, key=lambda node: node.ceiling or 0, default=None)
            return Limits(
                narrowest.ceiling if narrowest else None,
                narrowest.name if narrowest else None,
                min((node.remaining or 0 for node in capped), default=None),
                account.left if account.started else account.reserve,
                call,
                account.turn.weight,
                account.turn.share(),
                admission.tokens_per_second(),
            )

        return self.store.look(look, account)

    def room_for(self, agents: int, *, tokens: int | None = None) -> bool:
        """Whether there is room now for so many more agents that need ``tokens`` each.

        By default that is the ``spawn_threshold``, or the usual size of a call so far if that is more; the
        ``wrap_up_reserve`` of each comes on top. Open calls count with what they hold.
        """
        account, chosen = self.account, self.books.settings

        def look(admission: Admission, now: float) -> bool:
            each = tokens
            if each is None:
                each = max(chosen.spawn_threshold, ledger.usual_call(account) or 0)
            amount = agents * (each + chosen.wrap_up_reserve)
            return all(node.remaining is None or node.remaining >= amount for node in account.path)

        return self.store.look(look, account)

    def forecast(self) -> int | None:
        """How many more calls of the usual size so far the ceilings fund, beside the open ones.

        ``None`` without a ceiling, and as long as no call has ended.
        """
        account = self.account

        def look(admission: Admission, now: float) -> int | None:
            usual = ledger.usual_call(account)
            left = [node.remaining for node in account.path if node.remaining is not None]
            return max(0, min(left)) // usual if usual and left else None

        return self.store.look(look, account)

    # ---------------------------------------------------------------- what can be changed

    def set_ceiling(self, ceiling: int | str | None) -> None:
        """Change the ceiling at once: raising wakes waiters, lowering refuses the hopeless; spending stays.

        Raises: SettingsError.
        """
        account, amount = self.account, _amount("ceiling", ceiling)
        self.store.do(lambda admission, now: admission.set_ceiling(account, amount))

    def pause(self) -> None:
        """Let no call of it go until it is resumed; open calls go on."""
        account = self.account
        self.store.do(lambda admission, now: admission.set_paused(account, True))

    def resume(self) -> None:
        """Let its calls go again."""
        account = self.account
        self.store.do(lambda admission, now: admission.set_paused(account, False))

    def on_threshold(self, tell: Callable[[Threshold], object], *, at: tuple[float, ...] = DEFAULT_FRACTIONS) -> None:
        """Call ``tell`` once for each fraction of the ceiling in ``at``, when it is booked (spent or unknown).

        It is called by whoever settles the call that does it. After a change of the ceiling, what is not booked of the
        new one is told again. Raises: SettingsError for fractions that are not above 0.
        """
        account = self.account
        for fraction in at:
            if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction < float("inf"):
                raise SettingsError(f"at={fraction!r} is not accepted: give fractions of the ceiling, above 0")
        watches = [Watch(float(fraction), tell) for fraction in at]
        self.store.do(lambda admission, now: admission.watch(account, watches))

    # ---------------------------------------------------------------- where no context reaches

    @property
    def headers(self) -> dict[str, str]:
        """Give these with a request (``extra_headers=``) and it is this scope's, whatever the context."""
        return {HEADER: f"#{self.account.id}"}

    def bind(self, client: C) -> C:
        """A client like ``client``, over the same connections, all of whose calls are this scope's.

        For clients of httpx and httpx2, and of SDKs that have ``with_options(default_headers=)`` (openai, anthropic,
        groq). Their transport must be a BudgetTransport of the same pacer. Raises: TypeError for others.
        """
        bound: Any
        if hasattr(client, "with_options"):
            bound = client.with_options(default_headers=self.headers)
        elif hasattr(client, "build_request"):
            bound = copy.copy(client)
            bound.headers = {**client.headers, **self.headers}  # type: ignore[attr-defined]  # an httpx client has them
        else:
            raise TypeError(
                f"{type(client).__qualname__} cannot be bound: give `scope.headers` with its calls, or make its client "
                "with BudgetTransport(scope=...)"
            )
        bound.pacer_scope = self  # nobody else may hold the agent, which ends when nobody does
        return cast(C, bound)


class Run(Scope):
    """One run of a pacer, from :func:`pacer.run`: its name is kept with what was spent under it, however often it is
    entered.
    """

    def __init__(self, books: Callable[[], Books], name: str, ceiling: int | str | None) -> None:
        super().__init__(books)
        self._name = settings.explicit(run=name).run
        self._ceiling = _amount("ceiling", ceiling)

    def _open(self) -> Account:
        ceiling = self.books.settings.ceiling if self._ceiling is None else self._ceiling
        account = self.store.run(self._name, ceiling)
        if self._ceiling is not None and account.ceiling != self._ceiling:
            raise LimitsConflict(
                f"run {self._name!r} is open with ceiling={account.ceiling} and was entered with "
                f"ceiling={self._ceiling}: name another run, or change it with set_ceiling()"
            )
        return account

    def _begin(self, account: Account) -> None:
        self.store.do(lambda admission, now: admission.register.enter_run(account))

    def _close(self, account: Account) -> None:
        self.store.post(lambda admission, now: admission.register.leave_run(account))

    def _another(self) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<Run {line_of(self.status())}>"


class Agent(Scope):
    """One agent, from :func:`pacer.agent`: it starts with its first call and has ended when it is left."""

    def __init__(
        self,
        books: Callable[[], Books],
        name: str,
        ceiling: int | str | None,
        weight: float,
        reserve: int | str | None,
        parent: Scope | None = None,
    ) -> None:
        super().__init__(books)
        self._name = _cleaned(name)
        self._ceiling = _amount("ceiling", ceiling)
        self._reserve = _amount("reserve", reserve)
        self._weight = _checked_weight(weight)
        self._parent = parent

    def _open(self) -> Account:
        parent = self._parent.account if self._parent else _account_here(self.store)
        if len(parent.path) >= DEEPEST:
            raise SettingsError(
                f"agent {self._name!r} has {DEEPEST - 2} agents above it, which is the most: open it at an outer scope"
            )
        chosen = self.books.settings
        ceiling = chosen.agent_ceiling if self._ceiling is None else self._ceiling
        reserve = chosen.wrap_up_reserve if self._reserve is None else self._reserve
        if ceiling is not None and reserve > ceiling:
            raise SettingsError(
                f"reserve={reserve} is not accepted for agent {self._name!r}: give at most its ceiling of {ceiling}"
            )
        return self.store.do(
            lambda admission, now: admission.register.spawn(parent, self._name, ceiling, self._weight, reserve)
        )

    def _begin(self, account: Account) -> None:
        """Its first call is what starts it."""

    def _close(self, account: Account) -> None:
        self.store.post(lambda admission, now: admission.end(account))

    def _another(self) -> Self:
        return type(self)(self._books, self._name, self._ceiling, self._weight, self._reserve, self._parent)

    def end(self) -> None:
        """It takes no more calls; what is left of its reserve is everybody's again. Leaving it does the same."""
        if self._account is not None:
            self._close(self._account)

    def __del__(self) -> None:
        if getattr(self, "_account", None) is not None:
            self.end()

    def __repr__(self) -> str:
        return f"<Agent {line_of(self.status())}>"


class Within(_Context):
    """See :func:`limit` and :func:`wrap_up`."""

    def __init__(self, tokens: int | None, *, wraps_up: bool) -> None:
        self._tokens = tokens
        self._wraps_up = wraps_up

    def __enter__(self) -> None:
        outer = _here.get()
        if outer is None:
            _here.set(_Frame(self, None, self._tokens, self._wraps_up, None))
        else:
            most = min((tokens for tokens in (self._tokens, outer.tokens) if tokens is not None), default=None)
            _here.set(_Frame(self, outer.scope, most, self._wraps_up or outer.wraps_up, outer))

    def __exit__(self, *exc_info: object) -> None:
        _leave(self)

    def _another(self) -> Self:
        return self


def limit(*, tokens: int | str) -> Within:
    """Inside, each call may hold so many tokens at most; an output cap is lowered to fit. Nested, the smallest holds.

    Raises: SettingsError; calls that cannot be made to fit are refused with ``CeilingReached``.
    """
    most = _amount("tokens", tokens)
    if most is None:
        raise SettingsError("tokens=None is not accepted: give a whole number of tokens from 0, or leave the limit out")
    return Within(most, wraps_up=False)


def wrap_up() -> Within:
    """Inside, the calls of the agent at hand (not of agents below it) may spend its reserve; where none was entered,
    those of the agent that a client is bound to.

    A reserve is exempt from every ceiling; the rate holds. Where a call does not fit into it, it is an ordinary one.
    """
    return Within(None, wraps_up=True)


def _leave(context: _Context) -> None:
    frame = _here.get()
    if frame is not None and frame.by is context:  # a generator may be closed in another context
        _here.set(frame.outer)


def current() -> Scope | None:
    """The scope at hand, whichever pacer it belongs to."""
    frame = _here.get()
    return frame.scope if frame is not None else None


def caller(books: Books, bound: Scope | None, named: str | None) -> Caller:
    """Whose the call is that is made here.

    ``named``, the header of the request, tells first; then a scope of the context, if it is below the ``bound`` one;
    then that; then a scope of the context; and without any of them it is the pacer's own run.
    """
    frame = _here.get()
    account = _account_here(books.store)
    if bound is not None and bound.account not in account.path:
        account = bound.account
    account = living(account)
    if named is not None:
        account = _addressed(books, account, named)
    if frame is None:
        return Caller(account)
    at_hand = frame.scope.account if isinstance(frame.scope, Agent) else account
    return Caller(account, frame.tokens, frame.wraps_up and at_hand is account)


def _account_here(store: Store) -> Account:
    frame = _here.get()
    while frame is not None:
        if frame.scope is not None and frame.scope.store is store:
            return living(frame.scope.account)
        frame = frame.outer
    return store.account


def _addressed(books: Books, account: Account, named: str) -> Account:
    if named.startswith("#") and named[1:].isdecimal() and len(named) < 20:
        return books.store.do(lambda admission, now: admission.register.by_id(int(named[1:]))) or account
    name = _cleaned(unquote(named)) if named else account.name
    if name == account.name:
        return account
    ceiling = books.settings.agent_ceiling
    return books.store.do(lambda admission, now: admission.register.named(account, name, ceiling))


def _cleaned(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise SettingsError(
            f"name={name!r} is not accepted for an agent: give a string, {LONGEST_NAME} characters count"
        )
    return name[:LONGEST_NAME].encode("utf-8", "replace").decode()


def _amount(name: str, given: int | str | None) -> int | None:
    try:
        return settings.explicit(ceiling=given).ceiling
    except SettingsError as error:
        raise SettingsError(str(error).replace("ceiling", name, 1)) from None


def _checked_weight(weight: object) -> float:
    if isinstance(weight, int | float) and not isinstance(weight, bool) and LEAST_WEIGHT <= weight <= LARGEST_WEIGHT:
        return float(weight)
    raise SettingsError(f"weight={weight!r} is not accepted: give a number from {LEAST_WEIGHT:g} to {LARGEST_WEIGHT:g}")


def line_of(now: Status) -> str:
    """The operator's line."""
    parts = [f"{now.spent:,} spent + {now.unknown:,} unknown + {now.held:,} held"]
    parts[0] += f" + {now.carved:,} carved out" if now.carved else ""
    parts[0] += "" if now.ceiling is None else f" of {now.ceiling:,}"
    if now.tokens_per_second is not None and now.tokens_available is not None:
        parts.append(f"{now.tokens_available:,.0f} tokens at {now.tokens_per_second:,g}/s")
    if now.server_pause_seconds:
        parts.append(f"paused by the provider for {now.server_pause_seconds:.1f} s")
    if now.agents:
        parts.append(f"{len(now.agents)} agent{'s' if len(now.agents) > 1 else ''}")
    waiting = f"{now.in_flight} in flight, {now.waiting} waiting"
    if now.waits_for is not None:
        waiting += f" for {now.waits_for}"
    if now.next_seconds is not None:
        waiting += f", next in {now.next_seconds:.1f} s"
    return f"{now.name}: {' | '.join([*parts, waiting])}"
