"""Clients with xDS call the store that owns their record, and a router where one is needed."""

from __future__ import annotations

from pathlib import Path

from libs.ownership.model import bucket_of
from services.router.core.phase import Phase, Setting
from tests.certificates import Authority
from tests.system.direct import Client, Direct, RawClient, Secured, running_direct
from tests.waiting import eventually

HALF = Setting(2, Phase.DUAL_WRITE, 500)


def names(low: int, end: int, count: int = 4) -> list[str]:
    """Names of records whose buckets are in the range."""
    found = (f"sandboxes/s{number}" for number in range(10_000))
    return [name for name in found if low <= bucket_of(name) < end][:count]


async def test_calls_go_to_their_buckets_store_and_others_to_a_router(tmp_path: Path) -> None:
    async with running_direct(tmp_path, HALF) as direct:
        client = await direct.client()
        at_b, at_a = names(0, 512), names(512, 1024)
        await client.until(at_b[0], "store-b")
        await client.until(at_a[0], "store-a")
        assert [await client.get(name) for name in at_b] == ["store-b"] * 4
        assert [await client.get(name) for name in at_a] == ["store-a"] * 4
        assert await client.get(at_a[0], bucket=False) == "router"
        assert await client.list() == "router"


async def answers(client: Client, some: list[str]) -> set[str]:
    return {await client.get(name) for name in some}


async def test_a_rollback_takes_the_calls_off_their_store_at_once_and_to_the_other_once_the_records_are_there(
    tmp_path: Path,
) -> None:
    async with running_direct(tmp_path, HALF) as direct:
        client = await direct.client()
        at_b, at_a = names(0, 512), names(512, 1024)
        await client.until(at_b[0], "store-b")
        await direct.roll_back()
        await eventually(lambda: reached(client, at_b, {"router", "store-a"}))
        before = direct.echoes["store-b"].calls.total()
        await client.until(at_b[0], "store-a")
        assert await answers(client, at_a) == {"store-a"}
        assert direct.echoes["store-b"].calls.total() == before


async def reached(client: Client, some: list[str], wanted: set[str]) -> bool:
    found = await answers(client, some)
    assert found <= wanted
    return True


async def test_the_flag_of_an_operation_takes_only_its_calls_to_a_router(tmp_path: Path) -> None:
    async with running_direct(tmp_path, HALF) as direct:
        client, (name, *_) = await direct.client(), names(0, 512)
        await client.until(name, "store-b")
        assert await client.update(name) == "store-b"
        await direct.set_flag("update_sandbox_use_service_layer", False)

        async def redirected() -> bool:
            return await client.update(name) == "router"

        await eventually(redirected)
        assert await client.get(name) == "store-b"


async def test_a_share_of_the_direct_calls_still_goes_through_a_router(tmp_path: Path) -> None:
    async with running_direct(tmp_path, HALF, {"xds_sample_permille": 300}) as direct:
        client, (name, *_) = await direct.client(), names(0, 512)
        await client.until(name, "store-b")
        found = [await client.get(name) for _ in range(200)]
        assert {"router", "store-b"} == set(found)
        assert 20 <= found.count("router") <= 120


async def test_after_a_stores_death_the_next_call_goes_through_a_router(tmp_path: Path) -> None:
    async with running_direct(tmp_path, HALF) as direct:
        client, (name, *_) = await direct.client(), names(0, 512)
        await client.until(name, "store-b")
        await direct.echoes["store-b"].server.drain(0.1)
        assert await client.get(name) == "router"
        await eventually(lambda: has_alert(direct, "store-b: no process serves clients"))


async def test_a_process_that_drains_leaves_the_routes_before_it_closes(tmp_path: Path) -> None:
    async with running_direct(tmp_path, HALF) as direct:
        client, (name, *_) = await direct.client(), names(0, 512)
        await client.until(name, "store-b")
        await direct.echoes["store-b"].server.set_serving(False)
        await client.until(name, "router")
        await direct.echoes["store-b"].server.set_serving(True)
        await client.until(name, "store-b")


async def test_a_client_that_refuses_the_routes_keeps_its_own_and_is_named_in_the_status(tmp_path: Path) -> None:
    async with running_direct(tmp_path, HALF) as direct, RawClient.connected(direct.xds) as client:
        first = await client.complete()
        await client.answer(first, "I do not understand \x1b[31m routes")
        await eventually(lambda: refused(direct))
        alerts = await direct.alerts()
        assert "xDS clients refused the newest routes" in alerts and "\\x1b[31m" in alerts
        await direct.set_flag("use_service_layer", True)
        second = await client.routes()
        assert second.version_info != first.version_info
        await client.answer(second)
        await eventually(lambda: accepted(direct))


async def test_direct_calls_over_tls_check_certificates_and_the_listener_requires_one(tmp_path: Path) -> None:
    secured = Secured(Authority(tmp_path))
    settings = {"xds_auth": "mtls", "xds_certificate_provider": "baton"}
    async with running_direct(tmp_path, HALF, settings, secured) as direct:
        client, (name, *_) = await direct.client(tls=secured.tls()), names(0, 512)
        await client.until(name, "store-b")
        assert await client.list() == "router"
        stranger = Secured(Authority(tmp_path, "stranger"))
        assert await (await direct.client(tls=stranger.tls())).get(name) == "UNAVAILABLE"


async def has_alert(direct: Direct, text: str) -> bool:
    return text in await direct.alerts()


async def refused(direct: Direct) -> bool:
    return "refused the newest routes" in await direct.alerts()


async def accepted(direct: Direct) -> bool:
    return "refused the newest routes" not in await direct.alerts()
