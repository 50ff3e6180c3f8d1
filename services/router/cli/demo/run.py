"""The run of a demo: start the system, play the story under load, gather the evidence and check it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from libs.errors import BatonError
from libs.eventlog.address import open_event_log
from libs.process import stop_signal
from libs.proving.servers.errors import ServersError
from libs.proving.servers.stack import running_stack
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.evidence import gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.requests import ACCOUNT
from libs.proving.trial.secured import Secured
from libs.proving.trial.stores import Held, Reader, open_readers, wait_until_quiet
from libs.proving.trial.tasks import beside
from libs.proving.trial.verdict import Result, judge
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.tls.making import OWNER_ONLY, write
from services.router.cli.certificate import envelope
from services.router.cli.certificate_text import View, sections
from services.router.cli.demo.glance import Meter
from services.router.cli.demo.report import DemoReport, Facts
from services.router.cli.demo.screen import Screen
from services.router.cli.demo.script import ACTOR, ROLLBACK_CALLS, ROLLBACK_SECONDS, Story, journaled_overrides
from services.router.cli.demo.strangers import Strangers

OLD_DATABASE = Path(__file__).parent / "old_simple_mcp.db"
OLD_HOT_NAMES = 8
SIZE = Size(
    http=True,
    console=True,
    router_settings=(
        {
            "rollback_seconds": f"{ROLLBACK_SECONDS}",
            "rollback_calls": f"{ROLLBACK_CALLS}",
            # Only the first of B's two faults rolls back automatically; afterwards the demo decides.
            "rollback_pause_seconds": "86400",
            # The few clients wait for each call. A short deadline lets them go on to reads while B hangs.
            "owner_patience_seconds": "0.5",
        },
    ),
)
QUIET_SECONDS = 30.0
CERTIFIED = ("Open", "Stores", "Ledger", "Old clients", "Left over")
"""Parts of the certificate that the demo prints."""
HTTP_SHARE = 3
"""One of this many clients calls by HTTP (REST or MCP)."""
RETRY_SECONDS = 3.0
"""How long a client repeats a write that is not answered. Then its outcome is unknown and the client goes on.

