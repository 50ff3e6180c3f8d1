"""The Go client with xDS, built and run against a router."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from baton_client.bootstrap import bootstrap
from tests.goclient import go_client, run
from tests.integration.test_direct_routes import HALF, names
from tests.system.direct import TARGET, running_direct
from tests.system.http import ROOT


@pytest.fixture(scope="module")
def program() -> Path:
    return go_client("direct")


async def test_a_go_client_calls_each_records_store(program: Path, tmp_path: Path) -> None:
    some = [*names(0, 512, 2), *names(512, 1024, 2)]
    async with running_direct(tmp_path, HALF) as direct:
        client = await direct.client()
        await client.until(some[0], "store-b")
        await client.until(some[2], "store-a")
        file = tmp_path / "bootstrap.json"
        file.write_text(json.dumps(bootstrap(direct.xds, node="go")))
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP": str(file)}
        output = await asyncio.to_thread(run, [str(program), TARGET, *some], ROOT, environment, 60.0)
        assert output.split() == ["store-b", "store-b", "store-a", "store-a"]
        assert "refused" not in await direct.alerts()
