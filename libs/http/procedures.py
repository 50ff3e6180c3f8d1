"""Calls at `/{service}/{method}`: by Connect, or by gRPC-Web, depending on the content type."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from libs.http import connect, grpc_web
from libs.http.errors import NoSuchMethod, failure_of
from libs.http.gateway import Gateway


class Procedures:
    """An ASGI application for all paths below `prefix`."""

    def __init__(self, gateway: Gateway) -> None:
        self.prefix = f"/{gateway.contract.service}/"
        self._methods = {method.path: method for method in gateway.methods()}
        self._connect = connect.Connect(gateway)
        self._grpc_web = grpc_web.GrpcWeb(gateway)

    def __repr__(self) -> str:
        return f"<Procedures {self.prefix}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        method = self._methods.get(scope["path"])
        if method is not None:
            scope["route"] = method.path
            protocol = self._grpc_web if kind in grpc_web.KINDS else self._connect
            await protocol.serve(method, scope, receive, send)
            return
        names = ", ".join(path.removeprefix(self.prefix) for path in self._methods)
        message = f"{scope['path'][:200]!r} is not a method of {self.prefix}: the methods are {names}"
        failed = failure_of(NoSuchMethod(message))
        if kind in grpc_web.KINDS:
            await grpc_web.refuse(send, kind, failed)
        else:
            await connect.refuse(send, failed)
