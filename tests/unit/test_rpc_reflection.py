"""Server reflection, as grpcurl and other clients use it, in both versions."""

import asyncio
import gc
import logging
from importlib import import_module
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2

from libs.rpc.channel import Channel, open_channel
from libs.rpc.server import RawService, Server, ServerConfig
from tests.unit.test_rpc_server import SERVICE, echo, serving

CONFIG = ServerConfig("127.0.0.1:0", "public")


def ask_reflection(channel: Channel, version: str) -> Any:
    """A stream of questions and answers."""
    return channel.grpc.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("sandbox.v1.SandboxService", "sandbox/v1/sandbox_service.proto"),
        ("sandbox.v1.SandboxService.GetSandbox", "sandbox/v1/sandbox_service.proto"),
        ("sandbox.v1.Sandbox.labels", "sandbox/v1/sandbox.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1.ServerReflection.ServerReflectionInfo", "grpc/reflection/v1/reflection.proto"),
        ("sandbox.v1.SandboxService.NoSuchMethod", ""),
        ("nonsense", ""),
    ],
)
async def test_reflection_finds_services_methods_and_fields_in_both_versions(
    version: str, symbol: str, file: str
) -> None:
    import_module("libs.pb.sandbox.v1.sandbox_service_pb2")
    async with serving(CONFIG, RawService(SERVICE, {"Echo": echo})) as (_, channel):
        stream = ask_reflection(channel, version)
        await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        answer = await stream.read()
        await stream.done_writing()
    if not file:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        return
    protos = [FileDescriptorProto.FromString(one) for one in answer.file_descriptor_response.file_descriptor_proto]
    assert file in [proto.name for proto in protos]


@pytest.mark.parametrize("leaves", ["cancels", "closes its connection"])
async def test_a_client_of_reflection_that_leaves_is_no_error_in_the_log(
    leaves: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(CONFIG, [RawService(SERVICE, {"Echo": echo})])
    await server.start()
    async with open_channel(server.address) as channel:
        stream = ask_reflection(channel, "v1alpha")
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await stream.read()
        if leaves == "cancels":
            stream.cancel()
    await server.drain(5.0)
    await asyncio.sleep(0)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
