"""Forced interleavings on a real PostgreSQL, for each guard of the store's statements.

Two connections; one is held before its commit while the other runs into it. Every case runs with the store's own
statement, which must be safe, and without the guard, which must show the anomaly. So a test cannot pass without its
guard, nor continue to pass when the guard has become pointless.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import pytest

from libs.ownership.model import BucketOwner, Changed, Found, Record, Row, Store, Version, bucket_of
from libs.ownership.rules import decide_write
from libs.ownership.wire import event_of
from libs.store.columns import Columns
from libs.store.port import FeedStep, Position, UnknownPartition
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres import PostgresStore, open_store
from services.service_layer.store.postgres_rows import columnar, found_of, record_values, served_values
from services.service_layer.store.postgres_session import PARTITIONS
from tests.contracts.store_adapters import call_of, own, put, putting, record_of, row_of, sandbox, served_of, word_of
from tests.waiting import eventually

T = TypeVar("T")
KEY = "sandboxes/k"
BUCKET = bucket_of(KEY)
B = Store.B.value
Connection = Any


@dataclass
class Rig:
    """A store, a connection that is held, one that runs into it, and one that looks on."""

    dsn: str
    store: PostgresStore
    holder: Connection
    second: Connection
    observer: Connection

    async def found(self, key: str = KEY) -> Found:
        return await self.store.records.read(key)

    async def row(self, key: str = KEY) -> tuple[Version, str, Store]:
        row = (await self.found(key)).row
        assert row is not None
        return row.version, word_of(row.payload), row.owner

    async def waits(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task came to wait for a lock, rather than to its end."""

        async def settled() -> bool:
            return task.done() or await self._is_blocked()

        await eventually(lambda: settled(), what="the second statement ends or waits for a lock")
        return not task.done()

    async def _is_blocked(self) -> bool:
        blocked = await self.observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(blocked)

    async def past(self, second: Awaitable[T]) -> tuple[bool, T]:
        """Starts the second statement, then commits the holder: whether the second waited for it, and its result."""
        task = asyncio.ensure_future(second)
        waited = await self.waits(task)
        await self.holder.execute("COMMIT")
        return waited, await task

    async def without_trigger(self) -> None:
        """The trigger is a fence behind the guards: it would turn their anomalies into errors."""
        await self.observer.execute("ALTER TABLE record DISABLE TRIGGER record_version_rises")


@pytest.fixture
async def rig(store_dsn: str) -> AsyncIterator[Rig]:
    connections = []
    async with open_store(store_dsn) as store:
        await own(store, [KEY])
        try:
            for _ in range(3):
                connections.append(await asyncpg.connect(store_dsn, command_timeout=20))
            yield Rig(store_dsn, store, *connections)
        finally:
            for connection in connections:
                await connection.close(timeout=5)


def change(found: Found, request: str, word: str) -> list[Any]:
    """The arguments of CREATE or UPDATE for a write that was decided on this row."""
    changed = decide_write(found, Store.B, call_of(found.key, request), putting(sandbox(found.key, word)))
    assert isinstance(changed, Changed)
    event = event_of(Record(changed.row, (changed.served,), Store.B, 0.0))
    values = record_values(changed.row, bucket_of(found.key), Columns())
    served = served_values(changed.served)
    guard = found.row.version if found.row else (found.bucket_owner.term,)
    return [*values, *served[:3], served[5], event, "", B, *guard]


def broken(statement: str, guard: str, instead: str) -> str:
    assert guard in statement, "the guard is in the store's statement"
    return statement.replace(guard, instead)


