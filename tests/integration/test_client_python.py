"""baton-client against all places that serve the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from baton_client import AsyncClient, CallError, connect_async
from baton_client.messages import (
    AcquireLeaseRequest,
    CreateSandboxRequest,
    DeleteSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    ReleaseLeaseRequest,
    RenewLeaseRequest,
    Sandbox,
    SandboxSpec,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
    WatchSandboxesRequest,
)
from libs.rpc.server import Server, ServerConfig
from tests.system.http import NAMES, endpoint
from tests.system.store import running_store

SANDBOX = Sandbox(account="acme", spec=SandboxSpec(image="debian:13", cpu_millis=500))
BOUND_SECONDS = 20.0


@pytest.fixture(params=NAMES)
async def client(request: pytest.FixtureRequest) -> AsyncIterator[AsyncClient]:
    async with endpoint(request.param) as place, connect_async(place.grpc, name="a-test") as found:
        yield found


async def test_every_method_does_what_it_says(client: AsyncClient) -> None:
    request = CreateSandboxRequest(sandbox_id="one", sandbox=SANDBOX)
    created = await client.CreateSandbox(request)
    name = created.name
    assert (await client.GetSandbox(GetSandboxRequest(name=name))).spec == SANDBOX.spec
    labels = UpdateSandboxRequest(
        sandbox=Sandbox(name=name, labels={"team": "blue"}), update_mask=FieldMask(paths=["labels"])
    )
    updated = await client.UpdateSandbox(labels)
    assert updated.labels == {"team": "blue"}
    leased = await client.AcquireLease(AcquireLeaseRequest(name=name, holder="me", ttl=Duration(seconds=60)))
    token = leased.lease.token
    assert (await client.RenewLease(RenewLeaseRequest(name=name, token=token))).lease.renewals == 1
    assert not (await client.ReleaseLease(ReleaseLeaseRequest(name=name, token=token))).HasField("lease")
    assert (await client.DeleteSandbox(DeleteSandboxRequest(name=name))).HasField("delete_time")
    assert not (await client.UndeleteSandbox(UndeleteSandboxRequest(name=name))).HasField("delete_time")
    page = await client.ListSandboxes(ListSandboxesRequest())
    assert [sandbox.name for sandbox in page.sandboxes] == [name]
    async with asyncio.timeout(BOUND_SECONDS), aclosing(client.WatchSandboxes(WatchSandboxesRequest())) as answers:
        async for answer in answers:
            if answer.sandboxes:
                assert answer.sandboxes[0].name == name
                break


async def test_a_request_id_that_is_used_again_has_one_effect(client: AsyncClient) -> None:
    request = CreateSandboxRequest(sandbox=SANDBOX, request_id="00000000-0000-4000-8000-000000000001")
    first, second = await client.CreateSandbox(request), await client.CreateSandbox(request)
    assert first == second
    assert len((await client.ListSandboxes(ListSandboxesRequest())).sandboxes) == 1


async def test_errors_have_their_reason_and_metadata(client: AsyncClient) -> None:
    with pytest.raises(CallError) as invalid:
        await client.CreateSandbox(CreateSandboxRequest(sandbox_id="No", sandbox=SANDBOX))
    assert (invalid.value.code, invalid.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert invalid.value.metadata["field"] == "sandbox_id"
    created = await client.CreateSandbox(CreateSandboxRequest(sandbox=SANDBOX))
    await client.UpdateSandbox(UpdateSandboxRequest(sandbox=Sandbox(name=created.name, labels={"team": "blue"})))
    with pytest.raises(CallError) as conflict:
        await client.DeleteSandbox(DeleteSandboxRequest(name=created.name, etag=created.etag))
    assert conflict.value.reason == "ETAG_MISMATCH"


async def test_calls_and_watches_outlive_a_restart_of_their_server() -> None:
    async with running_store() as store, connect_async(store.server.address) as client:
        created = await client.CreateSandbox(CreateSandboxRequest(sandbox=SANDBOX))
        async with asyncio.timeout(BOUND_SECONDS), aclosing(client.WatchSandboxes(WatchSandboxesRequest())) as answers:
            answer = await anext(answers)
            await store.server.drain(0.0)
            update = UpdateSandboxRequest(sandbox=Sandbox(name=created.name, labels={"a": "b"}), request_id="")
            writing = asyncio.create_task(client.UpdateSandbox(update))
            again = Server(ServerConfig(store.server.address, "public"), [store.service])
            await again.start()
            try:
                written = await writing
                while not any(one.revision == written.revision for one in answer.sandboxes):
                    answer = await anext(answers)
                assert not answer.reset, "the watch went on by its token"
            finally:
                await again.drain(0.0)
