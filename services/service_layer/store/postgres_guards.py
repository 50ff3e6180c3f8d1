"""Guards against lost rows on PostgreSQL: announced removals, and row counts by bucket that reveal a missing row."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from libs.ownership.model import BUCKETS
from services.service_layer.store.postgres_pool import Connection

_COUNTED = "SELECT bucket, sum(records) AS counted FROM row_count GROUP BY bucket"
_FOUND = "SELECT bucket, count(*) AS found FROM record GROUP BY bucket"

# One statement uses one snapshot, so rows and counts are of the same moment. Other transactions add to both, so the
# difference stays right.
_COUNT = """
INSERT INTO row_count AS c (bucket, stripe, records)
SELECT bucket, 0, coalesce(found, 0) - coalesce(counted, 0) FROM ({found}) f FULL JOIN ({counted}) n USING (bucket)
WHERE coalesce(found, 0) <> coalesce(counted, 0) ORDER BY bucket
ON CONFLICT (bucket, stripe) DO UPDATE SET records = c.records + excluded.records
"""
COUNT_NOW = _COUNT.format(found=_FOUND, counted=_COUNTED)
"""Sets the counts to the present rows."""

_MISSING = """
SELECT bucket, counted, coalesce(found, 0) AS found FROM ({counted}) n LEFT JOIN ({found}) f USING (bucket)
WHERE counted > coalesce(found, 0) ORDER BY bucket
"""
MISSING = _MISSING.format(counted=_COUNTED, found=_FOUND)
_SOME = " WHERE bucket = ANY($1::smallint[]) GROUP BY"
_COUNTED_OF, _FOUND_OF = _COUNTED.replace(" GROUP BY", _SOME), _FOUND.replace(" GROUP BY", _SOME)
MISSING_OF = _MISSING.format(counted=_COUNTED_OF, found=_FOUND_OF)
"""MISSING for some buckets. It reads by the index, so its duration depends on their rows alone."""
_COUNT_NOW_OF = _COUNT.format(found=_FOUND_OF, counted=_COUNTED_OF)
_AT_ONCE = 32


async def count_now(connection: Connection) -> None:
    """Run COUNT_NOW inside a transaction, split so that each statement ends within the usual timeout."""
    for first in range(0, BUCKETS, _AT_ONCE):
        await connection.execute(_COUNT_NOW_OF, list(range(first, min(first + _AT_ONCE, BUCKETS))))


@asynccontextmanager
async def removing(connection: Connection, table: Literal["record", "served"]) -> AsyncIterator[None]:
    """Allow the statements of the open transaction to remove rows of `table`."""
    await connection.execute(f"SET LOCAL baton.removing = '{table}'")
    yield
    await connection.execute("SET LOCAL baton.removing = ''")
