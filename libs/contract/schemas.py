"""The schema versions of a contract's records: which a client may speak, and how it says which one it does.

A version is one number, a major version: what only adds fields needs no new one, since fields that a program does not
know are kept anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.errors import BatonError, InvalidField

NEWEST = 0
"""Of a version that is asked for: whatever the newest is."""


class SchemaUnknown(BatonError):
    """The record has a schema version that this store does not understand."""

    code = "FAILED_PRECONDITION"
    reason = "SCHEMA_UNKNOWN"

    def __init__(self, version: int, known: str, name: str = "") -> None:
        """`known`: what is understood, in words."""
        what = f"record {name!r}" if name else "the record"
        super().__init__(
            f"{what} has schema version {version}, {known}: it is kept and can be handed over, but neither shown nor"
            " changed: run the newer program there, or move the record to a store that has it",
            schema_version=str(version),
        )
        self.version = version


class RecordCorrupt(BatonError):
    """The record's content is not one of the contract: it is left out of lists, and neither shown nor changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECORD_CORRUPT"

    def __init__(self, name: str) -> None:
        super().__init__(f"record {name!r}: its content cannot be read; baton records show {name} shows it", name=name)


@dataclass(frozen=True, slots=True)
class SchemaVersions:
    """From the contract's option `schema`; without it all is 0."""

    metadata: str = ""
    """Where a client says its version."""
    oldest: int = 0
    newest: int = 0
    forms: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Of old versions: full names of the contract's messages, and of the messages that callers mean by them."""

    def asked(self, found: Iterable[tuple[str, Any]] | None, default: int = NEWEST) -> int:
        """The version that a call speaks, from its metadata; without one it is `default`. Raises InvalidField."""
        value = self.said(found)
        if value is None:
            return default or self.newest
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
        if not self.oldest <= number <= self.newest:
            raise InvalidField(self.metadata, value, str(self))
        return number

    def said(self, found: Iterable[tuple[str, Any]] | None) -> str | None:
        """As the call says it; None when it says nothing."""
        if not self.metadata:
            return None
        values = [value for name, value in found or () if name == self.metadata]
        return str(values[-1]) if values else None

    def is_old(self, version: int) -> bool:
        return version < self.newest

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"


ONE_SCHEMA = SchemaVersions()
