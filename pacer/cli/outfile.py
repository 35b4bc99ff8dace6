"""A file that the user names for what is known at the end only: checked at the start, put there in one piece."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from pacer.errors import SettingsError


class Outfile:
    """The file that ``option`` names; it appears, or changes, whole. Raises: SettingsError if it cannot be written."""

    def __init__(self, option: str, named: str) -> None:
        try:
            self.path = Path(os.path.realpath(named))  # what a link leads to is replaced, not the link
            if self.path.exists() and not self.path.is_file():
                raise OSError(0, "it is no file")
            self._part().unlink()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"{option}={named!r} is not accepted: give a file in a directory that can be written to ({why})"
            ) from None

    def write(self, text: str) -> None:
        """Put the text there. Raises: OSError."""
        part = self._part()
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(self.path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise

    def _part(self) -> Path:
        """A new empty file beside it; who may read it is up to the umask, for there is nothing secret in it."""
        part = self.path.with_name(f".pacer-{secrets.token_hex(8)}")
        part.touch(exist_ok=False)
        return part
