"""The statements of a store on SQLite, on one connection in one thread, with parameters made in advance."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from libs.ownership.model import bucket_of
from libs.sqlite import connect
from libs.store.sqlite_schema import LEARN, Layout, Statements, Value, update_values, values_of
from tests.bench.measure import Round
from tests.bench.prepared import Change

_OLDEST = "SELECT (SELECT seconds FROM tick) - tick FROM outbox ORDER BY id LIMIT 1"
_OUTBOX = (
    "INSERT INTO outbox (key, term, revision, size, tick, traceparent, event)"
    " SELECT ?, ?, ?, ?, seconds, ?, ? FROM tick"
)

Steps = Sequence[tuple[str, tuple[Value, ...]]]


def steps_of(change: Change, layout: Layout, statements: Statements) -> Steps:
    """The statements of one write: read, served request, the outbox's age, event, row."""
    call, row, served = change.call, change.changed.row, change.changed.served
    request = (served.principal, served.request_id, served.request_hash, *served.version, served.answer)
    return (
        (statements.find, (call.key, call.key, call.request_id, bucket_of(call.key))),
        (LEARN, (call.key, *request)),
        (_OLDEST, ()),
        (_OUTBOX, (call.key, *row.version, len(change.event), "", change.event)),
        (statements.update[True], update_values(values_of(row, layout), row.owner.value, change.before)),
    )


class BareSqlite:
    """A store's file without the store. `group`: number of writes per transaction."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._connection = connect(path, 5.0)
        self._layout = layout
        self._statements = Statements(layout)

    def close(self) -> None:
        self._connection.close()

    async def write(self, changes: Sequence[Change], group: int) -> Round:
        steps = [steps_of(change, self._layout, self._statements) for change in changes]
        return await asyncio.to_thread(self._write, steps, group)

    def _write(self, steps: Sequence[Steps], group: int) -> Round:
        milliseconds: list[float] = []
        began = time.perf_counter()
        for start in range(0, len(steps), group):
            at = time.perf_counter()
            some = steps[start : start + group]
            self._transaction(some)
            milliseconds += [(time.perf_counter() - at) * 1000] * len(some)
        return Round(time.perf_counter() - began, milliseconds)

    def _transaction(self, writes: Sequence[Steps]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for write in writes:
            for statement, parameters in write:
                with closing(execute(statement, parameters)) as cursor:
                    if cursor.description is not None:
                        cursor.fetchone()
                    elif cursor.rowcount != 1:
                        raise sqlite3.IntegrityError(f"{cursor.rowcount} rows by {statement}")
        execute("COMMIT")
