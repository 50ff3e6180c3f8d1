"""`buf curl` calls the HTTP listener by Connect and by gRPC-Web: a client that shares no code with it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from libs.pb.sandbox.v1 import sandbox_service_pb2
from tests.system.http import CREATE, JSON, NAME, OPEN, Door
from tests.system.store import SERVICE

BUF = Path(sys.executable).parent / "buf"
BOUND_SECONDS = 60.0


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract with all that it imports, as buf reads it."""
    found = FileDescriptorSet()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            file.CopyToProto(found.file.add())

    add(sandbox_service_pb2.DESCRIPTOR)
    path = tmp_path_factory.mktemp("schema") / "contract.binpb"
    path.write_bytes(found.SerializeToString())
    return path


@pytest.fixture
async def store() -> AsyncIterator[Door]:
    async with OPEN["store"]() as found:
        yield found


class Curl:
    """One run of buf, which its end kills."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, door: Door, schema: Path, protocol: str, method: str, request: str) -> Curl:
        url = f"http://{door.address}/{SERVICE}/{method}"
        options = ("curl", "--protocol", protocol, "--schema", str(schema), "-d", request, url)
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(BUF, *options, stdout=pipe, stderr=pipe))

    async def line(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(BOUND_SECONDS):
            return await self._process.stdout.readline()

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(BOUND_SECONDS):
            out, error = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, out.decode(), error.decode()


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_buf_curl_calls_and_reads_errors(store: Door, schema: Path, protocol: str) -> None:
    made = await Curl.start(store, schema, protocol, "CreateSandbox", CREATE.decode())
    code, out, error = await made.end()
    assert (code, error) == (0, "") and json.loads(out)["name"] == NAME
    found = await Curl.start(store, schema, protocol, "GetSandbox", json.dumps({"name": NAME}))
    assert json.loads((await found.end())[1])["spec"] == {"image": "image:1"}
    failed = await Curl.start(store, schema, protocol, "GetSandbox", '{"name": "sandboxes/none"}')
    code, _, error = await failed.end()
    assert code and json.loads(error)["code"] == "not_found"
    assert json.loads(error)["details"][0]["type"] == "google.rpc.ErrorInfo"


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_buf_curl_watches_until_the_drain(store: Door, schema: Path, protocol: str) -> None:
    await store.post("CreateSandbox", CREATE, JSON)
    curl = await Curl.start(store, schema, protocol, "WatchSandboxes", "{}")
    shown = b""
    while NAME.encode() not in shown:
        shown += await curl.line()
    store.end_streams()
    code, _, error = await curl.end()
    assert code and json.loads(error)["code"] == "unavailable"
