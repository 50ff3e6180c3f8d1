"""Entries of files with identities."""

from __future__ import annotations

import tomllib
from typing import Any


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
