"""The two-person rule over real control listeners, with operators who have names."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.clock import SystemClock
from libs.pb.baton.control.v1 import approvals_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.rpc.channel import Channel, open_channel
from services.router.cli.failure import Exit
from services.router.control.port import JournalEntry, Report
from services.router.control.sqlite import SqliteControlStore
from services.router.core.approvals import basis, record, set_two_person
from services.router.core.pending import PendingCall
from services.router.core.phase import Phase, advance, noted
from services.router.flows.steering.migration import Migration
from tests.commands import answer, baton
from tests.contracts.identity_adapters import write
from tests.integration.test_operators import At, bearer, outcome, running_router
from tests.waiting import eventually

ANN, BOB, CID = "token-of-the-admin-ann", "token-of-the-admin-bob", "token-of-one-more-person"
ANN_AGAIN = "another-token-of-the-same-ann"


def two_admins(folder: Path, **roles: str) -> dict[str, Any]:
    """`roles`: of people who are no admins."""
    entries = "".join(
        f'[[token]]\nsubject = "{name}"\ntoken = "{token}"\nroles = ["{roles.get(name, "admin")}"]\n'
        for name, token in (("ann", ANN), ("ann", ANN_AGAIN), ("bob", BOB), ("cid", CID))
    )
    return {
        "control_auth": "tokens",
        "control_auth_file": write(folder / "operators.toml", entries),
        "control_store": f"sqlite:///{folder}/control.db",
    }


async def at_cutover(folder: Path) -> None:
    """A control store in CUTOVER with the rule on."""
    async with SqliteControlStore.open(folder / "control.db") as store:
        now = await store.load()
        for phase in (Phase.SHADOW, Phase.DUAL_WRITE, Phase.DUAL_READ, Phase.CUTOVER):
            after = advance(now, phase)
            assert await store.change(JournalEntry(SystemClock().now(), "test", "advance", "", now, after))
            now = after
        on = set_two_person(now, on=True)
        assert await store.change(JournalEntry(SystemClock().now(), "test", "two-person rule", "", now, on))


SEIZE = pb.StartJobRequest(kind="seize", actor="ann", arguments={"store": "B", "confirm": "service_layer"})
DEPRECATED = pb.AdvancePhaseRequest(to=pb.PHASE_DEPRECATED, confirm="simple_mcp", actor="ann")


async def waiting(channel: Channel) -> list[approvals_pb2.PendingCall]:
    stub = ControlServiceStub(channel.grpc)
    shown = tuple(bearer(ANN).items())
    return list((await stub.ListPendingCalls(approvals_pb2.ListPendingCallsRequest(), metadata=shown)).calls)


async def approved(channel: Channel, call_id: str, token: str = BOB) -> str:
    request = approvals_pb2.ApproveCallRequest(actor="x", id=call_id)
    return await outcome(channel, "ApproveCall", request, bearer(token))


async def kinds_of_jobs(channel: Channel) -> list[str]:
    stub = ControlServiceStub(channel.grpc)
    return [job.kind for job in (await stub.ListJobs(pb.ListJobsRequest(), metadata=tuple(bearer(ANN).items()))).jobs]


async def test_a_seizure_waits_for_a_second_admin_and_runs_once(tmp_path: Path) -> None:
    await at_cutover(tmp_path)
    async with running_router(**two_admins(tmp_path)) as address, open_channel(address) as channel:
        for _ in range(2):
            assert await outcome(channel, "StartJob", SEIZE, bearer(ANN)) == "SECOND_PERSON_NEEDED"
        (call,) = await waiting(channel)
        assert (call.subject, json.loads(call.request_json)["kind"], call.outdated) == ("tokens:ann", "seize", False)
        assert await kinds_of_jobs(channel) == []
        for token in (ANN, ANN_AGAIN):
            assert await approved(channel, call.id, token) == "OWN_CALL"
        assert await kinds_of_jobs(channel) == []
        assert await approved(channel, call.id) == ""
        assert await kinds_of_jobs(channel) == ["seize"]
        assert await approved(channel, call.id) == "CALL_NOT_FOUND"
        assert await waiting(channel) == []


async def test_a_call_is_withdrawn_by_its_caller_or_by_an_admin(tmp_path: Path) -> None:
    await at_cutover(tmp_path)
    settings = two_admins(tmp_path, cid="operator")
    async with running_router(**settings) as address, open_channel(address) as channel:
        for token, withdrawn in ((ANN, ""), (BOB, ""), (CID, "ROLE_MISSING")):
            assert await outcome(channel, "StartJob", SEIZE, bearer(ANN)) == "SECOND_PERSON_NEEDED"
            (call,) = await waiting(channel)
            request = approvals_pb2.WithdrawCallRequest(actor="x", id=call.id)
            assert await outcome(channel, "WithdrawCall", request, bearer(token)) == withdrawn
            if not withdrawn:
                assert await approved(channel, call.id) == "CALL_NOT_FOUND"
        assert (await waiting(channel))[0].id == call.id
    # The caller is no longer an admin.
    settings = two_admins(tmp_path, ann="operator")
    async with running_router(**settings) as address, open_channel(address) as channel:
        assert await outcome(channel, "WithdrawCall", request, bearer(ANN)) == ""
        assert await waiting(channel) == []
        assert await kinds_of_jobs(channel) == []


async def test_a_step_runs_on_the_setting_of_its_approval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another router's change, which this one sees between the approval and the step, is not approved."""
    await at_cutover(tmp_path)
    approve = Migration.approve

    async def approve_and_see(self: Migration, *arguments: Any) -> Any:
        done = await approve(self, *arguments)
        async with SqliteControlStore.open(tmp_path / "control.db") as store:
            before = await store.load()
            assert await store.change(JournalEntry(SystemClock().now(), "eve", "note", "", before, noted(before)))
        await self._cache.refresh()
        return done

    async with running_router(**two_admins(tmp_path)) as address, open_channel(address) as channel:
        assert await outcome(channel, "AdvancePhase", DEPRECATED, bearer(ANN)) == "SECOND_PERSON_NEEDED"
        (call,) = await waiting(channel)
        monkeypatch.setattr(Migration, "approve", approve_and_see)
        assert await approved(channel, call.id) == "OUTDATED"


