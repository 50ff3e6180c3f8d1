"""MCP over HTTP: stateless streamable HTTP with JSON responses. The tools are in `libs.http.mcp_server`.

Requests share no state, so any process behind one address may serve each. The server has no messages of its own, so
GET, which would open a stream for them, is refused, as the specification allows.

A request with an origin is served only if no name was resolved for it (`libs.http.origins`), with or without a token,
as the specification asks. The Host header is not checked: in containers it may be any name that the network resolves.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.contract.descriptors import Contract, Method
from libs.errors import BatonError, InvalidField
from libs.http.asgi import (
    SECURITY,
    answer_headers,
    deadline_of,
    encoded,
    metadata_of,
    names_of,
    peer_of,
    read_body,
    respond,
)
from libs.http.call import DoorCall
from libs.http.errors import NoSuchPath, NoSuchVerb, WrongMediaType, failure_of
from libs.http.forms import Forms
from libs.http.gateway import Gateway
from libs.http.json_body import parse_json
from libs.http.origins import check_origin
from libs.http.protected import ProtectedResource
from libs.http.tools import Tool
from libs.rpc.bodies import Bodies
from libs.rpc.callers import Caller
from libs.rpc.errors import Pairs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

PATH = "/mcp"
PATHS = (PATH, f"{PATH}/")
JSON = "application/json"
_CALL_HEADERS = "baton.call_headers"
"""Key in a request's scope for the headers of its call's handler."""

_PARSE_ERROR, _INVALID_REQUEST = -32700, -32600
"""Source: https://www.jsonrpc.org/specification#error_object."""


