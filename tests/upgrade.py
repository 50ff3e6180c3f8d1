"""A system is upgraded under load, process by process, from another commit to this tree, and downgraded again.

python -m tests.upgrade COMMIT [--stack real] [--seconds 10]

The other commit's processes run from a worktree in build/upgrade, in this environment: its packages must suffice for
both. Buckets move all the time, so records are handed over between processes of both commits. At the end the evidence
is judged as in `baton demo`: no acknowledged write is lost, no request done twice, each record has one owner. Exits
with 1 if it is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from libs.eventlog.address import open_event_log
from libs.pb.sandbox.v1.sandbox_service_pb2 import CreateSandboxRequest
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.stack import running_stack
from libs.proving.trial.evidence import gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import open_readers, wait_until_quiet
from libs.proving.trial.tasks import beside
from libs.proving.trial.verdict import judge
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import NEW_PREFIX, OLD_PREFIX, ROUTER_PREFIX, Size, World
from libs.rpc.channel import open_channel

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "upgrade"
WORK = BUILD / "work"
ACTOR = "upgrade"
SHARES = (100.0, 30.0)
"""Canary shares between which the buckets move, in percent."""
RECORDS = 3000
QUIET_SECONDS = 30.0
REASON = "a trial of an upgrade"


PREFIXES = (OLD_PREFIX, NEW_PREFIX, ROUTER_PREFIX)
ASK = f"""
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.simple_mcp.settings import SimpleMcpSettings
for prefix, kind in zip({PREFIXES}, (SimpleMcpSettings, ServiceLayerSettings, RouterSettings)):
    print(*(prefix + name.upper() for name in kind.model_fields))
"""


def checkout(commit: str) -> Path:
    """A worktree of the commit. Raises CalledProcessError."""
    tree = BUILD / "tree"
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True, capture_output=True)
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
    subprocess.run(["git", "worktree", "add", "-q", "--detach", tree, commit], cwd=ROOT, check=True)
    return tree


@dataclass(frozen=True, slots=True)
class Tree:
    """A commit's files, and the environment variables that its programs know, each as "PREFIX_NAME"."""

    path: Path
    variables: frozenset[str]

    @classmethod
    def at(cls, path: Path) -> Tree:
        """Asks the programs of the tree. Raises CalledProcessError."""
        known = subprocess.run([sys.executable, "-c", ASK], cwd=path, check=True, capture_output=True, text=True)
        return cls(path, frozenset(known.stdout.split()))

    def place(self, world: World, command: Command) -> None:
        """The next start of this process is from this tree, without settings that only the other tree knows."""
        name = command.name
        process = ServerProcess(replace(command, cwd=self.path, env=self._known(command.env or {})))
        world.nodes = {**world.nodes, name: replace(world.nodes[name], process=process)}

    def _known(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in environment.items()
            if not name.startswith(PREFIXES) or name in self.variables
        }


def orders(names: Sequence[str]) -> list[list[str]]:
    """Orders in which the processes change: routers first, then stores first."""
    routers = [name for name in names if name.startswith("router")]
    stores = [name for name in names if not name.startswith("router")]
    return [[*routers, *stores], [*stores, *routers]]


async def fill(address: str, records: int) -> None:
    """Enough records that they move in bulk."""
    async with open_channel(address) as channel:
        stub = SandboxServiceStub(channel.grpc)
        numbers = iter(range(records))

        async def create() -> None:
            for number in numbers:
                made = CreateSandboxRequest(sandbox_id=f"kept-{number:05}", request_id=str(uuid4()))
                made.sandbox.account, made.sandbox.spec.image = ACTOR, "kept:1"
                await stub.CreateSandbox(made, timeout=30)

        await asyncio.gather(*(create() for _ in range(16)))


async def flip(walk: Walk) -> None:
    """Move buckets to and fro until cancelled."""
    number = 0
    while True:
        number += 1
        await walk.canary(SHARES[number % len(SHARES)])


async def change(world: World, walk: Walk, command: Command, tree: Tree, seconds: float) -> None:
    name = command.name
    print(f"  {name} from {'this tree' if tree.path == ROOT else 'the other commit'}", flush=True)
    await world.stop(name)
    tree.place(world, command)
    await world.start(name)
    await asyncio.sleep(seconds)
    for alert in (await walk.status()).alerts:
        print(f"    {alert}", flush=True)


@asynccontextmanager
async def flipping(walk: Walk) -> AsyncIterator[None]:
    async with beside(flip(walk)):
        yield
    await walk.settled()


async def play(
    world: World, walk: Walk, commands: Mapping[str, Command], trees: Sequence[Tree], seconds: float
) -> None:
    await walk.job("audit", {})
    await walk.job("backfill", {"to": "B"})
    for _ in ("SHADOW", "DUAL_WRITE"):
        await walk.advance(REASON)
    for number, order in enumerate(orders(world.names), start=1):
        for tree in trees:
            print(f"{'upgrade' if tree.path == ROOT else 'downgrade'}, order {number}: {', '.join(order)}", flush=True)
            async with flipping(walk):
                for name in order:
                    await change(world, walk, commands[name], tree, seconds)
            moved = await walk.canary(0)
            print(f"  all buckets at A again: {moved.records} records in {moved.seconds:.1f} s", flush=True)
    await walk.canary(100)
    await walk.rollback("OFF", REASON)


async def run(world: World, other: Tree, seconds: float) -> bool:
    commands = {name: node.process.command for name, node in world.nodes.items()}
    for command in commands.values():
        other.place(world, command)
    async with (
        world.running(),
        open_readers(world.stores) as readers,
        Walk.open(world.controls, ACTOR, world.operator_token, world.operator_tls) as walk,
    ):
        await fill(world.routers[0], RECORDS)
        before = await readers[0].export()
        load = Load(LoadPlan(clients=6, calls_per_second=150.0), world.routers, WORK / "evidence")
        async with load.running():
            await play(world, walk, commands, (Tree.at(ROOT), other), seconds)
        await walk.settled()
        async with open_event_log(world.servers.event_log) as log:
            await wait_until_quiet(readers, log, QUIET_SECONDS)
            evidence = await gather(load.calls(), readers, log, before)
        result = await asyncio.to_thread(judge, evidence)
        stats = load.stats
        print(
            f"{stats.requests} requests, {stats.acknowledged_writes} acknowledged writes, {stats.errors.total()} errors"
            f" that were retried {dict(stats.errors)}, {stats.unknown_outcomes} writes of unknown outcome"
        )
        for name, tally in result.tallies.items():
            print(f"  {name}: {tally}")
        return result.ok


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade")
    parser.add_argument("commit")
    parser.add_argument("--stack", choices=("embedded", "real"), default="embedded")
    parser.add_argument("--seconds", type=float, default=8.0, help="between two processes (default 8)")
    options = parser.parse_args(arguments)
    other = Tree.at(checkout(options.commit))
    shutil.rmtree(WORK, ignore_errors=True)
    began = time.monotonic()
    size = Size(new=2, routers=2) if options.stack == "real" else Size(routers=2)
    with ExitStack() as resources:
        if options.stack == "real":
            stack = resources.enter_context(running_stack(None))
            world = World.real(WORK, stack, None, size)
        else:
            world = World.embedded(WORK, None, size)
        good = asyncio.run(run(world, other, options.seconds))
    print(f"{'nothing was lost' if good else 'FAILED'}, {time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