@pytest.mark.parametrize(
    "newer",
    [
        {"method": "EraseStore"},
        {"unknown": (("witness", '"eve"'),)},
        {"request": SEIZE.SerializeToString() + b"\xfa\x7f\x01x"},
    ],
    ids=["method", "field", "request"],
)
async def test_a_call_of_a_newer_release_is_shown_and_not_run(tmp_path: Path, newer: dict[str, Any]) -> None:
    await at_cutover(tmp_path)
    async with SqliteControlStore.open(tmp_path / "control.db") as store:
        before = await store.load()
        now = SystemClock().now()
        call = PendingCall("c1", "StartJob", SEIZE.SerializeToString(), "tokens:ann", "", basis(before), now)
        after = record(before, replace(call, **newer))
        assert await store.change(JournalEntry(now, "ann", "approval requested", "", before, after))
    async with running_router(**two_admins(tmp_path)) as address, open_channel(address) as channel:
        (shown,) = await waiting(channel)
        assert "a call of a newer release" in shown.effect
        assert await outcome(channel, "GetStatus", pb.GetStatusRequest(), bearer(ANN)) == ""
        assert await approved(channel, "c1") == "NEWER_CALL"
        assert await kinds_of_jobs(channel) == []
        request = approvals_pb2.WithdrawCallRequest(actor="x", id="c1")
        assert await outcome(channel, "WithdrawCall", request, bearer(BOB)) == ""


