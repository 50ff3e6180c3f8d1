"""A client at one endpoint that records its answers, without the parts that must differ between endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import text_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2

from libs.ownership.model import bucket_of
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox, SandboxSpec
from libs.proving.trial.doors import Way, trailers_of
from libs.rpc.caller import make_id
from libs.rpc.errors import DETAILS_KEY, reason_of
from libs.sandboxes.schema import FLAT, METADATA, SCHEMAS
from services.router.core.plan import is_canary

CALL_SECONDS = 10.0
CANARY_PERMILLE = 500
PAGE_SIZE = 50
"""Page size of a list that names none."""
COLLECTION = "sandboxes/"
SERVICE = "sandbox.v1.SandboxService"
IMAGE = "registry.local/agent:1"

NEWEST = ((METADATA, str(SCHEMAS.newest)),)

REPLIES: dict[str, type[Message]] = {
    "CreateSandbox": Sandbox,
    "GetSandbox": Sandbox,
    "ListSandboxes": pb.ListSandboxesResponse,
    "UpdateSandbox": Sandbox,
    "DeleteSandbox": Sandbox,
    "UndeleteSandbox": Sandbox,
    "AcquireLease": Sandbox,
    "RenewLease": Sandbox,
    "ReleaseLease": Sandbox,
}
_REQUESTS = {
    pb.CreateSandboxRequest: "CreateSandbox",
    pb.GetSandboxRequest: "GetSandbox",
    pb.ListSandboxesRequest: "ListSandboxes",
    pb.UpdateSandboxRequest: "UpdateSandbox",
    pb.DeleteSandboxRequest: "DeleteSandbox",
    pb.UndeleteSandboxRequest: "UndeleteSandbox",
    pb.AcquireLeaseRequest: "AcquireLease",
    pb.RenewLeaseRequest: "RenewLease",
    pb.ReleaseLeaseRequest: "ReleaseLease",
}
_SIZE = re.compile(r"(would have |')\d+ bytes")
_MADE_BY_THE_SERVICE = ("create_time", "update_time", "delete_time", "acquire_time", "renew_time")


@dataclass
class Talk:
    """One conversation. ``ways``: to all endpoints; it is held at the first one unless a call says ``at``.

    Its names are new, and all in buckets that the canary of half the buckets has, or all in the others.
    """

    ways: Sequence[Way]
    tag: str
    in_canary: bool = False
    says: Sequence[tuple[str, str]] = NEWEST
    """Metadata of each call. By default it has the newest schema version, since the old service treats a client without
    one as one of the oldest version."""
    heard: list[str] = field(default_factory=list)
    """Each answer, in the order of the calls."""
    _names: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def new_id(self) -> str:
        """Id of a sandbox that does not exist yet."""
        made = next(made for n in self._numbers if self._fits(made := f"{self.tag}-{n:04}"))
        self._names.append(made)
        return made

    def new_request_id(self) -> str:
        """An id that is made from it is in the right half too."""
        while True:
            request_id = str(uuid4())
            made = make_id(request_id)
            if self._fits(made):
                self._names += [request_id, made]
                return request_id

    async def ok(self, request: Message, *, at: int = 0, **call: Any) -> Any:
        """The answer. Raises AssertionError for a refusal."""
        method = _REQUESTS[type(request)]
        data = await self.raw(method, request.SerializeToString(), at=at, **call)
        assert not isinstance(data, grpc.aio.AioRpcError), f"{method}: {data.code().name} {data.details()}"
        return REPLIES[method].FromString(data)

    async def refused(
        self, request: Message, code: str, reason: str, field: str | None = None, *, at: int = 0, **call: Any
    ) -> grpc.aio.AioRpcError:
        """The refusal. Raises AssertionError for an answer, or for another refusal."""
        data = request.SerializeToString()
        return await self.refused_raw(_REQUESTS[type(request)], data, code, reason, field, at=at, **call)

    async def refused_raw(
        self, method: str, data: bytes, code: str, reason: str, field: str | None = None, *, at: int = 0, **call: Any
    ) -> grpc.aio.AioRpcError:
        error = await self.raw(method, data, at=at, **call)
        assert isinstance(error, grpc.aio.AioRpcError), f"{method} was answered, {code} {reason} was right"
        found, details = reason_of(error)
        assert (error.code().name, found) == (code, reason), f"{method}: {error.details()}"
        assert field is None or details.get("field") == field, f"{method}: {error.details()}"
        return error

    async def raw(
        self, method: str, data: bytes, *, at: int = 0, metadata: Sequence[tuple[str, str]] = ()
    ) -> bytes | grpc.aio.AioRpcError:
        """The answer's bytes or the refusal, written down either way."""
        call = self._call(method, data, at, metadata)
        try:
            answer: bytes = await call
            if method == "ListSandboxes":
                answer = await self._filled(data, answer, at, metadata)
        except grpc.aio.AioRpcError as error:
            self._note(method, f"{error.code().name} {error.details()}", _error_text(error), error.trailing_metadata())
            return error
        if method == "ListSandboxes":
            # A refusal may quote it.
            self._names.append(pb.ListSandboxesResponse.FromString(answer).next_page_token or self.tag)
        self._note(method, "OK", _answer_text(method, answer), await call.trailing_metadata())
        return answer

    def _call(self, method: str, data: bytes, at: int, metadata: Sequence[tuple[str, str]]) -> Any:
        return self.ways[at].multi_callable(f"/{SERVICE}/{method}")(
            data, timeout=CALL_SECONDS, metadata=grpc.aio.Metadata(*self.says, *metadata)
        )

    async def _filled(self, data: bytes, answer: bytes, at: int, metadata: Sequence[tuple[str, str]]) -> bytes:
        """A busy store may end a page early: as many as were asked for, from several pages."""
        request, page = pb.ListSandboxesRequest.FromString(data), pb.ListSandboxesResponse.FromString(answer)
        wanted = request.page_size or PAGE_SIZE
        while page.next_page_token and len(page.sandboxes) < wanted:
            request.page_token, request.page_size = page.next_page_token, wanted - len(page.sandboxes)
            more = await self._call("ListSandboxes", request.SerializeToString(), at, metadata)
            page.next_page_token = ""
            page.MergeFromString(more)
        return page.SerializeToString()

    def _note(self, method: str, outcome: str, text: str, trailers: Any) -> None:
        own = sorted(f"{name}: {value!r}" for name, value in trailers_of(trailers or ()))
        line = "\n".join([f"{method}: {outcome}", text, *own])
        # How many bytes a time takes depends on the time; and over MCP a request without an id gets one.
        line = _SIZE.sub(r"\1some bytes", line)
        for number, name in enumerate(self._names):
            line = line.replace(name, f"<{number}>")
        self.heard.append(line.replace(self.tag, "<tag>"))

    def _fits(self, made: str) -> bool:
        return is_canary(bucket_of(COLLECTION + made), CANARY_PERMILLE) is self.in_canary


