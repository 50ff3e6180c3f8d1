"""Rows that must not vanish, on PostgreSQL: marked removals, and counts by which lost rows are missed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from services.service_layer.store.postgres_pool import Connection

_COUNTED = "SELECT bucket, sum(records) AS counted FROM row_count GROUP BY bucket"
_FOUND = "SELECT bucket, count(*) AS found FROM record GROUP BY bucket"

# One statement, one snapshot: rows and counts are of the same moment. What other transactions add meanwhile they add to
# both, so the difference stays right.
COUNT_NOW = f"""
INSERT INTO row_count AS c (bucket, stripe, records)
SELECT bucket, 0, coalesce(found, 0) - coalesce(counted, 0) FROM ({_FOUND}) f FULL JOIN ({_COUNTED}) n USING (bucket)
WHERE coalesce(found, 0) <> coalesce(counted, 0) ORDER BY bucket
ON CONFLICT (bucket, stripe) DO UPDATE SET records = c.records + excluded.records
"""
"""The rows that are here now are all that there should be."""

_MISSING = """
SELECT bucket, counted, coalesce(found, 0) AS found FROM ({counted}) n LEFT JOIN ({found}) f USING (bucket)
WHERE counted > coalesce(found, 0) ORDER BY bucket
"""
MISSING = _MISSING.format(counted=_COUNTED, found=_FOUND)
_SOME = " WHERE bucket = ANY($1::smallint[]) GROUP BY"
MISSING_OF = _MISSING.format(counted=_COUNTED.replace(" GROUP BY", _SOME), found=_FOUND.replace(" GROUP BY", _SOME))
"""As MISSING, of some buckets: by the index, so that it takes as long as they have rows."""


@asynccontextmanager
async def removing(connection: Connection, table: Literal["record", "served"]) -> AsyncIterator[None]:
    """Inside a transaction: its statements may remove rows of that table."""
    await connection.execute(f"SET LOCAL baton.removing = '{table}'")
    yield
    await connection.execute("SET LOCAL baton.removing = ''")
