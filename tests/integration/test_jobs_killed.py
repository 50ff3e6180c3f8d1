"""Every kind of job, whose routers die at random points, ends as if nothing had happened.

Each kind runs undisturbed first, which shows at which points of which stages a router can die; then routers die at
random ones of these, run after run, until some have died at each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

from libs.backend import serving
from libs.backend.audit import AuditApi, AuditParts
from libs.backend.serving import Serving
from libs.eventlog.memory import MemoryEventLog
from libs.ownership.model import Store, Version, bucket_of
from libs.ownership.terms import next_term
from libs.rpc.server import Server, ServerConfig
from libs.sandboxes.audit import SandboxAudit
from libs.store.memory import MemoryStore
from libs.tasks import Loop
from services.router.control.memory import MemoryControlStore
from services.router.flows import jobs as kinds_of_jobs
from services.router.flows.jobs import canary, rehearsal
from services.router.flows.jobs import reconcile_job as flows_reconcile
from services.router.flows.jobs import recover as flows_recover
from services.router.flows.jobs.audit import Audit
from services.router.flows.jobs.backfill import Backfill
from services.router.flows.jobs.reconcile_job import Reconcile
from services.router.flows.jobs.recover import Recover, Seize
from services.router.flows.jobs.replay import Replay
from services.router.flows.jobs.validate import Validate
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import open_store
from services.service_layer.store import embedded
from services.simple_mcp.store import open_store as open_old_store
from services.simple_mcp.store.audit import open_audit
from tests.contracts.store_adapters import put, sandbox
from tests.fixtures.make_old_database import FILE
from tests.mortal import CLOCK, Case, Doom, Result, Scene, run
from tests.shelf import CONTRACT
from tests.system.control import running_loops
from tests.system.whole import System, never_arrived, running_system
from tests.waiting import eventually

A, B = Store.A, Store.B
KEYS = [f"shelves/{number:02d}" for number in range(36)]
OF_A, OF_B = KEYS[:18], KEYS[18:]

ODDS = (0.1, 0.3, 1.0)
"""Odds of one run after the other. The last one leaves no point out."""


def content(store: MemoryStore) -> Result:
    """All that a store keeps for good."""
    state = store._state
    return {
        "rows": dict(sorted(state.rows.items())),
        "bucket_owners": [one for one in state.bucket_owners if (one.term, one.owner) != (0, A)],
        "served": sorted(state.served),
        "conflicts": sorted((one.key, one.version, one.why.value) for one in state.metadata.journal.values()),
        "gone": state.metadata.fence_reason,
    }


async def everything_is_read(system: System) -> bool:
    """All that was made is in the log, and both stores have read it."""
    ends = {part: end for part, (_, end) in (await system.log.ends()).items()}
    for store in Store:
        ports = system.ports(store)
        read = (await ports.feed.state()).next_offsets
        if ports._state.outbox or any(read.get(part, 0) < end for part, end in ends.items()):
            return False
    return True


@asynccontextmanager
async def memory(prepare: Callable[[System], Awaitable[None]], feeds: bool, directory: Path) -> AsyncIterator[Scene]:
    """Two stores in memory. `feeds`: their changes go to the log, and each applies the other one's."""
    async with running_system(feeds=False, mover=False) as system:
        await system.control.load()
        await prepare(system)
        loops = [Loop(f"relay {store}", relay.run_once) for store, relay in system.relays.items()]
        for backend in system.backends.values():
            loops += [backend.feed.loop, backend.admission_loop.loop]

        async def result() -> Result:
            if feeds:
                await eventually(partial(everything_is_read, system))
            return {store.value: content(system.ports(store)) for store in Store}

        async with running_loops(*(loops if feeds else ())):
            yield Scene(system.stores, system.log, result)


async def written(system: System, store: Store, keys: Sequence[str]) -> None:
    """Records that this store owns, and in whose buckets it makes new ones."""
    for bucket in sorted({bucket_of(key) for key in keys}) if store is B else ():
        await system.ports(A).transfers.release_bucket(bucket, B)
        (released,) = await system.ports(A).transfers.bucket_owners([bucket])
        await system.ports(B).transfers.adopt_bucket(released)
    for key in keys:
        await put(system.ports(store), key, f"make {key}", f"of {store}")


async def shared(system: System) -> None:
    """Records of both, in the log, and known to both."""
    for store, keys in ((A, OF_A), (B, OF_B)):
        await written(system, store, keys)
    loops = [Loop(f"relay {store}", relay.run_once) for store, relay in system.relays.items()]
    async with running_loops(*loops, *(backend.feed.loop for backend in system.backends.values())):
        await eventually(partial(everything_is_read, system))


async def apart(system: System) -> None:
    """Records of both, of which the other one knows nothing; some have moved."""
    await written(system, A, OF_A)
    await written(system, B, OF_B)
    for source, keys in ((A, OF_A), (B, OF_B)):
        await system.ports(source).transfers.release(keys[:3], source.other, create=False)


