"""A change of the callers' identities, process by process under load, there and back, while records move.

Clients write at the routers, at A and at B. They repeat writes of earlier steps at any of them, with and without a
token: each repetition gets the first answer, and nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.identity.port import AUTHORIZATION
from libs.ownership.limits import SERVED_WINDOW
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.proving.history.history import Answer, HistoryWriter, Outcome, read_history
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.client import Client, Manner, _Pending
from libs.proving.trial.doors import Way
from libs.proving.trial.evidence import gather
from libs.proving.trial.requests import COLLECTION, Mix, Names, Request
from libs.proving.trial.stats import Stats
from libs.proving.trial.tasks import first_failure
from libs.proving.trial.verdict import judge
from libs.proving.trial.world import World
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from libs.rpc.metadata import TOKEN
from tests.acceptance.talk import NEWEST, SERVICE, get
from tests.acceptance.test_event_auth import PREFIXES
from tests.acceptance.test_feed import Site, running
from tests.waiting import eventually

CLIENTS = 6
PLACES = ("router-1", "a", "b-1")
TURNS = (("a", "router-1"), ("b-1",))
"""The processes that are restarted together."""
WAIT_SECONDS = 60.0
LEAST_REPEATS = 4
"""Writes of each earlier step to repeat before the next step."""
REPEATED_SHARE = 0.4
REPEATED_METHODS = frozenset({"create", "update", "delete", "undelete"})
"""A repeated lease call would replace the client's token of its lease by an older one."""


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


