"""Outbox, feed and upkeep of a store on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Record, Version
from libs.store import engine_apply
from libs.store.limits import PRUNE_ROWS, PULL_BYTES
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import Applied, FeedState, Parked
from libs.store.sqlite_core import Core
from libs.store.sqlite_guards import removing
from libs.store.sqlite_transaction import SqliteTransactions, drop
from libs.store.transaction import Lane

ACK_CHANGES = 50
"""Changes that one job acknowledges. Such a job is as long as a few writes, so it shares their transactions."""


@dataclass(frozen=True)
class SqliteOutbox:
    core: Core

    async def pull(
        self, limit: int, wait_seconds: float, without: Collection[tuple[str, Version]] = ()
    ) -> list[ChangeEntry]:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_seconds
        changed = self.core.changed
        while True:
            # Clear the event before the read, so that a commit after the read ends the wait.
            changed.clear()
            entries = await self.core.database.read(partial(_pull, limit, without))
            if entries or loop.time() >= until:
                return entries
            try:
                async with asyncio.timeout_at(until):
                    await changed.wait()
            except TimeoutError:
                return []

    async def ack(self, changes: Sequence[tuple[str, Version]]) -> int:
        removed = 0
        for start in range(0, len(changes), ACK_CHANGES):
            some = changes[start : start + ACK_CHANGES]
            removed += await self.core.database.write(partial(self._ack, some))
        return removed

    def _ack(self, changes: Sequence[tuple[str, Version]], connection: sqlite3.Connection) -> int:
        sizes: list[int] = []
        with self.core.outbox_job(connection):
            for key, version in changes:
                removed = connection.execute(
                    "DELETE FROM outbox WHERE key = ? AND term = ? AND revision = ? RETURNING size", (key, *version)
                )
                sizes += [size for (size,) in removed.fetchall()]
            self.core.book.removed(sizes)
        return len(sizes)

    async def unlogged(self, changes: Sequence[tuple[str, Version]]) -> set[tuple[str, Version]]:
        return await self.core.database.read(partial(_unlogged, changes))

    async def depth(self) -> Depth:
        return await self.core.database.write(self._depth, background=True)

    def _depth(self, connection: sqlite3.Connection) -> Depth:
        with self.core.outbox_job(connection):
            return self.core.book.depth(connection)


def _pull(limit: int, without: Collection[tuple[str, Version]], connection: sqlite3.Connection) -> list[ChangeEntry]:
    entries: list[ChangeEntry] = []
    size = 0
    cursor = connection.execute(
        "SELECT key, term, revision, event, traceparent FROM outbox ORDER BY id LIMIT ?",
        (max(1, limit) + len(without),),
    )
    for key, term, revision, event, traceparent in cursor:
        version = Version(term, revision)
        if (key, version) in without:
            continue
        size += len(event)
        if entries and (size > PULL_BYTES or len(entries) >= limit):
            break
        entries.append(ChangeEntry(key, version, event, traceparent))
    cursor.close()
    return entries


def _unlogged(changes: Sequence[tuple[str, Version]], connection: sqlite3.Connection) -> set[tuple[str, Version]]:
    named = "WHERE key = ? AND term = ? AND revision = ?"
    find = f"SELECT 1 FROM outbox {named} UNION ALL SELECT 1 FROM aside {named}"
    return {(key, version) for key, version in changes if connection.execute(find, (key, *version) * 2).fetchone()}


@dataclass(frozen=True)
class SqliteFeed:
    core: Core
    transactions: SqliteTransactions

    async def state(self) -> FeedState:
        return await self.core.database.read(_feed_state)

    async def parked(self, limit: int, position: tuple[int, int] | None = None) -> list[Parked]:
        return await self.core.database.read(partial(_parked, limit, position))

    async def parked_after(self, position: tuple[int, int], limit: int) -> list[Parked]:
        return await self.core.database.read(partial(_parked_after, position, limit))

    async def unpark(self, partition: int, offset: int, record: Record) -> Applied:
        unpark = partial(engine_apply.unpark, partition=partition, offset=offset, record=record)
        return await self.transactions.run(unpark, Lane.FEED)

    async def drop(self, partition: int, offset: int) -> bool:
        return await self.core.database.write(partial(drop, partition, offset), background=True)

    async def drop_unauthenticated(self) -> int:
        return await self.core.database.write(_drop_unauthenticated, background=True)

    async def restart(self, next_offsets: Mapping[int, int]) -> None:
        await self.core.database.write(partial(_restart, list(next_offsets.items())), background=True)

    async def start_checking(self, offsets: Mapping[int, int]) -> Mapping[int, int]:
        return await self.core.database.write(partial(_start_checking, list(offsets.items())), background=True)

    async def stop_checking(self) -> None:
        await self.core.database.write(_stop_checking, background=True)

    async def claim(self, partitions: int) -> Sequence[int]:
        """Return all partitions: the file has one process."""
        return range(partitions)


def _drop_unauthenticated(connection: sqlite3.Connection) -> int:
    return connection.execute("DELETE FROM parked WHERE unauthenticated").rowcount


def _restart(offsets: Sequence[tuple[int, int]], connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM progress")
    connection.executemany("INSERT INTO progress (part, next) VALUES (?, ?)", offsets)
    connection.execute("UPDATE checked_from SET start = 0")


def _start_checking(offsets: Sequence[tuple[int, int]], connection: sqlite3.Connection) -> dict[int, int]:
    recorded = dict(connection.execute("SELECT part, start FROM checked_from").fetchall())
    if not recorded:
        connection.executemany("INSERT INTO checked_from VALUES (?, ?)", offsets)
    return recorded or dict(offsets)


def _stop_checking(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM checked_from")


def _feed_state(connection: sqlite3.Connection) -> FeedState:
    """Read offsets and counters in one statement, so that they are of one moment."""
    offsets: dict[int, int] = {}
    marks: dict[int, str] = {}
    checked_from: dict[int, int] = {}
    counters: dict[str, int] = {}
    found = connection.execute(
        "SELECT 'next', part, next, mark FROM progress UNION ALL SELECT name, 0, value, '' FROM counter"
        " UNION ALL SELECT 'parked_now', 0, count(*), '' FROM parked"
        " UNION ALL SELECT 'unauthenticated_now', 0, count(*), '' FROM parked WHERE unauthenticated"
        " UNION ALL SELECT 'from', part, start, '' FROM checked_from"
    )
    for name, part, value, mark in found:
        if name == "next":
            offsets[part], marks[part] = value, mark
        elif name == "from":
            checked_from[part] = value
        else:
            counters[name] = value
    return FeedState(offsets, marks, **counters, checked_from=checked_from)


_PARKED = "SELECT part, at, key, reason, event, headers, topic, unauthenticated FROM parked"


def _parked_from(values: Sequence[Any]) -> Parked:
    part, at, key, reason, event, headers, topic, unauthenticated = values
    return Parked(part, at, key, reason, event, headers, topic, bool(unauthenticated))


def _parked_after(position: tuple[int, int], limit: int, connection: sqlite3.Connection) -> list[Parked]:
    found = connection.execute(f"{_PARKED} WHERE (part, at) > (?, ?) ORDER BY part, at LIMIT ?", (*position, limit))
    return [_parked_from(values) for values in found]


def _parked(limit: int, position: tuple[int, int] | None, connection: sqlite3.Connection) -> list[Parked]:
    place = "WHERE part = ? AND at = ?" if position else ""
    found = connection.execute(f"{_PARKED} {place} ORDER BY rowid LIMIT ?", (*(position or ()), limit))
    return [_parked_from(values) for values in found]


@dataclass(frozen=True)
class SqliteUpkeep:
    core: Core

    async def tick(self, elapsed_seconds: float) -> None:
        await self.core.database.write(partial(_tick, elapsed_seconds), background=True)

    async def prune(self) -> int:
        return await self.core.database.write(_prune, background=True)


def _tick(elapsed_seconds: float, connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE tick SET seconds = seconds + ?", (max(0.0, elapsed_seconds),))


def _prune(connection: sqlite3.Connection) -> int:
    """Requests are learned in the order of their ids, so only the first ones are examined."""
    with removing(connection, "served"):
        return connection.execute(
            "DELETE FROM served WHERE id IN (SELECT id FROM served ORDER BY id LIMIT ?)"
            " AND learned < (SELECT seconds FROM tick) - ?",
            (PRUNE_ROWS, RETRY_WINDOW_SECONDS),
        ).rowcount
