"""A server that answers by a script and records its requests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

SERVICE = "sandbox.v1.SandboxService"


@dataclass
class Refusal:
    """An error of the service; `reason` empty: of something between."""

    code: grpc.StatusCode
    reason: str = ""
    retry_seconds: float | None = None
    message: str = "refused"
    metadata: dict[str, str] = field(default_factory=dict)

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        if not self.reason:
            return ()
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(
            error_details_pb2.ErrorInfo(reason=self.reason, domain="baton", metadata=self.metadata)
        )
        if self.retry_seconds is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_seconds * 1000))
            status.details.add().Pack(retry)
        return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclass
class Scripted:
    """`script`: for each call its answers in turn; a Refusal ends the call. The last entry answers all later calls."""

    address: str = ""
    script: list[list[Any]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method.endswith("/WatchSandboxes"):
            return grpc.unary_stream_rpc_method_handler(self._answers)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: next(self._answers(request, context)))

    def _answers(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        steps = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        context.send_initial_metadata((("baton-store", "A"),))
        for step in steps:
            if isinstance(step, Refusal):
                context.set_trailing_metadata(step.trailers())
                context.abort(step.code, step.message)
            context.set_trailing_metadata((("baton-stale", "1"),))
            yield step.SerializeToString()


@contextmanager
def serving(*script: list[Any]) -> Iterator[Scripted]:
    """The server, while it runs."""
    scripted = Scripted(script=list(script))
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(scripted,))  # type: ignore[arg-type]
    scripted.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield scripted
    finally:
        server.stop(None).wait()
