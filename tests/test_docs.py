"""The README says what is true: its settings, its commands, its examples, its picture of the rooms."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from pacer import settings
from pacer.usage import Status

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = re.search(r"## Rooms\n\n```text\n(.*?)```", README, re.DOTALL)


def test_the_settings_table_is_complete_and_its_defaults_are_right():
    table = README.split("## Settings")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE))
    documented = {name: default.strip("`") for names, default in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert set(documented) == set(settings.Settings.model_fields)
    shown = {None: "none", True: "on", False: "off"}
    for name, field in settings.Settings.model_fields.items():
        if name != "burst":
            default = field.default
            assert documented[name] == (
                shown[default] if default is None or isinstance(default, bool) else str(default)
            ), name


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_example_parses_and_its_imports_exist(example: str):
    tree = ast.parse(example)
    imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "README", "exec"), {})


def test_the_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_picture_shows_every_room():
    assert ROOMS is not None
    for package in ("pacer", "transports"):
        for path in (ROOT / package).rglob("*.py"):
            room = path.parent.name + "/" if path.parent.name in ("store",) else path.name
            assert room in ROOMS[1] or path.name == "__init__.py", path
    for name in re.findall(r"(\w+\.py)", ROOMS[1]):
        assert any(list((ROOT / package).rglob(name)) for package in ("pacer", "transports")), name


def test_the_table_of_sdks_names_the_versions_that_are_tested():
    """All of them, and each as pinned for ``.venv-sdks``."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["sdks"]
    tested = {re.sub(r"\[.*]", "", pin).rpartition(".")[0].replace("==", " ") for pin in pins if "==" in pin}
    assert set(re.findall(r"^\| ([\w-]+ \d+\.\d+) \|", README, re.MULTILINE)) == tested


def test_what_the_readme_says_of_the_status_exists():
    for field in re.findall(r"status\(\)\.(\w+)", README):
        assert field in Status.__struct_fields__, field


def test_names_of_metrics_are_those_of_the_code():
    code = (ROOT / "pacer" / "telemetry.py").read_text()
    for name in re.findall(
        r"`(pacer\.(?:request|queued|active|token|uncharged|wait|refused|budget|estimate)[\w.]*)`", README
    ):
        assert f'"{name}"' in code, name
    metrics = re.findall(r'_meter\.create_\w+\(\s*"([\w.]+)"', code)
    assert len(metrics) == 12
    for name in metrics:
        assert f"`{name}`" in README, name
