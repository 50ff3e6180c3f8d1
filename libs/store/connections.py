"""The number of connections that a store's processes use, and the number that its database allows them together.

More connections than a database can work with make every call slower: calls wait inside the database instead of in
front of it, where a wait has a bound and an error. `baton bench pool` measures where that begins.
"""

from __future__ import annotations

import os
from typing import NamedTuple

APPLY_POOL = 4
"""Connections of a process for the feed, the outbox and upkeep."""
CONTROL_POOL = 3
"""Connections of a process for status, copies and digests."""
OWN = 2
"""Connections of a process outside the pools. One holds its locks, the other one counts its outbox: every write needs
that count and must not wait for a pool."""

ALLOWED = """
SELECT least(
  current_setting('max_connections')::bigint - coalesce((SELECT sum(setting::bigint) FROM pg_settings
    WHERE name IN ('superuser_reserved_connections', 'reserved_connections')), 0),
  (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
  (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()))::integer
"""
"""A PostgreSQL statement that returns how many connections this user may have to this database, all processes
together."""

REMEDY = (
    "make the pools smaller (`baton bench pool` shows a sufficient size), run fewer processes, or raise"
    " max_connections; otherwise processes fail to start, or answer OVERLOADED"
)


class PoolState(NamedTuple):
    """A pool of database connections."""

    name: str
    in_use: int
    size: int
    """Maximum number of connections."""
    waiting: int
    """Requests that wait for a connection."""
    timeouts: int
    """Requests that got none in time, since the start."""


def default_request_pool(database_cores: int) -> int:
    """Return a process's connections for calls. For each core of the database's machine, one works and one waits for
    the disk; one more covers the moment between the two."""
    return 2 * database_cores + 1


def local_cores() -> int:
    return os.cpu_count() or 1


def per_process(requests: int, apply: int = APPLY_POOL, control: int = CONTROL_POOL) -> int:
    """Return the connections of a process whose pools are full."""
    return requests + apply + control + OWN


class Connections(NamedTuple):
    """The connections that all processes need when they are busy, and the number that the server allows."""

    per_process: int
    """Maximum for a single process."""
    processes: int
    allowed: int

    @property
    def fits(self) -> bool:
        return self.per_process * self.processes <= self.allowed

    def __str__(self) -> str:
        processes = f"{self.processes} process" + ("es" if self.processes != 1 else "")
        needed = self.per_process * self.processes
        return f"{processes} × {self.per_process} connections = {needed}, the server allows {self.allowed}"
