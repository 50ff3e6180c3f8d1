"""The journal has operators' orders about jobs, with actor and reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from libs.errors import InvalidField
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.control.memory import MemoryControlStore
from services.router.core.phase import Setting
from services.router.flows.jobs.audit import Audit
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.migration import Decision
from tests.commands import answer
from tests.integration.test_control import refusal
from tests.integration.test_jobs_killed import files
from tests.mortal import CLOCK
from tests.shelf import CONTRACT
from tests.system.control import ControlledSystem, running_controlled_system

BACKFILL = pb.StartJobRequest(
    actor="ann", kind="backfill", arguments={"to": "B"}, rate=1.0, reason="before the holidays"
)


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        yield running


async def journal(controlled: ControlledSystem) -> list[tuple[str, str, str]]:
    """Actor, action and reason, oldest first, without the start."""
    entries = await controlled.flows.migration.journal(100)
    return [(one.actor, one.action, one.reason) for one in reversed(entries)][1:]


async def test_each_order_for_a_job_is_kept_with_who_and_why(controlled: ControlledSystem) -> None:
    await controlled.put(3)
    job_id = (await controlled.control.StartJob(BACKFILL)).job.id
    for action, reason in (("PAUSE", "it is loud"), ("TUNE", ""), ("RESUME", "quiet now"), ("CANCEL", "not today")):
        number = pb.ChangeJobRequest.Action.Value(f"ACTION_{action}")
        request = pb.ChangeJobRequest(actor="ben", id=job_id, action=number, rate=5.0, reason=reason)
        await controlled.control.ChangeJob(request)
    assert await journal(controlled) == [
        ("ann", "job requested", "before the holidays (backfill: to B)"),
        ("ben", "job paused", "it is loud (backfill-1)"),
        ("ben", "job tuned", "backfill-1: at most 5/s"),
        ("ben", "job resumed", "quiet now (backfill-1)"),
        ("ben", "job cancelled", "not today (backfill-1)"),
    ]


async def test_the_commands_hand_their_reason_on(controlled: ControlledSystem) -> None:
    # At this rate it lasts for minutes: it is still there when the commands come.
    await controlled.put(300)
    started = await answer(controlled, "backfill", "--rate", "1", "--yes", "--reason", "a first copy")
    await answer(controlled, "jobs", "pause", started["id"], "--yes", "--reason", "lunch")
    await answer(controlled, "jobs", "cancel", started["id"], "--dry-run", "--reason", "not yet")
    assert await journal(controlled) == [
        ("ann@host", "job requested", "a first copy (backfill: to B)"),
        ("ann@host", "job paused", "lunch (backfill-1)"),
    ]


@pytest.mark.parametrize(
    "request_",
    [
        pb.StartJobRequest(actor="ann", kind="backfill", arguments={"to": "C"}, reason="r"),
        pb.StartJobRequest(actor="ann", kind="backfill", arguments={"to": "B"}, reason="x" * 1000),
    ],
)
async def test_an_order_that_is_refused_is_not_kept(controlled: ControlledSystem, request_: pb.StartJobRequest) -> None:
    code, _, _ = await refusal(controlled.control.StartJob(request_))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    resume = pb.ChangeJobRequest(actor="ann", id="backfill-7", action=pb.ChangeJobRequest.ACTION_RESUME)
    code, reason, _ = await refusal(controlled.control.ChangeJob(resume))
    assert reason == "JOB_NOT_FOUND"
    assert (await journal(controlled), await controlled.store.jobs()) == ([], [])


async def test_an_order_for_which_another_job_leaves_no_room_is_not_kept(controlled: ControlledSystem) -> None:
    await controlled.system.stop(Store.A)
    await controlled.control.StartJob(pb.StartJobRequest(actor="ann", kind="audit"))
    other = pb.StartJobRequest(actor="ben", kind="audit", arguments={"accept": "edited"})
    code, reason, _ = await refusal(controlled.control.StartJob(other))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_UNDER_WAY")
    assert await journal(controlled) == [("ann", "job requested", "audit")]


async def test_dirt_that_nobody_may_accept_is_refused_before_there_is_an_audit(tmp_path: Path) -> None:
    store = MemoryControlStore()
    async with files(tmp_path) as scene:
        jobs = Jobs(store, [Audit(scene.stores, CONTRACT, CLOCK)], "router-1", CLOCK)
        for name in ("everything", "corrupt"):
            with pytest.raises(
                InvalidField, match=f"accept: '{name}' .* acceptable kinds: duplicate-by-case, edited, bad-json"
            ):
                await jobs.start("audit", {"accept": f"oversize,{name}"}, "ann")
        assert await store.jobs() == []
        assert (await jobs.start("audit", {"accept": "oversize,edited"}, "ann")).id == "audit-1"


async def test_an_audit_may_be_asked_for_while_the_old_service_is_away(controlled: ControlledSystem) -> None:
    await controlled.system.stop(Store.A)
    assert (await controlled.flows.jobs.start("audit", {"accept": "perhaps"}, "ann")).id == "audit-1"


async def test_a_note_is_kept_though_others_change_the_setting_meanwhile(
    controlled: ControlledSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration, cache = controlled.flows.migration, controlled.flows.cache
    refresh = cache.refresh

    async def refresh_and_wait() -> Setting:
        setting = await refresh()
        await asyncio.sleep(0)
        return setting

    monkeypatch.setattr(cache, "refresh", refresh_and_wait)
    decisions = [Decision(f"operator-{number}", "at once") for number in range(4)]
    await asyncio.gather(*(migration.note(decision, "job requested") for decision in decisions))
    assert sorted(actor for actor, _, _ in await journal(controlled)) == [decision.actor for decision in decisions]
