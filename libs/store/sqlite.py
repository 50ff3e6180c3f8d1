"""A store on one SQLite file with one process: the ports over a `Database` and a `Layout`."""

from __future__ import annotations

import sqlite3

from libs.clock import Clock
from libs.ownership.model import Store
from libs.sqlite import Database
from libs.store.aside import Aside
from libs.store.connections import PoolState
from libs.store.inspection import Inspection
from libs.store.limits import OutboxLimits
from libs.store.outbox import Outbox
from libs.store.port import Feed, Records, Transfers, Upkeep, Watch
from libs.store.recovery import Recovery, Seizures
from libs.store.sqlite_aside import SqliteAside
from libs.store.sqlite_core import Core
from libs.store.sqlite_fill import Fill
from libs.store.sqlite_inspection import SqliteInspection
from libs.store.sqlite_queues import SqliteFeed, SqliteOutbox, SqliteUpkeep
from libs.store.sqlite_records import SqliteRecords
from libs.store.sqlite_recovery import SqliteRecovery, SqliteSeizures
from libs.store.sqlite_schema import Layout
from libs.store.sqlite_transaction import SqliteTransactions
from libs.store.sqlite_transfers import SqliteTransfers
from libs.store.sqlite_watch import SqliteWatch


class SqliteStore:
    """An open store that implements `StorePorts`. The database belongs to the caller; it must be exclusive and have its
    schema up to date."""

    backend = f"sqlite {sqlite3.sqlite_version}"

    def __init__(
        self,
        store: Store,
        database: Database,
        layout: Layout,
        clock: Clock,
        limits: OutboxLimits | None = None,
        fill: Fill | None = None,
    ) -> None:
        core = Core(store, database, layout, clock, limits or OutboxLimits(), fill)
        transactions = SqliteTransactions(core)
        self.store = store
        self.records: Records = SqliteRecords(core, transactions)
        self.transfers: Transfers = SqliteTransfers(core, transactions)
        self.outbox: Outbox = SqliteOutbox(core)
        self.aside: Aside = SqliteAside(core)
        self.feed: Feed = SqliteFeed(core, transactions)
        self.inspection: Inspection = SqliteInspection(core)
        self.watch: Watch = SqliteWatch(core)
        self.upkeep: Upkeep = SqliteUpkeep(core)
        self.recovery: Recovery = SqliteRecovery(core, transactions)
        self.seizures: Seizures = SqliteSeizures(core, transactions)
        self.connections_in_use = 0
        self.pools: tuple[PoolState, ...] = ()
        self.fill = fill
        """The completion of old rows, if the file had some at this start."""
        self._database = database

    def __repr__(self) -> str:
        return f"<SqliteStore {self.store} {self._database!r}>"