async def damaged(system: System) -> None:
    """Each fault that reconcile mends, and those that it does not."""
    await shared(system)
    at_a, at_b = (system.ports(store)._state.rows for store in Store)
    for store, keys in ((B, OF_A), (A, OF_B)):
        for key in keys[:4]:
            never_arrived(system.ports(store), key)
    for rows, keys in ((at_a, OF_A), (at_b, OF_B)):
        for key in keys[4:7]:
            rows[key] = replace(rows[key], version=Version(0, 2), write_version=Version(0, 2))
    at_b[OF_A[7]] = replace(at_b[OF_A[7]], payload=sandbox(OF_A[7], "edited"))
    at_b[OF_A[8]] = replace(at_b[OF_A[8]], payload=sandbox(OF_A[8], "edited too"))
    never_arrived(system.ports(A), OF_A[9])


async def partly_lost(system: System) -> None:
    """B lacks rows; the log has an event that cannot be read."""
    await shared(system)
    for key in KEYS[::2]:
        never_arrived(system.ports(B), key)


async def fenced(system: System, store: Store) -> None:
    await system.ports(store).recovery.fence("its disk is gone")
    await system.backends[store].admission_loop.admit()


async def lost(store: Store, system: System) -> None:
    """Fenced, and it has made changes that are in no log."""
    await shared(system)
    keys = OF_A if store is A else OF_B
    for key in keys[:3]:
        await put(system.ports(store), key, f"again {key}", "nobody saw it")
    await fenced(system, store)


async def seized_from(store: Store, system: System) -> None:
    """Like `lost`, but the other store has taken the share and gone on."""
    await lost(store, system)
    keys = OF_A if store is A else OF_B
    for bucket in sorted({bucket_of(key) for key in keys}):
        await system.ports(store.other).seizures.seize(bucket, next_term(0, store.other))
    await put(system.ports(store.other), keys[0], "after", "goes on")
    rows = system.ports(store)._state.rows
    for key in keys[4:8]:
        beside = another_of_its_bucket(key)
        rows[beside] = replace(rows[key], key=beside, payload=sandbox(beside, "only here"))


def another_of_its_bucket(key: str) -> str:
    names = (f"{key}-{number}" for number in itertools.count())
    return next(name for name in names if bucket_of(name) == bucket_of(key))


@asynccontextmanager
async def files(directory: Path) -> AsyncIterator[Scene]:
    """The old service's own database, and an embedded new store."""
    old = Path(shutil.copy(FILE, directory / "old.db"))
    serving = Serving()
    serving.serve()
    async with open_old_store(old, CLOCK), open_audit(old, CLOCK) as of_a, AsyncExitStack() as stack:
        of_b = AuditParts(SandboxAudit(), scratch=partial(embedded.open_scratch, directory / "b.db", CLOCK))
        servers = {
            store: Server(ServerConfig("127.0.0.1:0", "internal"), [AuditApi(parts, serving, CLOCK).service()])
            for store, parts in ((A, of_a), (B, of_b))
        }
        for server in servers.values():
            stack.push_async_callback(server.drain, 0.0)
            await server.start()

        async def result() -> Result:
            return {"files": sorted(name for name in os.listdir(directory) if "audit" in name or "scratch" in name)}

        async with open_store(A, servers[A].address, None) as a, open_store(B, servers[B].address, None) as b:
            yield Scene({A: a, B: b}, MemoryEventLog(1), result)


def reconcile_stage(checkpoint: bytes) -> str:
    place = flows_reconcile.State.decode(checkpoint)
    if place.believed:
        return "mend"
    return "look again" if place.doubts and not place.differing else "walk" if place.differing else "digest"


def recovery_stage(checkpoint: bytes) -> str:
    return json.loads(checkpoint)["stage"] if checkpoint else "fence"


def audit_stage(checkpoint: bytes) -> str:
    return json.loads(checkpoint)[2] if checkpoint else "begin"


def without_versions(result: Result) -> Result:
    """Remove the versions of the CORRUPT record that was mended: it may have gone there and back more than once, so the
    digests differ."""
    key = OF_A[7]
    a, b = (result[store.value]["rows"].pop(key) for store in Store)
    assert a == b
    report = {**result["report"], "digests": len(result["report"]["digests"])}
    return {**result, "report": report, "mended": (a.payload, a.owner)}


def without_shares(result: Result) -> Result:
    """The result of a replay without shares: work before a death counts as known when it is repeated."""
    report = dict(result["report"])
    given = report.pop("applied") + report.pop("known")
    return {**result, "report": report, "given": given, "note": ""}


def without_time(result: Result) -> Result:
    """Remove the time of an audit's snapshot."""
    return {**result, "report": {**result["report"], "taken_seconds": 0}}


