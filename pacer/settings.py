"""PACER_* variables and constructor arguments become checked values. The only importer of pydantic and its settings.

A constructor argument wins over its variable. Nothing malformed is ever ignored: a limit that cannot be read is an
error, not a limit that is off.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict, Unpack

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pacer.errors import SettingsError

LARGEST = 2**53 - 1
_PLAIN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kM]?)", re.ASCII)
_STORES = re.compile(r"memory:$|sqlite:.|(?:redis|rediss|valkey|valkeys|unix)://.")
_FACTOR = {"": 1, "k": 1_000, "M": 1_000_000}
LEAST_LEASE_SECONDS = 1.0
OF_A_TRANSPORT = frozenset({"refusal", "retries", "include_usage", "output_cap", "on_5xx"})
"""Settings in which transports of one run may differ."""
_NUMBER = "a plain number such as 2000, 500k or 1.5M"


def _number(value: object) -> float:
    if isinstance(value, str) and (match := _PLAIN.fullmatch(value)):
        value = float(Decimal(match[1]) * _FACTOR[match[2]])  # 8.19 * 1_000 is no whole number
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise ValueError
    return float(value)


def _amount(value: object) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _rate(value: object) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number == 0:
        raise ValueError
    return number


def _seconds(value: object) -> float | None:
    return None if value is None else _number(value)


def _run(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", value, re.ASCII):
        raise ValueError
    return value


def _store(value: object) -> str:
    if isinstance(value, str) and "\0" not in value and _STORES.match(value):
        kind, _, path = value.partition(":")
        # A shell leaves "~" as it is in the middle of a word: nobody means a directory of that name.
        return f"{kind}:{os.path.expanduser(path)}" if kind == "sqlite" else value
    raise ValueError


def _lease(value: object) -> float:
    seconds = _number(value)
    if seconds < LEAST_LEASE_SECONDS:
        raise ValueError
    return seconds


def _switch(value: object) -> bool:
    answers = {"on": True, "off": False, True: True, False: False}
    if not isinstance(value, str | bool) or value not in answers:
        raise ValueError
    return answers[value]


Profile = Literal["none", "host", "openai", "azure", "anthropic", "gemini", "bedrock", "groq"]
RateSetting = Annotated[float | None, BeforeValidator(_rate)]
AmountSetting = Annotated[int | None, BeforeValidator(_amount)]
CountSetting = Annotated[int, BeforeValidator(_amount)]

_RATE = f"{_NUMBER}, above 0"
_ACCEPTED = {
    "tokens_per_second": _RATE,
    "tokens_per_minute": _RATE,
    "input_tokens_per_minute": _RATE,
    "output_tokens_per_minute": _RATE,
    "requests_per_minute": _RATE,
    "requests_per_second": _RATE,
    "burst": f"{_RATE}, in tokens",
    "ceiling": f"a whole number of tokens from 0, {_NUMBER}",
    "agent_ceiling": f"a whole number of tokens from 0, {_NUMBER}",
    "spawn_threshold": f"a whole number of tokens from 0, {_NUMBER}",
    "wrap_up_reserve": f"a whole number of tokens from 0, {_NUMBER}",
    "order": "fair or finish_first",
    "on_limit": "wait or refuse",
    "max_wait": "seconds from 0",
    "unknown": "worst or seen",
    "on_5xx": "void or unknown",
    "profile": "none, host, openai, azure, anthropic, gemini, bedrock or groq",
    "output_cap": "lower, inject or leave",
    "refusal": "response or raise",
    "retries": "a whole number from 0",
    "include_usage": "on or off",
    "store": "memory:, sqlite:PATH, or redis://, rediss://, valkey://, valkeys:// or unix:// and where it is",
    "store_failure": "refuse or pass",
    "store_grace": "seconds from 0",
    "lease": f"seconds from {LEAST_LEASE_SECONDS:g}",
    "update_limits": "on or off",
    "run": "1 to 128 of the characters A-Z a-z 0-9 . _ : -",
}


class SettingsInput(TypedDict, total=False):
    """The keyword arguments of ``BudgetTransport`` and ``Pacer``; strings are read as in the environment."""

    tokens_per_second: float | str | None
    tokens_per_minute: float | str | None
    burst: float | str | None
    input_tokens_per_minute: float | str | None
    output_tokens_per_minute: float | str | None
    requests_per_minute: float | str | None
    requests_per_second: float | str | None
    ceiling: int | str | None
    agent_ceiling: int | str | None
    spawn_threshold: int | str
    wrap_up_reserve: int | str
    order: Literal["fair", "finish_first"]
    on_limit: Literal["wait", "refuse"]
    max_wait: float | str | None
    unknown: Literal["worst", "seen"]
    on_5xx: Literal["void", "unknown"]
    profile: Profile
    output_cap: Literal["lower", "inject", "leave"]
    refusal: Literal["response", "raise"]
    retries: int | str
    include_usage: bool | Literal["on", "off"]
    store: str
    store_failure: Literal["refuse", "pass"]
    store_grace: float | str
    lease: float | str
    update_limits: bool | Literal["on", "off"]
    run: str


class RatesInput(TypedDict, total=False):
    """The rates that may change while calls go on."""

    tokens_per_second: float | str | None
    tokens_per_minute: float | str | None
    burst: float | str | None
    input_tokens_per_minute: float | str | None
    output_tokens_per_minute: float | str | None
    requests_per_minute: float | str | None


class Settings(BaseSettings):
    """All settings, checked. Rates in tokens or requests, times in seconds; ``None`` means no limit."""

    model_config = SettingsConfigDict(env_prefix="PACER_", extra="forbid", frozen=True)

    tokens_per_second: RateSetting = None
    tokens_per_minute: RateSetting = None
    burst: RateSetting = None
    input_tokens_per_minute: RateSetting = None
    output_tokens_per_minute: RateSetting = None
    requests_per_minute: RateSetting = None
    requests_per_second: RateSetting = None
    ceiling: AmountSetting = None
    agent_ceiling: AmountSetting = None
    spawn_threshold: CountSetting = 0
    wrap_up_reserve: CountSetting = 0
    order: Literal["fair", "finish_first"] = "fair"
    on_limit: Literal["wait", "refuse"] = "wait"
    max_wait: Annotated[float | None, BeforeValidator(_seconds)] = None
    unknown: Literal["worst", "seen"] = "worst"
    on_5xx: Literal["void", "unknown"] = "void"
    profile: Profile = "none"
    output_cap: Literal["lower", "inject", "leave"] = "lower"
    refusal: Literal["response", "raise"] = "response"
    retries: CountSetting = 0
    include_usage: Annotated[bool, BeforeValidator(_switch)] = True
    store: Annotated[str, BeforeValidator(_store)] = Field("memory:", repr=False)
    store_failure: Literal["refuse", "pass"] = "refuse"
    store_grace: Annotated[float, BeforeValidator(_number)] = 2.0
    lease: Annotated[float, BeforeValidator(_lease)] = 60.0
    update_limits: Annotated[bool, BeforeValidator(_switch)] = False
    run: Annotated[str, BeforeValidator(_run)] = "default"

    def limits(self) -> dict[str, object]:
        """What all who share the run must agree on: everything that is not a transport's own affair."""
        return self.model_dump(exclude={*OF_A_TRANSPORT, "run", "update_limits"})

    def limits_set(self) -> dict[str, object]:
        """The limits that were named by an argument or a variable."""
        return {name: value for name, value in self.limits().items() if name in self.model_fields_set}


