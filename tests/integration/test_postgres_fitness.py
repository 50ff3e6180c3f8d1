"""A database that cannot give the store's guarantees is refused at the start, with the remedy."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from libs.contract.pages import Filter, Page
from libs.postgres import UnfitDatabase
from libs.proving.servers.pgbouncer import PgBouncer
from libs.proving.servers.postgres import Postgres
from libs.store.inspection import ExportQuery
from services.service_layer.store.postgres import open_store
from tests.contracts.store_adapters import own, put

NAMES = [f"sandboxes/{name}" for name in ("Z", "_x", "a", "a-1", "a.b", "a_b", "b", "z", "\u00e9")]
"""In bytewise order, which is not the order of any language."""


@contextmanager
def database(postgres: Postgres, name: str, options: str) -> Iterator[str]:
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    try:
        yield postgres.dsn_of(name)
    finally:
        postgres.drop_database(name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_in_another_encoding_is_refused(postgres: Postgres, encoding: str) -> None:
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with database(postgres, f"unfit_{encoding.lower()}", options) as dsn:
        with pytest.raises(UnfitDatabase, match=rf"server_encoding: {encoding} is not valid: .*ENCODING 'UTF8'"):
            async with open_store(dsn):
                pass
        tables = postgres.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=dsn.rsplit("/", 1)[1]
        )
        assert tables == "0", "nothing was made in it"


async def test_a_database_with_the_collation_of_a_language_orders_names_bytewise(postgres: Postgres) -> None:
    options = "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LC_COLLATE 'C' LC_CTYPE 'C'"
    with database(postgres, "english", options) as dsn:
        async with open_store(dsn) as store:
            await own(store, NAMES)
            for number, name in enumerate(reversed(NAMES)):
                await put(store, name, f"00000000-0000-4000-8000-{number:012}", "w")
            listed = await store.records.page(Page(Filter(), limit=100))
            assert [item.row.key for item in listed] == NAMES
            records, more = await store.inspection.export(ExportQuery(limit=100))
            assert ([record.row.key for record in records], more) == (NAMES, False)
            after = await store.records.page(Page(Filter(), after="sandboxes/a_b", limit=100))
            assert [item.row.key for item in after] == NAMES[6:]


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_a_pooler_is_refused(
    postgres: Postgres, postgres_dsn: str, stack_directory: Path, mode: Literal["transaction", "session"], drops: bool
) -> None:
    server = PgBouncer(stack_directory / f"pgbouncer-{mode}-{drops}", postgres, mode, drops=drops)
    server.start()
    try:
        with pytest.raises(UnfitDatabase, match=r"pooler .*give the server's own address"):
            async with asyncio.timeout(30), open_store(server.dsn_of(postgres_dsn.rsplit("/", 1)[1])):
                pass
    finally:
        server.kill()


async def test_the_service_says_whether_its_database_fits(postgres: Postgres, postgres_dsn: str) -> None:
    async def check(dsn: str) -> tuple[int | None, str]:
        environment = {**os.environ, "SERVICE_LAYER_DATABASE": dsn, "SERVICE_LAYER_EVENT_LOG": "memory:"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.service_layer", "check"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        return process.returncode, printed.decode()

    code, printed = await check(postgres_dsn)
    assert code == 1
    assert "run `python -m services.service_layer migrate`" in printed
    async with open_store(postgres_dsn):
        pass
    code, printed = await check(postgres_dsn)
    assert (code, "the database fits: postgresql" in printed) == (0, True), printed
    with database(postgres, "unfit_latin1", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'") as dsn:
        code, printed = await check(dsn)
        assert (code, "ENCODING 'UTF8'" in printed, "Traceback" in printed) == (1, True, False), printed
