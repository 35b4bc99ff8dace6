"""Settings by argument and by variable; what cannot be used is named with its value and with what is accepted."""

from __future__ import annotations

from typing import Any

import pytest

from pacer import settings
from pacer.errors import SettingsError


def test_a_variable_and_an_argument_mean_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PACER_CEILING", "1.5M")
    monkeypatch.setenv("PACER_TOKENS_PER_SECOND", "2k")
    monkeypatch.setenv("PACER_INCLUDE_USAGE", "off")
    from_variables = settings.load()
    assert from_variables.ceiling == 1_500_000
    assert from_variables.tokens_per_second == 2_000
    assert from_variables.include_usage is False
    from_arguments = settings.explicit(ceiling="1.5M", tokens_per_second="2k", include_usage=False)
    assert from_arguments.model_dump() == from_variables.model_dump()


def test_an_argument_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PACER_CEILING", "10")
    assert settings.load(ceiling=20).ceiling == 20
    assert settings.load(ceiling=None).ceiling is None


def test_explicit_settings_do_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PACER_CEILING", "10")
    assert settings.explicit().ceiling is None


@pytest.mark.parametrize(("given", "tokens"), [("8.19k", 8_190), ("1.001M", 1_001_000), ("0.001k", 1)])
def test_a_whole_number_may_be_written_as_a_fraction_of_thousands(given: str, tokens: int):
    assert settings.explicit(ceiling=given).ceiling == tokens


def test_nothing_set_means_no_limit():
    assert settings.load().limits_set() == {}


BAD = [
    *(("tokens_per_second", value) for value in (0, -1, float("nan"), float("inf"), "abc", "1e3", "", True, "٣")),
    *(("ceiling", value) for value in (-1, 0.5, "1e3", "ten", True, 2**60, "1_000", " 5", float("inf"))),
    *(("agent_ceiling", value) for value in (10**400, "9" * 400)),
    *(("burst", value) for value in (0, -5, "x")),
    *(("max_wait", value) for value in (-1, "soon", float("nan"))),
    *(("retries", value) for value in (-1, 1.5, "many")),
    *(("requests_per_second", value) for value in (0, "fast")),
    *(("run", value) for value in ("", "a b", "../x", "x\ny", "x" * 129, "é")),
    ("on_limit", "explode"),
    ("refusal", "quietly"),
    ("include_usage", "maybe"),
    ("unknown", "none"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_argument_is_named_with_its_value_and_what_is_accepted(name: str, value: object):
    bad: dict[str, Any] = {name: value}
    with pytest.raises(SettingsError) as caught:
        settings.explicit(**bad)
    assert f"{name}={value!r} is not accepted: give " in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v in BAD if isinstance(v, str)])
def test_a_bad_variable_is_named_as_a_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"PACER_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert f"PACER_{name.upper()}={value!r} is not accepted: give " in str(caught.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://me:SECRET@host/0?key=SECRET", "http://host/0"),
        ("redis:/me:SECRET@host/0", "...@host/0"),
        ("me:SEC@RET@host:6379?key=SECRET", "...@host:6379"),
        ("host:6379", "host:6379"),
    ],
)
def test_a_password_in_a_misspelt_store_is_not_shown(given: str, shown: str):
    with pytest.raises(SettingsError) as caught:
        settings.explicit(store=given)
    assert str(caught.value).startswith(f"store={shown!r} is not accepted: give memory:")


def test_an_unknown_name_suggests_the_right_one(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingsError, match=r"ceilng is unknown: did you mean ceiling\?"):
        settings.explicit(ceilng=5)  # type: ignore[call-arg]
    monkeypatch.setenv("PACER_TOKENS_PER_SECONDS", "5")
    with pytest.raises(SettingsError, match=r"PACER_TOKENS_PER_SECONDS .* did you mean PACER_TOKENS_PER_SECOND\?"):
        settings.load()


def test_both_forms_of_one_rate_are_one_too_many():
    with pytest.raises(SettingsError, match="tokens_per_second=5 and tokens_per_minute=300 are set both"):
        settings.explicit(tokens_per_second=5, tokens_per_minute=300)


def test_a_burst_without_a_rate_is_a_mistake():
    with pytest.raises(SettingsError, match=r"burst=5 .* needs a rate"):
        settings.explicit(burst=5)


def test_a_ceiling_of_zero_is_a_limit():
    assert settings.explicit(ceiling=0).limits_set() == {"ceiling": 0}


def test_the_home_directory_of_a_store_is_the_users(monkeypatch: pytest.MonkeyPatch):
    """Not a directory that is called ``~``, as a shell leaves it in ``--store sqlite:~/books.db``."""
    monkeypatch.setenv("HOME", "/home/ada")
    assert settings.explicit(store="sqlite:~/books.db").store == "sqlite:/home/ada/books.db"
    assert settings.explicit(store="sqlite:./~/books.db").store == "sqlite:./~/books.db"
    assert settings.explicit(store="redis://host/~").store == "redis://host/~"
