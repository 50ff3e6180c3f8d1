"""A contract's audit of single records. Pure: one record and a time in, findings out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from libs.ownership.model import Row


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding."""

    meaning: str
    """Meaning, in a sentence."""
    acceptable: bool = True
    """An operator may accept the finding, since the record moves unchanged. If False, a move would lose or change
    data."""


class Finding(NamedTuple):
    kind: str
    detail: str
    """Description without secrets."""


class RecordAudit(Protocol):
    """Audits single records."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Every kind that `findings` may report, by name."""
        ...

    def findings(self, row: Row, now_seconds: float) -> list[Finding]:
        """The findings about a record; a kind may occur several times. Never raises."""
        ...

    def views(self, row: Row) -> Mapping[int, bytes]:
        """The record as clients read it, by schema version; {} if it cannot be decoded."""
        ...

    def folded(self, key: str) -> str:
        """The key in a form that is equal for names which a person would confuse."""
        ...
