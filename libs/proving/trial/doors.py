"""Clients of the protocols over HTTP that look like a gRPC channel, so that the same calls can be made over each
protocol.

They take a request as a gRPC client would send it, convert it to their protocol, and return the reply or the error as
gRPC would. A request that a protocol cannot express (a name that does not fit a path, bytes that are not a message) is
sent over gRPC to the same endpoint.
"""

from __future__ import annotations

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from urllib.parse import quote

import grpc
import httpx2
from google.protobuf import any_pb2, json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from libs.contract.descriptors import Contract
from libs.http.bindings import WHOLE, Binding, Routes
from libs.http.forms import Forms
from libs.http.tools import snake_case
from libs.rpc import metadata
from libs.rpc.errors import DETAILS_KEY
from libs.sandboxes.schema import METADATA, SCHEMAS

CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
FORMS = Forms(CONTRACT)
FIRST: Mapping[str, Binding] = {binding.method.name: binding for binding in reversed(tuple(Routes.of(CONTRACT)))}
"""The first binding of each method."""
MCP_PATH = "/mcp"
MCP_HEADERS = (
    ("accept", "application/json, text/event-stream"),
    ("content-type", "application/json"),
    ("mcp-protocol-version", "2025-06-18"),
)
EARLIER_SECONDS = 1.0
"""How much longer a client waits than the deadline that it sends."""

_DETAILS = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
"""Imported, so that details can be parsed from JSON by their type."""
_CODES = {code.name: code for code in grpc.StatusCode}


Said = Sequence[tuple[str, str]]
Answered = tuple[bytes, Said]


class Way(Protocol):
    """A client's connection to an endpoint; a gRPC `Channel` is one."""

    def multi_callable(self, method: str) -> Any: ...


class Unsayable(Exception):
    """This protocol cannot express the request."""


@dataclass
class Call:
    """A call in progress, in grpc.aio's form."""

    work: Awaitable[Answered]
    trailers: Said = ()

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._answer().__await__()

    async def _answer(self) -> bytes:
        data, self.trailers = await self.work
        return data

    async def trailing_metadata(self) -> Said:
        return self.trailers


class HttpWay(ABC):
    """Base class of the protocols over HTTP."""

    def __init__(
        self,
        address: str,
        client: httpx2.AsyncClient,
        otherwise: Way,
        usual_schema: int = SCHEMAS.newest,
        *,
        encrypted: bool = False,
    ) -> None:
        """`otherwise`: connection for inexpressible requests. `usual_schema`: the endpoint's schema version for callers
        that send none. `encrypted`: the endpoint uses TLS."""
        self._base = f"{'https' if encrypted else 'http'}://{address}"
        self._client = client
        self._otherwise = otherwise
        self._usual_schema = usual_schema

    def multi_callable(self, method: str) -> Callable[..., Call]:
        def call(data: bytes, timeout: float | None = None, metadata: Iterable[tuple[str, str]] | None = None) -> Call:
            return Call(self._send(method, data, timeout, tuple(metadata or ())))

        return call

    async def _send(self, method: str, data: bytes, timeout: float | None, said: Said) -> Answered:
        try:
            return await self.send(method.rpartition("/")[2], data, timeout, said)
        except Unsayable:
            call = self._otherwise.multi_callable(method)(data, timeout=timeout, metadata=grpc.aio.Metadata(*said))
            return await call, await call.trailing_metadata()

    @abstractmethod
    async def send(self, method: str, data: bytes, timeout: float | None, said: Said) -> Answered:
        """The serialized reply and its trailers. Raises AioRpcError, Unsayable."""

    def _schema_of(self, said: Said) -> int:
        named = dict(said).get(METADATA, "")
        return int(named) if named.isdigit() else self._usual_schema

    async def _request(self, verb: str, path: str, timeout: float | None, **parts: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(None if timeout is None else timeout + EARLIER_SECONDS):
                return await self._client.request(verb, self._base + path, timeout=None, **parts)
        except TimeoutError:
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "the client waited long enough", (), ()) from None
        except httpx2.TransportError as error:
            raise _error(grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}", (), ()) from None


class RestWay(HttpWay):
    async def send(self, method: str, data: bytes, timeout: float | None, said: Said) -> Answered:
        schema = self._schema_of(said)
        if method not in FIRST:
            raise Unsayable
        path, query, body = rest_request(FIRST[method], data, schema)
        headers = [*said, *([("x-server-timeout", str(timeout))] if timeout is not None else [])]
        parts: dict[str, Any] = {"headers": headers, "params": query}
        if body is not None:
            parts["content"] = json.dumps(body, ensure_ascii=False).encode()
            headers.append(("content-type", "application/json"))
        answer = await self._request(FIRST[method].verb, path, timeout, **parts)
        trailers = trailers_of(answer.headers.items())
        if answer.status_code != httpx2.codes.OK:
            _refuse(answer.json()["error"], trailers)
        return reply_from_json(method, schema, answer.json()), trailers


