"""A file named at the start for what comes at the end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pacer.cli.outfile import Outfile
from pacer.errors import SettingsError


def test_it_is_there_whole_and_nothing_else_is(tmp_path):
    """Not before it is written, and with nothing beside it afterwards; a file that was there is replaced."""
    path = tmp_path / "r.json"
    outfile = Outfile("--receipt", str(path))
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two é"):
        outfile.write(text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_who_may_read_it_is_up_to_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        Outfile("--receipt", str(tmp_path / "r")).write("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o640


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "r")
    Outfile("--receipt", str(tmp_path / "link")).write("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "r").read_text() == "text"


def test_it_is_where_it_was_named_from_whatever_directory_comes_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outfile = Outfile("--report", "r.html")
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path / "later")
    outfile.write("text")
    assert (tmp_path / "r.html").read_text() == "text"


def test_a_write_that_fails_leaves_nothing(tmp_path):
    outfile = Outfile("--receipt", str(tmp_path / "r"))
    (tmp_path / "r").mkdir()
    with pytest.raises(OSError, match="directory"):
        outfile.write("text")
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]


@pytest.mark.parametrize("named", ["", "no/such/r.json", ".", os.devnull, "nul\0", "link/r"])
def test_what_cannot_be_written_is_an_error_that_names_it(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(Path("nowhere"))
    with pytest.raises(SettingsError) as error:
        Outfile("--receipt", named)
    assert str(error.value).startswith(f"--receipt={named!r} is not accepted: give a file in a directory that can be ")
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]
