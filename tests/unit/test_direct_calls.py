"""A store's side of direct calls: which ones it answers, which go on to a router, and what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from libs.backend.direct import (
    FORMER_SECONDS,
    KEPT_SECONDS,
    MOST_METHODS,
    MOST_ROUTERS,
    MOST_RUNS,
    DirectCalls,
    Routes,
)
from libs.clock import ManualClock
from libs.errors import BatonError, LockTimeout, LogAway, StoreUnavailable
from libs.locks.port import LocksUnavailable
from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, Version, bucket_of
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from libs.rpc.server import RawService
from libs.sandboxes.schema import METADATA
from libs.telemetry.lateness import LATE_SECONDS
from tests.system.store import CONTRACT, OneStore, listening, new, refusal, running_store

GET, UPDATE = (f"/{CONTRACT.service}/{name}" for name in ("GetSandbox", "UpdateSandbox"))
NAME = "sandboxes/one"
HERE = bucket_of(NAME)
MARK = ((metadata.BUCKET, str(HERE)),)
READ = pb.GetSandboxRequest(name=NAME)
EVERYWHERE = ((0, 1024),)


def direct_routes(
    generation: int = 1, runs: tuple[tuple[int, int], ...] = EVERYWHERE, paths: tuple[str, ...] = (GET,), **more: Any
) -> rpb.DirectRoutes:
    found = [rpb.BucketRun(first=first, end=end) for first, end in runs]
    return rpb.DirectRoutes(generation=generation, methods=[rpb.MethodRoutes(paths=paths, runs=found)], **more)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def routes(clock: ManualClock) -> Routes:
    return Routes(clock)


def buckets(routes: Routes, path: str = GET) -> list[int]:
    return [bucket for bucket in range(1024) if routes.has(path, bucket)]


def test_a_direct_call_is_answered_here_if_the_routes_name_its_method_and_its_bucket(routes: Routes) -> None:
    routes.learn("r-1", direct_routes(runs=((0, 2), (7, 8), (1022, 1024))))
    assert buckets(routes) == [0, 1, 7, 1022, 1023]
    assert buckets(routes, UPDATE) == []
    routes.learn("r-1", rpb.DirectRoutes(generation=2))
    assert buckets(routes) == []


def test_the_routes_of_the_newest_setting_count_of_all_routers_together(routes: Routes) -> None:
    routes.learn("r-1", direct_routes(5, ((0, 2),)))
    routes.learn("r-2", direct_routes(5, ((1, 4),)))
    assert buckets(routes) == [0, 1, 2, 3]
    routes.learn("r-2", rpb.DirectRoutes(generation=6))
    assert buckets(routes) == [], "a rollback holds at the first router that reports it"
    routes.learn("r-1", direct_routes(5, ((0, 2),)))
    assert buckets(routes) == [], "a router that has not seen it yet changes nothing"


def test_a_router_that_is_silent_no_longer_counts_and_with_the_last_one_the_owner_decides(
    routes: Routes, clock: ManualClock
) -> None:
    routes.learn("restored", direct_routes(9, ((0, 1),)))
    clock.advance(KEPT_SECONDS / 2)
    routes.learn("r-1", direct_routes(3, ((1, 2),), logged=True))
    assert buckets(routes) == [0]
    clock.advance(KEPT_SECONDS / 2 + 0.1)
    assert buckets(routes) == [1]
    clock.advance(KEPT_SECONDS / 2)
    assert len(buckets(routes)) == 1024
    assert routes.logged, "writes stay as safe as they were"
    routes.learn("r-1", direct_routes(3, ((1, 2),)))
    assert not routes.logged
    assert buckets(routes) == [1]


def test_before_the_first_report_routers_answer_and_then_the_owner(routes: Routes, clock: ManualClock) -> None:
    """A store that has just started does not know of a rollback yet."""
    assert buckets(routes) == []
    clock.advance(KEPT_SECONDS + 0.1)
    assert len(buckets(routes)) == 1024


def test_a_router_without_routes_leaves_the_decision_to_the_owner(routes: Routes) -> None:
    routes.learn("earlier", None)
    assert len(buckets(routes)) == 1024
    routes.learn("r-1", direct_routes(1, ((0, 1),)))
    routes.learn("earlier", None)
    assert buckets(routes) == [0], "beside a router that has routes it says nothing"
    routes.learn("r-1", None)
    assert len(buckets(routes)) == 1024


@pytest.mark.parametrize(
    ("router", "found"),
    [
        ("", direct_routes()),
        ("r" * 300, direct_routes()),
        ("r", direct_routes(runs=((0, 1025),))),
        ("r", direct_routes(runs=((-1, 5),))),
        ("r", direct_routes(runs=((5, 5),))),
        ("r", direct_routes(runs=((0, 1),) * (MOST_RUNS + 1))),
        ("r", direct_routes(paths=("/a",) * (MOST_METHODS + 1))),
        ("r", direct_routes(paths=("/" * 300,))),
        ("r", rpb.DirectRoutes(methods=[rpb.MethodRoutes()] * (MOST_METHODS + 1))),
        (
            "r",
            rpb.DirectRoutes(
                methods=[rpb.MethodRoutes(paths=[f"/{n}/{m}" for m in range(200)]) for n in range(2)],
            ),
        ),
    ],
)
def test_a_report_that_no_router_makes_is_refused(routes: Routes, router: str, found: rpb.DirectRoutes) -> None:
    routes.learn("r-1", direct_routes(runs=((0, 1),)))
    with pytest.raises(BatonError, match="is not valid"):
        routes.learn(router, found)
    assert buckets(routes) == [0]


def test_the_number_of_routers_is_bounded(routes: Routes, clock: ManualClock) -> None:
    for number in range(MOST_ROUTERS + 10):
        routes.learn(f"r-{number}", direct_routes())
    assert len(routes._reports) == MOST_ROUTERS
    clock.advance(KEPT_SECONDS + 0.1)
    routes.learn("r-0", direct_routes(runs=((0, 1),)))
    routes.learn("later", direct_routes(runs=((1, 2),)))
    assert buckets(routes) == [0, 1]


def test_a_client_of_former_routes_is_led_here_for_a_minute_or_two(routes: Routes, clock: ManualClock) -> None:
    assert routes.led_here(GET, 1), "the routers have not reported yet"
    routes.learn("r-1", direct_routes(1, ((0, 2),)))
    routes.learn("r-1", direct_routes(2, ((1, 3),)))
    assert [routes.led_here(GET, bucket) for bucket in range(4)] == [True, True, True, False]
    clock.advance(KEPT_SECONDS * 2)
    assert routes.led_here(GET, 0), "no router reports, so none leads it elsewhere"
    for _ in range(3):
        clock.advance(FORMER_SECONDS + 1)
        routes.learn("r-1", direct_routes(2, ((1, 3),)))
    assert [routes.led_here(GET, bucket) for bucket in range(4)] == [False, True, True, False]


def test_without_routes_no_client_is_led_here(routes: Routes, clock: ManualClock) -> None:
    clock.advance(KEPT_SECONDS + 0.1)
    routes.learn("earlier", None)
    assert not routes.led_here(GET, 1)


# What is counted.


class Caller:
    """A call with a deadline."""

    def __init__(self, remaining: float | None, *, left: bool = True) -> None:
        self.remaining = remaining
        self.left = left

    def time_remaining(self) -> float | None:
        return self.remaining

    def cancelled(self) -> bool:
        return self.left


async def ended(direct: DirectCalls, error: BaseException | None, clock: ManualClock, seconds: float = 0.0) -> None:
    async def answer() -> bytes:
        clock.advance(seconds)
        if error is not None:
            raise error
        return b""

    remaining = 3.0
    try:
        await direct.measured(CONTRACT.methods["GetSandbox"], Caller(remaining), answer())  # type: ignore[arg-type]
    except BaseException as raised:
        if raised is not error:
            raise


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (None, (1, 0)),
        (LockTimeout(), (1, 0)),
        (LogAway(), (1, 0)),
        (StoreUnavailable(), (1, 1)),
        (LocksUnavailable("away"), (1, 1)),
        (RuntimeError("a defect"), (1, 1)),
        (NotOwner(Store.B, Version(0, 1), absent=False), (0, 0)),
        (asyncio.CancelledError(), (0, 0)),
    ],
)
async def test_faults_of_the_store_are_counted_as_a_router_counts_them(
    clock: ManualClock, error: BaseException | None, counted: tuple[int, int]
) -> None:
    direct = DirectCalls(clock)
    clock.advance(1.0)
    await ended(direct, error, clock, 0.5)
    report = direct.report("p")
    assert (direct.calls, direct.faults) == counted
    assert report.uptime_seconds == 1.5
    assert [(one.operation, one.is_read, one.calls, one.faults) for one in report.calls] == (
        [("get", True, *counted)] if counted[0] else []
    )
    assert sum(sum(one.latencies.values()) for one in report.calls) == counted[0] - counted[1]


@pytest.mark.parametrize(
    ("remaining", "left", "seconds", "faults"),
    [
        (0.0, True, LATE_SECONDS, 1),
        (0.0, True, LATE_SECONDS / 2, 0),
        (3.0, True, LATE_SECONDS, 0),
        (None, True, LATE_SECONDS, 0),
        (None, False, LATE_SECONDS, 1),
        (30.0, False, LATE_SECONDS, 1),
    ],
)
async def test_a_deadline_counts_against_a_store_that_had_time_and_a_caller_that_left_does_not(
    clock: ManualClock, remaining: float | None, left: bool, seconds: float, faults: int
) -> None:
    direct = DirectCalls(clock)

    async def hang() -> bytes:
        clock.advance(seconds)
        raise asyncio.CancelledError

    method = CONTRACT.methods["GetSandbox"]
    with pytest.raises(asyncio.CancelledError):
        await direct.measured(method, Caller(remaining, left=left), hang())  # type: ignore[arg-type]
    assert (direct.calls, direct.faults) == (faults, faults)


async def test_short_deadlines_count_once_the_store_answers_nothing(clock: ManualClock) -> None:
    direct = DirectCalls(clock)

    async def hang() -> bytes:
        clock.advance(0.3)
        raise asyncio.CancelledError

    for _ in range(5):
        with pytest.raises(asyncio.CancelledError):
            await direct.measured(CONTRACT.methods["GetSandbox"], Caller(0.0), hang())  # type: ignore[arg-type]
    assert direct.faults == 2


# The public listener.


class Router:
    """A stand-in for a router that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []

    def service(self) -> RawService:
        return RawService(CONTRACT.service, {name: self._handler(name) for name in CONTRACT.methods})

    def _handler(self, name: str) -> Any:
        async def handle(request: bytes, context: Any) -> bytes:
            self.calls.append((name, {key: str(value) for key, value in context.invocation_metadata()}))
            return Sandbox(name="sandboxes/from-router").SerializeToString()

        return handle

    def taken(self) -> list[str]:
        names, self.calls = [name for name, _ in self.calls], []
        return names


@asynccontextmanager
async def with_router(*, old: bool = False) -> AsyncIterator[tuple[OneStore, Router]]:
    router = Router()
    async with (
        listening(router.service()) as server,
        running_store(old=old, router=server.address, log_wait_seconds=0.3) as at,
    ):
        await at.router.CreateSandbox(new("one"))
        yield at, router


async def sync(at: OneStore, routes: rpb.DirectRoutes | None, router: str = "r-1") -> rpb.SyncDirectCallsResponse:
    return await at.replication.SyncDirectCalls(rpb.SyncDirectCallsRequest(router=router, routes=routes))


async def test_a_direct_call_is_answered_or_passed_on_as_the_routers_report() -> None:
    async with with_router() as (at, router):
        await sync(at, direct_routes(runs=((HERE, HERE + 1),)))
        assert (await at.client.GetSandbox(READ, metadata=MARK)).name == NAME
        assert router.taken() == []
        assert (await at.client.GetSandbox(READ, metadata=((metadata.BUCKET, "no bucket"),))).name == NAME
        assert router.taken() == [], "the store computes the bucket itself"
        update = pb.UpdateSandboxRequest(sandbox=Sandbox(name=NAME, annotations={"a": "b"}))
        await at.client.UpdateSandbox(update, metadata=MARK)
        assert router.taken() == ["UpdateSandbox"], "no route leads it here"
        await at.client.GetSandbox(READ)
        await at.client.UpdateSandbox(update)
        assert router.taken() == [], "a call that follows no route is the owner's"
        await sync(at, rpb.DirectRoutes(generation=2))
        await at.client.GetSandbox(READ, metadata=MARK)
        assert router.taken() == ["GetSandbox"]
        at.clock.advance(KEPT_SECONDS + 0.1)
        assert (await at.client.GetSandbox(READ, metadata=MARK)).name == NAME
        report = await sync(at, None)
        assert (sum(one.calls for one in report.calls), report.passed_on) == (3, 2)


async def test_a_direct_call_goes_on_if_the_store_is_not_the_owner_or_does_not_serve_or_a_router_is_needed() -> None:
    async with with_router() as (at, router):
        await sync(at, direct_routes())
        await at.client.GetSandbox(READ, metadata=(*MARK, (METADATA, "1")))
        assert router.taken() == ["GetSandbox"]
        at.serving.stop("it drains")
        await at.client.GetSandbox(READ, metadata=MARK)
        assert router.taken() == ["GetSandbox"]
        assert (await refusal(at.client.GetSandbox(READ))).code() is grpc.StatusCode.UNAVAILABLE
        at.serving.serve()
        given = rpb.ReleaseRecordsRequest(keys=[NAME], to=STORE_NUMBERS[Store.B])
        await at.replication.ReleaseRecords(given)
        await at.client.GetSandbox(READ, metadata=MARK)
        assert router.taken() == ["GetSandbox"]
        report = await sync(at, direct_routes())
        assert (len(report.calls), report.passed_on) == (0, 3)


async def test_a_direct_call_is_explained_by_the_store_that_answers_it() -> None:
    asking = (*MARK, (metadata.EXPLAIN, "1"))
    names = (metadata.STORE, metadata.REASON, metadata.VERSION, metadata.STALE)
    async with with_router() as (at, router):
        await sync(at, direct_routes(paths=(GET, UPDATE)))
        call = at.client.GetSandbox(READ, metadata=asking)
        await call
        found = dict(await call.trailing_metadata() or ())
        assert [found.get(name) for name in names] == ["A", "direct route", "0-1", "0"]
        update = at.client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=Sandbox(name=NAME)), metadata=asking)
        await update
        found = dict(await update.trailing_metadata() or ())
        assert (found[metadata.STORE], found[metadata.REASON]) == ("A", "direct route")
        await at.router.DeleteSandbox(pb.DeleteSandboxRequest(name=NAME))
        gone = dict((await refusal(at.client.GetSandbox(READ, metadata=asking))).trailing_metadata() or ())
        assert gone[metadata.VERSION] == "0-3", "the version of a deleted record too"
        assert router.taken() == []
        given = rpb.ReleaseRecordsRequest(keys=[NAME], to=STORE_NUMBERS[Store.B])
        await at.replication.ReleaseRecords(given)
        call = at.client.GetSandbox(READ, metadata=asking)
        await call
        assert metadata.STORE not in dict(await call.trailing_metadata() or ()), "the router explains what it does"


async def test_a_direct_client_speaks_the_newest_schema_at_the_old_service_too() -> None:
    async with with_router(old=True) as (at, _):
        await sync(at, direct_routes())
        found = await at.client.GetSandbox(READ, metadata=MARK)
        assert (found.schema_version, found.spec.image) == (2, "image:1")
        old = FlatSandbox.FromString((await at.client.GetSandbox(READ)).SerializeToString())
        assert (old.schema_version, old.image) == (1, "image:1")


async def test_a_direct_client_is_no_client_of_the_old_service_while_routers_lead_it() -> None:
    async with with_router(old=True) as (at, _):

        async def seen() -> list[str]:
            return [one.name for one in (await at.replication.GetStatus(rpb.GetStatusRequest())).clients]

        named = (*MARK, (metadata.CLIENT, "billing"))
        await sync(at, direct_routes(1))
        call = at.client.GetSandbox(READ, metadata=named)
        await call
        assert metadata.DEPRECATED not in dict(await call.trailing_metadata() or ())
        await sync(at, rpb.DirectRoutes(generation=2))
        await at.client.GetSandbox(READ, metadata=named)
        assert await seen() == [], "it follows routes that have just ended"
        for _ in range(3):
            at.clock.advance(FORMER_SECONDS + 1)
            await sync(at, rpb.DirectRoutes(generation=2))
        await at.client.GetSandbox(READ, metadata=named)
        assert await seen() == ["billing"], "its address is a fixed one, which will be shut down"


async def test_a_direct_write_is_acknowledged_from_the_log_if_the_routers_say_so() -> None:
    async with with_router() as (at, router):
        await sync(at, direct_routes(paths=(UPDATE,)))
        update = pb.UpdateSandboxRequest(sandbox=Sandbox(name=NAME, annotations={"a": "b"}))
        await at.client.UpdateSandbox(update, metadata=MARK)
        await sync(at, direct_routes(paths=(UPDATE,), logged=True))
        at.clock.advance(KEPT_SECONDS + 0.1)
        refused = await refusal(at.client.UpdateSandbox(update, metadata=MARK))
        assert reason_of(refused)[0] == "NOT_LOGGED"
        assert router.taken() == []


async def test_a_store_without_a_router_answers_direct_calls_as_the_owner() -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(new("one"), metadata=MARK)
        await sync(at, rpb.DirectRoutes(generation=1))
        assert (await at.client.GetSandbox(READ, metadata=MARK)).name == NAME
        at.serving.stop("it drains")
        assert reason_of(await refusal(at.client.GetSandbox(READ, metadata=MARK)))[0] == "STORE_NOT_READY"
