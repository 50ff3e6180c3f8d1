# ruff: noqa: N802 - the methods are named as in the .proto.
"""Server reflection, versions v1 and v1alpha, for grpcurl, ghz and other clients.

Both versions have the same messages, so one servicer serves both. `grpcio-reflection` has v1alpha only: the descriptors
of v1 are derived from it. Its descriptor pool does not find methods, fields and enum values by their full names, so a
missing symbol is looked up here as a member of its parent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from libs.contract.requests import parse_request
from libs.errors import BatonError, InvalidField
from libs.identity.port import Credentials
from libs.rpc.errors import Context, abort
from libs.rpc.standard import Shares

V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")
NAMES = (V1, V1ALPHA)

STREAMS = 32
"""Maximum number of reflection streams at one listener."""
CONNECTION_STREAMS = 4
"""Maximum number of them on one connection."""

_MEMBERS = (
    ("FindServiceByName", "methods_by_name"),
    ("FindMessageTypeByName", "fields_by_name"),
    ("FindMessageTypeByName", "oneofs_by_name"),
    ("FindEnumTypeByName", "values_by_name"),
)


def _add_v1() -> None:
    """Add the descriptors of v1 to the default pool."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = file.package.replace("v1alpha", "v1")
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_add_v1()


class Pool:
    """The default descriptor pool, which also finds members of services, messages and enums."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        pool = descriptor_pool.Default()
        with suppress(KeyError):
            return pool.FindFileContainingSymbol(symbol)
        parent, _, member = symbol.rpartition(".")
        for find, members in _MEMBERS:
            with suppress(KeyError):
                found: Any = getattr(pool, find)(parent)
                if member in getattr(found, members):
                    file: FileDescriptor = found.file
                    return file
        raise KeyError(symbol)


class Reflection(reflection.aio.ReflectionServicer):
    """Reflection that stops taking requests at its end, so that its clients, which may stay for long, do not delay a
    drain."""

    def __init__(
        self, services: Sequence[str], authenticate: Callable[[Credentials], Awaitable[object]] | None = None
    ) -> None:
        """`authenticate`: raises BatonError for a caller that may not read the descriptors. None: everyone may."""
        super().__init__(services, Pool())
        self._authenticate = authenticate
        self._ended = asyncio.Event()
        self._shares = Shares(STREAMS, CONNECTION_STREAMS)

    async def ServerReflectionInfo(  # type: ignore[override]  # its stub knows no generators
        self, requests: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        if self._authenticate is not None:
            try:
                await self._authenticate(context)
            except BatonError as error:
                await abort(context, error)
        async with self._shares.one(context):
            answered: Any = super().ServerReflectionInfo(self._until_ended(requests), context)
            try:
                async for answer in answered:
                    yield answer
            except InvalidField as error:
                await abort(context, error)

    async def _until_ended(self, requests: Any) -> AsyncGenerator[Any, None]:
        ended = asyncio.ensure_future(self._ended.wait())
        request: asyncio.Future[Any] | None = None
        try:
            while True:
                request = asyncio.ensure_future(anext(requests))
                request.add_done_callback(_retrieve_outcome)
                await asyncio.wait([request, ended], return_when=asyncio.FIRST_COMPLETED)
                if not request.done():
                    return
                try:
                    data = request.result()
                except StopAsyncIteration:
                    return
                yield parse_request(reflection_pb2.ServerReflectionRequest, data)
        finally:
            ended.cancel()
            if request is not None:
                request.cancel()

    def end(self) -> None:
        self._ended.set()


def _retrieve_outcome(request: asyncio.Future[Any]) -> None:
    """Retrieve the exception of a client that left; otherwise asyncio logs it."""
    if not request.cancelled():
        request.exception()


def handlers(servicer: Reflection) -> tuple[grpc.GenericRpcHandler, ...]:
    """Handlers of both versions, for a server."""
    answer: Any = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": answer}) for name in NAMES)