UNFENCED = "r.owner = $23 AND $24::bigint IS NOT NULL AND $25::bigint IS NOT NULL"
LOOKED_UP = (
    f"{UNFENCED} AND NOT EXISTS (SELECT FROM served x WHERE x.key = $1 AND x.principal = $17 AND x.request_id = $18)"
)
SERVED_AGAIN = ("WHERE $17::text IS NOT NULL)", "WHERE $17::text IS NOT NULL ON CONFLICT DO NOTHING)")


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_write_that_waited_for_another_write_changes_nothing(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    seen = await rig.found()
    statement = sql.UPDATE if guarded else broken(sql.UPDATE, sql.UPDATE_GUARD, UNFENCED)
    if not guarded:
        await rig.without_trigger()
        # The change's name is unique in the outbox too, which would stop it as well.
        await rig.observer.execute("ALTER TABLE outbox DROP CONSTRAINT outbox_key_term_revision_key")
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchrow(sql.UPDATE, *change(seen, "r2", "second"))
    waited, result = await rig.past(rig.second.fetchrow(statement, *change(seen, "r3", "third")))
    assert waited
    version, word, _ = await rig.row()
    assert version == (0, 2)
    assert (result is None, word) == ((True, "second") if guarded else (False, "third"))


@pytest.mark.parametrize("guarded", [True, False])
async def test_looking_the_request_up_outside_the_condition_is_no_fence(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    seen = await rig.found()
    statement = sql.UPDATE if guarded else broken(sql.UPDATE, sql.UPDATE_GUARD, LOOKED_UP)
    if not guarded:
        statement = broken(statement, *SERVED_AGAIN)
        await rig.without_trigger()
        await rig.observer.execute("ALTER TABLE outbox DROP CONSTRAINT outbox_key_term_revision_key")
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchrow(sql.UPDATE, *change(seen, "same", "once"))
    waited, result = await rig.past(rig.second.fetchrow(statement, *change(seen, "same", "twice")))
    assert waited
    changes = await rig.observer.fetchval("SELECT count(*) FROM outbox WHERE key = $1 AND revision = 2", KEY)
    assert (result is None, changes) == ((True, 1) if guarded else (False, 2))


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_write_that_waited_for_a_release_changes_nothing(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    seen = await rig.found()
    unfenced = UNFENCED.replace("r.owner = $23", "$23::text IS NOT NULL")
    statement = sql.UPDATE if guarded else broken(sql.UPDATE, sql.UPDATE_GUARD, unfenced)
    if not guarded:
        await rig.without_trigger()
        await rig.observer.execute("ALTER TABLE outbox DROP CONSTRAINT outbox_key_term_revision_key")
    await rig.holder.execute("BEGIN")
    released = columnar([(KEY, "A", 0, 2, "", 7, B, 0, 1)], 9)
    assert await rig.holder.fetch(sql.UPDATE_ENVELOPES[True], *released)
    waited, result = await rig.past(rig.second.fetchrow(statement, *change(seen, "r2", "lost")))
    assert waited
    version, word, owner = await rig.row()
    assert version == (0, 2)
    safe = (True, "first", Store.A)
    assert (result is None, word, owner) == (safe if guarded else (False, "lost", Store.B))


RELEASED = columnar([(BUCKET, 0, 2, "A", 0, 1, B)], 7)
"""The bucket, released by B."""
PLAIN = sql.CREATE_GUARD.removesuffix(" FOR SHARE")
BUCKET_GUARDS = {
    "for share": (sql.CREATE_GUARD, True),
    "plain read": (PLAIN, False),
    "key share": (f"{PLAIN} FOR KEY SHARE", False),
    "subquery": (f"SELECT WHERE EXISTS ({PLAIN})", False),
}


@pytest.mark.parametrize("guard", BUCKET_GUARDS)
async def test_a_release_of_the_bucket_owner_waits_for_a_create_that_came_first(rig: Rig, guard: str) -> None:
    text, safe = BUCKET_GUARDS[guard]
    create = broken(sql.CREATE, sql.CREATE_GUARD, text)
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchrow(create, *change(await rig.found(), "r1", "made"))
    release = asyncio.ensure_future(rig.store.transfers.release_bucket(BUCKET, Store.A))
    waited = await rig.waits(release)
    listed_before = [] if waited else await rig.observer.fetch("SELECT key FROM record")
    await rig.holder.execute("COMMIT")
    assert (await release).owner is Store.A
    assert waited is safe
    # The mover's list after the release contains every record that the other store needs before it may create.
    listed = await rig.observer.fetch("SELECT key FROM record") if waited else listed_before
    assert [row["key"] for row in listed] == ([KEY] if safe else [])
    assert (await rig.found()).row is not None, "the create was committed"


@pytest.mark.parametrize("guard", BUCKET_GUARDS)
async def test_a_create_that_waited_for_a_release_of_the_bucket_owner_makes_nothing(rig: Rig, guard: str) -> None:
    text, safe = BUCKET_GUARDS[guard]
    create = broken(sql.CREATE, sql.CREATE_GUARD, text)
    seen = await rig.found()
    await rig.holder.execute("BEGIN")
    assert await rig.holder.execute(sql.PUT_BUCKETS, *RELEASED) == "UPDATE 1"
    waited, made = await rig.past(rig.second.fetchrow(create, *change(seen, "r1", "beside")))
    assert waited is safe
    assert (made is None) is safe
    after = await rig.found()
    assert after.bucket_owner == BucketOwner(BUCKET, 0, 2, Store.A)
    assert (after.row is None) is safe


async def test_the_store_itself_refuses_a_create_whose_bucket_owner_was_being_released(rig: Rig) -> None:
    await rig.holder.execute("BEGIN")
    assert await rig.holder.execute(sql.PUT_BUCKETS, *RELEASED) == "UPDATE 1"
    task = asyncio.ensure_future(put(rig.store, KEY, "r1", "beside"))
    assert await rig.waits(task)
    await rig.holder.execute("COMMIT")
    with pytest.raises(Exception, match="belongs to store A"):
        await task


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_create_that_waited_for_a_seizure_of_its_own_store_makes_no_row_of_the_older_term(
    rig: Rig, guarded: bool
) -> None:
    """The bucket has the same owner before and after: only the term tells that the decision is out of date."""
    statement = sql.CREATE if guarded else broken(sql.CREATE, "term = $24", "$24::bigint IS NOT NULL")
    seen = await rig.found()
    await rig.holder.execute("BEGIN")
    await rig.holder.execute("UPDATE bucket SET term = 1, version = version + 1 WHERE bucket = $1", BUCKET)
    waited, made = await rig.past(rig.second.fetchrow(statement, *change(seen, "r1", "older")))
    assert waited
    assert (made is None) is guarded
    row = await rig.observer.fetchrow("SELECT term FROM record WHERE key = $1", KEY)
    assert (row is None) is guarded, "without the guard: a row below its bucket's term, hidden from its own client"
    if guarded:
        await put(rig.store, KEY, "r1", "again")
        assert await rig.row() == (Version(1, 1), "again", Store.B)


async def test_a_release_carries_the_request_that_was_served_while_it_waited(rig: Rig) -> None:
    await put(rig.store, KEY, "r1", "first")
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchrow(sql.UPDATE, *change(await rig.found(), "r2", "second"))
    release = asyncio.ensure_future(rig.store.transfers.release([KEY], Store.A, create=False))
    assert await rig.waits(release)
    await rig.holder.execute("COMMIT")
    (result,) = (await release).results
    assert result.record is not None
    assert result.record.row.version == (0, 3)
    assert [one.request_id for one in result.record.served] == ["r1", "r2"]


def release_of(row: Row) -> list[Any]:
    """The arguments of RELEASE for a release to A that was decided on this row."""
    _, after = row.released(Store.A)
    return [KEY, "A", *after.version, 7, B, *row.version, b"event"]


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_release_of_a_record_that_was_written_since_the_read_changes_nothing(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    seen = await rig.found()
    assert seen.row is not None
    statement = sql.RELEASE
    if not guarded:
        await rig.without_trigger()
        await rig.observer.execute("ALTER TABLE outbox DROP CONSTRAINT outbox_key_term_revision_key")
        guard = "r.owner = $6 AND $7::bigint IS NOT NULL AND $8::bigint IS NOT NULL"
        statement = broken(statement, sql.RELEASE_GUARD, guard)
    await put(rig.store, KEY, "r2", "second")
    result = await rig.second.fetchrow(statement, *release_of(seen.row))
    # Two changes make version (0, 2): the write and the release, which carries no request of the write.
    assert await rig.row() == ((0, 2), "second", Store.B if guarded else Store.A)
    assert (result is None) is guarded


async def test_a_release_of_a_busy_record_does_not_wait_outside_a_transaction(rig: Rig) -> None:
    await put(rig.store, KEY, "r1", "first")
    seen = await rig.found()
    assert seen.row is not None
    await rig.holder.execute("BEGIN")
    await rig.holder.execute("SELECT FROM record WHERE key = $1 FOR UPDATE", KEY)
    async with asyncio.timeout(10):
        assert await rig.second.fetchrow(sql.RELEASE, *release_of(seen.row)) is None
    await rig.holder.execute("ROLLBACK")
    assert await rig.second.fetchrow(sql.RELEASE, *release_of(seen.row)) is not None


@pytest.mark.parametrize("guarded", [True, False])
async def test_served_requests_are_read_in_a_statement_begun_after_the_lock(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchrow(sql.UPDATE, *change(await rig.found(), "r2", "second"))
    if guarded:
        _, rows = await rig.past(_lock_then_look(rig.second))
    else:
        statement = (
            f"WITH l AS MATERIALIZED ({sql.LOCK_FOR_RELEASE}) SELECT l.revision, s.request_id"
            " FROM l JOIN served s ON s.key = l.key ORDER BY s.revision"
        )
        _, rows = await rig.past(rig.second.fetch(statement, [KEY], B))
    assert {row["revision"] for row in rows} == {2}, "the row is the new one either way"
    assert [row["request_id"] for row in rows] == (["r1", "r2"] if guarded else ["r1"])


async def _lock_then_look(connection: Connection) -> list[dict[str, Any]]:
    await connection.execute("BEGIN")
    (locked,) = await connection.fetch(sql.LOCK_FOR_RELEASE, [KEY], B)
    served = await connection.fetch(sql.SERVED_WINDOW, [KEY], [0], [2**62], 600_000, 64)
    await connection.execute("ROLLBACK")
    return [{"revision": locked["revision"], "request_id": row["request_id"]} for row in served]


async def test_row_and_bucket_owner_in_two_statements_show_a_record_that_nobody_owns(rig: Rig) -> None:
    async def in_one() -> Found:
        return found_of(KEY, await rig.observer.fetchrow(sql.READ, KEY, BUCKET))

    row_before = await rig.second.fetchrow("SELECT 1 FROM record WHERE key = $1", KEY)
    bucket_before = await rig.second.fetchrow(sql.SOME_BUCKETS, [BUCKET])
    owners = [(await in_one()).owner]
    await put(rig.store, KEY, "r1", "made")
    owners.append((await in_one()).owner)
    await rig.store.transfers.release_bucket(BUCKET, Store.A)
    owners.append((await in_one()).owner)
    assert owners == [Store.B] * 3, "in one statement the owner never changed, and it never did"
    bucket_after = await rig.second.fetchrow(sql.SOME_BUCKETS, [BUCKET])
    assert (row_before, bucket_after["bucket_owner"]) == (None, "A"), "row first: absent here, and the other's"

    await rig.store.transfers.release([KEY], Store.A, create=False)
    row_after = found_of(KEY, await rig.second.fetchrow(sql.READ, KEY, BUCKET)).row
    assert row_after is not None
    both = (bucket_before["bucket_owner"], row_after.owner)
    assert both == (B, Store.A), "bucket owner first: the bucket owner was this store's, the row is the other's"


async def test_an_acknowledgement_by_name_keeps_a_change_that_commits_late(rig: Rig) -> None:
    late, early = KEY, "sandboxes/early"
    await own(rig.store, [early])
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchrow(sql.CREATE, *change(await rig.found(late), "r1", "late"))
    await put(rig.store, early, "r2", "early")
    pulled = await rig.store.outbox.pull(10, 0)
    assert [entry.key for entry in pulled] == [early]
    cursor = await rig.observer.fetchval("SELECT max(id) FROM outbox")
    await rig.holder.execute("COMMIT")

    await rig.second.execute("BEGIN")
    await rig.second.execute("DELETE FROM outbox WHERE id <= $1", cursor)
    assert await rig.second.fetchval("SELECT count(*) FROM outbox") == 0, "by id: the late change is gone, unpublished"
    await rig.second.execute("ROLLBACK")
    after_cursor = await rig.second.fetch("SELECT key FROM outbox WHERE id > $1", cursor)
    assert after_cursor == [], "by cursor: the late change is behind it for ever"

    assert await rig.store.outbox.ack([(entry.key, entry.version) for entry in pulled]) == 1
    assert [entry.key for entry in await rig.store.outbox.pull(10, 0)] == [late]


def replacing(before: Row, revision: int, word: str, owner: Store = Store.A) -> tuple[list[Any], ...]:
    """The arguments of UPDATE_ROWS for another row in place of this one."""
    row = row_of(KEY, (0, revision), owner, word)
    values = (*record_values(row, BUCKET, Columns()), before.owner.value, *before.version)
    return columnar([values], 19)


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_row_that_changed_since_the_decision_is_not_replaced(rig: Rig, guarded: bool) -> None:
    await rig.store.transfers.apply([record_of(row_of(KEY, (0, 1), Store.A, "first"))])
    before = (await rig.found()).row
    assert before is not None
    statement = sql.UPDATE_ROWS[False]
    if not guarded:
        statement = broken(statement, sql.PUT_GUARDS[False], "n.was_owner IS NOT NULL")
        await rig.without_trigger()
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetch(sql.UPDATE_ROWS[False], *replacing(before, 5, "newer"))
    waited, stored = await rig.past(rig.second.fetch(statement, *replacing(before, 4, "older")))
    assert waited
    expected = (0, (Version(0, 5), "newer")) if guarded else (1, (Version(0, 4), "older"))
    assert (len(stored), (await rig.row())[:2]) == expected


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_write_of_the_engine_that_waited_for_a_release_changes_nothing(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    before = (await rig.found()).row
    assert before is not None
    statement = sql.UPDATE_ROWS[True]
    if not guarded:
        statement = broken(statement, sql.PUT_GUARDS[True], "n.was_owner IS NOT NULL")
        await rig.without_trigger()
    await rig.holder.execute("BEGIN")
    released = columnar([(KEY, "A", 0, 2, "", 7, B, 0, 1)], 9)
    assert await rig.holder.fetch(sql.UPDATE_ENVELOPES[True], *released)
    waited, stored = await rig.past(rig.second.fetch(statement, *replacing(before, 2, "lost", Store.B)))
    assert waited
    _, word, owner = await rig.row()
    assert (len(stored), word, owner) == ((0, "first", Store.A) if guarded else (1, "lost", Store.B))


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_row_that_is_made_while_its_bucket_is_seized_is_not_of_the_older_term(rig: Rig, guarded: bool) -> None:
    statement = sql.INSERT_ROWS[False]
    if not guarded:
        statement = broken(statement, "AND b.term = n.term", "")
    row = row_of(KEY, (0, 1), Store.A, "older")
    await rig.holder.execute("BEGIN")
    await rig.holder.execute("UPDATE bucket SET term = 1, version = version + 1 WHERE bucket = $1", BUCKET)
    insert = rig.second.fetch(statement, *columnar([record_values(row, BUCKET, Columns())], 16))
    waited, stored = await rig.past(insert)
    assert waited
    assert bool(stored) is not guarded


@pytest.mark.parametrize("guarded", [True, False])
async def test_an_apply_that_waited_keeps_the_newer_record_and_the_requests_of_both(rig: Rig, guarded: bool) -> None:
    def arguments(revision: int, request: str) -> list[Any]:
        row = row_of(KEY, (0, revision), Store.A, request)
        served = (KEY, *served_values(served_of(request, (0, revision))))
        return [*columnar([record_values(row, BUCKET, Columns())], 17), *columnar([served], 7)]

    both = sql.APPLY_WITH_SERVED
    statement = both if guarded else broken(both, sql.APPLY_GUARD, "true")
    if not guarded:
        await rig.without_trigger()
    await rig.holder.execute("BEGIN")
    assert await rig.holder.fetchval(both, *arguments(5, "newer")) == 1
    waited, applied = await rig.past(rig.second.fetchval(statement, *arguments(4, "older")))
    assert waited
    version, word, _ = await rig.row()
    assert (applied, version, word) == ((0, (0, 5), "newer") if guarded else (1, (0, 4), "older"))
    requests = await rig.observer.fetch("SELECT request_id FROM served WHERE key = $1 ORDER BY 1", KEY)
    assert [row["request_id"] for row in requests] == ["newer", "older"]


@pytest.mark.parametrize("guarded", [True, False])
async def test_who_lost_a_partition_cannot_move_it(rig: Rig, guarded: bool) -> None:
    await rig.store.transfers.apply([], FeedStep((Position(3, 0, 7),)))
    statement = sql.MOVE if guarded else broken(sql.MOVE, sql.MOVE_GUARD, "n.before IS NOT NULL")
    await rig.holder.execute("BEGIN")
    assert await rig.holder.execute(sql.MOVE, [3], [7], [20], [""]) == "UPDATE 1"
    waited, moved = await rig.past(rig.second.execute(statement, [3], [7], [9], [""]))
    assert waited
    offset = (await rig.store.feed.state()).next_offsets[3]
    assert (moved, offset) == (("UPDATE 0", 20) if guarded else ("UPDATE 1", 9))


async def test_a_process_that_lost_its_locks_unnoticed_is_fenced_by_progress(rig: Rig) -> None:
    assert list(await rig.store.feed.claim(4)) == [0, 1, 2, 3]
    await rig.observer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND objid = 0",
        PARTITIONS,
    )
    async with open_store(rig.dsn) as other:

        async def takes_over() -> bool:
            return list(await other.feed.claim(4)) == [0, 1, 2, 3]

        await eventually(lambda: takes_over(), what="the other process has all partitions")
        row = row_of(KEY, (0, 1), Store.A, "by the winner")
        await other.transfers.apply([record_of(row, served_of("r1", (0, 1)))], FeedStep((Position(0, 0, 10),)))
        lost = row_of(KEY, (0, 2), Store.A, "by the loser")
        with pytest.raises(UnknownPartition):
            await rig.store.transfers.apply([record_of(lost)], FeedStep((Position(0, 0, 10),)))
        assert await rig.row() == (Version(0, 1), "by the winner", Store.A)
        assert (await other.feed.state()).applied == 1


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_change_that_makes_no_version_is_refused(rig: Rig, guarded: bool) -> None:
    await put(rig.store, KEY, "r1", "first")
    if not guarded:
        await rig.without_trigger()
    for beside in ("live = false", "revision = revision - 0", "term = term, owner = 'A'"):
        update = rig.second.execute(f"UPDATE record SET {beside} WHERE key = $1", KEY)
        if guarded:
            with pytest.raises(asyncpg.PostgresError, match="does not rise"):
                await update
        else:
            assert await update == "UPDATE 1"
    assert (await rig.found()).owner is (Store.B if guarded else Store.A)
