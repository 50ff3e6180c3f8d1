"""Clients of an old schema version, and of the old endpoint: served, named and warned."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from libs.clock import ManualClock
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2
from libs.pb.baton.telemetry.v1.telemetry_pb2 import Client
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox, SandboxSpec
from libs.rpc import metadata
from libs.rpc.clients import MOST_CLIENTS, MOST_HOSTS, MOST_OF_A_HOST, OTHERS, Clients
from libs.rpc.server import RawService
from libs.sandboxes.schema import METADATA
from tests.system.store import CONTRACT, OneStore, listening, new, refusal, running_store
from tests.unit.sandboxes import NEWER_FIELD

NAME = "sandboxes/one"
OLD = ((METADATA, "1"),)
NEW = ((METADATA, "2"),)
LATER_FIELD = NEWER_FIELD.replace(b"newer", b"later")


def flat(**fields: Any) -> Sandbox:
    """A sandbox as a client of version 1 sends it, in the contract's message."""
    return Sandbox.FromString(FlatSandbox(**fields).SerializeToString())


def flat_of(answer: Sandbox) -> FlatSandbox:
    return FlatSandbox.FromString(answer.SerializeToString())


def create(**fields: Any) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox=flat(account="acme", image="image:1", **fields), sandbox_id="one")


def update(*paths: str, **fields: Any) -> pb.UpdateSandboxRequest:
    request = pb.UpdateSandboxRequest(sandbox=flat(name=NAME, **fields))
    request.update_mask.paths.extend(paths)
    return request


async def with_timeout(at: OneStore) -> Duration:
    """A sandbox with one that version 1 does not show exactly."""
    made = new("one")
    made.sandbox.spec.timeout.FromMilliseconds(1500)
    await at.client.CreateSandbox(made)
    return made.sandbox.spec.timeout


async def test_a_client_of_version_1_writes_and_reads_flat_records() -> None:
    async with running_store() as at:
        made = flat_of(await at.client.CreateSandbox(create(cpu=0.5, metadata={"team": "blue"}), metadata=OLD))
        assert (made.schema_version, made.image, made.cpu, made.state) == (1, "image:1", 0.5, 1)
        row = (await at.store.records.read(NAME)).row
        assert row is not None
        assert (row.schema_version, FlatSandbox.FromString(row.payload)) == (1, made)
        found = await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=OLD)
        assert flat_of(found) == made
        listed = await at.client.ListSandboxes(pb.ListSandboxesRequest(filter='labels.team = "blue"'), metadata=OLD)
        assert [flat_of(sandbox) for sandbox in listed.sandboxes] == [made]


async def test_a_record_of_version_1_is_a_structured_one_for_a_newer_client_which_makes_it_one() -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(create(cpu=0.5, metadata={"team": "blue"}), metadata=OLD)
        seen = await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=NEW)
        assert (seen.schema_version, seen.spec.cpu_millis, dict(seen.labels)) == (2, 500, {"team": "blue"})
        listed = await at.client.ListSandboxes(pb.ListSandboxesRequest())
        assert list(listed.sandboxes) == [seen]
        await at.client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=Sandbox(name=NAME, annotations={"a": "b"})))
        row = (await at.store.records.read(NAME)).row
        assert row is not None and row.schema_version == 2


@pytest.mark.parametrize("paths", [(), ("*",), ("timeout_s",)])
async def test_a_client_that_gives_back_what_it_was_shown_changes_no_exact_value(paths: tuple[str, ...]) -> None:
    """Also for a client that drops unknown fields, as a JSON client does."""
    async with running_store() as at:
        exact = await with_timeout(at)

        async def updated(*paths: str, **fields: Any) -> SandboxSpec:
            await at.client.UpdateSandbox(update(*paths, state=1, image="image:1", **fields), metadata=OLD)
            return (await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME))).spec

        assert (await updated(*paths, timeout_s=1)).timeout == exact
        assert (await updated(*paths, timeout_s=2)).timeout == Duration(seconds=2)
        assert (await updated(*paths, timeout_s=1)).timeout == Duration(seconds=1)


