"""A file with credentials: who may read it, and reading it again when it changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from libs.clock import Clock
from libs.errors import BatonError
from libs.tls.files import is_open_to_all

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""Shortest interval between two looks at a file."""
MAX_FILE_BYTES = 1024 * 1024


class UnfitFile(BatonError):
    """A file with credentials cannot be used."""


class SecretFile(Generic[T]):
    """The parsed content of a file. A changed file is read within LOOK_SECONDS of the next use. If it is not valid, the
    last good content stays in force."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], T],
        clock: Clock,
        name: str = "the file",
        unfit: type[BatonError] = UnfitFile,
    ) -> None:
        """`parse`: raises ValueError with the entry and the remedy, without secrets. `name`: for errors. Raises
        `unfit`."""
        self.path = path
        self._parse = parse
        self._clock = clock
        self._name = name
        self._unfit = unfit
        self._seen = _stamp(path)
        self._content = self._read()
        self._look_at = clock.monotonic() + LOOK_SECONDS
        self.trouble = ""
        """Why the changed file is not used; "" if the content is that of the file."""

    def __repr__(self) -> str:
        return f"<SecretFile {self.path}>"

    @property
    def content(self) -> T:
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return self._content

    def _look(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._content = self._read()
        except self._unfit as error:
            self.trouble = error.message
            log.error("%s; the last good content stays in force", error.message)
        else:
            self.trouble = ""
            log.info("%s %s was read again", self._name, self.path)

    def _read(self) -> T:
        shown = f"{self._name} {self.path}"
        try:
            if is_open_to_all(self.path):
                raise self._unfit(
                    f"every user of this machine can read or change {shown}, which has credentials: chmod 600"
                    f" {self.path}"
                )
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise self._unfit(f"{shown} has more than {MAX_FILE_BYTES} bytes")
            return self._parse(data)
        except OSError as error:
            raise self._unfit(f"{shown} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise self._unfit(f"{shown} is not valid: {error}") from None


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes with the file; () if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode
