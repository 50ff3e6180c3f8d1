"""A contract's calls at one store, over its listeners."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from libs.backend import passing
from libs.contract.descriptors import Contract
from libs.errors import LockTimeout
from libs.locks.memory import MemoryLocks
from libs.locks.port import Lock, LockState, LocksUnavailable
from libs.ownership.model import Answered, Call, Changed, Decide, Found, Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.proving.servers.ports import free_port
from libs.rpc import metadata
from libs.rpc.caller import make_id
from libs.rpc.errors import Context, reason_of
from libs.rpc.server import RawService, Server, ServerConfig
from libs.store.port import Records
from tests.system.store import SERVICE, OneStore, listening, new, refusal, running_store
from tests.waiting import eventually

NAME = "sandboxes/one"


@asynccontextmanager
async def with_one(store: Store = Store.A) -> AsyncIterator[OneStore]:
    """A store that owns one sandbox."""
    async with running_store(store) as at:
        await at.client.CreateSandbox(new("one"))
        yield at


async def give_away(at: OneStore, key: str = NAME) -> None:
    request = rpb.ReleaseRecordsRequest(keys=[key], to=STORE_NUMBERS[at.store.store.other])
    answer = await at.replication.ReleaseRecords(request)
    assert answer.results[0].outcome == rpb.ReleaseRecordsResponse.OUTCOME_RELEASED


async def test_a_sandbox_lives_through_every_method() -> None:
    async with running_store() as at:
        made = await at.client.CreateSandbox(new("one", labels={"tier": "gold"}))
        assert (made.name, made.revision) == (NAME, 1)
        assert await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME)) == made
        change = sandbox_pb2.Sandbox(name=NAME, etag=made.etag, labels={"tier": "silver"})
        update = pb.UpdateSandboxRequest(sandbox=change)
        update.update_mask.paths.append("labels")
        changed = await at.client.UpdateSandbox(update)
        assert (changed.labels["tier"], changed.revision) == ("silver", 2)
        await at.client.DeleteSandbox(pb.DeleteSandboxRequest(name=NAME))
        gone = await refusal(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME)))
        assert (gone.code(), reason_of(gone)[0]) == (grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")
        await at.client.UndeleteSandbox(pb.UndeleteSandboxRequest(name=NAME))
        listed = await at.client.ListSandboxes(pb.ListSandboxesRequest())
        assert [sandbox.revision for sandbox in listed.sandboxes] == [4]


async def test_the_internal_listener_says_who_owns_what_it_does_not() -> None:
    async with with_one() as at:
        await give_away(at)
        for call in (
            at.router.GetSandbox(pb.GetSandboxRequest(name=NAME)),
            at.router.DeleteSandbox(pb.DeleteSandboxRequest(name=NAME)),
        ):
            refused = await refusal(call)
            assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
            expected = {"owner": "B", "term": "0", "revision": "2", "absent": "false"}
            assert reason_of(refused) == ("NOT_OWNER", expected)


async def test_a_replica_read_answers_what_is_here_and_says_that_it_may_be_old() -> None:
    async with with_one() as at:
        replica = ((metadata.REPLICA, "1"),)
        call = at.router.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=replica)
        assert (await call).name == NAME
        assert dict(await call.trailing_metadata()) == {metadata.VERSION: "0-1"}
        await give_away(at)
        call = at.router.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=replica)
        assert (await call).name == NAME
        assert dict(await call.trailing_metadata()) == {metadata.VERSION: "0-2", metadata.STALE: "1"}
        missing = await refusal(at.router.GetSandbox(pb.GetSandboxRequest(name="sandboxes/none"), metadata=replica))
        assert reason_of(missing)[0] == "SANDBOX_NOT_FOUND"
        assert (metadata.VERSION, "0-0") in tuple(missing.trailing_metadata() or ())


async def test_a_client_cannot_ask_the_public_listener_for_a_replica() -> None:
    async with with_one() as at:
        await give_away(at)
        request = pb.GetSandboxRequest(name=NAME)
        refused = await refusal(at.client.GetSandbox(request, metadata=((metadata.REPLICA, "1"),)))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")
        assert "setting `router`" in (refused.details() or "")


async def test_a_bad_request_is_refused_before_the_owner_is_looked_at() -> None:
    async with with_one() as at:
        await give_away(at)
        refused = await refusal(at.router.DeleteSandbox(pb.DeleteSandboxRequest(name=NAME, request_id="no uuid")))
        assert reason_of(refused)[0] == "INVALID_FIELD"


async def test_a_retry_of_a_create_without_id_finds_what_the_first_one_made() -> None:
    async with running_store() as at:
        request_id = str(uuid4())
        first = await at.client.CreateSandbox(new(request_id=request_id))
        again = await at.client.CreateSandbox(new(request_id=request_id.upper()))
        assert first == again
        assert first.name == f"sandboxes/{make_id(request_id)}"


async def test_ids_and_principal_come_from_the_router_only_on_the_internal_listener() -> None:
    async with running_store() as at:
        request_id = str(uuid4())
        given = (
            (metadata.REQUEST_ID, request_id),
            (metadata.MADE_ID, "made-there"),
            (metadata.PRINCIPAL, "someone"),
            (metadata.SERVED_AS, metadata.SUBJECT),
        )
        first = await at.router.CreateSandbox(new(), metadata=given)
        again = await at.router.CreateSandbox(new(), metadata=given)
        assert first == again
        assert first.name == "sandboxes/made-there"
        exported = await at.replication.ExportRecords(rpb.ExportRecordsRequest())
        (served,) = exported.records[0].served
        assert (served.principal, served.request_id) == ("someone", request_id)
        other = await at.client.CreateSandbox(new(), metadata=given)
        assert other.name not in (first.name, "sandboxes/")


async def test_a_retry_whose_answer_was_not_kept_gets_the_record_as_it_is_and_the_version_it_made() -> None:
    async with running_store() as at:
        request_id = str(uuid4())
        await at.client.CreateSandbox(new("one", request_id=request_id, annotations={"note": "x" * 17_000}))
        change = sandbox_pb2.Sandbox(name=NAME, labels={"tier": "gold"})
        await at.client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=change))
        call = at.client.CreateSandbox(new("one", request_id=request_id, annotations={"note": "x" * 17_000}))
        assert (await call).revision == 2
        assert dict(await call.trailing_metadata()) == {metadata.VERSION: "0-1"}


async def test_a_retry_of_an_acquire_is_not_given_the_lease_of_a_later_holder() -> None:
    """The answer is too large to be kept, and the record as it is now has another token, under the same name."""
    async with running_store() as at:
        await at.client.CreateSandbox(new("one", annotations={"note": "x" * 17_000}))
        first, second = (
            pb.AcquireLeaseRequest(name=NAME, holder="ann", ttl=Duration(seconds=60), request_id=str(uuid4()))
            for _ in range(2)
        )
        assert (await at.client.AcquireLease(first)).lease.token == "0.2"
        assert (await at.client.AcquireLease(first)).lease.token == "0.2"
        assert (await at.client.AcquireLease(second)).lease.token == "0.3"
        refused = await refusal(at.client.AcquireLease(first))
        assert reason_of(refused) == ("LEASE_LOST", {"field": "lease", "token": "0.2", "current": "0.3"})
        assert (await at.client.AcquireLease(second)).lease.token == "0.3"


class Watched:
    """A store's records, with something to happen before each write."""

    def __init__(self, inner: Records, before: Callable[[], Awaitable[object]]) -> None:
        self._inner = inner
        self._before = before
        self.read = inner.read
        self.read_many = inner.read_many
        self.page = inner.page

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        await self._before()
        return await self._inner.write(call, decide)


async def test_a_caller_who_leaves_does_not_stop_a_write_half_way() -> None:
    async with running_store() as at:
        go_on = asyncio.Event()
        at.store.records = Watched(at.store.records, go_on.wait)
        call = at.client.CreateSandbox(new("one"))
        await eventually(lambda: at.background.running == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        await eventually(lambda: at.background.running == 0)
        assert (await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME))).revision == 1


async def test_a_write_that_meets_contention_waits_for_its_turn() -> None:
    locks = MemoryLocks()
    async with running_store(locks=locks) as at:
        tries = []

        async def contended() -> None:
            tries.append(repr(locks))
            if len(tries) == 1:
                raise LockTimeout()

        at.store.records = Watched(at.store.records, contended)
        assert (await at.client.CreateSandbox(new("one"))).revision == 1
        assert tries == ["<MemoryLocks held=0 waiting=0>", "<MemoryLocks held=1 waiting=0>"]
        assert repr(locks) == tries[0]


class NoLocks:
    """Locks whose server is away."""

    state = LockState("redis", breaker="open")

    def hold(self, key: str, wait_seconds: float) -> AbstractAsyncContextManager[Lock]:
        raise LocksUnavailable()


async def test_a_write_under_contention_is_tried_once_more_when_there_are_no_locks() -> None:
    async with running_store(locks=NoLocks()) as at:
        tries = []

        async def contended() -> None:
            tries.append(1)
            raise LockTimeout()

        at.store.records = Watched(at.store.records, contended)
        refused = await refusal(at.client.CreateSandbox(new("one")))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.ABORTED, "LOCK_TIMEOUT")
        assert len(tries) == 2


async def test_a_store_that_does_not_serve_answers_nothing_but_its_status() -> None:
    async with with_one() as at:
        at.serving.stop("draining")
        for call in (
            at.client.GetSandbox(pb.GetSandboxRequest(name=NAME)),
            at.router.CreateSandbox(new("two")),
            at.replication.ReadRecords(rpb.ReadRecordsRequest(keys=[NAME])),
            at.replication.PullChanges(rpb.PullChangesRequest()),
        ):
            refused = await refusal(call)
            assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.UNAVAILABLE, "STORE_NOT_READY")
        status = await at.replication.GetStatus(rpb.GetStatusRequest())
        assert (status.serving, status.reason, status.records) == (False, "draining", 1)


async def test_lists_come_in_pages_and_the_last_one_has_no_token() -> None:
    async with running_store() as at:
        for number in range(4):
            await at.client.CreateSandbox(new(f"s{number}"))
        seen, token, pages = [], "", 0
        while not pages or token:
            page = await at.client.ListSandboxes(pb.ListSandboxesRequest(page_size=2, page_token=token))
            seen += [sandbox.name for sandbox in page.sandboxes]
            token, pages = page.next_page_token, pages + 1
        assert seen == [f"sandboxes/s{number}" for number in range(4)]
        assert pages == 2


async def test_a_page_ends_when_its_bytes_are_many() -> None:
    async with running_store() as at:
        for number in range(12):
            note = {f"k{part}": "x" * 30_000 for part in range(8)}
            await at.client.CreateSandbox(new(f"s{number:02}", annotations=note))
        first = await at.client.ListSandboxes(pb.ListSandboxesRequest(page_size=100))
        assert 0 < len(first.sandboxes) < 12
        assert first.ByteSize() < 3_000_000
        second = await at.client.ListSandboxes(pb.ListSandboxesRequest(page_size=100, page_token=first.next_page_token))
        assert len(first.sandboxes) + len(second.sandboxes) == 12


class Router:
    """A stand-in for the router: it gives prepared answers and records its requests."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, dict[str, str]]] = []
        self.answer = sandbox_pb2.Sandbox(name="sandboxes/from-router").SerializeToString()
        self.error: Exception | None = None

    def service(self) -> RawService:
        contract = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
        return RawService(SERVICE, {name: self._handler(name) for name in contract.methods})

    def _handler(self, name: str):  # type: ignore[no-untyped-def]
        async def handle(request: bytes, context: Context) -> bytes:
            found = {key: str(value) for key, value in context.invocation_metadata() or ()}
            self.calls.append((name, request, found))
            if self.error is not None:
                raise self.error
            context.set_trailing_metadata(((metadata.STALE, "1"),))
            return self.answer

        return handle


@asynccontextmanager
async def with_router() -> AsyncIterator[tuple[OneStore, Router]]:
    router = Router()
    async with listening(router.service()) as server, running_store(router=server.address) as at:
        yield at, router


async def test_what_the_public_listener_cannot_answer_goes_to_the_router_as_it_came() -> None:
    async with with_router() as (at, router):
        await at.client.CreateSandbox(new("one"))
        await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME))
        assert router.calls == []
        await give_away(at)
        read = pb.GetSandboxRequest(name=NAME)
        call = at.client.GetSandbox(read, metadata=(("traceparent", "00-x-y-01"), (metadata.REPLICA, "1")))
        assert (await call).name == "sandboxes/from-router"
        assert (metadata.STALE, "1") in tuple(await call.trailing_metadata())
        name, request, found = router.calls.pop()
        assert (name, request) == ("GetSandbox", read.SerializeToString())
        assert found["traceparent"] == "00-x-y-01"
        assert metadata.REPLICA not in found
        await at.client.DeleteSandbox(pb.DeleteSandboxRequest(name=NAME))
        _, _, found = router.calls.pop()
        assert metadata.REQUEST_ID not in found, "the router gives a call its ids"
        assert metadata.PRINCIPAL not in found


async def test_a_list_at_the_public_listener_always_goes_to_the_router() -> None:
    async with with_router() as (at, router):
        router.answer = b""
        await at.client.ListSandboxes(pb.ListSandboxesRequest())
        assert [name for name, _, _ in router.calls] == ["ListSandboxes"]
        refused = await refusal(at.client.ListSandboxes(pb.ListSandboxesRequest(page_size=-1)))
        assert reason_of(refused) == ("INVALID_FIELD", {"field": "page_size"})
        assert len(router.calls) == 1


async def test_the_router_s_refusal_comes_back_as_it_is() -> None:
    async with with_router() as (at, router):
        await at.client.CreateSandbox(new("one"))
        await give_away(at)
        router.error = LockTimeout("busy over there")
        refused = await refusal(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME)))
        assert (refused.code(), refused.details()) == (grpc.StatusCode.ABORTED, "busy over there")
        assert reason_of(refused)[0] == "LOCK_TIMEOUT"


async def test_a_call_for_the_other_store_waits_for_a_router_that_restarts() -> None:
    address = f"127.0.0.1:{free_port()}"
    router = Router()
    async with running_store(router=address) as at:
        await at.client.CreateSandbox(new("one"))
        await give_away(at)
        read = asyncio.ensure_future(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), timeout=20))
        passing = at.passing
        await eventually(lambda: passing is not None and passing._waiting > 0, what="the call waits for the router")
        server = Server(ServerConfig(address, "public"), [router.service()])
        await server.start()
        assert (await read).name == "sandboxes/from-router"
        await server.drain(1.0)
    assert len(router.calls) == 1


async def test_without_the_router_a_record_of_the_other_store_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    # Time for the answer on its way, also on a busy machine.
    monkeypatch.setattr(passing, "MARGIN_SECONDS", 9.5)
    async with listening() as server:
        address = server.address
    async with running_store(router=address) as at:
        await at.client.CreateSandbox(new("one"))
        await give_away(at)
        refused = await refusal(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), timeout=10))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")


async def test_a_create_where_bucket_owner_is_elsewhere_is_refused_with_absent() -> None:
    async with running_store(Store.B) as at:
        refused = await refusal(at.router.CreateSandbox(new("one")))
        assert reason_of(refused)[1]["absent"] == "true"
        missing = await refusal(at.router.GetSandbox(pb.GetSandboxRequest(name=NAME)))
        assert reason_of(missing)[1] == {"owner": "A", "term": "0", "revision": "0", "absent": "true"}
        found: Found = await at.store.records.read(NAME)
        assert found.bucket_owner.bucket == bucket_of(NAME)
        assert found.row is None