async def test_an_old_client_takes_away_what_it_is_shown_in_part() -> None:
    """The client sends unknown fields back, and the exact value is among them."""
    async with running_store() as at:
        await with_timeout(at)
        seen = flat_of(await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=OLD))
        seen.ClearField("timeout_s")
        request = pb.UpdateSandboxRequest(sandbox=Sandbox.FromString(seen.SerializeToString()))
        request.update_mask.paths.append("timeout_s")
        await at.client.UpdateSandbox(request, metadata=OLD)
        assert not (await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME))).spec.HasField("timeout")


@pytest.mark.parametrize("paths", [(), ("*",), ("image", "cpu")])
async def test_an_old_client_changes_what_it_can_say_and_nothing_else(paths: tuple[str, ...]) -> None:
    """Also by a request that was read before a newer client changed a field that the old one lacks."""
    spec = SandboxSpec(image="image:1", cpu_millis=250)
    spec.MergeFromString(NEWER_FIELD)
    sandbox = Sandbox(account="acme", spec=spec, annotations={"note": "one"})
    sandbox.MergeFromString(NEWER_FIELD)
    async with running_store() as at:
        await at.client.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox, sandbox_id="one"))
        read = await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=OLD)
        newer = Sandbox(name=NAME, annotations={"note": "two"})
        newer.MergeFromString(LATER_FIELD)
        newer.spec.MergeFromString(LATER_FIELD)
        await at.client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=newer))
        old = flat_of(read)
        old.image, old.cpu, old.etag = "image:2", 0.75, ""
        request = pb.UpdateSandboxRequest(sandbox=Sandbox.FromString(old.SerializeToString()))
        request.update_mask.paths.extend(paths)
        answer = await at.client.UpdateSandbox(request, metadata=OLD)
        assert flat_of(answer).image == "image:2"
        now = await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME))
        assert (now.spec.image, now.spec.cpu_millis, dict(now.annotations)) == ("image:2", 750, {"note": "two"})
        assert now.SerializeToString().count(LATER_FIELD) == 2, "in the sandbox and in its spec"
        assert NEWER_FIELD not in now.SerializeToString()
        row = (await at.store.records.read(NAME)).row
        assert row is not None and row.schema_version == 2, "what a newer client wrote stays in its version"


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        (update("spec.image", image="x"), "update_mask", "the paths are state, image, command, env, cpu, memory_mb"),
        (update("annotations"), "update_mask", "the paths are state"),
        (update(image="two words"), "sandbox.image", "sandbox.image: 'two words' is not valid"),
        (update(metadata={"UP": "x"}), "sandbox.metadata key", "sandbox.metadata key: 'UP' is not valid"),
        (update(cpu=float("nan")), "sandbox.cpu", "a finite number"),
        (update(memory_mb=-1), "sandbox.memory_mb", "0 to 16777216"),
    ],
)
async def test_refusals_name_fields_as_the_caller_does(
    request_: pb.UpdateSandboxRequest, field: str, text: str
) -> None:
    async with running_store() as at:
        error = await refusal(at.client.UpdateSandbox(request_, metadata=OLD))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in (error.details() or "")
        assert (error.details() or "").startswith(field)


async def test_a_refusal_that_depends_on_the_record_names_fields_as_the_caller_does_too() -> None:
    async with running_store() as at:
        request = update(account="acme")
        request.allow_missing = True
        error = await refusal(at.client.UpdateSandbox(request, metadata=OLD))
        assert (error.details() or "").startswith("sandbox.image: '' is not valid: required")


@pytest.mark.parametrize("paths", [(), ("*",)])
async def test_an_old_client_does_not_change_the_account_in_passing(paths: tuple[str, ...]) -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(create(), metadata=OLD)
        error = await refusal(
            at.client.UpdateSandbox(update(*paths, account="other", image="x", state=1), metadata=OLD)
        )
        assert (error.details() or "").startswith("sandbox.account: 'other' is not valid")