def _answer_text(method: str, data: bytes) -> str:
    reply = REPLIES.get(method, Sandbox).FromString(data)
    if isinstance(reply, pb.ListSandboxesResponse):
        for sandbox in reply.sandboxes:
            _without_own(sandbox)
        # It holds a name. That it is the same at all endpoints is for a conversation of its own.
        reply.next_page_token = reply.next_page_token and "a token"
    elif isinstance(reply, Sandbox):
        _without_own(reply)
    return text_format.MessageToString(reply, as_utf8=True, print_unknown_fields=True)


def _without_own(sandbox: Sandbox) -> None:
    """That there is an id, and a time, is kept."""
    if sandbox.schema_version == FLAT.version:
        flat = FlatSandbox.FromString(sandbox.SerializeToString())
        flat.created_at, flat.updated_at = flat.created_at and 1.0, flat.updated_at and 1.0
        sandbox.ParseFromString(flat.SerializeToString())
    sandbox.uid = sandbox.uid and "a uid"
    for described, value in [*sandbox.ListFields(), *sandbox.lease.ListFields()]:
        if described.name in _MADE_BY_THE_SERVICE:
            value.FromSeconds(1)


def _error_text(error: grpc.aio.AioRpcError) -> str:
    found = [value for name, value in error.trailing_metadata() or () if name == DETAILS_KEY]
    return "\n".join(text_format.MessageToString(status_pb2.Status.FromString(value)) for value in found)


def method_of(request: Message) -> str:
    return _REQUESTS[type(request)]


def sandbox(**fields: Any) -> Sandbox:
    """A valid one."""
    made = Sandbox(account="acme", spec=SandboxSpec(image=IMAGE, cpu_millis=500))
    made.MergeFrom(Sandbox(**fields))
    return made


def create(made_id: str, request_id: str = "", **fields: Any) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox=sandbox(**fields), sandbox_id=made_id, request_id=request_id)


def update(made_id: str, *paths: str, request_id: str = "", **fields: Any) -> pb.UpdateSandboxRequest:
    request = pb.UpdateSandboxRequest(sandbox=Sandbox(name=COLLECTION + made_id, **fields), request_id=request_id)
    request.update_mask.paths.extend(paths)
    return request


def get(made_id: str) -> pb.GetSandboxRequest:
    return pb.GetSandboxRequest(name=COLLECTION + made_id)


def delete(made_id: str, **fields: Any) -> pb.DeleteSandboxRequest:
    return pb.DeleteSandboxRequest(name=COLLECTION + made_id, **fields)


def acquire(made_id: str, holder: str, seconds: int = 3600, request_id: str = "") -> pb.AcquireLeaseRequest:
    ttl = Duration(seconds=seconds)
    return pb.AcquireLeaseRequest(name=COLLECTION + made_id, holder=holder, ttl=ttl, request_id=request_id)


def renew(made_id: str, token: str) -> pb.RenewLeaseRequest:
    return pb.RenewLeaseRequest(name=COLLECTION + made_id, token=token)


def release(made_id: str, token: str) -> pb.ReleaseLeaseRequest:
    return pb.ReleaseLeaseRequest(name=COLLECTION + made_id, token=token)


def undelete(made_id: str, **fields: Any) -> pb.UndeleteSandboxRequest:
    return pb.UndeleteSandboxRequest(name=COLLECTION + made_id, **fields)
