"""The parts that an audit of the old service's data needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from libs.backend.audit import AuditParts
from libs.clock import Clock
from libs.sandboxes.audit import SandboxAudit
from libs.store.sqlite_snapshot import KINDS, SqliteSnapshots
from services.simple_mcp.store.flat import LAYOUT
from services.simple_mcp.store.takeover import old_rows


@asynccontextmanager
async def open_audit(path: Path, clock: Clock) -> AsyncIterator[AuditParts]:
    """Open the parts for the file that this process serves."""
    records = SandboxAudit()
    snapshots = SqliteSnapshots(path, LAYOUT, records.folded, clock, old_rows=old_rows)
    try:
        yield AuditParts(records, snapshots, KINDS)
    finally:
        await snapshots.close()
