"""Codes of events are switched on, and their keys rotated, process by process under load: no event is lost, none stays
behind, and forged ones change nothing."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.port import Event
from libs.ownership.model import Record, Row, Store, Version
from libs.ownership.terms import TERMS_TYPE
from libs.ownership.wire import STORE_NUMBERS, event_of
from libs.pb.baton.replication.v1 import recovery_pb2
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.stores import open_readers
from libs.proving.trial.world import Size, World
from tests.acceptance.talk import COLLECTION
from tests.acceptance.test_feed import WAIT_SECONDS, Site, running
from tests.waiting import eventually

ONE, TWO = b"1" * 32, b"2" * 32
PREFIXES = {"a": "SIMPLE_MCP", "b": "SERVICE_LAYER", "router": "BATON_ROUTER"}
STORES = ("a", "b-1", "b-2")


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


def give_keys(world: World, names: tuple[str, ...], sign: str, **keys: bytes) -> None:
    """Each process has a file of its own."""
    lines = "".join(f'{name} = "{base64.b64encode(key).decode()}"\n' for name, key in keys.items())
    for name in names:
        path = world.directory / f"{name}-keys.toml"
        path.touch(mode=0o600)
        path.write_text(f'sign = "{sign}"\n[keys]\n{lines}')


async def restart(world: World, name: str, **settings: str) -> None:
    """With these settings in addition."""
    prefix = PREFIXES[name.partition("-")[0]]
    process = world.nodes[name].process
    settings = {"event_keys": str(world.directory / f"{name}-keys.toml"), **settings}
    added = {f"{prefix}_{key}".upper(): value for key, value in settings.items()}
    process.command = replace(process.command, env={**(process.command.env or {}), **added})
    await world.restart(name)


async def write_on(site: Site, made: list[str]) -> None:
    """Until cancelled; the ids that were acknowledged."""
    number = 0
    while True:
        number += 1
        with suppress(grpc.aio.AioRpcError):
            await site.make(f"during-{number}")
            made.append(f"during-{number}")


def forged(topic: str) -> list[Event]:
    """What a program that reaches the topic, and knows everything but the keys, may write."""
    key, version = f"{COLLECTION}before", Version(0, 1000)
    payload = sandbox_pb2.Sandbox(name=key, account="mallory").SerializeToString()
    row = Row(key, version, Store.A, version, True, payload, 2)
    headers = HeaderWriter("A", "baton.record.v1").write(key, version, 1.7e9)
    unsigned = Event(key, event_of(Record(row, (), Store.A, 1.7e9)), headers)
    right = KeyRing("one", {"one": ONE})
    terms = recovery_pb2.Terms(
        store=STORE_NUMBERS[Store.A], buckets=[recovery_pb2.Terms.Bucket(bucket=number, term=2) for number in range(9)]
    )
    return [
        unsigned,
        Codes(lambda: KeyRing("one", {"one": b"3" * 32}), "guessed").sign(unsigned),
        Codes(lambda: right, "another.topic").sign(unsigned),
        replace(Codes(lambda: right, topic).sign(replace(unsigned, value=b"")), value=unsigned.value),
        Event("", terms.SerializeToString(), HeaderWriter("A", TERMS_TYPE).write("", (0, 0), 1.7e9)),
    ]


async def feeds(site: Site) -> list[Any]:
    return [(await reader.status()).feed for reader in site.readers]


@asynccontextmanager
async def load(site: Site, made: list[str]) -> AsyncIterator[None]:
    writing = asyncio.create_task(write_on(site, made))
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.wait([writing])


async def further(made: list[str], count: int = 5) -> None:
    """So many more writes are acknowledged."""
    wanted = len(made) + count
    await eventually(lambda: len(made) >= wanted, WAIT_SECONDS)


async def test_codes_are_switched_on_and_rotated_under_load_and_a_forged_event_changes_nothing(
    tmp_path: Path, stack: Stack
) -> None:
    world = World.real(tmp_path, stack, size=Size(new=2))
    every = (*STORES, "router-1")
    async with running(world) as site:
        await site.make("before")
        made = ["before"]
        async with load(site, made):
            give_keys(world, every, "one", one=ONE)
            await restart(world, "router-1")
            await asyncio.gather(*(restart(world, name, event_auth="sign") for name in STORES))
            await further(made)
            # A and one process of B at once; B's other process is a mode behind meanwhile.
            await asyncio.gather(*(restart(world, name, event_auth="require") for name in ("a", "b-1")))
            await further(made)
            await restart(world, "b-2", event_auth="require")
            await further(made)

            async def begun() -> bool:
                return all(feed.event_auth == "require" and feed.checked_from for feed in await feeds(site))

            await eventually(begun, WAIT_SECONDS)
            await site.log.append(forged(site.log.name))
            # Both keys are known everywhere before the new one signs, and it signs everywhere before the old one goes.
            give_keys(world, every, "one", one=ONE, two=TWO)
            await eventually(lambda: knows(site, ["one", "two"]), WAIT_SECONDS)
            give_keys(world, every, "two", one=ONE, two=TWO)
            await eventually(lambda: knows(site, ["two", "one"]), WAIT_SECONDS)
            await further(made)
        await arrived(site, made)
        give_keys(world, every, "two", two=TWO)
        await eventually(lambda: knows(site, ["two"]), WAIT_SECONDS)
        await site.make("after")
        await arrived(site, [*made, "after"])

        for feed in await feeds(site):
            assert (feed.unauthenticated, feed.unauthenticated_now, feed.parked_now) == (5, 5, 5)
            assert (feed.trouble, feed.event_keys_trouble) == ("", "")
        answer, _ = await site.read("before")
        assert answer.account != "mallory"
        shown = (await site.status())["stores"]
        assert [store["unauthenticated"] for store in shown.values()] == [5, 5]


async def knows(site: Site, keys: list[str]) -> bool:
    """Whether every process of the stores has these keys, the signing one first."""
    async with AsyncExitStack() as stack:
        readers = await stack.enter_async_context(open_readers(site.world.store_processes))
        return [list((await reader.status()).feed.event_keys) for reader in readers] == [keys] * len(readers)


async def arrived(site: Site, made: list[str]) -> None:
    """Everything that was acknowledged is at both stores, and they hold the same."""

    async def equal() -> bool:
        one, other = [await reader.digests() for reader in site.readers]
        return one == other

    await eventually(equal, WAIT_SECONDS)
    for reader in site.readers:
        held = {record.name for record in await reader.export()}
        assert {COLLECTION + name for name in made} <= held
        assert (await reader.status()).outbox.entries == 0