class GatewayCaller:
    """Calls of MCP requests over HTTP, at one listener."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def contract(self) -> Contract:
        return self._gateway.contract

    @property
    def forms(self) -> Forms:
        return self._gateway.forms

    def open(self, request: Request, read: Callable[[], Awaitable[bytes]]) -> DoorCall:
        metadata = metadata_of(request.headers, self.contract.schemas.metadata)
        return DoorCall(metadata, peer_of(request.scope), read, deadline_of(request.headers), names_of(request.scope))

    def schema(self, metadata: Pairs) -> int:
        return self._gateway.schema(metadata)

    async def answer(self, method: Method, call: DoorCall) -> bytes:
        return await self._gateway.answer(method, call)

    @staticmethod
    def answered(request: Request, call: DoorCall) -> None:
        request.scope[_CALL_HEADERS].update(answer_headers(call))


class McpDoor:
    """An ASGI application. Its owner runs `run` from before the first request until after the last one."""

    def __init__(self, gateway: Gateway, more: Iterable[Tool] = (), resource: ProtectedResource | None = None) -> None:
        """`more`: additional tools of this process. `resource`: metadata for clients without a token."""
        self._resource = resource
        self._gateway = gateway
        self._more = tuple(more)
        self._bodies = Bodies(share=gateway.gate.caller_share)
        self._wanted = asyncio.Event()
        self._app: asyncio.Future[ASGIApp] | None = None

    def __repr__(self) -> str:
        return f"<McpDoor {self._gateway.contract.service} loaded={self._app is not None}>"

    async def run(self) -> None:
        """Serve until cancelled. The first request imports the SDK, in a thread."""
        await self._wanted.wait()
        assert self._app is not None, "a request waits for it"
        try:
            server = await asyncio.to_thread(importlib.import_module, "libs.http.mcp_server")
            http = await asyncio.to_thread(importlib.import_module, "mcp.server.streamable_http_manager")
            manager = http.StreamableHTTPSessionManager(
                server.McpServer(GatewayCaller(self._gateway), self._more).sdk,
                json_response=True,
                stateless=True,
                max_request_body_size=self._body_bytes,
            )
            async with manager.run():
                self._app.set_result(manager.asgi_app)
                await asyncio.Event().wait()
        except Exception as error:
            if not self._app.done():
                self._app.set_exception(error)
            raise
        finally:
            self._app.cancel()

    @property
    def _body_bytes(self) -> int:
        # JSON is longer than its message. The gate checks the size of the message.
        return 2 * self._gateway.request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            caller = await self._authenticate(scope, headers)
            app = await self._loaded()
            body = await self._body(scope, headers, receive, caller)
        except BatonError as error:
            await _refuse(send, error, _INVALID_REQUEST, self._resource.address(scope) if self._resource else "")
            return
        try:
            found = parse_json(body)
        except InvalidField as error:
            await _refuse(send, error, _PARSE_ERROR)
            return
        try:
            _check_message(found)
        except InvalidField as error:
            await _refuse(send, error, _INVALID_REQUEST)
            return
        scope[_CALL_HEADERS] = {}
        await app(scope, _again(body, receive), _with_headers(scope, send))

    def _check(self, scope: Scope, headers: Headers) -> None:
        if scope["path"] not in PATHS:
            raise NoSuchPath(f"there is nothing at {scope['path'][:200]!r}: MCP is served at {PATH}")
        scope["route"] = PATH
        if scope["method"] != "POST":
            raise NoSuchVerb(scope["method"], ["POST"])
        check_origin(headers)
        kind = headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != JSON:
            raise WrongMediaType(f"content-type: {kind[:80]!r} is not read here: send {JSON}")

    async def _authenticate(self, scope: Scope, headers: Headers) -> Caller:
        """Every message needs a principal, so that clients learn at once how to get a token. Raises BatonError."""
        metadata, peer = metadata_of(headers, self._gateway.contract.schemas.metadata), peer_of(scope)
        gate = self._gateway.gate
        principal = await gate.authenticate(DoorCall(metadata, peer, _nothing, names=names_of(scope)))
        return gate.callers.of(principal, peer)

    async def _loaded(self) -> ASGIApp:
        if self._app is None:
            self._app = asyncio.get_running_loop().create_future()
            self._wanted.set()
        return await asyncio.shield(self._app)

    async def _body(self, scope: Scope, headers: Headers, receive: Receive, caller: Caller) -> bytes:
        """Read the body within the limits of all requests: number, time and size. Raises BatonError."""

        async def read() -> bytes:
            return await read_body(receive, headers, self._body_bytes)

        seconds = deadline_of(headers)
        call: Any = DoorCall((), peer_of(scope), read, seconds, names_of(scope))
        try:
            async with asyncio.timeout(seconds):
                return await self._bodies.read(call, seconds, caller)
        except TimeoutError:
            raise InvalidField("body", "incomplete", "a body that arrives before the caller's deadline") from None


def _check_message(found: Any) -> None:
    """Check before the SDK does, whose errors expose its parser. Raises InvalidField."""
    if not isinstance(found, dict):
        raise InvalidField("body", type(found).__name__, "one JSON-RPC message: a JSON object")
    if found.get("jsonrpc") != "2.0":
        raise InvalidField("body.jsonrpc", found.get("jsonrpc"), 'a JSON-RPC message with "jsonrpc": "2.0"')
    if not ({"result", "error"} & found.keys() or isinstance(found.get("method"), str)):
        raise InvalidField("body.method", found.get("method"), 'the name of an MCP method, for example "tools/list"')


def _again(body: bytes, receive: Receive) -> Receive:
    """Replay the body that was read, then continue."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(scope: Scope, send: Send) -> Send:
    """Add the headers of every response and those of the call's handler."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *encoded({**SECURITY, **scope[_CALL_HEADERS]})]
        await send(message)

    return sending


async def _nothing() -> bytes:
    return b""


async def _refuse(send: Send, error: BatonError, code: int, resource_metadata: str = "") -> None:
    """Send a JSON-RPC error. The rest of the request is not read, so the connection cannot be reused."""
    failed = failure_of(error)
    headers = {"connection": "close", **failed.headers()}
    if challenge := failed.challenge(resource_metadata):
        headers["www-authenticate"] = challenge
    body = {"code": code, "message": f"{error.reason}: {failed.status.message}", "data": failed.body()}
    data = json.dumps({"jsonrpc": "2.0", "id": None, "error": body}, ensure_ascii=False).encode(errors="replace")
    await respond(send, failed.http_code, headers, data, JSON)