class ConnectWay(HttpWay):
    """Connect with JSON messages."""

    async def send(self, method: str, data: bytes, timeout: float | None, said: Said) -> Answered:
        schema = self._schema_of(said)
        content = json.dumps(json_of(_parsed(method, schema, data))).encode()
        headers = [*said, ("content-type", "application/json"), ("connect-protocol-version", "1")]
        if timeout is not None:
            headers.append(("connect-timeout-ms", str(max(1, round(timeout * 1000)))))
        path = f"/{CONTRACT.service}/{method}"
        answer = await self._request("POST", path, timeout, headers=headers, content=content)
        trailers = trailers_of((name.removeprefix("trailer-"), value) for name, value in answer.headers.items())
        if answer.status_code != httpx2.codes.OK:
            _refuse_connect(answer, trailers)
        return reply_from_json(method, schema, answer.json()), trailers


class McpWay(HttpWay):
    """MCP, by tool calls."""

    async def send(self, method: str, data: bytes, timeout: float | None, said: Said) -> Answered:
        schema = self._schema_of(said)
        params = {"name": snake_case(method), "arguments": json_of(_parsed(method, schema, data))}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = [*said, *MCP_HEADERS, *([("x-server-timeout", str(timeout))] if timeout is not None else [])]
        answer = await self._request("POST", MCP_PATH, timeout, headers=headers, content=json.dumps(call).encode())
        if refused := answer.json().get("error"):
            # The request never became a call: its deadline passed before it was read.
            _refuse(refused["data"]["error"], ())
        found = answer.json()["result"]
        trailers = trailers_of(found.get("_meta", {}).items())
        if found.get("isError"):
            _refuse(found["structuredContent"]["error"], trailers)
        return reply_from_json(method, schema, found["structuredContent"]), trailers


def trailers_of(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Baton's own, without the warning, which depends on the endpoint."""
    return [pair for pair in headers if pair[0].startswith("baton-") and pair[0] != metadata.DEPRECATED]


def rest_request(binding: Binding, data: bytes, schema: int) -> tuple[str, list[tuple[str, str]], Any]:
    """Path, query and body (None if there is none). Raises Unsayable."""
    message = _parsed(binding.method.name, schema, data)
    path = binding.template.text
    for field in binding.template.fields:
        *parents, last = field.split(".")
        target: Any = message
        for name in parents:
            target = getattr(target, name)
        value = getattr(target, last)
        target.ClearField(last)
        encoded = quote(value, safe="/")
        start, end = path.index("{"), path.index("}")
        path = path[:start] + encoded + path[end + 1 :]
        if {".", ".."} & set(value.split("/")) or value.count("/") != 1:
            raise Unsayable
    bare = path.removesuffix(f":{binding.template.verb}") if binding.template.verb else path
    if binding.template.match(bare) is None:
        raise Unsayable
    if binding.body == WHOLE:
        return path, [], json_of(message)
    body = None
    if binding.body:
        has = message.HasField(binding.body)
        body = json_of(getattr(message, binding.body)) if has else None
        message.ClearField(binding.body)
    return path, list(_query(json_of(message))), body


def _query(found: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in found.items():
        yield name, json.dumps(value) if isinstance(value, bool) else str(value)


def json_of(message: Message) -> Any:
    try:
        return json_format.MessageToDict(message)
    except (ValueError, json_format.SerializeToJsonError):
        raise Unsayable from None


def reply_from_json(method: str, schema: int, found: Any) -> bytes:
    reply = FORMS.reply(CONTRACT.methods[method], schema)()
    json_format.ParseDict(found, reply)
    return reply.SerializeToString()


def _parsed(method: str, schema: int, data: bytes) -> Message:
    if method not in CONTRACT.methods:
        raise Unsayable
    try:
        message = FORMS.request(CONTRACT.methods[method], schema).FromString(data)
    except DecodeError:
        raise Unsayable from None
    if message.SerializeToString(deterministic=True) != _known(message).SerializeToString(deterministic=True):
        raise Unsayable
    return message


def _known(message: Message) -> Message:
    """The message without unknown fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return copy


def _refuse(found: Mapping[str, Any], trailers: Said) -> NoReturn:
    """`found`: an error in the form of https://google.aip.dev/193."""
    details = [json_format.ParseDict(detail, any_pb2.Any()) for detail in found["details"]]
    raise _error(_CODES[found["status"]], found["message"], details, trailers)


def _refuse_connect(answer: httpx2.Response, trailers: Said) -> NoReturn:
    found = answer.json()
    details = [
        any_pb2.Any(type_url=f"type.googleapis.com/{one['type']}", value=base64.b64decode(one["value"] + "=="))
        for one in found.get("details", ())
    ]
    raise _error(_CODES[found["code"].upper()], found.get("message", ""), details, trailers)


def _error(code: grpc.StatusCode, message: str, details: Sequence[any_pb2.Any], trailers: Said) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    own = ((DETAILS_KEY, status.SerializeToString()),) if details else ()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers, *own), message)
