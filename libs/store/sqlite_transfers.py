"""Moving records and absences on a store on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import NamedTuple

from libs.ownership.errors import OutboxFull
from libs.ownership.limits import RELEASE_ANSWER_BYTES
from libs.ownership.model import Absence, Record, Store, bucket_of
from libs.ownership.rules import Outcome, decide_release
from libs.ownership.terms import Fate, declined_absence
from libs.store.port import Applied, FeedStep, Position, Released, ReleaseResult, UnknownPartition
from libs.store.sqlite_core import CHANGED, Core, window
from libs.store.sqlite_recovery import Terms, is_disputed
from libs.store.sqlite_schema import BUCKET, absence_from, values_of
from libs.store.window import size_of

RELEASE_KEYS = 50
"""Keys of one transaction: what a client's write waits for behind a large release."""

APPLY_RECORDS = 200
"""Records of one transaction, when they need not commit with a step."""


class Taken(NamedTuple):
    """Of a batch."""

    applied: int
    journaled: int


class SqliteTransfers:
    """`libs.store.port.Transfers`."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._terms = Terms(core)

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        results: list[ReleaseResult] = []
        room = RELEASE_ANSWER_BYTES
        while room > 0 and len(results) < len(keys):
            some = keys[len(results) : len(results) + RELEASE_KEYS]
            work = partial(self._release_some, some, to, create, room)
            done = await self.core.database.write(work, committed=self.core.committed)
            room -= sum(size_of(result.record) for result in done if result.record)
            results += done
        return Released(tuple(results), tuple(keys[len(results) :]))

    def _release_some(
        self, keys: Sequence[str], to: Store, create: bool, room: int, connection: sqlite3.Connection
    ) -> list[ReleaseResult]:
        results: list[ReleaseResult] = []
        with self.core.outbox_job(connection):
            for key in keys:
                result = self._release(connection, key, to, create=create)
                results.append(result)
                room -= size_of(result.record) if result.record else 0
                if room <= 0:
                    break
        return results

    def _release(self, connection: sqlite3.Connection, key: str, to: Store, *, create: bool) -> ReleaseResult:
        self.core.complete(connection, [key])
        found = self.core.find(connection, key)
        release = decide_release(found, self.core.store, to, create=create)
        if release.row is None:
            return ReleaseResult(key, release.outcome, None, found.absence)
        record = self.core.record(release.row, window(connection, found.row or release.row))
        if release.outcome is Outcome.RELEASE:
            try:
                self.core.hand_over(connection, found, record)
            except OutboxFull:
                return ReleaseResult(key, None, None, found.absence)
        return ReleaseResult(key, release.outcome, record, found.absence)

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        database, written = self.core.database, self.core.written.beat
        if step is not None:
            return await database.write(partial(self._apply_step, records, step), background=True, committed=written)
        applied = journaled = 0
        for start in range(0, len(records), APPLY_RECORDS):
            some = records[start : start + APPLY_RECORDS]
            taken = await database.write(partial(self.take, some), background=True, committed=written)
            applied, journaled = applied + taken.applied, journaled + taken.journaled
        return Applied(applied, len(records) - applied - journaled)

    def _apply_step(self, records: Sequence[Record], step: FeedStep, connection: sqlite3.Connection) -> Applied:
        for position in step.positions:
            _move(connection, position)
        connection.executemany(
            "INSERT OR REPLACE INTO parked (part, at, key, reason, event, headers, topic) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [astuple(parked) for parked in step.parked],
        )
        applied, journaled = self.take(records, connection)
        old = len(records) - applied - journaled
        connection.executemany(
            "UPDATE counter SET value = value + ? WHERE name = ?",
            [
                (applied, "applied"),
                (old + step.skipped, "old"),
                (len(step.parked), "parked"),
                (journaled, "journaled"),
            ],
        )
        return Applied(applied, old)

    def take(self, records: Sequence[Record], connection: sqlite3.Connection) -> Taken:
        """Keeps what is newer, of rows and of served requests."""
        self.core.complete(connection, [record.row.key for record in records])
        applied = journaled = 0
        seized = self._terms.seized_buckets(connection)
        for record in records:
            if record.row.version.term or (seized and bucket_of(record.row.key) in seized):
                fate = self._terms.take(connection, record)
                applied += fate is Fate.NEWER
                journaled += fate is Fate.CONFLICT
                continue
            self.core.learn(connection, record.row.key, record.served)
            values = values_of(record.row, self.core.layout)
            applied += connection.execute(self.core.statements.apply, values).rowcount
        return Taken(applied, journaled)

    async def absences(self, buckets: Sequence[int] = ()) -> list[Absence]:
        return await self.core.database.read(partial(self._absences, buckets))

    def _absences(self, buckets: Sequence[int], connection: sqlite3.Connection) -> list[Absence]:
        some = f"WHERE b.bucket IN ({', '.join('?' for _ in buckets)})" if buckets else ""
        found = connection.execute(f"SELECT {BUCKET} FROM bucket b {some} ORDER BY b.bucket", tuple(buckets))
        return [absence_from(values) for values in found]

    async def release_absence(self, bucket: int, to: Store) -> Absence:
        if to is self.core.store:
            raise ValueError(f"store {to} cannot release an absence to itself")
        self.core.check_complete("a move of a bucket")
        return await self.core.database.write(partial(self._release_absence, bucket, to))

    def _release_absence(self, bucket: int, to: Store, connection: sqlite3.Connection) -> Absence:
        if not is_disputed(connection, bucket):
            released = connection.execute(
                "UPDATE bucket SET version = version + 1, owner = ? WHERE bucket = ? AND owner = ?",
                (to.value, bucket, self.core.store.value),
            )
            if released.rowcount:
                connection.execute(CHANGED)
        return self._absences([bucket], connection)[0]

    async def adopt_absence(self, absence: Absence, *, despite_conflicts: bool = False) -> tuple[bool, Absence]:
        if absence.term:
            # Whether the bucket has rows of a lower term.
            self.core.check_complete("a move of a bucket after a seizure")
        return await self.core.database.write(partial(self._adopt_absence, absence, despite_conflicts))

    def _adopt_absence(
        self, absence: Absence, despite_conflicts: bool, connection: sqlite3.Connection
    ) -> tuple[bool, Absence]:
        disputed = not despite_conflicts and is_disputed(connection, absence.bucket)
        if absence.owner is not self.core.store or disputed:
            return False, self._absences([absence.bucket], connection)[0]
        adopted = connection.execute(
            "UPDATE bucket SET version = ?1, owner = ?2 WHERE bucket = ?3 AND term = ?4 AND version < ?1"
            f" AND NOT EXISTS (SELECT 1 FROM {self.core.layout.table} r WHERE r.bucket = ?3 AND r.term < bucket.term)",
            (absence.version, absence.owner.value, absence.bucket, absence.term),
        ).rowcount
        if adopted:
            connection.execute(CHANGED)
        return adopted == 1, self._absences([absence.bucket], connection)[0]

    async def return_absence(self, absence: Absence) -> Absence | None:
        return await self.core.database.write(partial(self._return_absence, absence))

    def _return_absence(self, absence: Absence, connection: sqlite3.Connection) -> Absence | None:
        (here,) = self._absences([absence.bucket], connection)
        declined = declined_absence(absence, here, self.core.store)
        if declined is None:
            return None
        connection.execute(
            "UPDATE bucket SET version = ?, owner = ? WHERE bucket = ?",
            (declined.version, declined.owner.value, declined.bucket),
        )
        connection.execute(CHANGED)
        return declined


def _move(connection: sqlite3.Connection, position: Position) -> None:
    """A partition that was never read stands at 0. Raises UnknownPartition."""
    connection.execute("INSERT OR IGNORE INTO progress (part, next) VALUES (?, 0)", (position.partition,))
    moved = connection.execute(
        "UPDATE progress SET next = ?, mark = ? WHERE part = ? AND next = ?",
        (position.after, position.mark, position.partition, position.before),
    ).rowcount
    if moved != 1:
        raise UnknownPartition(f"partition {position.partition} does not stand at offset {position.before} any more")
