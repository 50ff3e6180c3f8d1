"""The control store in PostgreSQL, for routers on several hosts. Do not use B's server: if it fails, no rollback is
possible."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

import asyncpg

from libs.clock import Clock, SystemClock
from libs.errors import NewerSchema
from libs.postgres import check_files
from services.router.control import postgres_jobs
from services.router.control.codec import (
    gates_from_json,
    gates_to_json,
    read_setting,
    setting_from_json,
    setting_to_json,
)
from services.router.control.info import ControlInfo
from services.router.control.leases import Lease, LeaseObservations
from services.router.control.port import (
    AUTOMATIC,
    KEPT_REPORTS,
    ControlUnavailable,
    JournalEntry,
    LastRollback,
    Report,
)
from services.router.core.jobs import Job
from services.router.core.phase import Setting

log = logging.getLogger(__name__)

SCHEMA_VERSION = 4

# asyncpg raises InternalClientError if a connection is lost during a wait.
_FOREIGN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, asyncpg.InternalClientError)

_CALL_SECONDS = 1.5
_CLOSE_SECONDS = 1.0
_CONNECTIONS = 4
_SCHEMA_LOCK = 0x6261746F6E

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS baton_control;
CREATE TABLE IF NOT EXISTS baton_control.control (
  one int PRIMARY KEY CHECK (one = 1), schema_version int NOT NULL);
CREATE TABLE IF NOT EXISTS baton_control.setting (
  one int PRIMARY KEY CHECK (one = 1), generation bigint NOT NULL, value text NOT NULL);
CREATE TABLE IF NOT EXISTS baton_control.journal (
  generation bigint PRIMARY KEY, time_seconds double precision NOT NULL, actor text NOT NULL, action text NOT NULL,
  reason text NOT NULL, before text NOT NULL, after text NOT NULL, gates text NOT NULL, overridden boolean NOT NULL);
CREATE TABLE IF NOT EXISTS baton_control.lease (
  name text PRIMARY KEY, holder text NOT NULL, renewals bigint NOT NULL, ttl_seconds double precision NOT NULL);
-- Remembered values: `job` is the name, `cursor` the value. The other columns are those of an earlier release, whose
-- routers read and write the same rows.
CREATE TABLE IF NOT EXISTS baton_control.job (
  job text PRIMARY KEY, running boolean NOT NULL, done bigint NOT NULL, total bigint NOT NULL,
  rate double precision NOT NULL, note text NOT NULL, cursor text NOT NULL, finished_seconds double precision NOT NULL);
CREATE OR REPLACE FUNCTION baton_control.refuse() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'the journal is append-only'; END $$;
CREATE OR REPLACE TRIGGER journal_is_never_changed BEFORE UPDATE OR DELETE ON baton_control.journal
  FOR EACH ROW EXECUTE FUNCTION baton_control.refuse();
CREATE OR REPLACE TRIGGER journal_is_never_emptied BEFORE TRUNCATE ON baton_control.journal
  FOR EACH STATEMENT EXECUTE FUNCTION baton_control.refuse();
"""

_REPORTS = """
CREATE TABLE IF NOT EXISTS baton_control.report (
  router text PRIMARY KEY, number bigint NOT NULL, text text NOT NULL, time_seconds double precision NOT NULL);
"""
"""Table added by schema version 2."""

_ROLLBACK = f"""
CREATE TABLE IF NOT EXISTS baton_control.last_rollback (
  one int PRIMARY KEY CHECK (one = 1), generation bigint NOT NULL, time_seconds double precision NOT NULL,
  actor text NOT NULL, action text NOT NULL, reason text NOT NULL, before text NOT NULL, after text NOT NULL,
  gates text NOT NULL, overridden boolean NOT NULL, watched_seconds double precision NOT NULL);
INSERT INTO baton_control.last_rollback SELECT 1, j.*, 0 FROM baton_control.journal j WHERE j.action = '{AUTOMATIC}'
  ORDER BY j.generation DESC LIMIT 1 ON CONFLICT DO NOTHING;
ALTER TABLE baton_control.control ADD COLUMN IF NOT EXISTS id text NOT NULL DEFAULT gen_random_uuid()::text;
CREATE OR REPLACE FUNCTION baton_control.keep_rollback() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  DELETE FROM baton_control.last_rollback;
  INSERT INTO baton_control.last_rollback SELECT 1, NEW.*, 0;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER rollback_is_kept AFTER INSERT ON baton_control.journal
  FOR EACH ROW WHEN (NEW.action = '{AUTOMATIC}') EXECUTE FUNCTION baton_control.keep_rollback();
"""
"""Table and trigger added by schema version 4. The trigger also records rollbacks by routers of an earlier release."""
_ENTRY = "time_seconds, actor, action, reason, before, after, gates, overridden"

T = TypeVar("T")

_Connection: TypeAlias = Any


