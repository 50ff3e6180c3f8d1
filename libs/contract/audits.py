"""What a contract knows of its records' dirt. Pure: one record, a clock as an argument, findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from libs.ownership.model import Row


@dataclass(frozen=True, slots=True)
class Kind:
    """Of findings."""

    meaning: str
    """In a sentence."""
    acceptable: bool = True
    """A person may decide to leave it as it is: it moves as it is. Else moving would lose or change something."""


class Finding(NamedTuple):
    kind: str
    detail: str
    """In words. It shows nothing that may be a secret."""


class RecordAudit(Protocol):
    """Looks at single records."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """All that `findings` may find, by name."""
        ...

    def findings(self, row: Row, now_seconds: float) -> list[Finding]:
        """What is wrong with the record; several of one kind are several findings. Never raises."""
        ...

    def views(self, row: Row) -> Mapping[int, bytes]:
        """What clients read of the record, by the schema version that they speak; {} for what is not understood."""
        ...

    def folded(self, key: str) -> str:
        """Two names that a person would take for the same one are equal when folded."""
        ...
