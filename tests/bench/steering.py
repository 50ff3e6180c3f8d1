"""The cost of steering: planning a call, comparing reads, setting a flag, and rolling back.

The bench has its own system, with three routers on real servers, at the end of a migration: the canary is at 100 % and
B owns every record. So B serves the reads, and a rollback returns every record to A. The rollback is measured without
traffic, from the operator's command until A owns every record.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from timeit import Timer
from typing import Any

import grpc

from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.flags.memory import MemoryFlags
from libs.ownership.model import BUCKETS, Record, Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.proving.trial.requests import SERVICE
from libs.proving.trial.stores import Reader, open_readers
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import Channel, RawCallable
from services.router.control.memory import MemoryControlStore
from services.router.control.port import ControlStore, JournalEntry
from services.router.control.sqlite import SqliteControlStore
from services.router.core.flags import FlagNames
from services.router.core.measure import Meter as CallMeter
from services.router.core.phase import CANARY_FULL, SHADOW_FULL, Phase
from services.router.core.plan import target
from services.router.flows.calls.attempt import Attempt, measured
from services.router.flows.calls.forward import ClientCall
from services.router.flows.calls.shadow import Shadow
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.stores import Answer
from services.service_layer.store import postgres
from services.simple_mcp import store as old
from tests.bench import mover
from tests.bench.bare_postgres import BarePostgres
from tests.bench.calls import GET, get_request, path_of, run_calls
from tests.bench.measure import Figure, Meter, Round, Rounds, Target, alternate
from tests.bench.site import CALL_SECONDS, SEED_RECORDS, Site, name_of, payload_of, records

PLAN_TARGET = Target(50.0)
ATTEMPT_TARGET = Target(5.0)
EFFECT_TARGET = Target(1000.0)

HOME_RECORDS = 100_000
"""Number of records for which the time is reported. A quick or slow run extrapolates from fewer."""
HOME_POLL_SECONDS = 0.25
BARE_RECORDS = 10_000
SEED_BATCH = 1000

ROUTERS = 3
EFFECT_SECONDS = 10.0
EFFECT_POLL_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.4
"""Longest pause before a flag is set: more than a router's refresh interval, so that the time within it is random."""

DRAIN_SECONDS = 10.0
ROUTER = "router-1"
FULL, NONE = "shadow at 100 %", "shadow at 0 %"


async def measure(site: Site) -> list[Figure]:
    contract = Contract.load(f"libs.pb.sandbox.v1.sandbox_service_pb2:{SERVICE.rpartition('.')[2]}")
    names = FlagNames.of(contract)
    figures = [await _planning(site, contract, names), await _attempts(site)]
    rows = await asyncio.to_thread(records, site.pick(HOME_RECORDS, BARE_RECORDS), Store.B)
    # Keep the system until the end of the run: the time of processes that have ended would count as others'.
    world = await site.exits.enter_async_context(_owned_by_b(site, rows))
    clients = [await site.channel(address) for address in world.routers]
    operator = _Operator([await site.channel(address) for address in world.controls], world.token)
    figures += await _shadowed(site, world, operator, clients[0])
    figures += await _effect(site, operator, clients, names.of_operation("get"))
    figures += await _home(site, world, operator, rows)
    return figures


# The work of a router for each call, in this process.


async def _planning(site: Site, contract: Contract, names: FlagNames) -> Figure:
    """The longest path of a plan: only the last rule applies, and one in 1000 reads is sampled at random."""
    clock = SystemClock()
    with closing(Switches(names, MemoryFlags("control store"), None, clock)) as switches:
        control = MemoryControlStore()
        others = tuple(sorted((flag, True) for operation, flag in names.operations.items() if operation != "get"))
        await _set(control, phase=Phase.DUAL_WRITE, canary_permille=100, flags=others, shadow_permille=1)
        cache = SettingCache(control, clock, switches)
        await cache.refresh()
        shadow = Shadow(contract, {}, cache, Observer({}, None, clock), clock)
        bucket = BUCKETS - 1
        call = ClientCall(contract.methods[GET], get_request(0), name_of(0), bucket, False, (), clock.monotonic())
        answer = Answer(Store.A, payload_of(0))

        def plan() -> None:
            target(cache.current, cache.flags, "get", bucket)
            shadow.offer(call, answer)

        def empty() -> None:
            return

        if (rule := target(cache.current, cache.flags, "get", bucket).rule) != "phase":
            raise RuntimeError(f"the rule {rule!r} applies before the last one")
        loops = site.pick(50_000, 20_000)
        contenders = {do.__name__: partial(_timed, do, loops) for do in (plan, empty)}
        found = await alternate(site.pick(9, 5), contenders)
    return _microseconds(
        "flags, plan and shadow sampling of a call",
        found["plan"],
        found["empty"],
        "an empty function call",
        PLAN_TARGET,
    )


async def _timed(do: Callable[[], None], loops: int, _: int) -> Round:
    seconds = Timer(do, timer=time.thread_time).timeit(loops)
    return Round(seconds, [seconds * 1000 / loops])


async def _attempts(site: Site) -> Figure:
    meter, clock, attempt = CallMeter(), SystemClock(), Attempt(Store.B, "get", True, 1.0)

    async def nothing() -> None:
        return

    async def one_measured() -> None:
        await measured(meter, clock, attempt, nothing())

    async def one_bare() -> None:
        await nothing()

    async def one_round(do: Callable[[], Awaitable[None]], loops: int, _: int) -> Round:
        began = time.thread_time()
        for _ in range(loops):
            await do()
        seconds = time.thread_time() - began
        return Round(seconds, [seconds * 1000 / loops])

    loops = site.pick(50_000, 20_000)
    contenders = {"measured": partial(one_round, one_measured, loops), "bare": partial(one_round, one_bare, loops)}
    found = await alternate(site.pick(9, 5), contenders)
    return _microseconds(
        "a measured attempt at a store that takes no time", found["measured"], found["bare"], "not measured",
        ATTEMPT_TARGET,
    )  # fmt: skip


def _microseconds(name: str, mine: Rounds, baseline: Rounds, baseline_name: str, limit: Target) -> Figure:
    return Figure(name, "µs CPU", mine.p50 * 1000, baseline.p50 * 1000, baseline_name, limit)


# The system.


async def _set(control: ControlStore, **fields: Any) -> None:
    """Change the setting in a control store that no router uses yet."""
    before = await control.load()
    after = replace(before, generation=before.generation + 1, **fields)
    if not await control.change(JournalEntry(time.time(), "bench", "start", "", before, after)):
        raise RuntimeError(f"{before} was changed concurrently")


@asynccontextmanager
async def _owned_by_b(site: Site, rows: Sequence[Record]) -> AsyncIterator[World]:
    """Run a system in which B owns every bucket. Both stores have these records from the start."""
    database = site.directory / "steering-old.db"
    await asyncio.to_thread(old.initialise, database)
    world = await asyncio.to_thread(
        World.real, site.directory / "steering", site.stack, database, Size(routers=ROUTERS)
    )
    batches = [rows[start : start + SEED_BATCH] for start in range(0, len(rows), SEED_BATCH)]
    async with old.open_store(database, SystemClock()) as at_a, postgres.open_store(world.servers.new_database) as at_b:
        for batch in batches:
            await at_a.transfers.apply(batch)
            await at_b.transfers.apply(batch)
    async with SqliteControlStore.open(Path(world.servers.control_store.removeprefix("sqlite:///"))) as control:
        await _set(control, phase=Phase.DUAL_WRITE, canary_permille=CANARY_FULL)
    async with world.running():
        async with Walk.open(world.controls, "bench", world.token) as walk:
            await walk.settled()
        yield world


@dataclass(frozen=True, slots=True)
class _Operator:
    controls: Sequence[Channel]
    token: str

    async def ask(self, method: str, request: Any, router: int = 0) -> Any:
        call = getattr(ControlServiceStub(self.controls[router].grpc), method)
        return await call(request, timeout=CALL_SECONDS, metadata=grpc.aio.Metadata((metadata.TOKEN, self.token)))


# Reads that are compared.


async def _shadowed(site: Site, world: World, operator: _Operator, client: Channel) -> list[Figure]:
    call = client.multi_callable(path_of(GET))
    pid = world.nodes[ROUTER].process.pid
    if pid is None:
        raise world.nodes[ROUTER].process.failure("has ended unexpectedly")
    requests = [get_request(number) for number in range(SEED_RECORDS)]
    sampled = compared = 0

    async def one_round(permille: int, _: int) -> Round:
        nonlocal sampled, compared
        await operator.ask("SetShadow", pb.SetShadowRequest(actor="bench", permille=permille))
        meter = Meter({ROUTER: pid})
        found = meter.stop(await run_calls(call, requests, 1))
        if permille:
            sampled += len(requests)
            compared += await _compared(operator, len(requests))
        return found

    found = await alternate(site.pick(10, 5), {NONE: partial(one_round, 0), FULL: partial(one_round, SHADOW_FULL)})
    await operator.ask("SetShadow", pb.SetShadowRequest(actor="bench", permille=0))
    mine, other = found[FULL], found[NONE]
    title = f"{GET}, 1 in flight, {FULL}"
    return [
        Figure(f"{title}: p50", "ms", mine.p50, other.p50, NONE),
        Figure(f"{title}: p99", "ms", mine.p99, other.p99, NONE),
        Figure(
            f"{title}: CPU of {ROUTER}", "ms/call", mine.cpu_milliseconds(ROUTER), other.cpu_milliseconds(ROUTER), NONE
        ),
        Figure(f"{title}: compared", "reads", compared, sampled, "reads sampled"),
    ]


async def _compared(operator: _Operator, sampled: int) -> int:
    """The number of compared reads, once each read is compared or dropped. Raises TimeoutError."""
    async with asyncio.timeout(DRAIN_SECONDS):
        while True:
            found: pb.GetShadowResponse = await operator.ask("GetShadow", pb.GetShadowRequest())
            if found.total.compared + found.total.dropped + found.skipped >= sampled:
                return found.total.compared
            await asyncio.sleep(EFFECT_POLL_SECONDS)


# From the operator's command to its effect.


async def _effect(site: Site, operator: _Operator, clients: Sequence[Channel], flag: str) -> list[Figure]:
    """The time until a flag has its effect at every router, as seen by clients that poll the reason of each routing."""
    calls = [client.multi_callable(path_of(GET)) for client in clients]
    chance = random.Random(1)
    first: list[float] = []
    slowest: list[float] = []
    for number in range(site.pick(30, 12)):
        await asyncio.sleep(chance.uniform(0.0, LONGEST_PAUSE_SECONDS))
        value, rule = (True, "get flag") if number % 2 == 0 else (None, "canary")
        router = number % len(calls)
        request = pb.SetFlagRequest(actor="bench", name=flag, value=value)
        began = time.perf_counter()
        async with asyncio.timeout(EFFECT_SECONDS):
            # The clients poll from the start of the command.
            _, *seen = await asyncio.gather(
                operator.ask("SetFlag", request, router), *(_obeyed(call, rule) for call in calls)
            )
        milliseconds = [(at - began) * 1000 for at in seen]
        first.append(milliseconds[router])
        slowest.append(max(milliseconds))
    title, baseline = f"a flag's effect at the slowest of {len(calls)} routers", "the router that got the command"
    return [
        Figure(f"{title}: median", "ms", statistics.median(slowest), statistics.median(first), baseline),
        Figure(f"{title}: max of {len(slowest)}", "ms", max(slowest), max(first), baseline, EFFECT_TARGET),
    ]


async def _obeyed(call: RawCallable, rule: str) -> float:
    """The time at which an answer first names this rule as the reason of the routing."""
    while True:
        asked = call(get_request(0), timeout=CALL_SECONDS, metadata=((metadata.EXPLAIN, "1"),))
        await asked
        if dict(await asked.trailing_metadata() or ()).get(metadata.REASON) == rule:
            return time.perf_counter()
        await asyncio.sleep(EFFECT_POLL_SECONDS)


# The rollback.


async def _home(site: Site, world: World, operator: _Operator, rows: Sequence[Record]) -> list[Figure]:
    dsn = await asyncio.to_thread(site.stack.postgres.create_database, "bench_steering")
    await postgres.migrate(dsn)
    bare: list[float] = []
    async with BarePostgres.open(dsn, 1) as server, open_readers(world.stores) as (at_a, _):
        bare.append(await _bare_rate(server, rows[:BARE_RECORDS]))
        request = pb.RollbackPhaseRequest(actor="bench", reason="a bench", to=pb.PHASE_SHADOW)
        moved, seconds = await _brought(at_a, operator.ask("RollbackPhase", request), len(rows), site.pick(90, 40))
        bare.append(await _bare_rate(server, rows[:BARE_RECORDS]))
    rate, baseline = moved / seconds, statistics.median(bare)
    note = "" if moved == HOME_RECORDS else f", extrapolated from {moved:,} in {seconds:.0f} s"
    upsert = f"bare upsert, {mover.BATCH} at once"
    return [
        Figure(
            f"{HOME_RECORDS:,} records returned by a rollback{note}",
            "s",
            HOME_RECORDS / rate,
            HOME_RECORDS / baseline,
            upsert,
        ),
        Figure(f"a rollback of {moved:,} records", "records/s", rate, baseline, upsert, mover.TARGET),
    ]


async def _bare_rate(server: BarePostgres, rows: Sequence[Record]) -> float:
    return len(rows) / await server.upsert(rows, mover.BATCH)


async def _brought(at_a: Reader, back: Awaitable[Any], count: int, seconds: float) -> tuple[int, float]:
    """Roll back, and wait until A owns all records or the time is over. Returns the records that A owns, and seconds.

    Raises TimeoutError if A owns none at the end.
    """
    began = time.perf_counter()
    await back
    while True:
        owned = (await at_a.status()).owned_records
        took = time.perf_counter() - began
        if owned >= count or (took >= seconds and owned):
            return owned, took
        if took >= seconds:
            raise TimeoutError(f"A owns no record {seconds:g} s after the rollback")
        await asyncio.sleep(HOME_POLL_SECONDS)