RECOVERY = ("fence", "drain", "plan", "tell", "seize", "take", "fill", "settle", "compare", "open", "await")
SEIZURE = ("fence", "plan", "tell", "seize")


CONTROL = MemoryControlStore()
"""Keeps the jobs whose orders the stores take."""


def recovery(name: str, store: Store, prepare: Callable[[Store, System], Awaitable[None]], *, back: bool) -> Case:
    def make(stores: Any, log: Any) -> Recover | Seize:
        return Recover(stores, log, CLOCK, CONTROL, Transfer(stores)) if back else Seize(stores, log, CLOCK, CONTROL)

    return Case(
        name,
        partial(memory, partial(prepare, store), True),
        make,
        {"store": store.value, "confirm": flows_recover.NAMES[store]},
        RECOVERY if back else SEIZURE,
        recovery_stage,
        # A recovery notices skipped work when it compares, and never ends.
        needs_each=not back,
    )


CASES = [
    *(
        Case(
            f"backfill to {to}",
            partial(memory, apart, False),
            lambda stores, log: Backfill(stores, CLOCK),
            {"to": to.value},
            needs_each=True,
        )
        for to in Store
    ),
    Case(
        "reconcile with repair",
        partial(memory, damaged, True),
        lambda stores, log: Reconcile(stores, Transfer(stores), log, CLOCK),
        {"deep": "yes", "corrupt": OF_A[7]},
        ("digest", "walk", "look again", "mend"),
        reconcile_stage,
        limit=400,
        needs_each=True,
        compared=without_versions,
    ),
    Case("validate", partial(memory, damaged, False), lambda stores, log: Validate(stores, CLOCK)),
    Case(
        "replay",
        partial(memory, partly_lost, False),
        lambda stores, log: Replay(stores, log, CLOCK),
        {"to": "B", "start": "start"},
        needs_each=True,
        compared=without_shares,
    ),
    Case(
        "audit",
        files,
        lambda stores, log: Audit(stores, CONTRACT, CLOCK),
        {"sample": "50"},
        ("begin", "snapshot", "records", "end"),
        audit_stage,
        limit=9,
        compared=without_time,
    ),
    *(recovery(f"seize {store}", store, lost, back=False) for store in Store),
    *(recovery(f"recover {store}", store, lost, back=True) for store in Store),
    *(recovery(f"recover {store} after a seizure", store, seized_from, back=True) for store in Store),
]


def test_every_kind_of_job_is_among_them() -> None:
    modules = [
        import_module(f"{kinds_of_jobs.__name__}.{module.name}") for module in iter_modules(kinds_of_jobs.__path__)
    ]
    classes = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    named = {getattr(one, "name", None) for one in classes if hasattr(one, "lane")}
    kinds = {name for name in named if isinstance(name, str) and name}
    # The other two kinds steer; test_rehearsal.py covers deaths of their routers.
    assert kinds == {case.name.partition(" ")[0] for case in CASES} | {canary.NAME, rehearsal.NAME}


def empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs the time that these waits give."""
    monkeypatch.setattr(flows_recover, "FENCED_SECONDS", 0.0)
    monkeypatch.setattr(flows_recover, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(flows_reconcile, "FEED_SECONDS", 0.01)
    monkeypatch.setattr(serving, "CHECK_SECONDS", 0.01)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_job_whose_routers_die_at_random_points_ends_with_the_same_result(case: Case, tmp_path: Path) -> None:
    chance = random.Random(case.name)
    undisturbed = Doom(chance, 0.0)
    wanted = await run(case, empty(tmp_path / "undisturbed"), undisturbed)
    assert wanted["state"] == "FINISHED", wanted["note"]
    assert {point.partition(": ")[0] for point in undisturbed.seen if ": " in point} == set(case.stages)
    died: set[str] = set()
    for number, odds in enumerate(ODDS):
        doom = Doom(chance, odds)
        assert await run(case, empty(tmp_path / str(number)), doom) == wanted, sorted(doom.died)
        died |= doom.died
    assert died >= undisturbed.seen


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_routers_that_stood_still_while_another_one_ended_their_job_change_nothing(
    case: Case, tmp_path: Path
) -> None:
    chance = random.Random(case.name)
    wanted = await run(case, empty(tmp_path / "undisturbed"), Doom(chance, 0.0))
    doom = Doom(chance, 1.0, woken=asyncio.Event())
    assert await run(case, empty(tmp_path / "woken"), doom) == wanted, sorted(doom.died)


@pytest.mark.parametrize("case", [case for case in CASES if case.needs_each], ids=str)
async def test_a_job_that_wrote_its_place_down_before_its_work_would_be_found_out(case: Case, tmp_path: Path) -> None:
    chance = random.Random(case.name)
    wanted = await run(case, empty(tmp_path / "undisturbed"), Doom(chance, 0.0, hasty=True))
    assert await run(case, empty(tmp_path / "killed"), Doom(chance, 1.0, hasty=True)) != wanted