class _WithoutEnvironment(Settings):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load(**given: Unpack[SettingsInput]) -> Settings:
    """Settings from arguments and, where an argument is missing, from ``PACER_*``.

    Raises: SettingsError naming the setting, its value and what is accepted.
    """
    for name in os.environ:
        if name.upper().startswith("PACER_"):
            known(name.upper().removeprefix("PACER_").lower(), shown=name)
    return _build(Settings, given)


def explicit(**given: Unpack[SettingsInput]) -> Settings:
    """Settings from arguments alone. Raises: SettingsError."""
    return _build(_WithoutEnvironment, given)


def changed_rates(now: Settings, **given: Unpack[RatesInput]) -> Settings:
    """The settings with these rates in place of those there were. Raises: SettingsError."""
    if foreign := sorted(given.keys() - RatesInput.__annotations__.keys()):
        raise SettingsError(f"{', '.join(foreign)} is no rate: give {', '.join(RatesInput.__annotations__)}")
    rates = {name: getattr(now, name) for name in RatesInput.__annotations__}
    if given.keys() & {"tokens_per_second", "tokens_per_minute"}:  # one takes the place of the other
        rates |= {"tokens_per_second": None, "tokens_per_minute": None, "burst": None}
    changed = explicit(**{**rates, **given})
    return now.model_copy(update={name: getattr(changed, name) for name in rates})


def for_transport(pacers: Settings, **given: Unpack[SettingsInput]) -> Settings:
    """The settings of one transport of a pacer: the pacer's, but for what is the transport's own affair.

    Raises: SettingsError, also for a limit: those are set on the pacer.
    """
    own = explicit(**given)
    if foreign := sorted(own.model_fields_set - OF_A_TRANSPORT):
        raise SettingsError(f"{', '.join(foreign)} given beside pacer=: the limits of a pacer are set on the pacer")
    return pacers.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def _build(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    for name in given:
        known(name, shown=name)
    try:
        settings = kind(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(row["loc"][0], row["input"], given) for row in error.errors())) from None
    _check_together(settings)
    return settings


def _explain(name: object, value: object, given: Mapping[str, Any]) -> str:
    name = str(name).lower().removeprefix("pacer_")
    named = name if name in given else f"PACER_{name.upper()}"
    return f"{named}={shown(name, value)!r} is not accepted: give {_ACCEPTED[name]}"


def shown(name: str, value: object) -> object:
    """A value as it may be shown: the address of a store, misspelt too, without user, password or query."""
    if name != "store" or not isinstance(value, str) or value.startswith("sqlite:"):
        return value
    scheme, mark, rest = value.partition("://")
    _, at, place = (rest if mark else value).rpartition("@")
    place = place.partition("?")[0]
    return f"{scheme}://{place}" if mark else f"...@{place}" if at else place


def known(name: str, shown: str) -> None:
    """Whether there is such a setting. Raises: SettingsError with the one that is near, by what was ``shown``."""
    if name in _ACCEPTED:
        return
    near = difflib.get_close_matches(name, _ACCEPTED, n=1)
    hint = f"did you mean {shown[: len(shown) - len(name)]}{_cased(near[0], shown)}?" if near else "it is not a setting"
    raise SettingsError(f"{shown} is unknown: {hint}; accepted are {', '.join(sorted(_ACCEPTED))}")


def _cased(name: str, like: str) -> str:
    return name.upper() if like.isupper() else name


def _check_together(settings: Settings) -> None:
    second, minute = settings.tokens_per_second, settings.tokens_per_minute
    if second is not None and minute is not None:
        raise SettingsError(
            f"tokens_per_second={second:g} and tokens_per_minute={minute:g} are set both "
            "(PACER_TOKENS_PER_SECOND, PACER_TOKENS_PER_MINUTE): give one of them"
        )
    if settings.burst is not None and second is None and minute is None:
        raise SettingsError(
            f"burst={settings.burst:g} (PACER_BURST) needs a rate: give tokens_per_second or tokens_per_minute too"
        )
