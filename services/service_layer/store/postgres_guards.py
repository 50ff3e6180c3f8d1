"""Rows that must not vanish, on PostgreSQL: marked removals, and counts by which lost rows are missed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from libs.ownership.model import BUCKETS
from services.service_layer.store.postgres_pool import Connection

_COUNTED = "SELECT bucket, sum(records) AS counted FROM row_count GROUP BY bucket"
_FOUND = "SELECT bucket, count(*) AS found FROM record GROUP BY bucket"

# One statement, one snapshot: rows and counts are of the same moment. What other transactions add meanwhile they add to
# both, so the difference stays right.
_COUNT = """
INSERT INTO row_count AS c (bucket, stripe, records)
SELECT bucket, 0, coalesce(found, 0) - coalesce(counted, 0) FROM ({found}) f FULL JOIN ({counted}) n USING (bucket)
WHERE coalesce(found, 0) <> coalesce(counted, 0) ORDER BY bucket
ON CONFLICT (bucket, stripe) DO UPDATE SET records = c.records + excluded.records
"""
COUNT_NOW = _COUNT.format(found=_FOUND, counted=_COUNTED)
"""The rows that are here now are all that there should be."""

_MISSING = """
SELECT bucket, counted, coalesce(found, 0) AS found FROM ({counted}) n LEFT JOIN ({found}) f USING (bucket)
WHERE counted > coalesce(found, 0) ORDER BY bucket
"""
MISSING = _MISSING.format(counted=_COUNTED, found=_FOUND)
_SOME = " WHERE bucket = ANY($1::smallint[]) GROUP BY"
_COUNTED_OF, _FOUND_OF = _COUNTED.replace(" GROUP BY", _SOME), _FOUND.replace(" GROUP BY", _SOME)
MISSING_OF = _MISSING.format(counted=_COUNTED_OF, found=_FOUND_OF)
"""As MISSING, of some buckets: by the index, so that it takes as long as they have rows."""
_COUNT_NOW_OF = _COUNT.format(found=_FOUND_OF, counted=_COUNTED_OF)
_AT_ONCE = 32


async def count_now(connection: Connection) -> None:
    """As COUNT_NOW, inside a transaction, in statements that each end within the usual time."""
    for first in range(0, BUCKETS, _AT_ONCE):
        await connection.execute(_COUNT_NOW_OF, list(range(first, min(first + _AT_ONCE, BUCKETS))))


@asynccontextmanager
async def removing(connection: Connection, table: Literal["record", "served"]) -> AsyncIterator[None]:
    """Inside a transaction: its statements may remove rows of that table."""
    await connection.execute(f"SET LOCAL baton.removing = '{table}'")
    yield
    await connection.execute("SET LOCAL baton.removing = ''")
