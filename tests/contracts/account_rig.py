"""Calls of several callers over one store's ports, without a network: for the suite of accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from google.protobuf.message import Message

from libs.backend.calls import Calls, Dependencies
from libs.backend.logged import LogWaits
from libs.backend.serving import Serving
from libs.clock import ManualClock
from libs.contract.descriptors import Contract
from libs.errors import BatonError
from libs.http.call import DoorCall
from libs.identity.principal import ANONYMOUS, Principal, Role, current
from libs.ownership.model import BucketOwner, bucket_of
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.rpc.errors import status_of
from libs.sandboxes.operations import SandboxOperations
from libs.store.port import StorePorts
from libs.tasks import Background

CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")

ANN = Principal("test:ann", frozenset({"acme"}))
BOB = Principal("test:bob", frozenset({"corp"}))
BOTH = Principal("test:both", frozenset({"acme", "corp"}))
NOBODY = Principal("test:nobody")
OPERATOR = Principal("test:operator", frozenset({"acme"}), frozenset({Role.OPERATOR}))
ROOT = Principal("test:root", roles=frozenset({Role.ADMIN}))
CALLERS = (ANN, BOB, BOTH, NOBODY, OPERATOR, ROOT, ANONYMOUS)


class Outcome(NamedTuple):
    """The answer or the whole error of a call, and its trailers."""

    data: bytes = b""
    status: bytes = b""
    code: str = "OK"
    reason: str = ""
    trailers: tuple[tuple[str, Any], ...] = ()

    @property
    def sandbox(self) -> Sandbox:
        assert self.code == "OK", self
        return Sandbox.FromString(self.data)


class View(NamedTuple):
    """Messages of a watch up to a complete view."""

    reset: bool
    shown: list[str]
    """Names without the collection, in the order of their arrival."""
    removed: list[str]
    token: str


@dataclass
class Watching:
    heard: asyncio.Queue[pb.WatchSandboxesResponse]
    task: asyncio.Task[None]

    async def view(self) -> View:
        """Listen until the view is complete."""
        found = [await self._next()]
        while not found[-1].synced:
            found.append(await self._next())
        shown = [one.name.removeprefix("sandboxes/") for answer in found for one in answer.sandboxes]
        removed = [name.removeprefix("sandboxes/") for answer in found for name in answer.removed]
        return View(found[0].reset, shown, removed, found[-1].resume_token)

    async def news(self) -> View:
        """The next view with a record in it."""
        while True:
            view = await self.view()
            if view.shown or view.removed:
                return view

    async def _next(self) -> pb.WatchSandboxesResponse:
        async with asyncio.timeout(20):
            return await self.heard.get()


@dataclass
class Rig:
    """A store that owns every name that is called."""

    ports: StorePorts
    calls: Calls
    count: int = 0
    owned: set[int] = field(default_factory=set)

    def request_id(self) -> str:
        self.count += 1
        return str(UUID(int=self.count, version=4))

    async def ask(
        self, who: Principal, method: str, request: Message, *, metadata: Sequence[tuple[str, str]] = ()
    ) -> Outcome:
        """Ask the internal listener, which also reports versions and answers as a replica."""
        await self._own(method, request)
        context: Any = DoorCall(tuple(metadata), "ipv4:127.0.0.1:1", _nothing)
        held = current.set(who)
        try:
            data = await self.calls._answer_internal(method, request.SerializeToString(), context)
        except BatonError as error:
            status = status_of(error).SerializeToString(deterministic=True)
            return Outcome(b"", status, error.code, error.reason, tuple(context.trailers))
        finally:
            current.reset(held)
        return Outcome(data, trailers=tuple(context.trailers))

    async def _own(self, method: str, request: Message) -> None:
        key = CONTRACT.methods[method].key
        if key is not None and (bucket := bucket_of(key.of(request))) not in self.owned:
            self.owned.add(bucket)
            await self.ports.transfers.adopt_bucket(BucketOwner(bucket, 0, 1, self.ports.store))

    async def create(self, who: Principal, name: str, account: str, **fields: Any) -> Outcome:
        return await self.ask(who, "CreateSandbox", create(name, account, self.request_id(), **fields))

    async def delete(self, who: Principal, name: str, **fields: Any) -> Outcome:
        request = pb.DeleteSandboxRequest(name=f"sandboxes/{name}", request_id=self.request_id(), **fields)
        return await self.ask(who, "DeleteSandbox", request)

    async def get(self, who: Principal, name: str) -> Outcome:
        return await self.ask(who, "GetSandbox", pb.GetSandboxRequest(name=f"sandboxes/{name}"))

    async def list(self, who: Principal, *, most: int = 1000, **fields: Any) -> tuple[list[str], list[str]]:
        """Names without the collection, and the tokens, of all pages."""
        names: list[str] = []
        tokens: list[str] = []
        request = pb.ListSandboxesRequest(**fields)
        for _ in range(most):
            outcome = await self.ask(who, "ListSandboxes", request)
            assert outcome.code == "OK", outcome
            page = pb.ListSandboxesResponse.FromString(outcome.data)
            names += [one.name.removeprefix("sandboxes/") for one in page.sandboxes]
            if not page.next_page_token:
                return names, tokens
            tokens.append(page.next_page_token)
            request.page_token = page.next_page_token
        raise AssertionError("the list does not end")

    @asynccontextmanager
    async def watch(self, who: Principal, **fields: Any) -> AsyncIterator[Watching]:
        request = pb.WatchSandboxesRequest(**fields).SerializeToString()
        context: Any = DoorCall((), "ipv4:127.0.0.1:1", _nothing)
        heard: asyncio.Queue[pb.WatchSandboxesResponse] = asyncio.Queue()

        async def listen() -> None:
            current.set(who)
            async with aclosing(self.calls._watch_internal("WatchSandboxes", request, context)) as found:
                async for answer in found:
                    heard.put_nowait(pb.WatchSandboxesResponse.FromString(answer))

        task = asyncio.create_task(listen())
        try:
            yield Watching(heard, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _nothing() -> bytes:
    return b""


def create(name: str, account: str, request_id: str, **fields: Any) -> pb.CreateSandboxRequest:
    only = bool(fields.pop("validate_only", False))
    sandbox = Sandbox(account=account, spec=SandboxSpec(image="image:1"), **fields)
    return pb.CreateSandboxRequest(sandbox_id=name, sandbox=sandbox, request_id=request_id, validate_only=only)


def rig_of(ports: StorePorts, clock: ManualClock, account_records: int = 0) -> Rig:
    serving, background = Serving(), Background(100, "writes")
    serving.serve()
    deps = Dependencies(serving, background, clock, LogWaits(ports.outbox, 5.0), account_records=account_records)
    return Rig(ports, Calls(SandboxOperations(), CONTRACT, ports, deps))
