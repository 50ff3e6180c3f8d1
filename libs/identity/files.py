"""Files with credentials: their permissions, and reading them again when they change."""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from libs.errors import BatonError
from libs.tasks import Loop
from libs.tls.files import is_open_to_all

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""Interval between two looks at a file."""


class UnfitFile(BatonError):
    """A file with credentials cannot be used."""


class WatchedFile(Generic[T]):
    """The parsed content of a file. If a changed file is not valid, the last good content stays in force."""

    def __init__(self, path: Path, parse: Callable[[bytes], T], on_change: Callable[[T], None]) -> None:
        """`parse`: raises ValueError with the entry and the remedy, without secrets. Raises UnfitFile."""
        self.path = path
        self._parse = parse
        self._on_change = on_change
        self._seen = self._state()
        on_change(self._read())

    def __repr__(self) -> str:
        return f"<WatchedFile {self.path}>"

    def loop(self) -> Loop:
        return Loop(f"look at {self.path.name}", self._look)

    def refresh(self) -> None:
        """Read the file if it has changed. Raises UnfitFile, once for each change."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._on_change(self._read())
            log.info("%s was read again", self.path)

    async def _look(self, loop: Loop) -> None:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            self.refresh()
        except UnfitFile as error:
            log.error("%s; the last good content stays in force", error)
        loop.well()

    def _state(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode

    def _read(self) -> T:
        try:
            if is_open_to_all(self.path):
                raise UnfitFile(
                    f"every user of this machine can read or change {self.path}, which has credentials:"
                    f" chmod 600 {self.path}"
                )
            return self._parse(self.path.read_bytes())
        except OSError as error:
            raise UnfitFile(f"{self.path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UnfitFile(f"{self.path} is not valid: {error}") from None


def read_entries(data: bytes, table: str, allowed: frozenset[str]) -> list[dict[str, Any]]:
    """The entries [[table]] of a TOML document, without others and with allowed names only. Raises ValueError."""
    found = tomllib.loads(data.decode("utf-8-sig"))
    entries = found.pop(table, [])
    if found or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"it has only entries [[{table}]]")
    for number, entry in enumerate(entries, 1):
        if unknown := entry.keys() - allowed:
            raise ValueError(
                f"[[{table}]] number {number} has {min(unknown)!r}: there are {', '.join(sorted(allowed))}"
            )
    return entries