async def test_a_retry_gets_its_answer_in_the_version_that_it_speaks() -> None:
    request = create()
    request.request_id = "123e4567-e89b-42d3-a456-426614174000"
    async with running_store() as at:
        first = await at.client.CreateSandbox(request, metadata=OLD)
        assert await at.client.CreateSandbox(request, metadata=OLD) == first
        modern = new("two", request_id=request.request_id)
        made = await at.client.CreateSandbox(modern)
        again = flat_of(await at.client.CreateSandbox(modern, metadata=OLD))
        assert (again.revision, again.image, again.schema_version) == (made.revision, made.spec.image, 1)


@pytest.mark.parametrize("value", ["3", "0", "new"])
async def test_an_unknown_version_is_refused_with_those_that_are_known(value: str) -> None:
    async with running_store() as at:
        for client in (at.client, at.router):
            call = client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=((METADATA, value),))
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details() == f"{METADATA}: {value!r} is not valid: 1 to 2"


async def test_at_the_old_service_who_says_nothing_speaks_version_1_and_is_warned() -> None:
    async with running_store(old=True, router="127.0.0.1:1") as at:
        call = at.client.CreateSandbox(create(), metadata=((metadata.CLIENT, "billing"),))
        assert flat_of(await call).image == "image:1"
        warning = dict(await call.trailing_metadata() or ())[metadata.DEPRECATED]
        assert warning == f"call the router; schema version 1 is old: say {METADATA}: 2 in the metadata"
        modern = at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=NEW)
        assert (await modern).spec.image == "image:1"
        assert dict(await modern.trailing_metadata() or ())[metadata.DEPRECATED] == "call the router"


async def test_direct_and_old_clients_are_in_the_status_the_last_one_first() -> None:
    async with running_store(old=True) as at:
        named = ((metadata.CLIENT, "billing"),)
        await at.client.CreateSandbox(create(), metadata=named)
        at.clock.advance(5.0)
        await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=NEW)
        await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=(*named, *NEW))
        at.clock.advance(2.0)
        billing, other = (await at.replication.GetStatus(replication_pb2.GetStatusRequest())).clients
        assert billing == Client(name="billing", schema_version=1, calls=2, idle_seconds=2.0)
        assert (other.schema_version, other.calls) == (2, 1)
        assert other.name.startswith("grpc-python") and other.name.endswith(" at 127.0.0.1")


async def test_a_client_that_has_nothing_to_change_is_neither_warned_nor_listed() -> None:
    async with running_store() as at:
        call = at.client.ListSandboxes(pb.ListSandboxesRequest())
        await call
        assert metadata.DEPRECATED not in dict(await call.trailing_metadata() or ())
        assert not (await at.replication.GetStatus(replication_pb2.GetStatusRequest())).clients


async def test_what_is_passed_on_says_whose_call_it_is_and_what_it_speaks() -> None:
    heard: list[dict[str, Any]] = []

    async def note(request: bytes, context: Any) -> bytes:
        heard.append(dict(context.invocation_metadata()))
        return b""

    async with (
        listening(RawService(CONTRACT.service, {"ListSandboxes": note})) as router,
        running_store(Store.A, old=True, router=router.address) as at,
    ):
        await at.client.ListSandboxes(pb.ListSandboxesRequest())
        await at.client.ListSandboxes(pb.ListSandboxesRequest(), metadata=(*NEW, (metadata.CLIENT, "billing")))
    assert [found[METADATA] for found in heard] == ["1", "2"]
    assert heard[0][metadata.CLIENT].endswith(" at 127.0.0.1")
    assert heard[1][metadata.CLIENT] == "billing"


