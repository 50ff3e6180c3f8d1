"""Calls of clients on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from libs.contract.pages import Filter, Page
from libs.errors import StoreNotReady
from libs.ownership.errors import NotOwner, OutboxFull
from libs.ownership.model import Answered, Call, Changed, Decide, Found, Record, Row, Served, Store, bucket_of
from libs.ownership.rules import may_change
from libs.ownership.wire import event_of
from libs.store.limits import LIST_ROWS, LIST_SECONDS, LIST_STEP_ROWS
from libs.store.port import Listed
from libs.store.window import up_to_other
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_errors import StartAgain
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import ROW, VISIBLE, found_for_write, found_of, row_of, served_values

_COLUMNS = ("state", "account")

MATCHES = (
    "(r.live OR ($1 AND r.payload <> '')) AND coalesce(r.state = ALL($2::text[]), cardinality($2::text[]) = 0)"
    " AND coalesce(r.account = ALL($3::text[]), cardinality($3::text[]) = 0) AND r.labels @> $4::jsonb"
)
_CREATED = f"(r.write_term, r.write_revision) <> (0, 0) AND {VISIBLE}"

# No index is of use for MATCHES: the rows that are looked at are chosen by one column alone, in the order of the keys.
_SCOPES = {"account": "r.account = $5", "state": "r.state = $5", "": "$5 = ''"}
_AFTER = {name: f"FROM record r WHERE {scope} AND r.key > $6" for name, scope in _SCOPES.items()}
_STEP_END = "SELECT r.key FROM record r WHERE {scope} AND r.key > $2 ORDER BY r.key LIMIT 1 OFFSET $3"
STEP_END = {name: _STEP_END.format(scope=scope.replace("$5", "$1")) for name, scope in _SCOPES.items()}
PAGE = {
    name: f"SELECT {ROW}, true AS matches {after} AND {_CREATED} AND {MATCHES} ORDER BY r.key LIMIT $7"
    for name, after in _AFTER.items()
}
PAGE_TO = {name: page.replace("ORDER BY", "AND r.key <= $8 ORDER BY") for name, page in PAGE.items()}
NEXT = {
    name: f"SELECT {ROW}, ({_CREATED} AND {MATCHES}) AS matches {after} ORDER BY r.key LIMIT 1"
    for name, after in _AFTER.items()
}
PAGE_OF_KEYS = (
    f"SELECT {ROW}, ({MATCHES}) AS matches FROM record r WHERE r.key = ANY($5::text[]) AND {_CREATED} ORDER BY r.key"
)


class PostgresRecords:
    """`libs.store.port.Records`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def read(self, key: str) -> Found:
        bucket = bucket_of(key)

        async def work(connection: Connection) -> Found:
            return found_of(key, await connection.fetchrow(sql.READ, key, bucket))

        return await self._context.requests.run(work)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        buckets = [bucket_of(key) for key in keys]

        async def work(connection: Connection) -> list[Found]:
            rows = await connection.fetch(sql.READ_MANY, list(keys), buckets)
            return [found_of(row["asked"], row) for row in rows]

        return await self._context.requests.run(work)

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        async def work(connection: Connection) -> Changed | Answered:
            bucket = bucket_of(call.key)
            seen = await connection.fetchrow(sql.READ_FOR_WRITE, call.key, bucket, call.principal, call.request_id)
            found = found_for_write(call.key, seen)
            decision = decide(found)
            if isinstance(decision, Changed):
                await self._commit(connection, call, found, decision)
            return decision

        return await self._context.requests.run(work)

    async def page(self, page: Page) -> list[Listed]:
        arguments = _filter_arguments(page.filter)

        async def work(connection: Connection) -> list[Listed]:
            if page.keys:
                return _listed(await connection.fetch(PAGE_OF_KEYS, *arguments, list(page.keys)))
            return await _bounded_page(connection, page, arguments)

        return await self._context.requests.run(work)

    async def _commit(self, connection: Connection, call: Call, found: Found, changed: Changed) -> None:
        """Under the condition that nothing changed since the read. Raises StartAgain, OutboxFull."""
        context = self._context
        event = event_of(Record(changed.row, (changed.served,), context.me, context.clock.now()))
        depth = await context.gauge.nearly()
        if not context.limits.fits(depth, len(event)):
            raise OutboxFull(entries=str(depth.entries), bytes=str(depth.bytes))
        arguments = (
            *context.values(changed.row),
            *served_values(changed.served)[:3],
            changed.served.answer,
            event,
            call.traceparent,
        )
        if found.served is None:
            await store_change(connection, arguments, found, context.me.value)
        else:
            await self._commit_again(connection, arguments, found, changed.served)
        context.gauge.added(1, len(event))
        context.written.beat()

    async def _commit_again(
        self, connection: Connection, arguments: tuple[object, ...], found: Found, served: Served
    ) -> None:
        """A change whose request has an entry, of an effect that is not in the row: it is replaced, if it is still the
        entry that was found. Raises StartAgain."""
        before = found.served
        assert before is not None, "there is an entry to replace"
        *row, _, _, _, _, event, traceparent = arguments
        async with transaction(connection):
            await store_change(
                connection, (*row, None, None, None, None, event, traceparent), found, self._context.me.value
            )
            values = served_values(served)
            if await connection.fetchval(sql.SERVE_AGAIN, found.key, *values, *before.version) is None:
                raise StartAgain


