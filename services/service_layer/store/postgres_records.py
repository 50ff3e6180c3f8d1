"""Calls of clients on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from libs.contract.pages import ACCOUNT, Filter, Page
from libs.ownership.model import Answered, Call, Changed, Decide, Found, bucket_of
from libs.store import engine
from libs.store.limits import LIST_ROWS, LIST_SECONDS, LIST_STEP_ROWS, Work
from libs.store.port import Listed
from libs.store.window import up_to_other
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_rows import ROW, VISIBLE, found_of, row_of, served_values
from services.service_layer.store.postgres_transaction import PostgresTransaction, PostgresTransactions

_COLUMNS = ("state", "account")

MATCHES = (
    "(r.live OR ($1 AND r.payload <> '')) AND coalesce(r.state = ALL($2::text[]), cardinality($2::text[]) = 0)"
    " AND coalesce(r.account = ALL($3::text[]), cardinality($3::text[]) = 0) AND r.labels @> $4::jsonb"
)
_CREATED = f"(r.write_term, r.write_revision) <> (0, 0) AND {VISIBLE}"

# No index serves MATCHES as a whole. So one column selects the rows to examine, in key order. Of several accounts, each
# has rows in key order: the lateral joins below merge them, and no other row is examined.
_SCOPES = {"account": "r.account = $5", "state": "r.state = $5", "": "$5 = ''"}
_AFTER = {name: f"FROM record r WHERE {scope} AND r.key > $6" for name, scope in _SCOPES.items()}
_STEP_END = "SELECT r.key FROM record r WHERE {scope} AND r.key > $2 ORDER BY r.key LIMIT 1 OFFSET $3"
_OF_EACH = "FROM unnest({accounts}::text[]) a(account) CROSS JOIN LATERAL ({rows}) r"
_SEVERAL = "accounts"
_EACH = "SELECT * FROM record r WHERE r.account = a.account AND r.key > $6"
_PAGE_OF_EACH = f"{_EACH} AND {_CREATED} AND {MATCHES} ORDER BY r.key LIMIT $7"
STEP_END = {name: _STEP_END.format(scope=scope.replace("$5", "$1")) for name, scope in _SCOPES.items()}
STEP_END[_SEVERAL] = "SELECT min(r.key) " + _OF_EACH.format(
    accounts="$1", rows=_STEP_END.format(scope="r.account = a.account")
)
PAGE = {
    name: f"SELECT {ROW}, true AS matches {after} AND {_CREATED} AND {MATCHES} ORDER BY r.key LIMIT $7"
    for name, after in _AFTER.items()
}
PAGE_TO = {name: page.replace("ORDER BY", "AND r.key <= $8 ORDER BY") for name, page in PAGE.items()}
NEXT = {
    name: f"SELECT {ROW}, ({_CREATED} AND {MATCHES}) AS matches {after} ORDER BY r.key LIMIT 1"
    for name, after in _AFTER.items()
}
for _statements, _shown, _rows, _limit in (
    (PAGE, "true", _PAGE_OF_EACH, "$7"),
    (PAGE_TO, "true", _PAGE_OF_EACH.replace("ORDER BY", "AND r.key <= $8 ORDER BY"), "$7"),
    (NEXT, f"({_CREATED} AND {MATCHES})", f"{_EACH} ORDER BY r.key LIMIT 1", "1"),
):
    _statements[_SEVERAL] = (
        f"SELECT {ROW}, {_shown} AS matches {_OF_EACH.format(accounts='$5', rows=_rows)} ORDER BY r.key LIMIT {_limit}"
    )
_OF_ACCOUNTS = "($6::text[] IS NULL OR coalesce(r.account = ANY($6::text[]), false))"
PAGE_OF_KEYS = (
    f"SELECT {ROW}, ({MATCHES} AND {_OF_ACCOUNTS}) AS matches FROM record r"
    f" WHERE r.key = ANY($5::text[]) AND {_CREATED} ORDER BY r.key"
)


class PostgresRecords:
    """`libs.store.port.Records`."""

    def __init__(self, context: Context, transactions: PostgresTransactions) -> None:
        self._context = context
        self._transactions = transactions

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
        """`engine.write` in two round trips: a read, and one statement that holds the conditions of the write."""

        async def work(connection: Connection) -> Changed | Answered | None:
            tx = PostgresTransaction(self._context, connection)
            found = await tx.find(call)
            decision = decide(found)
            if isinstance(decision, Changed):
                if found.served:
                    return None
                await self._commit(tx, call, found, decision)
            return decision

        decision = await self._context.requests.run(work)
        if decision is None:
            # Another attempt has an entry whose effect is not in the row. Replacing the entry takes a transaction.
            return await self._transactions.run(partial(engine.write, call=call, decide=decide))
        return decision

    async def page(self, page: Page) -> list[Listed]:
        wanted = page.filter

        async def work(connection: Connection) -> list[Listed]:
            if page.keys:
                accounts = None if wanted.accounts is None else list(wanted.accounts)
                arguments = _filter_arguments(wanted)
                return _listed(await connection.fetch(PAGE_OF_KEYS, *arguments, list(page.keys), accounts))
            most = Work(LIST_ROWS, LIST_STEP_ROWS, LIST_SECONDS)
            return await _bounded_page(connection, page, most)

        return await self._context.requests.run(work)

    async def _commit(self, tx: PostgresTransaction, call: Call, found: Found, changed: Changed) -> None:
        """Raises NotOwner, StoreNotReady, StartAgain, OutboxFull."""
        context, served = self._context, changed.served
        event = engine.entry_of(engine.record_of(tx, changed.row, (served,))).event
        depth = await context.gauge.recent()
        if not context.limits.fits(depth, len(event)):
            fits = partial(context.limits.fits, size=len(event))
            depth = await context.gauge.before_refusal(fits)
            if not fits(depth):
                raise engine.full(depth)
        request = (*served_values(served)[:3], served.answer)
        arguments = (*context.values(changed.row), *request, event, call.traceparent, context.me.value)
        if found.row is None:
            done = await tx.connection.fetchrow(sql.CREATE, *arguments, changed.row.version.term)
        else:
            done = await tx.connection.fetchrow(sql.UPDATE, *arguments, *found.row.version)
        if done is None:
            await engine.refuse(tx, found)
        context.gauge.added(1, len(event))
        context.written.notify()


async def _bounded_page(connection: Connection, page: Page, most: Work) -> list[Listed]:
    arguments = _filter_arguments(page.filter)
    scope, value = _scope(page.filter)
    if scope not in PAGE:
        return []
    if scope == _SEVERAL:
        most = most.share(len(value))._replace(seconds=most.seconds)
    listed: list[Listed] = []
    after = page.after
    loop = asyncio.get_running_loop()
    until = loop.time() + most.seconds
    for _ in range(most.rows // most.step_rows):
        end = await connection.fetchval(STEP_END[scope], value, after, most.step_rows - 1)
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


def _scope(wanted: Filter) -> tuple[str, str | list[str]]:
    """Name and parameter of the statements that examine the fewest rows. "none": no row can match."""
    if wanted.accounts is None:
        return min(wanted.equals, default=("", ""))
    accounts = [dict(one.equals)[ACCOUNT] for one in wanted.by_account()]
    if len(accounts) > 1:
        return _SEVERAL, accounts
    return (ACCOUNT, accounts[0]) if accounts else ("none", "")


def _listed(found: Sequence[Any]) -> list[Listed]:
    return [Listed(row, columns["matches"]) for columns in found if (row := row_of(columns)) is not None]


def _filter_arguments(wanted: Filter) -> tuple[Any, ...]:
    states = [value for name, value in wanted.equals if name == "state"]
    accounts = [value for name, value in wanted.equals if name == "account"]
    labels = dict(wanted.labels)
    other_columns = len(states) + len(accounts) < len(wanted.equals)
    if other_columns or any(labels[name] != value for name, value in wanted.labels):
        # No row can match: the filter has an unknown column, or one label with two values. Require two states at once.
        states = ["a", "b"]
    return wanted.show_deleted, states, accounts, json.dumps(labels)
