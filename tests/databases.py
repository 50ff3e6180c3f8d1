"""Databases with B's schema and no records, copied from one that was migrated once: a copy takes half of the time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from libs.proving.servers.postgres import Postgres
from services.service_layer.store.postgres_identity import DATABASE
from services.service_layer.store.postgres_schema import migrate

TEMPLATE = "migrated"
_MAKE_ITS_OWN = (
    f"UPDATE standing SET id = gen_random_uuid(), watched = gen_random_uuid(); UPDATE standing s SET place = {DATABASE}"
)
"""As the migrations leave a new database: a store takes any other copy for a restored one and does not serve."""


def make_template(server: Postgres) -> None:
    dsn = server.create_database(TEMPLATE)
    # A separate event loop in a separate thread does not disturb the loop of the caller's thread.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, migrate(dsn)).result()


def copy_template(server: Postgres, name: str) -> str:
    """Create a database with this name. Returns its address."""
    dsn = server.create_database(name, template=TEMPLATE)
    server.execute(_MAKE_ITS_OWN, database=name)
    return dsn
