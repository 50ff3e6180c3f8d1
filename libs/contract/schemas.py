"""Schema versions of a contract's records, and the metadata that carries a client's version.

A version is a major version. Added fields need no new one, since programs keep unknown fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.errors import BatonError, InvalidField

NEWEST = 0
"""Stands for the newest version in a request for one."""


class SchemaUnknown(BatonError):
    """The record has a schema version that this store does not understand."""

    code = "FAILED_PRECONDITION"
    reason = "SCHEMA_UNKNOWN"

    def __init__(self, version: int, known: str, name: str = "") -> None:
        """`known`: the versions that are understood, in words."""
        what = f"record {name!r}" if name else "the record"
        super().__init__(
            f"{what} has schema version {version}, {known}: it is kept and can be handed over, but neither shown nor"
            " changed: run the newer program there, or move the record to a store that has it",
            schema_version=str(version),
        )
        self.version = version


class RecordCorrupt(BatonError):
    """The record's content does not fit the contract: it is left out of lists, and neither shown nor changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECORD_CORRUPT"

    def __init__(self, name: str) -> None:
        super().__init__(f"record {name!r}: its content cannot be read; baton records show {name} shows it", name=name)


@dataclass(frozen=True, slots=True)
class SchemaVersions:
    """The contract's option `schema`; without it all fields are empty."""

    metadata: str = ""
    """Name of the metadata that carries a client's version."""
    oldest: int = 0
    newest: int = 0
    forms: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Full names of the contract's messages, with those that replace them, by old version."""

    def asked(self, found: Iterable[tuple[str, Any]] | None, default: int = NEWEST) -> int:
        """The schema version of a call, from its metadata; without one, `default`. Raises InvalidField."""
        value = self.sent(found)
        if value is None:
            return default or self.newest
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
        if not self.oldest <= number <= self.newest:
            raise InvalidField(self.metadata, value, str(self))
        return number

    def sent(self, found: Iterable[tuple[str, Any]] | None) -> str | None:
        """The version as the call sent it; None if it sent none."""
        if not self.metadata:
            return None
        values = [value for name, value in found or () if name == self.metadata]
        return str(values[-1]) if values else None

    def is_old(self, version: int) -> bool:
        return version < self.newest

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"


ONE_SCHEMA = SchemaVersions()
