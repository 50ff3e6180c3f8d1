"""The bucket of a call, and the file that clients with xDS read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from baton_client import AsyncBucketInterceptor, BucketInterceptor, Tls, connect, connect_async, write_bootstrap
from baton_client.bucket import bucket_metadata, bucket_of
from baton_client.messages import (
    CreateSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    Sandbox,
    UpdateSandboxRequest,
)
from baton_client.methods import KEYS
from scripted import serving

GET = "/sandbox.v1.SandboxService/GetSandbox"
ONE = Sandbox(name="sandboxes/one")


def path(method: str) -> str:
    return f"/sandbox.v1.SandboxService/{method}"


def test_the_bucket_is_the_one_of_the_servers() -> None:
    # As in tests/unit/test_buckets.py of the servers.
    known = {"sandboxes/a": 149, "sandboxes/b": 970, "sandboxes/é": 622, "a": 559, "": 692}
    assert {name: bucket_of(name) for name in known} == known


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetSandbox", GetSandboxRequest(name="sandboxes/one")),
        ("UpdateSandbox", UpdateSandboxRequest(sandbox=ONE)),
        ("CreateSandbox", CreateSandboxRequest(sandbox_id="one")),
    ],
)
def test_a_call_on_a_record_carries_its_bucket(method: str, request_: Any) -> None:
    assert bucket_metadata(KEYS[path(method)], request_) == (("baton-bucket", str(bucket_of("sandboxes/one"))),)


def test_a_call_without_a_known_record_carries_none() -> None:
    assert bucket_metadata(KEYS[path("CreateSandbox")], CreateSandboxRequest()) == ()
    assert path("ListSandboxes") not in KEYS
    assert bucket_metadata("", ListSandboxesRequest()) == ()


def test_a_client_sends_the_bucket_with_each_call_on_a_record() -> None:
    async def call(address: str) -> None:
        async with connect_async(address) as client:
            await client.GetSandbox(GetSandboxRequest(name=ONE.name))

    with serving([ONE]) as server:
        asyncio.run(call(server.address))
        with connect(server.address) as client:
            client.GetSandbox(GetSandboxRequest(name=ONE.name))
    assert [found["baton-bucket"] for found in server.metadata] == [str(bucket_of(ONE.name))] * 2


def test_interceptors_add_the_bucket_to_stubs_of_your_own() -> None:
    def stub(channel: Any) -> Any:
        return channel.unary_unary(GET, GetSandboxRequest.SerializeToString, Sandbox.FromString)

    async def call(address: str) -> None:
        async with grpc.aio.insecure_channel(address, interceptors=[AsyncBucketInterceptor()]) as channel:
            await stub(channel)(GetSandboxRequest(name=ONE.name), metadata=(("own", "1"),))

    with serving([ONE]) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub(grpc.intercept_channel(channel, BucketInterceptor()))(GetSandboxRequest(name=ONE.name))
        asyncio.run(call(server.address))
    assert [found["baton-bucket"] for found in server.metadata] == [str(bucket_of(ONE.name))] * 2
    assert server.metadata[1]["own"] == "1"


def test_the_bootstrap_names_the_routers_and_the_files_of_tls(tmp_path: Path) -> None:
    plain, secure = tmp_path / "plain.json", tmp_path / "secure.json"
    write_bootstrap(plain, "dns:///routers:7650", node="me")
    assert json.loads(plain.read_text()) == {
        "xds_servers": [
            {
                "server_uri": "dns:///routers:7650",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": "me", "locality": {}},
    }
    write_bootstrap(secure, "dns:///routers:7650", tls=Tls(ca="/ca.pem", certificate="/own.pem", key="/own.key"))
    found = json.loads(secure.read_text())
    files = {
        "ca_certificate_file": "/ca.pem",
        "certificate_file": "/own.pem",
        "private_key_file": "/own.key",
    }
    assert found["xds_servers"][0]["channel_creds"] == [{"type": "tls", "config": files}]
    provider = found["certificate_providers"]["baton"]
    assert provider["plugin_name"] == "file_watcher"
    assert provider["config"] == {**files, "refresh_interval": "60s"}
