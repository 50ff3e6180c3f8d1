"""Sandboxes whose names no client could create today: every call reaches them, at A, at B and on the way.

The old service took any text as an id. A name is checked strictly only where a write would create a sandbox.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from tests.acceptance.talk import COLLECTION
from tests.fixtures.make_old_database import FILE
from tests.waiting import eventually

ODD = ("Box1", "My_Box", "user@host", "a.b", ".", "..", "a/b", "größe", "x" * 64, "tab\tin", "%2F", "-first")
"""More ids than the fixture has: all that the old service would take."""
CALL_SECONDS = 20.0
REASON = "old names on both sides"


@pytest.fixture
def world(tmp_path: Path) -> World:
    old = Path(shutil.copy(FILE, tmp_path / "old.db"))
    with closing(sqlite3.connect(old)) as connection:
        row = connection.execute("SELECT * FROM sandboxes WHERE id = 'sb-0001'").fetchone()
        marks = ", ".join("?" * len(row))
        connection.executemany(f"INSERT INTO sandboxes VALUES ({marks})", [(name, *row[1:]) for name in ODD])
        connection.commit()
    return World.embedded(tmp_path / "world", old)


class Client:
    def __init__(self, stub: SandboxServiceStub) -> None:
        self.stub = stub

    async def names(self, page_size: int = 1) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = pb.ListSandboxesRequest(page_size=page_size, page_token=token)
            page = await self.stub.ListSandboxes(request, timeout=CALL_SECONDS)  # type: ignore[misc]
            found += [sandbox.name for sandbox in page.sandboxes]
            token = page.next_page_token
            if not token:
                return found

    async def watched(self) -> list[str]:
        """The names in the first whole view of a watch."""
        found: list[str] = []
        call = self.stub.WatchSandboxes(pb.WatchSandboxesRequest(), timeout=CALL_SECONDS)
        async for step in call:  # type: ignore[attr-defined]
            found += [sandbox.name for sandbox in step.sandboxes]
            if step.synced:
                break
        call.cancel()
        return sorted(set(found), key=str.encode)

    async def touch_all(self, names: Sequence[str], mark: str) -> None:
        """Read and change each one."""
        for name in names:
            read = await self.stub.GetSandbox(pb.GetSandboxRequest(name=name), timeout=CALL_SECONDS)  # type: ignore[misc]
            assert read.name == name
            request = pb.UpdateSandboxRequest(
                sandbox=Sandbox(name=name, annotations={**read.annotations, "seen": mark})
            )
            request.update_mask.paths.append("annotations")
            written = await self.stub.UpdateSandbox(request, timeout=CALL_SECONDS)  # type: ignore[misc]
            assert (written.name, written.annotations["seen"]) == (name, mark)

    async def delete_and_bring_back(self, name: str) -> None:
        await self.stub.DeleteSandbox(pb.DeleteSandboxRequest(name=name), timeout=CALL_SECONDS)  # type: ignore[misc]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.GetSandbox(pb.GetSandboxRequest(name=name), timeout=CALL_SECONDS)  # type: ignore[misc]
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await self.stub.UndeleteSandbox(pb.UndeleteSandboxRequest(name=name), timeout=CALL_SECONDS)  # type: ignore[misc]

    async def makes_none(self, name: str) -> None:
        """A write that would create an absent sandbox of such a name is refused."""
        absent = name + "-absent"
        spec = SandboxSpec(image="image:1")
        update = pb.UpdateSandboxRequest(sandbox=Sandbox(name=absent, account="acme", spec=spec), allow_missing=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.UpdateSandbox(update, timeout=CALL_SECONDS)  # type: ignore[misc]
        assert reason_of(caught.value)[0] == "INVALID_FIELD", caught.value
        delete = pb.DeleteSandboxRequest(name=absent, allow_missing=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.DeleteSandbox(delete, timeout=CALL_SECONDS)  # type: ignore[misc]
        assert reason_of(caught.value)[0] == "INVALID_FIELD", caught.value


async def test_every_name_of_the_old_service_is_served_there_and_back(world: World) -> None:
    async with (
        world.running(),
        Walk.open(world.controls, "acceptance", world.token) as walk,
        open_channel(world.routers[0]) as channel,
    ):
        client = Client(SandboxServiceStub(channel.grpc))
        names = await client.names(500)
        assert {COLLECTION + name for name in ODD} < set(names)
        odd = [name for name in names if not name.removeprefix(COLLECTION).startswith("sb-")]

        async def all_is_right(mark: str) -> None:
            assert await client.names() == names
            assert await client.watched() == names
            await client.touch_all(odd, mark)
            for name in odd:
                await client.delete_and_bring_back(name)
            await client.makes_none(COLLECTION + "Box1")

        await all_is_right("at A")
        walk.counts_records = False
        await walk.backfill()
        await walk.advance(REASON)
        await walk.advance(REASON)
        # In the middle of the move: half of the buckets are at B.
        await walk.canary(50)
        await client.makes_none(COLLECTION + "My_Box")
        await client.makes_none(COLLECTION + "a.b")
        await walk.advance(REASON)
        await walk.settled()
        await all_is_right("at B")

        async def all_moved() -> bool:
            return {store.owned_records for store in (await walk.status()).stores} == {0, len(names)}

        await eventually(all_moved)
        await walk.rollback("OFF", REASON)
        await walk.settled()
        await all_is_right("at A again")