async def test_a_client_is_warned_once_beside_what_the_router_says() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(((metadata.DEPRECATED, "from the router"), (metadata.STALE, "1")))
        if pb.ListSandboxesRequest.FromString(request).page_size:
            await context.abort(grpc.StatusCode.NOT_FOUND, "", context.trailing_metadata())
        return b""

    async with (
        listening(RawService(CONTRACT.service, {"ListSandboxes": answer})) as router,
        running_store(Store.A, old=True, router=router.address) as at,
    ):
        call = at.client.ListSandboxes(pb.ListSandboxesRequest(), metadata=NEW)
        await call
        error = await refusal(at.client.ListSandboxes(pb.ListSandboxesRequest(page_size=1), metadata=NEW))
        for trailers in (await call.trailing_metadata(), error.trailing_metadata()):
            told = [(name, value) for name, value in trailers or () if name.startswith("baton-")]
            assert sorted(told) == [(metadata.DEPRECATED, "call the router"), (metadata.STALE, "1")]


async def test_a_client_that_is_refused_is_warned_too() -> None:
    async with running_store(old=True, router="127.0.0.1:1") as at:
        error = await refusal(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=NEW))
        assert dict(error.trailing_metadata() or ())[metadata.DEPRECATED] == "call the router"


async def test_a_watch_is_warned_before_its_first_answer() -> None:
    async with running_store() as at:
        watch = at.client.WatchSandboxes(pb.WatchSandboxesRequest(), metadata=OLD)
        assert "schema version 1" in dict(await watch.initial_metadata() or ())[metadata.DEPRECATED]
        watch.cancel()


class Call:
    """A call of a client that gives itself a name, or does not."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host

    def invocation_metadata(self) -> Any:
        return ((metadata.CLIENT, self.name),) if self.name else (("user-agent", "grpc"),)

    def peer(self) -> str:
        return f"ipv4:{self.host}:4711"


async def noted(clients: Clients, *calls: Call) -> list[str]:
    for call in calls:
        clients.note(call, 2)  # type: ignore[arg-type]
    return [client.name for client in clients.seen()]


async def test_a_client_is_not_pushed_out_by_one_that_invents_names() -> None:
    clients = Clients(CONTRACT.schemas, ManualClock(), everybody=True)
    flood = [Call(f"invented {number}", "10.6.6.6") for number in range(2 * MOST_CLIENTS)]
    await noted(clients, Call("billing", "10.0.0.1"), Call("", "10.6.6.6"))
    names = await noted(clients, *flood, Call("orders", "10.0.0.2"))
    assert {"billing", "orders", "grpc at 10.6.6.6"} < set(names)
    assert names[:2] == ["orders", f"{OTHERS} at 10.6.6.6"]
    assert len(names) == 3 + MOST_OF_A_HOST + 1
    others = next(client for client in clients.seen() if client.name.startswith(OTHERS))
    assert others.calls == 2 * MOST_CLIENTS - MOST_OF_A_HOST, "each call of the flood is counted"


async def test_a_client_without_a_name_of_its_own_is_seen_behind_a_flood_of_names_of_its_host() -> None:
    clients = Clients(CONTRACT.schemas, ManualClock(), everybody=True)
    flood = [Call(f"invented {number}", "10.6.6.6") for number in range(2 * MOST_CLIENTS)]
    assert (await noted(clients, *flood, Call("", "10.6.6.6")))[0] == "grpc at 10.6.6.6"


async def test_the_list_of_clients_has_a_limit_and_counts_every_call() -> None:
    clients = Clients(CONTRACT.schemas, ManualClock(), everybody=True)
    hosts = [f"10.0.{number // 256}.{number % 256}" for number in range(4 * MOST_CLIENTS)]
    names = await noted(clients, *(Call(f"{host} {name}", host) for host in hosts for name in "ab"))
    assert names[0] == OTHERS, "the last host found no entry, and its call is evidence all the same"
    assert len(names) == MOST_CLIENTS + MOST_HOSTS + 1
    assert sum(client.calls for client in clients.seen()) == 2 * len(hosts)