async def test_the_rule_is_not_switched_on_while_a_router_does_not_know_it(tmp_path: Path) -> None:
    settings = two_admins(tmp_path)
    on = pb.SetTwoPersonRequest(actor="ann", on=True)
    async with (
        running_router(**settings) as address,
        open_channel(address) as channel,
        SqliteControlStore.open(tmp_path / "control.db") as store,
    ):
        earlier = json.loads(next(iter(await eventually(store.reports))).text)
        assert "two_person" in earlier.pop("setting_fields")
        numbers = itertools.count()

        async def seen() -> bool:
            await store.report(Report("earlier", next(numbers), json.dumps(earlier)))
            stub = ControlServiceStub(channel.grpc)
            found = await stub.GetIdentity(pb.GetIdentityRequest(), metadata=tuple(bearer(ANN).items()))
            return "router earlier" in [process.name for process in found.processes]

        await eventually(seen)
        assert await outcome(channel, "SetTwoPerson", on, bearer(ANN)) == "ROUTERS_NOT_READY"
        assert not (await store.load()).two_person


async def test_of_two_people_who_approve_at_once_one_runs_the_call(tmp_path: Path) -> None:
    await at_cutover(tmp_path)
    settings = two_admins(tmp_path)
    async with (
        running_router(**settings) as first,
        running_router(**settings) as second,
        open_channel(first) as channel,
        open_channel(second) as other,
    ):
        for _ in range(3):
            off = pb.SetTwoPersonRequest(actor="ann", on=False)
            assert await outcome(channel, "SetTwoPerson", off, bearer(ANN)) == "SECOND_PERSON_NEEDED"
            (call,) = await waiting(channel)
            answers = await asyncio.gather(*(approved(at, call.id, who) for at, who in ((channel, BOB), (other, CID))))
            assert sorted(answers)[0] == "" and sorted(answers)[1] in ("CALL_NOT_FOUND", "OUTDATED"), answers
            on = pb.SetTwoPersonRequest(actor="ann", on=True)

            async def ready(on: pb.SetTwoPersonRequest = on) -> bool:
                return await outcome(channel, "SetTwoPerson", on, bearer(ANN)) in ("", "ILLEGAL_MOVE")

            await eventually(ready)


async def test_the_last_phase_waits_and_meets_its_gates_on_approval(tmp_path: Path) -> None:
    await at_cutover(tmp_path)
    async with running_router(**two_admins(tmp_path)) as address, open_channel(address) as channel:
        assert await outcome(channel, "AdvancePhase", DEPRECATED, bearer(ANN)) == "SECOND_PERSON_NEEDED"
        (call,) = await waiting(channel)
        assert await approved(channel, call.id) == "GATE_BLOCKED"
        assert await approved(channel, call.id) == "CALL_NOT_FOUND"


async def test_a_call_on_another_setting_is_outdated(tmp_path: Path) -> None:
    await at_cutover(tmp_path)
    async with running_router(**two_admins(tmp_path)) as address, open_channel(address) as channel:
        assert await outcome(channel, "StartJob", SEIZE, bearer(ANN)) == "SECOND_PERSON_NEEDED"
        stub = ControlServiceStub(channel.grpc)
        flags = await stub.ListFlags(pb.ListFlagsRequest(), metadata=tuple(bearer(ANN).items()))
        flag = pb.SetFlagRequest(actor="bob", name=flags.flags[0].name, value=True)
        assert await outcome(channel, "SetFlag", flag, bearer(BOB)) == ""
        (call,) = await waiting(channel)
        assert call.outdated
        assert await approved(channel, call.id) == "OUTDATED"
        assert await kinds_of_jobs(channel) == []


async def test_one_admin_can_roll_back_alone_and_cannot_switch_the_rule_off(tmp_path: Path) -> None:
    await at_cutover(tmp_path)
    async with running_router(**two_admins(tmp_path)) as address, open_channel(address) as channel:
        off = pb.SetTwoPersonRequest(actor="ann", on=False)
        assert await outcome(channel, "SetTwoPerson", off, bearer(ANN)) == "SECOND_PERSON_NEEDED"
        back = pb.RollbackPhaseRequest(actor="ann", to=pb.PHASE_OFF)
        assert await outcome(channel, "RollbackPhase", back, bearer(ANN)) == ""
        assert await outcome(channel, "LiftHold", pb.LiftHoldRequest(actor="ann"), bearer(ANN)) == ""
        assert await outcome(channel, "SetTwoPerson", off, bearer(ANN)) == "SECOND_PERSON_NEEDED"
        assert await approved(channel, (await waiting(channel))[-1].id) == ""
        assert await outcome(channel, "StartJob", SEIZE, bearer(ANN)) == ""


