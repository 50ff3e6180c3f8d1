"""One client suite against three endpoints (the old service, the new one, the router), by every door, in every phase.

The world is walked through its phases once; the tests compare the answers recorded on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from typing import Any

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from libs.pb.baton.control.v1 import control_pb2
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.doors import ConnectWay, HttpWay, McpWay, RestWay, Way
from libs.proving.trial.walk import Walk, phase_name
from libs.proving.trial.world import Size, World
from libs.rpc.channel import Channel, open_channel
from libs.sandboxes.schema import METADATA, SCHEMAS
from services.router.flows.jobs.job_orders import ASKED
from tests.acceptance.conversations import CONVERSATIONS, Conversation
from tests.acceptance.old_clients import OldClient
from tests.acceptance.talk import CANARY_PERMILLE, SERVICE, Talk
from tests.fixtures.make_old_database import FILE
from tests.servers import make_usable
from tests.storms import FULL

ENDPOINTS = {"A": "a", "B": "b-1", "router": "router-1"}
USUAL_SCHEMAS = {"A": SCHEMAS.oldest, "B": SCHEMAS.newest, "router": SCHEMAS.newest}
DOORS: dict[str, type[HttpWay]] = {"REST": RestWay, "Connect": ConnectWay, "MCP": McpWay}
"""Beside gRPC."""
NOT_BY_JSON = frozenset({"fields_of_a_newer_contract"})
"""JSON has no form for a field that the contract does not have."""


@dataclass(frozen=True)
class Kind:
    """An old client: its place, its schema version, and whether it sends the version."""

    endpoint: str
    version: int
    says: bool = True

    def at(self, way: Channel) -> OldClient:
        said = ((METADATA, str(self.version)),) if self.says else ()
        return OldClient(way, f"old-client-{self.endpoint}-{self.version}".lower(), self.version, said)


OLD_CLIENTS = {
    "at A, says nothing": Kind("A", 1, says=False),
    "at A, version 2": Kind("A", 2),
    "at B, says nothing": Kind("B", 2, says=False),
    "at B, version 1": Kind("B", 1),
    "at the router, says nothing": Kind("router", 2, says=False),
    "at the router, version 1": Kind("router", 1),
}
CANARY = f"DUAL_WRITE {CANARY_PERMILLE / 10:g} %"
HELD = "OFF, held at A"
PHASES = ("OFF", "SHADOW", CANARY, "DUAL_READ", "CUTOVER", HELD)
REASON = "an acceptance run"


@dataclass(frozen=True, order=True)
class Place:
    """Where a conversation was held. ``half``: of the names, by the canary of one half."""

    phase: str
    endpoint: str
    """And by which door, if it is not gRPC: "A by REST"."""
    half: str
    title: str


@dataclass
class Heard:
    answers: dict[Place, list[str]] = field(default_factory=dict)
    broken: dict[Place, str] = field(default_factory=dict)
    """Conversations that did not go as the contract says."""
    old_clients: dict[Place, str] = field(default_factory=dict)
    """Each step of a client that stays at its endpoint: "" when it was right."""
    offers: dict[Place, str] = field(default_factory=dict)
    """Answers of health and reflection."""
    journal: list[control_pb2.JournalEntry] = field(default_factory=list)
    """Oldest first."""


@pytest.fixture(scope="module")
def heard(
    kafka_server: Kafka, postgres_server: Postgres, redis_process: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Heard:
    for server in (kafka_server, postgres_server, redis_process):
        make_usable(server)
    stack = Stack(kafka_server, postgres_server, redis_process)
    world = World.real(tmp_path_factory.mktemp("identical"), stack, FILE, Size(http=True))
    return asyncio.run(listen(world))


async def listen(world: World) -> Heard:
    """Through all phases, and back."""
    found = Heard()
    async with (
        world.running(),
        endpoints(world) as ways,
        doors(world, ways) as others,
        Walk.open(world.controls, "acceptance", world.token) as walk,
    ):
        clients = {name: client.at(ways[client.endpoint]) for name, client in OLD_CLIENTS.items()}
        walk.counts_records = False
        await walk.backfill()
        for phase in PHASES:
            await reach(walk, phase)
            assert phase_name((await walk.settled()).setting) == phase
            await hold_all(phase, [ways, *others], found)
            for name, client in clients.items():
                found.old_clients[Place(phase, name, "", "old client")] = await client.step()
            for endpoint, way in ways.items():
                found.offers[Place(phase, endpoint, "", "offers")] = await offered(way)
        found.journal = list(reversed((await walk.journal()).entries))
    return found


@asynccontextmanager
async def endpoints(world: World) -> AsyncIterator[dict[str, Channel]]:
    async with AsyncExitStack() as stack:
        yield {
            endpoint: await stack.enter_async_context(open_channel(world.nodes[name].public))
            for endpoint, name in ENDPOINTS.items()
        }


@asynccontextmanager
async def doors(world: World, channels: Mapping[str, Channel]) -> AsyncIterator[list[dict[str, Way]]]:
    """For each door but gRPC, the ways to the endpoints."""
    async with httpx2.AsyncClient() as client:
        yield [
            {
                f"{endpoint} by {door}": way(
                    world.nodes[name].http, client, channels[endpoint], USUAL_SCHEMAS[endpoint]
                )
                for endpoint, name in ENDPOINTS.items()
            }
            for door, way in DOORS.items()
        ]


async def reach(walk: Walk, phase: str) -> None:
    """From the one before."""
    if phase == HELD:
        await walk.rollback("OFF", REASON)
    elif phase != "OFF":
        await walk.advance(REASON)
    if phase == CANARY:
        await walk.canary(CANARY_PERMILLE / 10)


async def hold_all(phase: str, doors: Sequence[Mapping[str, Way]], found: Heard) -> None:
    """Every conversation at every endpoint by every door, those of different endpoints at the same time."""
    halves = ("canary's", "others") if phase == CANARY else ("others",)

    async def at(door: int, endpoint: str) -> None:
        conversations = said_by(endpoint, phase)
        others = [way for other, way in doors[door].items() if other != endpoint]
        for half in halves:
            for number, (title, conversation) in enumerate(conversations.items()):
                place = Place(phase, endpoint, half, title)
                # Names have one length: an error may contain the size of the refused value.
                tag = f"p{PHASES.index(phase)}-{endpoint[0]}{door}-{half[0]}-{number:02}".lower()
                talk = Talk([doors[door][endpoint], *others], tag, in_canary=half == "canary's")
                try:
                    await conversation(talk)
                except (AssertionError, grpc.aio.AioRpcError) as error:
                    found.broken[place] = f"{error}"
                found.answers[place] = talk.heard

    await asyncio.gather(*(at(door, endpoint) for door, ways in enumerate(doors) for endpoint in ways))


def said_by(endpoint: str, phase: str) -> Mapping[str, Conversation]:
    """The conversations that are held there; a name without a door is an endpoint by gRPC.

    In `make storms`, each endpoint holds all of them by every door in every phase. In `make test`, only the router by
    gRPC does. A and B by gRPC hold each conversation in two phases, once with a record of A and once with one of B.
    Each other door holds it once at each endpoint, and not always with a record of the same owner.
    """
    where, _, door = endpoint.partition(" by ")
    titles = [title for title in CONVERSATIONS if not (door and title in NOT_BY_JSON)]
    turn = PHASES.index(phase) + 2 * list(ENDPOINTS).index(where)
    if FULL or endpoint == "router":
        period = 1
    elif door:
        period = len(PHASES)
        turn += list(DOORS).index(door)
    else:
        period = len(PHASES) // 2
    return {title: CONVERSATIONS[title] for number, title in enumerate(titles) if (number + turn) % period == 0}


async def offered(way: Channel) -> str:
    """Health of the service and of an unknown one, and the contract in reflection."""
    health: Any = health_pb2_grpc.HealthStub(way.grpc)
    said = []
    for name in ("", SERVICE, "no.such.Service"):
        try:
            found = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            said.append(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))
        except grpc.aio.AioRpcError as error:
            said.append(error.code().name)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(way.grpc)  # type: ignore[arg-type]
    for request in (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ):
        call = reflection.ServerReflectionInfo(iter([request]), timeout=5)
        said.append(str(await call.read()))
        call.cancel()
    return "\n".join(said)


def differences(answers: dict[Place, list[str]], *, over: str) -> list[str]:
    """Answers that are not those of the other endpoints (``over`` "endpoint"), or of other phases ("phase")."""
    found: list[str] = []
    first: dict[Place, Place] = {}
    for place in sorted(answers):
        like = replace(place, **({"endpoint": ""} if over == "endpoint" else {"phase": "", "half": ""}))
        model = first.setdefault(like, place)
        found += _unlike(model, answers[model], place, answers[place])
    return found


def _unlike(model: Place, wanted: list[str], place: Place, heard: list[str]) -> Iterable[str]:
    if wanted == heard:
        return
    if len(wanted) != len(heard):
        yield f"{place}: {len(heard)} answers, {len(wanted)} at {model}"
    for number, (left, right) in enumerate(zip(wanted, heard, strict=False)):
        if left != right:
            lines = unified_diff(left.splitlines(), right.splitlines(), f"{model}", f"{place}", lineterm="", n=1)
            yield "\n".join([f"answer {number}, {left.partition(chr(10))[0]}", *lines])
            return


@pytest.mark.parametrize("phase", PHASES)
def test_the_contract_is_kept_at_every_endpoint(heard: Heard, phase: str) -> None:
    broken = {place: said for place, said in heard.broken.items() if place.phase == phase}
    assert not broken, "\n".join(f"{place}: {said}" for place, said in broken.items())
    held = {place for place in heard.answers if place.phase == phase}
    names = [*ENDPOINTS, *(f"{endpoint} by {door}" for endpoint in ENDPOINTS for door in DOORS)]
    assert {(place.endpoint, place.title) for place in held} == {
        (name, t) for name in names for t in said_by(name, phase)
    }


@pytest.mark.parametrize("phases", [("OFF", "SHADOW", HELD), (CANARY, "DUAL_READ", "CUTOVER")], ids=["A", "B"])
def test_every_conversation_is_held_by_each_door_with_records_of_both_owners(phases: Sequence[str]) -> None:
    """A owns the records of the first phases and of the last one, B those of the canary and of the phases after it."""

    def held(*endpoints: str) -> set[str]:
        return {title for phase in phases for endpoint in endpoints for title in said_by(endpoint, phase)}

    for endpoint in ENDPOINTS:
        assert held(endpoint) == CONVERSATIONS.keys(), endpoint
    for door in DOORS:
        assert held(*(f"{endpoint} by {door}" for endpoint in ENDPOINTS)) == CONVERSATIONS.keys() - NOT_BY_JSON, door


@pytest.mark.parametrize("phase", PHASES)
def test_the_answers_of_all_endpoints_are_the_same(heard: Heard, phase: str) -> None:
    answers = {place: said for place, said in heard.answers.items() if place.phase == phase}
    assert all(len(said) > 1 for said in answers.values())
    assert not (found := differences(answers, over="endpoint")), "\n".join(found)


def test_the_answers_of_all_phases_are_the_same(heard: Heard) -> None:
    assert not (found := differences(heard.answers, over="phase")), "\n".join(found)


@pytest.mark.parametrize("client", OLD_CLIENTS)
def test_an_old_client_stays_right_at_its_endpoint(heard: Heard, client: str) -> None:
    steps = {place.phase: said for place, said in heard.old_clients.items() if place.endpoint == client}
    assert steps == dict.fromkeys(PHASES, "")


def test_health_and_reflection_are_the_same_everywhere(heard: Heard) -> None:
    said = set(heard.offers.values())
    assert len(heard.offers) == len(PHASES) * len(ENDPOINTS)
    assert len(said) == 1, "\n----\n".join(said)
    assert said.pop().startswith("SERVING\nSERVING\nNOT_FOUND\n")


def test_every_step_is_in_the_journal(heard: Heard) -> None:
    steps = [entry for entry in heard.journal if entry.action != ASKED]
    assert [phase_name(entry.after) for entry in steps] == ["OFF", "SHADOW", "DUAL_WRITE 0 %", *PHASES[2:]]
    assert [entry.generation for entry in heard.journal] == list(range(1, len(heard.journal) + 1))
    for before, entry in zip(heard.journal, heard.journal[1:], strict=False):
        assert entry.before == before.after
        assert entry.actor == "acceptance"
        assert entry.time.ToNanoseconds() >= before.time.ToNanoseconds() > 0
    assert [entry.action for entry in heard.journal] == [
        "start", ASKED, "advance", "advance", "canary", "advance", "advance", "rollback",
    ]  # fmt: skip
    assert all(entry.reason == REASON for entry in heard.journal if entry.action in ("advance", "rollback"))


@pytest.mark.parametrize("over", ["endpoint", "phase"])
def test_an_answer_that_differs_is_found(over: str) -> None:
    """The comparison itself: one text, one answer too few."""
    places = {Place("OFF", "A", "others", "t"), Place("OFF", "B", "others", "t"), Place("SHADOW", "A", "others", "t")}
    answers = {place: ["OK", "NOT_FOUND"] for place in places}
    assert not differences(answers, over=over)
    odd = Place("OFF", "B", "others", "t") if over == "endpoint" else Place("SHADOW", "A", "others", "t")
    for planted in (["OK", "ABORTED"], ["OK"]):
        assert differences({**answers, odd: planted}, over=over)
