"""Random calls have the same answer by every door: reply or refusal, texts and metadata included.

Each door has sandboxes of its own, and makes the same calls on them in the same order. BATON_TEST_DOORS says how many
calls: 10000 take some minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.proving.trial.doors import ConnectWay, McpWay, RestWay, Way
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.sandboxes.schema import METADATA
from tests.acceptance.talk import COLLECTION, Talk, method_of
from tests.system.http import OPEN, Door

CALLS = int(os.environ.get("BATON_TEST_DOORS", "400"))
BATCH = 100
"""Calls on one set of sandboxes."""
IDS = 3

DOORS: Mapping[str, Callable[..., Way]] = {"REST": RestWay, "Connect": ConnectWay, "MCP": McpWay}
"""Beside gRPC."""

Values = Sequence[Any]
STATES: Values = (0, 1, 2, 3, 4, 99)
TEXTS: Values = ("", "a", "x" * 64, "with space", "ünïcode", "nul\0", "日本語", "'\"\\", "a/b", "%2F", "UPPER")
NUMBERS: Values = (0, 1, 500, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
MASKS: Values = ((), ("labels",), ("spec.image", "state"), ("spec",), ("bogus",), ("name",), ("annotations", "labels"))
SECONDS: Values = (0, 1, 3600, 86_400, 86_401, -1)
FILTERS: Values = ("", "state = RUNNING", 'account = "acme"', "bogus", 'labels.a = "b"', "state = ")
SCHEMAS_SAID: Values = ("2", "2", "2", "1", "3", "x")


@pytest.fixture(params=list(OPEN))
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    async with OPEN[request.param]() as found:
        yield found


async def test_random_calls_have_the_same_answer_by_every_door(door: Door) -> None:
    async with ways_of(door) as ways:
        for batch in range(max(1, CALLS // BATCH)):
            talks = {name: Talk([way], f"t{batch:04}{number}") for number, (name, way) in enumerate(ways.items())}
            heard = await asyncio.gather(*(held(talk, batch) for talk in talks.values()))
            by_grpc, *others = zip(talks, heard, strict=True)
            for name, answers in others:
                for number, (wanted, found) in enumerate(zip(by_grpc[1], answers, strict=True)):
                    assert found == wanted, f"batch {batch}, call {number}, by {name}"


@asynccontextmanager
async def ways_of(door: Door) -> AsyncIterator[dict[str, Way]]:
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(door.grpc))
        client = await stack.enter_async_context(httpx2.AsyncClient())
        http = {name: kind(door.address, client, channel) for name, kind in DOORS.items()}
        yield {"gRPC": channel, **http}


async def held(talk: Talk, batch: int) -> list[str]:
    """The answers to the calls of a batch."""
    ids = [talk.new_id() for _ in range(IDS)]
    request_ids = [talk.new_request_id() for _ in range(BATCH)]
    for number in range(BATCH):
        chance = random.Random(f"{batch} {number}")
        # A request is sometimes sent again, sometimes with the id of another one.
        request_id = request_ids[number if chance.random() < 0.8 else chance.randrange(number + 1)]
        request = chance.choice(MAKERS)(chance, chance.choice(ids), request_id)
        said = [(METADATA, chance.choice(SCHEMAS_SAID))]
        if chance.random() < 0.3:
            said.append((metadata.EXPLAIN, "1"))
        await talk.raw(method_of(request), request.SerializeToString(), metadata=said)
    return talk.heard


def _sandbox(chance: random.Random, **fields: Any) -> Sandbox:
    made = Sandbox(account=chance.choice(("acme", "acme", "other", "no spaces", "")), **fields)
    if chance.random() < 0.9:
        made.spec.image = chance.choice(("image:1", "image:1", "image:2", *TEXTS))
    for name in ("cpu_millis", "memory_mib"):
        if chance.random() < 0.3:
            setattr(made.spec, name, chance.choice(NUMBERS))
    if chance.random() < 0.2:
        made.spec.timeout.CopyFrom(Duration(seconds=chance.choice(SECONDS), nanos=chance.choice((0, 0, 500))))
    if chance.random() < 0.3:
        made.state = chance.choice(STATES)
    for field in (made.labels, made.annotations, made.spec.env):
        if chance.random() < 0.3:
            field[chance.choice(("a", "b", "A", *TEXTS))] = chance.choice(TEXTS)
    if chance.random() < 0.2:
        made.spec.command.extend(chance.choice(TEXTS) for _ in range(chance.randrange(3)))
    return made


def _create(chance: random.Random, made_id: str, request_id: str) -> Message:
    return pb.CreateSandboxRequest(
        sandbox=_sandbox(chance),
        sandbox_id=made_id if chance.random() < 0.9 else chance.choice(TEXTS[2:]),
        request_id=request_id,
        validate_only=chance.random() < 0.1,
    )


def _get(chance: random.Random, made_id: str, request_id: str) -> Message:
    return pb.GetSandboxRequest(name=_name(chance, made_id))


def _list(chance: random.Random, made_id: str, request_id: str) -> Message:
    """A list without sandboxes of another door."""
    return pb.ListSandboxesRequest(
        page_size=chance.choice((0, 1, 2, -1)),
        filter=f'labels.none = "x" AND {chance.choice(FILTERS)}' if chance.random() < 0.5 else 'labels.none = "x"',
        show_deleted=chance.random() < 0.3,
        page_token=chance.choice(("", "", "nonsense")),
    )


def _update(chance: random.Random, made_id: str, request_id: str) -> Message:
    request = pb.UpdateSandboxRequest(
        sandbox=_sandbox(chance, name=_name(chance, made_id), etag=_etag(chance)),
        request_id=request_id,
        allow_missing=chance.random() < 0.2,
        validate_only=chance.random() < 0.1,
        lease_token=chance.choice(("", "", "0.2", "nonsense")),
    )
    request.update_mask.paths.extend(chance.choice(MASKS))
    return request


def _delete(chance: random.Random, made_id: str, request_id: str) -> Message:
    return pb.DeleteSandboxRequest(
        name=_name(chance, made_id), etag=_etag(chance), request_id=request_id, allow_missing=chance.random() < 0.3
    )


def _undelete(chance: random.Random, made_id: str, request_id: str) -> Message:
    return pb.UndeleteSandboxRequest(name=_name(chance, made_id), etag=_etag(chance), request_id=request_id)


def _acquire(chance: random.Random, made_id: str, request_id: str) -> Message:
    ttl = Duration(seconds=chance.choice(SECONDS))
    holder = chance.choice(("ann", "ben", *TEXTS))
    return pb.AcquireLeaseRequest(name=_name(chance, made_id), holder=holder, ttl=ttl, request_id=request_id)


def _renew(chance: random.Random, made_id: str, request_id: str) -> Message:
    return pb.RenewLeaseRequest(name=_name(chance, made_id), token=_token(chance), request_id=request_id)


def _release(chance: random.Random, made_id: str, request_id: str) -> Message:
    return pb.ReleaseLeaseRequest(name=_name(chance, made_id), token=_token(chance), request_id=request_id)


MAKERS: Sequence[Callable[[random.Random, str, str], Message]] = (
    _create,
    _create,
    _get,
    _list,
    _update,
    _update,
    _delete,
    _undelete,
    _acquire,
    _renew,
    _release,
)


def _name(chance: random.Random, made_id: str) -> str:
    return COLLECTION + made_id if chance.random() < 0.95 else chance.choice(("", "boxes/x", *TEXTS))


def _etag(chance: random.Random) -> str:
    return chance.choice(("", "", "", f'"0-{chance.randrange(1, 9)}"', "4", "nonsense"))


def _token(chance: random.Random) -> str:
    return chance.choice((f"0.{chance.randrange(1, 9)}", "0.2", "", "nonsense"))