@pytest.mark.parametrize("kind", ["none", "token"])
async def test_a_router_without_names_is_no_way_around(tmp_path: Path, kind: str) -> None:
    """The rule is in the control store: a router with other settings refuses the step."""
    await at_cutover(tmp_path)
    shared = write(tmp_path / "shared", "x" * 20)
    settings = {"control_auth": kind, "control_store": f"sqlite:///{tmp_path}/control.db"}
    settings |= {"control_token_file": str(shared)} if kind == "token" else {}
    async with running_router(**settings) as address, open_channel(address) as channel:
        shown = {"baton-token": "x" * 20}
        for name, request in (
            ("StartJob", SEIZE),
            ("AdvancePhase", DEPRECATED),
            ("SetTwoPerson", pb.SetTwoPersonRequest(actor="ann", on=False)),
            ("ApproveCall", approvals_pb2.ApproveCallRequest(actor="ann", id="x")),
        ):
            assert await outcome(channel, name, request, shown) == "IDENTITY_NEEDED", name


async def switched_on(router: At, *options: str) -> bool:
    """A router that has just started has not read the reports of the others yet."""
    done = await baton(router, "two-person", "on", *options)
    return done.exit_code == Exit.OK


async def test_two_people_at_the_command_line(tmp_path: Path) -> None:
    settings = two_admins(tmp_path)
    ann = ("--token-file", str(write(tmp_path / "ann", ANN)), "--yes")
    bob = ("--token-file", str(write(tmp_path / "bob", BOB)))
    async with running_router(**settings) as address:
        router = At(address)
        await eventually(lambda: switched_on(router, *ann))
        seize = await baton(router, "seize", "B", "--confirm", "service_layer", "--reason", "B is lost", *ann)
        assert seize.exit_code == Exit.SECOND_PERSON, seize
        (call,) = (await answer(router, "approvals", *bob))["calls"]
        assert f"baton approve {call['id']}` within 10 minutes" in seize.stderr
        shown = await answer(router, "approve", call["id"], "--dry-run", *bob)
        assert shown["answer"] is None and shown["effects"][0] == call["effect"]
        assert (call["subject"], call["reason"]) == ("tokens:ann", "B is lost")
        own = await baton(router, "approve", call["id"], *ann)
        assert "you made the call" in own.stderr
        alert = f"tokens:ann asks for a second admin: {call['effect']}: baton approve {call['id']}"
        assert alert in (await answer(router, "status", *bob))["alerts"]
        shown = await answer(router, "withdraw", call["id"], "--dry-run", *bob)
        assert (shown["id"], shown["dry_run"]) == (call["id"], True)
        shown = await answer(router, "withdraw", call["id"], "--reason", "not now", *ann)
        assert (shown["id"], shown["dry_run"]) == (call["id"], False)
        gone = await baton(router, "withdraw", call["id"], *ann)
        assert (gone.exit_code, "no call" in gone.stderr) == (Exit.FAILED, True)
        await baton(router, "seize", "B", "--confirm", "service_layer", "--reason", "B is lost", *ann)
        (call,) = (await answer(router, "approvals", *bob))["calls"]
        done = await answer(router, "approve", call["id"], "--yes", "--reason", "seen", *bob)
        assert done["answer"]["job"]["kind"] == "seize"
        entries = (await answer(router, "journal", *bob))["entries"]
        found = {entry["action"]: (entry["actor"], entry["reason"]) for entry in entries}
        assert found["approval requested"] == ("tokens:ann (ann@host)", "B is lost")
        assert found["withdrawn"][0] == "tokens:ann (ann@host)"
        assert found["withdrawn"][1].startswith("not now (")
        assert found["approved"][1] == f"seen ({call['id']}: StartJob, called by tokens:ann)"
        assert found["job requested"][0] == "tokens:bob (ann@host)"
        assert f"B is lost ({call['id']}, called by tokens:ann)" in found["job requested"][1]
