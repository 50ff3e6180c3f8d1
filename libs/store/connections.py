"""How many connections the processes of a store should have to its database, and how many they may have together.

More connections than a database can work with make every call slower: they wait inside it instead of in front of it,
where a wait has a bound and an answer. `baton bench pool` measures where that begins.
"""

from __future__ import annotations

import os
from typing import NamedTuple

APPLY_POOL = 4
"""Connections of a process for the feed, the outbox and upkeep."""
CONTROL_POOL = 3
"""For status, copies and digests."""
OWN = 2
"""One holds a process's locks, one counts its outbox: a write asks how full that is, and waits for no pool."""

ALLOWED = """
SELECT least(
  current_setting('max_connections')::bigint - coalesce((SELECT sum(setting::bigint) FROM pg_settings
    WHERE name IN ('superuser_reserved_connections', 'reserved_connections')), 0),
  (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
  (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()))::integer
"""
"""A PostgreSQL statement: connections that this user may have to this database, all processes together."""

REMEDY = (
    "make the pools smaller (`baton bench pool` shows what size is enough), run fewer processes, or raise"
    " max_connections: else processes do not start, or answer OVERLOADED"
)


def default_request_pool(database_cores: int) -> int:
    """Connections of a process for calls: one at work on each core of the database's machine, one that waits for the
    disk for each of these, and one for the moment between."""
    return 2 * database_cores + 1


def local_cores() -> int:
    """Of this machine."""
    return os.cpu_count() or 1


def per_process(requests: int, apply: int = APPLY_POOL, control: int = CONTROL_POOL) -> int:
    """Connections of a process whose pools are full."""
    return requests + apply + control + OWN


class Connections(NamedTuple):
    """What processes take of what a server allows, when all of them are busy."""

    per_process: int
    """At most."""
    processes: int
    allowed: int

    @property
    def fits(self) -> bool:
        return self.per_process * self.processes <= self.allowed

    def __str__(self) -> str:
        processes = f"{self.processes} process" + ("es" if self.processes != 1 else "")
        needed = self.per_process * self.processes
        return f"{processes} × {self.per_process} connections = {needed}, the server allows {self.allowed}"