@dataclass
class Stage:
    """The step of the change, and the counts of repeated writes. All clients share it."""

    name: str = "none"
    with_token: float = 0.5
    """Share of the calls that carry a token."""
    repeats: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Repetitions by the stages of the first answer and of the repetition."""
    writes: Counter[str] = field(default_factory=Counter)
    """Acknowledged requests by record."""


@dataclass(frozen=True)
class Place:
    """A process as one client calls it."""

    way: Way
    token: str
    stage: Stage
    chance: random.Random

    def multi_callable(self, method: str) -> Any:
        call = self.way.multi_callable(method)

        def send(data: bytes, timeout: float, metadata: Sequence[tuple[str, str]] | None = None) -> Any:
            shown = (*(metadata or ()), *NEWEST)
            if self.chance.random() < self.stage.with_token:
                shown += ((AUTHORIZATION, f"Bearer {self.token}"),)
            return call(data, timeout=timeout, metadata=grpc.aio.Metadata(*shown))

        return send


@dataclass
class Roamer(Client):
    """A client that calls any process, and repeats its writes."""

    chance: random.Random = field(kw_only=True)
    stage: Stage = field(kw_only=True)
    book: list[tuple[str, Request]] = field(default_factory=list)
    """Acknowledged writes, with the stage of their first answer."""
    repeating: dict[str | None, str] = field(default_factory=dict)
    """Stage of the first answer, by request id of a repetition under way."""

    def _choose(self, now: float) -> _Pending | None:
        self._channel = self.chance.randrange(len(self.channels))
        chosen = super()._choose(now)
        if chosen is None or chosen.attempts or not self.book or self.chance.random() > REPEATED_SHARE:
            return chosen
        first, request = self.chance.choice(self.book)
        if self.stage.writes[request.key] > SERVED_WINDOW // 2:
            return chosen  # A record that moves takes its newest requests along, and more may have been served.
        self.repeating[request.request_id] = first
        return _Pending(request, now)

    def _settle(self, pending: _Pending, answer: Answer) -> None:
        request = pending.request
        super()._settle(pending, answer)
        self.stage.writes[request.key] += not request.is_read
        if answer.outcome is Outcome.UNKNOWN or request.method not in REPEATED_METHODS:
            return
        first = self.repeating.pop(request.request_id, None)
        if first is not None:
            assert answer.outcome is Outcome.OK, f"{request.method} {request.request_id} was served before: {answer}"
            self.stage.repeats[first, self.stage.name] += 1
        elif answer.outcome is Outcome.OK:
            self.book.append((self.stage.name, request))


@asynccontextmanager
async def load(world: World, directory: Path, stage: Stage, stats: Stats) -> AsyncIterator[None]:
    names = Names(tuple(f"{COLLECTION}hot-{number:02}" for number in range(60)))
    async with AsyncExitStack() as stack:
        ending = asyncio.Event()
        clients = []
        for number in range(CLIENTS):
            chance = random.Random(number)
            token = token_of(number)
            ways = [await stack.enter_async_context(open_channel(world.nodes[name].public)) for name in PLACES]
            history = stack.enter_context(HistoryWriter(directory / f"client-{number:02}.jsonl", number))
            clients.append(
                Roamer(
                    [Place(way, token, stage, chance) for way in ways],
                    Mix(number, names, 0.3, seed=5),
                    names,
                    Manner(deadline_seconds=3.0, interval_seconds=0.15, retry_seconds=WAIT_SECONDS),
                    stats,
                    history,
                    ending,
                    chance=chance,
                    stage=stage,
                )
            )
        async with first_failure() as group:
            for client in clients:
                group.create_task(client.run())
            yield
            ending.set()


def token_of(number: int) -> str:
    return f"token-of-client-{number:04}"


def write_tokens(path: Path) -> Path:
    path.touch(mode=0o600)
    entries = (
        f'[[token]]\nsubject = "client-{number}"\ntoken = "{token_of(number)}"\nroles = ["admin"]\n'
        for number in range(CLIENTS)
    )
    path.write_text("".join(entries))
    return path


async def roll(world: World, **settings: str) -> None:
    """Restart all processes with these settings, in turn."""
    for names in TURNS:
        for name in names:
            process = world.nodes[name].process
            added = {f"{PREFIXES[name.partition('-')[0]]}_{key}".upper(): value for key, value in settings.items()}
            process.command = replace(process.command, env={**(process.command.env or {}), **added})
        await asyncio.gather(*(world.restart(name) for name in names))


async def baton(world: World, *words: str) -> Any:
    """Run the command that an operator types: `baton identity switch ...`."""
    program = ("-c", "from services.router.cli import main; main()", *words, "-o", "json")
    reach = ("--address", world.controls[0], "--token-file", str(world.directory / "token"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, *reach, cwd=PROJECT_ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
    return json.loads(printed)


async def switch(site: Site, to: str) -> None:
    async with open_channel(site.world.controls[0]) as channel:
        control: Any = ControlServiceStub(channel.grpc)

        async def shown() -> Any:
            metadata = grpc.aio.Metadata((TOKEN, site.world.token))
            return await control.GetIdentity(pb.GetIdentityRequest(), timeout=WAIT_SECONDS, metadata=metadata)

        async def ready() -> bool:
            return not (await shown()).obstacles

        async def in_force() -> bool:
            return bool((await shown()).in_force)

        if to == "subjects":
            await eventually(ready, WAIT_SECONDS)
        changed = await baton(site.world, "identity", "switch", "--to", to, "--reason", "a trial", "--yes")
        assert changed["serves_subjects"] is (to == "subjects"), changed
        if to == "subjects":
            await eventually(in_force, WAIT_SECONDS)


async def principals(site: Site) -> set[str]:
    """Principals of the served requests at both stores."""
    found: set[str] = set()
    for reader in site.readers:
        async with open_channel(reader.access.address) as channel:
            path = "/baton.replication.v1.ReplicationService/ExportRecords"
            request = rpb.ExportRecordsRequest().SerializeToString()
            shown = grpc.aio.Metadata((TOKEN, reader.access.token))
            answer = await channel.multi_callable(path)(request, timeout=WAIT_SECONDS, metadata=shown)
        exported = rpb.ExportRecordsResponse.FromString(answer)
        found |= {one.principal.partition("-")[0] for record in exported.records for one in record.served}
    return found


async def is_refused(world: World) -> bool:
    """Whether every process refuses a call without a token."""
    reasons = set()
    for name in PLACES:
        async with open_channel(world.nodes[name].public) as channel:
            call = channel.multi_callable(f"/{SERVICE}/GetSandbox")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(get("none").SerializeToString(), timeout=WAIT_SECONDS, metadata=grpc.aio.Metadata(*NEWEST))
        reasons.add(reason_of(refused.value)[0])
    return reasons == {"TOKEN_MISSING"}


async def test_identities_change_there_and_back_under_load_and_no_write_is_lost_or_doubled(
    tmp_path: Path, stack: Stack
) -> None:
    world = World.real(tmp_path / "world", stack)
    tokens = {"public_auth": "tokens", "public_auth_file": str(write_tokens(tmp_path / "tokens.toml"))}
    stage, stats, history = Stage(), Stats(), tmp_path / "history"
    history.mkdir()
    seen: list[str] = []
    async with running(world) as site:
        walk = site.walk
        await walk.backfill()
        for _ in range(2):
            await walk.advance("a trial")

        async def begin(name: str, canary: float) -> None:
            """All processes are at this stage: records move, and writes of every earlier stage are repeated."""
            stage.name = name
            seen.append(name)
            await walk.canary(canary)
            wanted = [(earlier, name) for earlier in seen]
            await eventually(lambda: all(stage.repeats[one] >= LEAST_REPEATS for one in wanted), WAIT_SECONDS)

        async def both() -> bool:
            return await principals(site) == {"anonymous", "tokens:client"}

        async with load(world, history, stage, stats):
            await begin("none", 30)
            await roll(world, **tokens, public_auth_optional="true")
            await begin("optional", 60)
            assert await principals(site) == {"anonymous"}
            await switch(site, "subjects")
            await begin("switched", 30)
            await eventually(both, WAIT_SECONDS)
            stage.with_token = 1.0
            await roll(world, public_auth_optional="false")
            await begin("required", 60)
            assert await is_refused(world)
            # Back at once, as when the issuer fails: no step waits for another, or for the retry window.
            await roll(world, public_auth="none")
            stage.with_token = 0.5
            await switch(site, "anonymous")
            await begin("none again", 30)
        await walk.settled()
        await site.quiet()
        calls = read_history(sorted(history.glob("client-*.jsonl")))
        result = judge(await gather(calls, site.readers, site.log))
    assert result.ok, "\n".join(result.problems)
    assert walk.moves[-1].seconds and sum(stage.repeats.values()) > 15 * LEAST_REPEATS