class PostgresControlStore:
    """A `ControlStore` in a database, with its tables in the schema `baton_control`. Made by `open`."""

    def __init__(self, dsn: str, clock: Clock) -> None:
        self._dsn = dsn.replace("postgresql+asyncpg://", "postgresql://", 1)
        parts = urlsplit(self._dsn)
        self._where = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        self._clock = clock
        self._sightings = LeaseObservations(clock)
        self._free: list[_Connection] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<PostgresControlStore {self._where}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, clock: Clock | None = None) -> AsyncIterator[Self]:
        """Connect, create the tables if there are none, and close at the end.

        Raises:
            NewerSchema: a newer version of this program made the tables.
            ControlUnavailable: the server is unavailable.
            UnfitDatabase: a file that the address names cannot be read.
        """
        check_files(dsn)
        store = cls(dsn, clock or SystemClock())
        try:
            await store._run(_prepare)
            yield store
        finally:
            await store._close()

    async def load(self) -> Setting:
        return await self._run(lambda connection: _load(connection, self._clock.now()))

    async def change(self, entry: JournalEntry) -> bool:
        return await self._run(lambda connection: _change(connection, entry))

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        return await self._run(lambda connection: _journal(connection, limit))

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        return await self._run(lambda connection: self._lease(connection, name, holder, ttl_seconds))

    async def last_rollback(self) -> LastRollback | None:
        statement = f"SELECT {_ENTRY}, watched_seconds FROM baton_control.last_rollback"
        row = await self._run(lambda connection: connection.fetchrow(statement))
        return LastRollback(_entry(row), row["watched_seconds"]) if row else None

    async def watched(self, generation: int, seconds: float) -> None:
        statement = (
            "UPDATE baton_control.last_rollback SET watched_seconds = watched_seconds + $2 WHERE generation = $1"
        )
        await self._run(lambda connection: connection.execute(statement, generation, seconds))

    async def remember(self, name: str, value: str) -> None:
        statement = (
            "INSERT INTO baton_control.job VALUES ($1, false, 0, 0, 0, '', $2, 0)"
            " ON CONFLICT (job) DO UPDATE SET cursor = $2"
        )
        await self._run(lambda connection: connection.execute(statement, name, value))

    async def remembered(self, name: str) -> str | None:
        statement = "SELECT cursor FROM baton_control.job WHERE job = $1"
        found: str | None = await self._run(lambda connection: connection.fetchval(statement, name))
        return found

    async def report(self, report: Report) -> None:
        await self._run(lambda connection: _report(connection, report))

    async def reports(self) -> Sequence[Report]:
        rows = await self._run(
            lambda connection: connection.fetch(
                'SELECT router, number, text FROM baton_control.report ORDER BY router COLLATE "C"'
            )
        )
        return [Report(*row) for row in rows]

    async def add(self, job: Job) -> Job:
        return await self._run(lambda connection: postgres_jobs.add(connection, job))

    async def put(self, job: Job) -> Job | None:
        return await self._run(lambda connection: postgres_jobs.put(connection, job))

    async def job(self, job_id: str) -> Job:
        return await self._run(lambda connection: postgres_jobs.find(connection, job_id))

    async def jobs(self) -> Sequence[Job]:
        return await self._run(postgres_jobs.newest)

    async def info(self) -> ControlInfo:
        statement = "SELECT s.system_identifier::text, c.id FROM baton_control.control c, pg_control_system() s"
        row = await self._run(lambda connection: connection.fetchrow(statement))
        return ControlInfo("postgresql", self._where, *row)

    async def _lease(self, connection: _Connection, name: str, holder: str, ttl_seconds: float) -> bool:
        if ttl_seconds <= 0:
            await connection.execute("DELETE FROM baton_control.lease WHERE name = $1 AND holder = $2", name, holder)
            return False
        row = await connection.fetchrow(
            "SELECT holder, renewals, ttl_seconds FROM baton_control.lease WHERE name = $1", name
        )
        if not self._sightings.may_take(name, Lease(*row) if row else None, holder):
            return False
        # Conditional on the lease that was read: of two contenders for an expired lease, one gets it.
        taken = await connection.fetchval(
            "INSERT INTO baton_control.lease AS now VALUES ($1, $2, 1, $3) ON CONFLICT (name) DO UPDATE"
            " SET holder = $2, renewals = now.renewals + 1, ttl_seconds = $3"
            " WHERE now.holder = $4 AND now.renewals = $5 RETURNING 1",
            name,
            holder,
            ttl_seconds,
            row["holder"] if row else "",
            row["renewals"] if row else 0,
        )
        return bool(taken)

    async def _run(self, work: Callable[[_Connection], Awaitable[T]]) -> T:
        """Run `work` on a connection. Raises ControlUnavailable if it fails or takes too long.

        It runs in its own task: a server that hangs delays even the cancellation of a statement, but not the caller.
        """
        task = asyncio.ensure_future(self._call(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait({task}, timeout=_CALL_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise ControlUnavailable(f"{self._where} did not answer within {_CALL_SECONDS:g} s")
        try:
            return task.result()
        except _FOREIGN as error:
            raise ControlUnavailable(f"{self._where}: {error or type(error).__name__}") from error

    async def _call(self, work: Callable[[_Connection], Awaitable[T]]) -> T:
        async with self._slots:
            connection = self._free.pop() if self._free else None
            if connection is None or connection.is_closed():
                connection = await asyncpg.connect(
                    self._dsn,
                    timeout=_CALL_SECONDS,
                    # A standby may be behind, and is another database once it is promoted.
                    target_session_attrs="primary",
                    server_settings={
                        "application_name": "baton-control",
                        # Set per session, because a hold or a rollback must survive a crash of the server.
                        "synchronous_commit": "on",
                        "statement_timeout": "1500",
                        "idle_in_transaction_session_timeout": "2000",
                    },
                )
            kept = False
            try:
                result = await work(connection)
                kept = True
                return result
            finally:
                # After a failure, the connection's state is unknown.
                if kept:
                    self._free.append(connection)
                else:
                    connection.terminate()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved here, because the caller may have been cancelled.

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        closing = [asyncio.ensure_future(connection.close(timeout=_CLOSE_SECONDS)) for connection in self._free]
        self._free.clear()
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.info("%r: a connection was lost before it was closed: %r", self, outcome)


async def _prepare(connection: _Connection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _SCHEMA_LOCK)
        exists = await connection.fetchval("SELECT to_regclass('baton_control.control') IS NOT NULL")
        if not exists:
            await connection.execute(_SCHEMA)
            await connection.execute("INSERT INTO baton_control.control VALUES (1, 1)")
        version = await connection.fetchval("SELECT schema_version FROM baton_control.control")
        if version > SCHEMA_VERSION:
            raise NewerSchema(
                f"the control store has schema version {version}, this program supports {SCHEMA_VERSION}:"
                " run the newer program, or restore an older backup"
            )
        if version < SCHEMA_VERSION:
            await connection.execute(_REPORTS)
            await connection.execute(postgres_jobs.TABLES)
            await connection.execute(_ROLLBACK)
            await connection.execute("UPDATE baton_control.control SET schema_version = $1", SCHEMA_VERSION)


async def _load(connection: _Connection, now: float) -> Setting:
    find = "SELECT generation, value FROM baton_control.setting"
    row = await connection.fetchrow(find)
    if row is None:
        first = JournalEntry(now, "baton", "start", "", Setting(), Setting(generation=1))
        async with connection.transaction():
            made = await connection.fetchval(
                "INSERT INTO baton_control.setting VALUES (1, 1, $1) ON CONFLICT DO NOTHING RETURNING 1",
                setting_to_json(first.after),
            )
            if made:
                await _append(connection, first)
        row = await connection.fetchrow(find)
    return read_setting(*row)


async def _change(connection: _Connection, entry: JournalEntry) -> bool:
    async with connection.transaction():
        changed = await connection.fetchval(
            "UPDATE baton_control.setting SET generation = $1, value = $2 WHERE generation = $3 RETURNING 1",
            entry.after.generation,
            setting_to_json(entry.after),
            entry.before.generation,
        )
        if changed:
            await _append(connection, entry)
    return bool(changed)


async def _report(connection: _Connection, report: Report) -> None:
    """`time_seconds` is a sequence number. An earlier release stored UNIX seconds; numbers continue from the
    highest."""
    sequence = await connection.fetchval("SELECT coalesce(max(time_seconds), 0) + 1 FROM baton_control.report")
    await connection.execute("DELETE FROM baton_control.report WHERE time_seconds < $1", sequence - KEPT_REPORTS)
    await connection.execute(
        "INSERT INTO baton_control.report VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (router) DO UPDATE SET number = $2, text = $3, time_seconds = $4",
        report.router,
        report.number,
        report.text,
        sequence,
    )


async def _append(connection: _Connection, entry: JournalEntry) -> None:
    await connection.execute(
        "INSERT INTO baton_control.journal VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        entry.after.generation,
        entry.time_seconds,
        entry.actor,
        entry.action,
        entry.reason,
        setting_to_json(entry.before),
        setting_to_json(entry.after),
        gates_to_json(entry.gates),
        entry.overridden,
    )


async def _journal(connection: _Connection, limit: int) -> list[JournalEntry]:
    rows = await connection.fetch(
        f"SELECT {_ENTRY} FROM baton_control.journal ORDER BY generation DESC LIMIT $1", limit
    )
    return [_entry(row) for row in rows]


def _entry(row: Any) -> JournalEntry:
    """The entry in a row with the columns `_ENTRY`."""
    return JournalEntry(
        row["time_seconds"],
        row["actor"],
        row["action"],
        row["reason"],
        before=setting_from_json(row["before"]),
        after=setting_from_json(row["after"]),
        gates=gates_from_json(row["gates"]),
        overridden=row["overridden"],
    )
