"""Whether a store has lost rows: removed by hand, by a restored table, or by a disk.

Lost rows are no absence of a record. A store that serves without them answers NOT_FOUND, creates the names anew, and
takes an older version of them for its own. So it is fenced, and `baton recover` brings it back from the other store.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.store.port import Inspection, Missing


async def lost_rows(inspection: Inspection) -> str:
    """Why the store must be fenced, or ""."""
    return describe(await inspection.missing())


def describe(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    lost = sum(one.counted - one.found for one in missing)
    first = missing[0]
    return (
        f"rows are missing: {lost}, in {len(missing)} buckets; bucket {first.bucket} has had {first.counted} and has"
        f" {first.found}"
    )