If this were longer, every client would wait for the hung B, and none would make a read.
"""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    stack: str
    """"embedded" or "real"."""
    seconds: float
    clients: int
    calls_per_second: float
    directory: Path
    hold: bool
    """Keep everything running at the end, until interrupted."""
    keep: bool
    json: bool = False
    secure: bool = False
    """Use TLS, tokens and signed events, and add strangers."""


@dataclass(slots=True)
class _Run:
    """The state of a run. It can give a report at any time."""

    plan: DemoPlan
    screen: Screen
    began: float = field(default_factory=time.monotonic)
    load: Load | None = None
    walk: Walk | None = None
    story: Story | None = None
    strangers: Strangers | None = None
    overrides: Sequence[str] = ()
    handoffs: int = 0
    result: Result | None = None
    certificate: View | None = None
    """The certificate with its seal."""
    failure: str = ""

    def report(self) -> DemoReport:
        kept = self.plan.keep or bool(self.failure) or self.result is None or not self.result.ok
        facts = Facts(
            stack=self.plan.stack,
            clients=self.plan.clients,
            seconds=time.monotonic() - self.began,
            moves=self.walk.moves if self.walk is not None else (),
            kills=self.story.kills if self.story is not None else (),
            rollbacks=self.story.rollbacks if self.story is not None else (),
            overrides=self.overrides,
            blocked=self.story.blocked if self.story is not None else "",
            handoffs=self.handoffs,
            strangers=None if self.strangers is None else self.strangers.refused.total(),
            certificate=self.certificate,
            failure=self.failure,
            evidence=str(self.plan.directory) if kept else "",
        )
        return DemoReport(facts, self.load, self.result)


async def run_demo(plan: DemoPlan, screen: Screen | None = None) -> DemoReport:
    """Run the demo. A failure is part of the report; only a cancellation or a defect raises."""
    run = _Run(plan, screen or Screen(sys.stderr if plan.json else sys.stdout))
    try:
        await asyncio.to_thread(_make_room, plan)
        with run.screen.open():
            async with _world(plan, run.screen) as world:
                await _in_world(run, world)
    except (BatonError, ServersError, grpc.aio.AioRpcError, OSError) as error:
        run.failure = str(error)
    report = run.report()
    if not report.facts.evidence:
        await asyncio.to_thread(shutil.rmtree, plan.directory, ignore_errors=True)
    return report


def _make_room(plan: DemoPlan) -> None:
    if not plan.keep:
        shutil.rmtree(plan.directory, ignore_errors=True)


@asynccontextmanager
async def _world(plan: DemoPlan, screen: Screen) -> AsyncIterator[World]:
    """Start all servers; stop them at the end."""
    with ExitStack() as resources:
        size = replace(SIZE, secure=plan.secure, console=not plan.secure)
        if plan.stack == "real":
            screen.begin_step("starting Kafka, PostgreSQL and Redis")
            secured = Secured.make(plan.directory.resolve() / "secured") if plan.secure else None
            servers = running_stack(secured.servers if secured is not None else None)
            stack = await asyncio.to_thread(resources.enter_context, servers)
            world = await asyncio.to_thread(World.real, plan.directory, stack, OLD_DATABASE, size, secured)
        else:
            world = World.embedded(plan.directory, OLD_DATABASE, size)
        screen.begin_step("starting A with a copy of the old database, B and the router")
        async with world.running():
            yield world


async def _in_world(run: _Run, world: World) -> None:
    async with (
        open_readers(world.stores) as readers,
        Walk.open(world.controls, ACTOR, world.operator_token, world.operator_tls) as walk,
    ):
        run.walk = walk
        before = await readers[0].export()
        run.screen.tell(f"  A has taken over {len(before)} records of the old database")
        old = [held for held in before if held.live and held.account][:OLD_HOT_NAMES]
        load = run.load = _load(run.plan, world, old)
        run.screen.tell(_invitation(world, load))
        strangers = run.strangers = Strangers(world, world.secured, old[0].name) if world.secured else None
        run.story = Story(world, walk, load, run.screen, run.plan.seconds, strangers)
        async with beside(world.watch()):
            tries = () if strangers is None else (strangers.run(),)
            async with beside(*tries), load.running(), beside(run.screen.follow(walk, Meter(load))):
                await run.story.play()
            await _judge(run, world, readers, before)
            await _certify(run)
            if strangers is not None:
                strangers.check()
            if run.plan.hold:
                run.screen.tell("  everything keeps running until you press Ctrl-C")
                await stop_signal().wait()


def _load(plan: DemoPlan, world: World, old: Sequence[Held]) -> Load:
    load_plan = LoadPlan(
        clients=plan.clients,
        calls_per_second=plan.calls_per_second,
        old_names=tuple(held.name for held in old),
        retry_seconds=RETRY_SECONDS,
        by_http=plan.clients // HTTP_SHARE,
    )
    load = Load(load_plan, world.routers, plan.directory / "evidence", world.http_routers)
    if world.secured is not None:
        accounts = sorted({ACCOUNT, *(held.account for held in old)})
        load.access = [world.secured.client(f"client-{number}", accounts) for number in range(plan.clients)]
    return load


def _invitation(world: World, load: Load) -> str:
    http = world.http_routers[0]
    if world.secured is None:
        page = f"open http://{world.consoles[0]}/console, with the token in {world.directory / 'token'}"
        return f"  try it while it runs: curl http://{http}/v1/sandboxes?pageSize=3, or steer it: {page}"
    token = world.secured.directory / "client-token"
    write(token, load.access[0].token.encode(), OWNER_ONLY)
    shown = f'--cacert {world.secured.authority.file} -H "Authorization: Bearer $(cat {token})"'
    return f"  try it while it runs: curl {shown} https://{http}/v1/sandboxes?pageSize=3"


async def _judge(run: _Run, world: World, readers: Sequence[Reader], before: Sequence[Held]) -> None:
    assert run.load is not None
    assert run.walk is not None
    run.screen.begin_step("the load has ended; outboxes and feeds drain, then all evidence is read and checked")
    status = await run.walk.settled()
    run.handoffs = status.handoffs
    run.overrides = [entry.reason for entry in await journaled_overrides(run.walk)]
    if len(run.overrides) != run.walk.overrides:
        raise TrialFailed(f"{run.walk.overrides} overrides were made, {len(run.overrides)} are in the journal")
    async with open_event_log(world.servers.event_log) as log:
        await wait_until_quiet(readers, log, QUIET_SECONDS)
        codes = None if world.secured is None else world.secured.codes(log.name)
        evidence = await gather(run.load.calls(), readers, log, before, codes)
    await asyncio.to_thread(evidence.save, run.load.directory)
    run.result = await asyncio.to_thread(judge, evidence)


async def _certify(run: _Run) -> None:
    assert run.walk is not None
    run.screen.begin_step("all rows of both stores are compared, and the migration is certified: baton certificate")
    run.certificate = envelope(await run.walk.certificate())
    for heading, rows in sections(run.certificate["certificate"]):
        if heading in CERTIFIED:
            run.screen.tell("\n".join([f"  {heading}:", *(f"    {row}" for row in rows or ["none"])]))
