"""The log is made anew under a whole system: it stops, says so everywhere, and goes on by a person's word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from libs.errors import BatonError
from libs.eventlog.port import EventLog, LogReader
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import recovery_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from services.router.cli.failure import Exit
from services.router.core.gates import Verdict, check
from services.router.core.jobs import Job, JobState
from services.router.flows.feed.adopted_logs import ADOPTED, AdoptedLogs
from services.router.flows.jobs.log_gap import gap
from services.router.flows.jobs.restart_events import RESTARTED, RestartEvents
from services.router.flows.jobs.run import lease_of
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.contracts.pb.toy import shelf_pb2
from tests.system.control import ControlledSystem, running_controlled_system
from tests.waiting import eventually

RECORDS = 30


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system() as running:
        yield running


async def put(controlled: ControlledSystem, first: int, behind: int) -> None:
    for number in range(first, behind):
        order = shelf_pb2.PutOrder(token=str(uuid4()), where=shelf_pb2.Place(room="r", isbn=f"{number:05}"))
        await controlled.system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def replaced(controlled: ControlledSystem) -> None:
    """After some records are at both stores, and some more were acknowledged around the moment."""
    await put(controlled, 0, RECORDS)

    async def copied() -> bool:
        return await controlled.records_at(Store.B) == RECORDS

    await eventually(copied)
    await controlled.system.log.replace()
    await put(controlled, RECORDS, 2 * RECORDS)

    async def stopped() -> bool:
        return all([(await status(controlled, store)).feed.log_replaced for store in Store])

    await eventually(stopped)


async def replaced_under_logged_writes(controlled: ControlledSystem) -> None:
    """Like `replaced`, but the last writes are in the former log only: B had not read them."""
    await put(controlled, 0, RECORDS)

    async def copied() -> bool:
        return await controlled.records_at(Store.B) == RECORDS

    await eventually(copied)
    feed = controlled.system.backends[Store.B].feed
    read_once, stands, goes_on = feed.read_once, asyncio.Event(), asyncio.Event()

    async def held(log: EventLog, reader: LogReader, positions: dict[int, int]) -> None:
        stands.set()
        await goes_on.wait()
        await read_once(log, reader, positions)

    feed.read_once = held  # type: ignore[method-assign]
    await stands.wait()
    await put(controlled, RECORDS, 2 * RECORDS)

    async def logged() -> bool:
        return (await controlled.system.ports(Store.A).outbox.depth()).entries == 0

    await eventually(logged)
    await controlled.system.log.replace()
    goes_on.set()

    async def stopped() -> bool:
        return all([(await status(controlled, store)).feed.log_replaced for store in Store])

    await eventually(stopped)
    assert await controlled.records_at(Store.B) == RECORDS


async def status(controlled: ControlledSystem, store: Store) -> rpb.GetStatusResponse:
    client = controlled.system.stores[store]
    found: rpb.GetStatusResponse = await client.ask(client.replication.GetStatus, rpb.GetStatusRequest(), 5.0)
    return found


async def test_a_log_that_was_made_anew_stops_both_feeds_and_is_shown_where_people_and_gates_look(
    controlled: ControlledSystem,
) -> None:
    await replaced(controlled)
    assert await controlled.records_at(Store.B) == RECORDS
    await controlled.system.observer.poll()
    evidence = controlled.system.observer.evidence(controlled.system.setting.current, 0, None)
    verdicts = {result.name: result.verdict for result in check(["lag", "parked"], evidence)}
    assert verdicts == {"lag": Verdict.INCONCLUSIVE, "parked": Verdict.INCONCLUSIVE}
    doctor = (await baton(controlled, "doctor")).stdout
    assert "baton events restart" in doctor
    shown = (await answer(controlled, "status"))["stores"]
    assert all("LOG_REPLACED" in store["feed_trouble"] for store in shown.values())
    seizer = controlled.system.stores[Store.A]
    request = recovery_pb2.SeizeBucketsRequest(buckets=[recovery_pb2.Terms.Bucket(bucket=1, term=2)], ends={0: 0})
    with pytest.raises(BatonError, match="baton events restart") as refused:
        await seizer.ask(seizer.recovery.SeizeBuckets, request, 5.0)
    assert refused.value.reason == "LOG_NOT_READ"


async def test_the_feeds_go_on_behind_the_other_log_and_what_they_have_missed_is_copied(
    controlled: ControlledSystem,
) -> None:
    assert (await baton(controlled, "events", "restart", "--yes")).exit_code == Exit.USAGE
    refused = await baton(controlled, "events", "restart", "--yes", "--reason", "by mistake")
    assert refused.exit_code == Exit.FAILED and "No store reports that the event log was replaced" in refused.stderr
    await replaced(controlled)
    plan = await answer(controlled, "events", "restart", "--reason", "the topic was deleted", "--dry-run")
    assert plan["dry_run"] is True and len(plan["effects"]) == 2
    done = await answer(controlled, "events", "restart", "--yes", "--reason", "the topic was deleted")

    async def copied() -> bool:
        return (await controlled.flows.jobs.job(done["job"])).state is JobState.FINISHED

    await eventually(copied)
    assert await controlled.records_at(Store.B) == 2 * RECORDS

    async def quiet() -> bool:
        depths = [(await controlled.system.ports(store).outbox.depth()).entries for store in Store]
        digests = [await controlled.system.ports(store).inspection.digests() for store in Store]
        return depths == [0, 0] and [one.digest for one in digests[0]] == [one.digest for one in digests[1]]

    await eventually(quiet)
    assert [(await status(controlled, store)).feed.log_replaced for store in Store] == ["", ""]
    assert RESTARTED in [entry.action for entry in await controlled.store.journal(10)]
    await put(controlled, 2 * RECORDS, 2 * RECORDS + 5)

    async def followed() -> bool:
        return await controlled.records_at(Store.B) == 2 * RECORDS + 5

    await eventually(followed)


async def test_a_log_whose_identity_a_store_takes_as_it_finds_it_is_journaled_once(
    controlled: ControlledSystem,
) -> None:
    """As after an update from a program that kept no marks. Two routers see it."""
    await put(controlled, 0, RECORDS)

    async def copied() -> bool:
        return await controlled.records_at(Store.B) == RECORDS

    await eventually(copied)
    state = controlled.system.ports(Store.B)._state
    state.feed = replace(state.feed, marks={})
    controlled.system.log._epoch += 1

    async def taken() -> bool:
        await controlled.system.observer.poll()
        found = controlled.system.observer.view(Store.B).status
        return found is not None and bool(found.feed.log_adopted)

    await eventually(taken)
    migration, control = controlled.flows.migration, controlled.store
    routers = [AdoptedLogs(controlled.system.observer, migration, control, f"router-{number}") for number in (1, 2)]
    for _ in range(2):
        for router in routers:
            await router.look()
    await control.lease("adopted-logs", "router-1", 0.0)
    await routers[1].look()
    (entry,) = [entry for entry in await control.journal(50) if entry.action == ADOPTED]
    assert entry.actor == "store B" and "partitions of the log, the first is" in entry.reason
    assert any(mark in entry.reason for mark in state.feed.marks.values())


async def test_a_seizure_before_the_records_are_copied_is_refused_unless_their_loss_is_accepted(
    controlled: ControlledSystem,
) -> None:
    await replaced_under_logged_writes(controlled)
    # Another router is about to run the job, and does not come to it.
    assert await controlled.store.lease(lease_of("reconcile-1"), "router-2", 60.0)
    done = await answer(controlled, "events", "restart", "--yes", "--reason", "the topic was deleted")
    assert done["job"] == "reconcile-1"
    await controlled.system.stop(Store.A)
    seize = ("seize", "simple_mcp", "--confirm", "simple_mcp", "--yes")
    for command in (seize, ("recover", *seize[1:])):
        refused = await baton(controlled, *command)
        assert refused.exit_code == Exit.FAILED
        assert "wait until reconcile-1 has finished" in refused.stderr and "--accept-gap" in refused.stderr

    async def shown() -> bool:
        return any("reconcile-1" in alert for alert in (await answer(controlled, "status"))["alerts"])

    await eventually(shown)
    await controlled.flows.jobs.cancel("reconcile-1", "ann")
    assert "run baton reconcile" in (await baton(controlled, *seize)).stderr
    plan = await answer(controlled, *seize, "--accept-gap", "--dry-run")
    assert "not copied yet are LOST" in plan["effects"][-1]
    accepted = await answer(controlled, *seize, "--accept-gap")

    async def seized() -> bool:
        return (await controlled.flows.jobs.job(accepted["id"])).state is JobState.FINISHED

    await eventually(seized)
    census = await controlled.system.ports(Store.B).inspection.census()
    assert census.records == census.owned_records == RECORDS, "what A had not copied is lost, as accepted"


async def test_a_gap_is_shown_until_the_records_are_copied_and_then_a_store_may_be_given_up(
    controlled: ControlledSystem,
) -> None:
    await replaced_under_logged_writes(controlled)
    assert await controlled.store.lease(lease_of("reconcile-1"), "router-2", 60.0)
    await answer(controlled, "events", "restart", "--yes", "--reason", "the topic was deleted")

    async def shown() -> bool:
        return "wait until reconcile-1 has finished" in (await baton(controlled, "doctor")).stdout

    await eventually(shown)
    await controlled.store.lease(lease_of("reconcile-1"), "router-2", 0.0)

    async def copied() -> bool:
        return (await controlled.flows.jobs.job("reconcile-1")).state is JobState.FINISHED

    await eventually(copied)
    assert await controlled.records_at(Store.B) == 2 * RECORDS
    await controlled.system.stop(Store.A)
    job = await answer(controlled, "seize", "simple_mcp", "--confirm", "simple_mcp", "--yes")

    async def seized() -> bool:
        return (await controlled.flows.jobs.job(job["id"])).state is JobState.FINISHED

    await eventually(seized)
    assert (await controlled.system.ports(Store.B).inspection.census()).owned_records == 2 * RECORDS
    assert "reconcile-1" not in (await baton(controlled, "doctor")).stdout


async def test_feeds_are_not_restarted_under_a_comparison_that_began_before(controlled: ControlledSystem) -> None:
    await replaced(controlled)
    assert await controlled.store.lease(lease_of("reconcile-1"), "router-2", 60.0)
    await controlled.flows.jobs.start("reconcile", {}, "ann")
    refused = await baton(controlled, "events", "restart", "--yes", "--reason", "the topic was deleted")
    assert refused.exit_code == Exit.FAILED and "baton jobs cancel reconcile-1" in refused.stderr
    assert all([(await status(controlled, store)).feed.log_replaced for store in Store])


def before_the_second_feed(controlled: ControlledSystem, act: Callable[[], Awaitable[object]]) -> None:
    """Does that when the first feed goes on already."""
    client = controlled.system.stores[Store.B]
    ask = client.ask

    async def asked(method: Any, request: Any, timeout_seconds: float, extra: Any = ()) -> Any:
        if method is client.replication.RestartFeed:
            await act()
        return await ask(method, request, timeout_seconds, extra)

    client.ask = asked  # type: ignore[method-assign]


async def restart(controlled: ControlledSystem) -> None:
    flows = controlled.flows
    restarting = RestartEvents(controlled.system.stores, flows.jobs, flows.migration, controlled.store)
    await restarting.restart(Decision("ann", "the topic was deleted"))


async def test_a_restart_that_ends_half_way_leaves_the_gap(controlled: ControlledSystem) -> None:
    await replaced_under_logged_writes(controlled)

    async def end() -> None:
        raise BatonError("cut off")

    before_the_second_feed(controlled, end)
    with pytest.raises(BatonError, match="cut off"):
        await restart(controlled)
    assert (await status(controlled, Store.A)).feed.log_replaced == ""
    assert "run baton reconcile" in await gap(controlled.store)


async def test_a_comparison_that_ends_while_the_feeds_are_restarted_does_not_close_the_gap(
    controlled: ControlledSystem,
) -> None:
    await replaced_under_logged_writes(controlled)
    assert await controlled.store.lease(lease_of("reconcile-2"), "router-2", 60.0)

    async def compare() -> None:
        job = await controlled.store.add(Job("reconcile", "reconcile", "ann", state=JobState.FINISHED))
        assert job.id == "reconcile-1"

    before_the_second_feed(controlled, compare)
    await restart(controlled)
    assert "wait until reconcile-2 has finished" in await gap(controlled.store)