async def store_change(connection: Connection, arguments: Sequence[object], found: Found, me: str) -> None:
    """One statement, which commits by itself. If its condition does not hold, raises NotOwner when what was found
    already named another owner, StoreNotReady when the store is fenced, else StartAgain."""
    if found.row is None:
        done = await connection.fetchrow(sql.CREATE, *arguments, me, found.absence.term)
    else:
        done = await connection.fetchrow(sql.UPDATE, *arguments, me, *found.row.version)
    if done is None:
        if not may_change(found, Store(me)):
            raise NotOwner.of(found)
        await check_open(connection)
        raise StartAgain


async def check_open(connection: Connection) -> None:
    """After a guard has refused. Raises StoreNotReady if another process has fenced the store: a new try is in vain."""
    if gone := await connection.fetchval(sql.GONE):
        raise StoreNotReady(gone)


def stub_arguments(context: Context, row: Row, event: bytes) -> tuple[object, ...]:
    """For `store_change`: a row that no request made."""
    return (*context.values(row), None, None, None, None, event, "")


async def _bounded_page(connection: Connection, page: Page, arguments: tuple[Any, ...]) -> list[Listed]:
    scope, value = min(page.filter.equals, default=("", ""))
    if scope not in _SCOPES:
        return []
    listed: list[Listed] = []
    after = page.after
    loop = asyncio.get_running_loop()
    until = loop.time() + LIST_SECONDS
    for _ in range(LIST_ROWS // LIST_STEP_ROWS):
        end = await connection.fetchval(STEP_END[scope], value, after, LIST_STEP_ROWS - 1)
        bounds = (value, after, page.limit - len(listed))
        if end is None:
            return listed + _listed(await connection.fetch(PAGE[scope], *arguments, *bounds))
        listed += _listed(await connection.fetch(PAGE_TO[scope], *arguments, *bounds, end))
        if len(listed) == page.limit:
            return listed
        after = end
        if loop.time() > until:
            break
    while True:
        rest = _listed(await connection.fetch(NEXT[scope], *arguments, value, after))
        listed = up_to_other(listed, rest, page.limit)
        if not rest or not rest[0].matches or len(listed) == page.limit:
            return listed
        after = rest[0].row.key


def _listed(found: Sequence[Any]) -> list[Listed]:
    return [Listed(row, columns["matches"]) for columns in found if (row := row_of(columns)) is not None]


def _filter_arguments(wanted: Filter) -> tuple[Any, ...]:
    states = [value for name, value in wanted.equals if name == "state"]
    accounts = [value for name, value in wanted.equals if name == "account"]
    labels = dict(wanted.labels)
    other_columns = len(states) + len(accounts) < len(wanted.equals)
    if other_columns or any(labels[name] != value for name, value in wanted.labels):
        # No row can match: a column that no row has, or one label with two values. A state that is two says so.
        states = ["a", "b"]
    return wanted.show_deleted, states, accounts, json.dumps(labels)
