"""Seizing a lost store's share and bringing the store back, step by step, over real servers and stores in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest

from libs.clock import SystemClock
from libs.errors import InvalidField
from libs.ownership.limits import MAX_EVENT_BYTES, MAX_PAYLOAD_BYTES
from libs.ownership.model import BUCKETS, Store, bucket_of
from libs.ownership.orders import Order
from libs.ownership.terms import next_term
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.store.engine_recovery import conflict_of
from libs.store.recovery import Identity, Why
from libs.tasks import Loop
from services.router.core.differences import Findings
from services.router.core.jobs import Job, JobState
from services.router.core.phase import Phase
from services.router.flows.feed.conflicts import Conflicts, NoConflict
from services.router.flows.feed.heartbeat import PositionReporter
from services.router.flows.jobs import recover as flows_recover
from services.router.flows.jobs.kind import JobFailed, JobKind, Position, Step
from services.router.flows.jobs.log_gap import open_gap
from services.router.flows.jobs.recover import FENCED_SECONDS, STAGES, Recover, Seize
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from services.router.flows.stores import Refused
from tests.contracts.store_adapters import own, put, record_of, row_of, word_of
from tests.system.whole import System, running_system
from tests.waiting import eventually

A, B = Store.A, Store.B
KEYS = [f"shelves/{number:02d}" for number in range(40)]
RECONCILE_JOB = Job("reconcile", "reconcile", "ann")
STEPS = 400
CALL_SECONDS = 5.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is under way when these stores are fenced."""
    monkeypatch.setattr(flows_recover, "FENCED_SECONDS", 0.0)


@pytest.fixture
def fenced_seconds(monkeypatch: pytest.MonkeyPatch) -> float:
    """Use the production value of the fence's time."""
    monkeypatch.setattr(flows_recover, "FENCED_SECONDS", FENCED_SECONDS)
    return FENCED_SECONDS


@pytest.fixture
async def system() -> AsyncIterator[System]:
    """Without relays and feeds: the tests say when the log gets and gives."""
    async with running_system(feeds=False, mover=False) as system:
        await system.control.load()
        yield system


async def relayed(system: System, store: Store) -> None:
    """All that waits in the store's outbox is in the log."""
    loop = Loop("relay", system.relays[store].run_once)
    while (await system.ports(store).outbox.depth()).entries:
        await system.relays[store].run_once(loop)
        await system.relays[store].acknowledge()


async def followed(system: System, store: Store) -> None:
    """The store has read the log to its end."""
    backend = system.backends[store]
    task = asyncio.create_task(backend.feed.loop.run())

    async def read() -> bool:
        ends = {part: end for part, (_, end) in (await system.log.ends()).items()}
        state = await backend.ports.feed.state()
        return all(state.next_offsets.get(part, 0) >= end for part, end in ends.items())

    try:
        await eventually(read)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def b_owns(system: System, keys: list[str]) -> None:
    """B has their buckets, and has made them; the log and A know."""
    for key in keys:
        await system.ports(A).transfers.release_bucket(bucket_of(key), B)
        (released,) = await system.ports(A).transfers.bucket_owners([bucket_of(key)])
        await system.ports(B).transfers.adopt_bucket(released)
    for key in keys:
        await put(system.ports(B), key, f"make {key}", key)
    await relayed(system, B)
    await followed(system, A)


def recover(system: System) -> Recover:
    return Recover(system.stores, system.log, SystemClock(), system.control, Transfer(system.stores))


async def step_by_step(
    system: System, kind: JobKind, store: Store = B, *, checkpoint: bytes = b"", until: str = ""
) -> tuple[Step, bytes]:
    """Every step twice, as after a crash, until the job has ended, or is about to do that stage."""
    arguments: Mapping[str, str] = {"store": store.value, "confirm": "service_layer" if store is B else "simple_mcp"}
    kind.lane(arguments)
    for _ in range(STEPS):
        if until and b'"stage": "%b"' % until.encode() in checkpoint:
            return Step(checkpoint), checkpoint
        at = Position(arguments, checkpoint, limit=100, job="recover-2", number=2)
        await kind.step(at)
        step = await kind.step(at)
        checkpoint = step.checkpoint
        if step.finished:
            return step, checkpoint
        if step.waits:
            await move_on(system)
    raise AssertionError(f"not finished after {STEPS} steps: {step.waits or step.note}")


async def move_on(system: System) -> None:
    for store in Store:
        if system.backends[store].serving.serving or system.backends[store].serving.fence_reason:
            await relayed(system, store)
            await followed(system, store)
    standing = await system.ports(B).recovery.standing()
    if not standing.fence_reason and system.backends[B].serving.fence_reason:
        await system.backends[B].admission_loop.admit()


async def same(system: System) -> bool:
    a, b = [await system.ports(store).inspection.digests() for store in Store]
    return [(one.bucket, one.records, one.digest) for one in a] == [(one.bucket, one.records, one.digest) for one in b]


async def test_a_recovered_store_has_everything_and_owns_nothing(system: System) -> None:
    await b_owns(system, KEYS[:20])
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    step, _ = await step_by_step(system, recover(system))
    assert "serves again, with 20 records" in step.note
    assert await same(system)
    census = await system.ports(B).inspection.census()
    assert (census.records, census.owned_records, census.owned_buckets) == (20, 0, 0)
    for key in KEYS[:20]:
        found = await system.ports(A).records.read(key)
        assert found.owner is A and found.version == (2, 2) and found.row is not None and found.row.bases == ((0, 1),)
    # A's own buckets stay in their term.
    assert {one.term for one in await system.ports(A).transfers.bucket_owners()} == {0, 2}


async def test_a_change_that_the_gone_store_still_has_gets_to_the_log_before_the_seizure(system: System) -> None:
    await b_owns(system, KEYS[:1])
    await put(system.ports(B), KEYS[0], "late", "late word")
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    await step_by_step(system, recover(system))
    row = (await system.ports(A).records.read(KEYS[0])).row
    assert row is not None and word_of(row.payload) == "late word" and row.bases == ((0, 2),)
    assert (await system.ports(A).recovery.standing()).conflicts == 0


async def test_a_recovery_waits_until_the_log_has_every_change_of_the_lost_store(system: System) -> None:
    await b_owns(system, KEYS[:1])
    await put(system.ports(B), KEYS[0], "late", "late word")
    kind = recover(system)
    at = Position({"store": "B", "confirm": "service_layer"}, b"", limit=100, job="recover-2", number=2)
    step = await kind.step(at)
    for _ in range(2):
        step = await kind.step(replace(at, checkpoint=step.checkpoint))
        assert b'"stage": "drain"' in step.checkpoint and "1 changes of B are not in the log yet" in step.waits
    await relayed(system, B)
    step = await kind.step(replace(at, checkpoint=step.checkpoint))
    assert b'"stage": "plan"' in step.checkpoint and not step.waits


async def test_a_serving_store_is_fenced_before_it_is_recovered(system: System, fenced_seconds: float) -> None:
    await b_owns(system, KEYS[:1])
    kind = recover(system)
    arguments = {"store": "B", "confirm": "service_layer"}
    step = await kind.step(Position(arguments, b"", limit=100))
    assert step.wait_seconds > fenced_seconds - 1 > 6 and not system.backends[B].serving.serving
    with pytest.raises(Refused, match="it must be recovered"):
        await system.stores[B].ask(system.stores[B].replication.ListBuckets, pb.GetStandingRequest(), CALL_SECONDS)


async def test_a_share_that_was_seized_is_the_other_store_s_and_its_return_loses_nothing_in_silence(
    system: System,
) -> None:
    await b_owns(system, KEYS[:2])
    await put(system.ports(B), KEYS[0], "unlogged", "never seen")
    await system.ports(B).recovery.fence("its machine burns")
    await system.backends[B].admission_loop.admit()
    step, _ = await step_by_step_without_b(system, Seize(system.stores, system.log, SystemClock(), system.control))
    assert step.note == "2 buckets seized"
    changed = await put(system.ports(A), KEYS[0], "goes on", "goes on at A")
    assert changed.version == (2, 3)
    # It returns: its unread changes go to A's journal, and its records that A lacks to its own.
    await step_by_step(system, recover(system))
    found = await system.ports(A).seizures.conflicts(10)
    assert [(one.key, one.version, one.why) for one in found] == [(KEYS[0], (0, 2), Why.LATE)]
    assert [one.why for one in await system.ports(B).seizures.conflicts(10)] == [Why.REPLACED]
    assert await same(system)
    row = (await system.ports(B).records.read(KEYS[0])).row
    assert row is not None and word_of(row.payload) == "goes on at A"


async def step_by_step_without_b(system: System, kind: JobKind) -> tuple[Step, bytes]:
    """Like `step_by_step`, but B's changes do not get to the log."""
    checkpoint = b""
    for _ in range(STEPS):
        arguments = {"store": "B", "confirm": "service_layer"}
        step = await kind.step(Position(arguments, checkpoint, limit=100, job="seize-1"))
        checkpoint = step.checkpoint
        if step.finished:
            return step, checkpoint
        await relayed(system, A)
        await followed(system, A)
    raise AssertionError(f"not finished: {step.waits or step.note}")


async def test_a_store_that_answers_and_is_not_fenced_is_not_seized_from(system: System) -> None:
    kind = Seize(system.stores, system.log, SystemClock(), system.control)
    with pytest.raises(JobFailed, match="B answers and is not fenced"):
        await kind.step(Position({"store": "B", "confirm": "service_layer"}, b"", limit=100))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"store": "C", "confirm": "service_layer"}, "store"),
        ({"store": "B"}, "confirm"),
        ({"store": "B", "confirm": "simple_mcp"}, "confirm"),
        ({"store": "B", "confirm": "service_layer", "force": "yes"}, "arguments"),
    ],
)
async def test_a_recovery_wants_the_lost_store_s_name(system: System, arguments: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidField, match=f"^{named}: "):
        recover(system).lane(arguments)


async def test_a_store_that_has_not_read_the_log_does_not_seize(system: System) -> None:
    await put(system.ports(A), KEYS[0], "r1", "one")
    await relayed(system, A)
    ends = {part: end for part, (_, end) in (await system.log.ends()).items()}
    request = pb.SeizeBucketsRequest(buckets=[pb.Terms.Bucket(bucket=1, term=2)], ends=ends)
    client = system.stores[A]
    with pytest.raises(Refused, match="this store has read to"):
        await client.ask(client.recovery.SeizeBuckets, request, CALL_SECONDS)
    await followed(system, A)
    await client.ask(client.recovery.SeizeBuckets, request, CALL_SECONDS)
    assert (await system.ports(A).transfers.bucket_owners([1]))[0].term == 2


async def test_terms_rows_and_offsets_are_taken_by_a_gone_store_only(system: System) -> None:
    client = system.stores[B]
    for method, request in (
        (client.recovery.TakeTerms, pb.TakeTermsRequest()),
        (client.recovery.SettleRows, pb.SettleRowsRequest()),
        (client.recovery.SkipTo, pb.SkipToRequest()),
    ):
        with pytest.raises(Refused, match="not fenced"):
            await client.ask(method, request, CALL_SECONDS)


async def test_a_store_that_lives_while_its_share_is_seized_fences_itself(system: System) -> None:
    await b_owns(system, KEYS[:1])
    bucket = bucket_of(KEYS[0])
    await system.ports(A).seizures.seize(bucket, next_term(0, A))
    await relayed(system, A)
    await followed(system, B)
    assert "has seized its share" in (await system.ports(B).recovery.standing()).fence_reason
    assert (await system.ports(B).transfers.bucket_owners([bucket]))[0].owner is A


async def test_each_store_gets_the_position_of_the_other_one(system: System) -> None:
    await own(system.ports(B), KEYS[:1])
    await put(system.ports(B), KEYS[0], "r1", "w")
    reporter = PositionReporter(system.stores)
    for store in Store:
        await reporter.report(system.stores[store])
        now = (await system.ports(store).recovery.standing()).now
        assert (await system.ports(store.other).recovery.standing()).other == now


async def test_the_position_of_a_store_that_does_not_serve_is_not_reported(system: System) -> None:
    system.backends[B].serving.fence("it went back")
    await system.ports(A).recovery.note_other(Identity("before", 7))
    await PositionReporter(system.stores).report(system.stores[B])
    assert (await system.ports(A).recovery.standing()).other == ("before", 7)


async def test_a_conflict_is_shown_and_resolved_with_a_reason_that_the_journal_keeps(system: System) -> None:
    await test_a_share_that_was_seized_is_the_other_store_s_and_its_return_loses_nothing_in_silence(system)
    conflicts = Conflicts(system.stores, system.migration, lambda record, **_: record.key)
    found, troubles = await conflicts.list()
    assert [(one.store, one.conflict.key, one.content) for one in found] == [
        (A, KEYS[0], KEYS[0]),
        (B, KEYS[0], KEYS[0]),
    ]
    assert troubles == []
    version = found[0].record.version.term, found[0].record.version.revision
    decision = Decision("ann", "made again by hand")
    with pytest.raises(InvalidField, match="reason"):
        await conflicts.resolve(Decision("ann"), A, KEYS[0], (await system.ports(A).seizures.conflicts(1))[0].version)
    for store in Store:
        (one,) = await system.ports(store).seizures.conflicts(1)
        await conflicts.resolve(decision, store, one.key, one.version)
        journaled = await system.migration.journal(10)
        for key, version_of_none in (
            (one.key, one.version),
            (one.key, one.version._replace(term=9)),
            ("sandboxes/none", one.version),
        ):
            with pytest.raises(NoConflict):
                await conflicts.resolve(decision, store, key, version_of_none)
        assert await system.migration.journal(10) == journaled
    assert version == (0, 2)
    (entry, *_) = await system.migration.journal(10)
    assert (entry.actor, entry.after.phase) == ("ann", Phase.OFF) and "made again by hand" in entry.reason
    assert all([(await system.ports(store).recovery.standing()).conflicts == 0 for store in Store])


async def test_a_healthy_store_is_not_fenced_while_the_other_one_is_gone(system: System) -> None:
    await system.ports(A).recovery.fence("it went back")
    await system.backends[A].admission_loop.admit()
    with pytest.raises(JobFailed, match=r"A is fenced too.*nothing was changed"):
        await recover(system).step(Position({"store": "B", "confirm": "service_layer"}, b"", limit=100))
    assert (await system.ports(B).recovery.standing()).fence_reason == ""
    assert system.backends[B].serving.serving


async def test_a_healthy_store_is_not_fenced_before_the_other_one_serves(system: System) -> None:
    system.backends[A].serving.stop("starting")
    step = await recover(system).step(Position({"store": "B", "confirm": "service_layer"}, b"", limit=100))
    assert "does not serve yet" in step.waits and b"fence" in step.checkpoint
    assert system.backends[B].serving.serving


async def test_a_fence_that_is_tried_again_still_lets_writes_end(system: System, fenced_seconds: float) -> None:
    kind = recover(system)
    for _ in range(2):
        step = await kind.step(Position({"store": "B", "confirm": "service_layer"}, b"", limit=100))
        assert step.wait_seconds > fenced_seconds - 1 > 6 and b"drain" in step.checkpoint


async def test_a_recovered_store_knows_the_other_one_as_it_is_now(system: System) -> None:
    await b_owns(system, KEYS[:1])
    await system.ports(B).recovery.note_other(Identity("where A stood before its own recovery", 10**9), anew=True)
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    await step_by_step(system, recover(system))
    known = (await system.ports(B).recovery.standing()).other
    now = (await system.ports(A).recovery.standing()).now
    assert known is not None and known.database == now.database and known.changes <= now.changes
    await system.backends[A].admission_loop.admit()
    assert system.backends[A].serving.serving


async def test_a_store_that_lives_and_is_given_a_record_of_a_later_term_fences_itself(system: System) -> None:
    await b_owns(system, KEYS[:1])
    await put(system.ports(B), KEYS[0], "unlogged", "never seen")
    await system.ports(A).seizures.seize(bucket_of(KEYS[0]), next_term(0, A))
    await Transfer(system.stores).copy(KEYS[:1], B)
    assert "has seized its share" in (await system.ports(B).recovery.standing()).fence_reason
    # Records that only it had go to the journal.
    assert [one.why for one in await system.ports(B).seizures.conflicts(10)] == [Why.REPLACED]


def ordered(number: int, stage: str, epoch: int = 0, control: str = "c-1") -> pb.Order:
    job = f"recover-{number}"
    return pb.Order(control=control, epoch=epoch, job=job, number=number, stage=STAGES.index(stage))


async def test_a_late_order_neither_fences_the_store_nor_opens_it(system: System) -> None:
    await b_owns(system, KEYS[:1])
    client = system.stores[B]
    fence = pb.FenceStoreRequest(reason="it is being recovered", order=ordered(1, "fence"))
    await client.ask(client.recovery.FenceStore, fence, CALL_SECONDS)
    opening = pb.OpenStoreRequest(fence_reason="it is being recovered", order=ordered(1, "open"))
    await client.ask(client.recovery.OpenStore, opening, CALL_SECONDS)
    with pytest.raises(Refused, match="is late"):
        await client.ask(client.recovery.FenceStore, fence, CALL_SECONDS)
    assert (await system.ports(B).recovery.standing()).fence_reason == ""
    await client.ask(client.recovery.OpenStore, opening, CALL_SECONDS)
    await system.ports(B).recovery.fence("it went back again")
    with pytest.raises(Refused, match="fenced for another reason than the one that was repaired: it went back again"):
        await client.ask(client.recovery.OpenStore, opening, CALL_SECONDS)
    assert (await system.ports(B).recovery.standing()).fence_reason == "it went back again"


async def test_every_order_of_a_recovery_is_refused_when_it_is_late(system: System) -> None:
    client = system.stores[B]
    await client.ask(client.recovery.TakeOrder, pb.TakeOrderRequest(order=ordered(2, "fence")), CALL_SECONDS)
    await system.ports(B).recovery.fence("it went back")
    late = ordered(1, "open")
    identity = pb.Identity(database="here", changes=1)
    for method, request in (
        (client.recovery.FenceStore, pb.FenceStoreRequest(reason="late", order=late)),
        (client.recovery.TakeTerms, pb.TakeTermsRequest(order=late)),
        (client.recovery.SettleRows, pb.SettleRowsRequest(limit=1, order=late)),
        (client.recovery.SkipTo, pb.SkipToRequest(order=late)),
        (client.recovery.NoteOther, pb.NoteOtherRequest(other=identity, anew=True, order=late)),
        (client.recovery.OpenStore, pb.OpenStoreRequest(fence_reason="it went back", order=late)),
        (client.recovery.RecheckStore, pb.RecheckStoreRequest(order=late)),
        (client.recovery.TakeOrder, pb.TakeOrderRequest(order=late)),
        (client.recovery.OpenStore, pb.OpenStoreRequest(fence_reason="it went back")),
    ):
        with pytest.raises(Refused, match=r"late|no number"):
            await client.ask(method, request, CALL_SECONDS)


async def test_a_recovery_whose_answer_was_lost_at_the_end_is_over_all_the_same(system: System) -> None:
    """The store is open already when it is ordered to open again: orders of that recovery are late from now on."""
    client = system.stores[B]
    opening = pb.OpenStoreRequest(fence_reason="it went back", order=ordered(1, "open"))
    await client.ask(client.recovery.OpenStore, opening, CALL_SECONDS)
    fence = pb.FenceStoreRequest(reason="it is being recovered", order=ordered(1, "fence"))
    with pytest.raises(Refused, match="is late"):
        await client.ask(client.recovery.FenceStore, fence, CALL_SECONDS)
    assert system.backends[B].serving.serving


async def test_both_stores_keep_the_orders_of_a_recovery(system: System) -> None:
    await b_owns(system, KEYS[:1])
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    await step_by_step(system, recover(system))
    control = (await system.control.info()).id
    for store in Store:
        order = (await system.ports(store).recovery.standing()).order
        assert order is not None and (order.control, STAGES[order.stage]) == (control, "open")


async def test_another_control_store_recovers_only_when_it_is_adopted(system: System) -> None:
    await system.ports(A).recovery.take_order(Order(3, 70, 0, "the lost control store", "recover-70"))
    arguments = {"store": "B", "confirm": "service_layer"}
    kind = recover(system)
    with pytest.raises(Refused, match=r"the lost control store.*--adopt-control"):
        await kind.step(Position(arguments, b"", limit=100, job="recover-1", number=1))
    assert system.backends[B].serving.serving
    arguments["adopt_control"] = "true"
    kind.lane(arguments)
    adopting = await kind.step(Position(arguments, b"", limit=100, job="recover-1", number=1))
    assert system.backends[B].serving.serving and "adopting control store" in adopting.note
    await kind.step(Position(arguments, adopting.checkpoint, limit=100, job="recover-1", number=1))
    for store in Store:
        order = (await system.ports(store).recovery.standing()).order
        assert order is not None and (order.epoch, order.number) == (4, 1)


async def test_a_recovery_that_waits_seizes_nothing_after_the_feeds_were_restarted(system: System) -> None:
    """Until the records that the feeds have skipped are copied, or their loss is accepted."""
    kind = recover(system)
    _, checkpoint = await step_by_step(system, kind, until="seize")
    await open_gap(system.control)
    arguments = {"store": "B", "confirm": "service_layer"}
    with pytest.raises(JobFailed, match=r"run baton reconcile.*resume this job.*--accept-gap"):
        await kind.step(Position(arguments, checkpoint, limit=100, job="recover-2", number=2))
    arguments["accept_gap"] = "true"
    kind.lane(arguments)
    await kind.check(arguments)
    await kind.step(Position(arguments, checkpoint, limit=100, job="recover-2", number=2))
    await system.control.add(replace(RECONCILE_JOB, state=JobState.FINISHED, report=Findings().to_json()))
    await kind.step(Position({**arguments, "accept_gap": ""}, checkpoint, limit=100, job="recover-2", number=2))


async def test_a_recheck_needs_the_other_store_and_the_log(system: System) -> None:
    """Neither backend of this system knows the other's address."""
    await system.ports(B).recovery.fence("the log begins at 100000: a wrong address", since={})
    await system.backends[B].admission_loop.admit()
    arguments = {"store": "B", "recheck": "true"}
    kind = recover(system)
    kind.lane(arguments)
    with pytest.raises(Refused, match="both the other store and the log must answer"):
        await kind.step(Position(arguments, b"", limit=100, job="recover-1", number=1))


async def test_a_store_that_evidence_has_not_fenced_is_not_rechecked(system: System) -> None:
    await system.ports(B).recovery.fence("it was seized from")
    await system.backends[B].admission_loop.admit()
    with pytest.raises(JobFailed, match=r"B stays fenced: .*it was seized from; baton recover brings it back"):
        await recover(system).step(
            Position({"store": "B", "recheck": "true"}, b"", limit=100, job="recover-1", number=1)
        )


async def test_a_store_that_goes_back_again_after_it_was_compared_is_not_opened(system: System) -> None:
    """As after a pause of the job: the store is no longer the one that was filled and compared."""
    await b_owns(system, KEYS[:1])
    _, checkpoint = await step_by_step(system, recover(system), until="compare")
    compared = json.dumps({**json.loads(checkpoint), "compared": BUCKETS}).encode()
    await system.ports(B).recovery.reopen()
    await system.ports(B).recovery.fence("it went back again")
    with pytest.raises(JobFailed, match="it went back again"):
        await step_by_step(system, recover(system), checkpoint=compared)
    assert (await system.ports(B).recovery.standing()).fence_reason == "it went back again"


async def test_a_recovery_that_another_router_goes_on_with_lets_writes_end_too(
    system: System, fenced_seconds: float
) -> None:
    """If the router that fenced a store has ended, its wait for that fence was never completed."""
    arguments = {"store": "B", "confirm": "service_layer"}
    fenced = await recover(system).step(Position(arguments, b"", limit=100, job="recover-1", number=1))
    step = await recover(system).step(Position(arguments, fenced.checkpoint, limit=100, job="recover-1", number=1))
    assert step.wait_seconds > fenced_seconds - 1 > 6 and b"drain" in step.checkpoint


def too_large(system: System, store: Store, key: str) -> None:
    """Leave a record as an old program did."""
    state = system.ports(store)._state
    state.rows[key] = replace(state.rows[key], payload=b"x" * (MAX_PAYLOAD_BYTES + 1))


async def a_keeps_a_large_row_in_a_bucket_of_b(system: System) -> str:
    large = next(f"shelves/l{n}" for n in range(9999) if bucket_of(f"shelves/l{n}") == bucket_of(KEYS[0]))
    await put(system.ports(A), large, "make", "large")
    await relayed(system, A)
    await followed(system, B)
    await b_owns(system, KEYS[:3])
    too_large(system, A, large)
    return large


async def test_a_seizure_names_the_bucket_that_it_leaves_and_takes_all_others(system: System) -> None:
    large = await a_keeps_a_large_row_in_a_bucket_of_b(system)
    await system.ports(B).recovery.fence("its machine burns")
    await system.backends[B].admission_loop.admit()
    step, _ = await step_by_step_without_b(system, Seize(system.stores, system.log, SystemClock(), system.control))
    assert step.note.startswith(f"2 buckets seized, 1 refused: bucket {bucket_of(large)}: {large} has ")
    owners = {one.bucket: one.owner for one in await system.ports(A).transfers.bucket_owners()}
    assert [owners[bucket_of(key)] for key in KEYS[:3]] == [B, A, A]


async def test_a_recovery_waits_for_the_row_that_it_names_and_goes_on_when_its_owner_has_made_it_smaller(
    system: System,
) -> None:
    large = await a_keeps_a_large_row_in_a_bucket_of_b(system)
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    kind, checkpoint = recover(system), b""
    arguments = {"store": "B", "confirm": "service_layer"}
    step = await kind.step(Position(arguments, checkpoint, limit=100))
    while large not in step.waits:
        await move_on(system)
        step = await kind.step(Position(arguments, step.checkpoint, limit=100))
    assert "2 buckets seized, 1 refused" in step.waits
    await put(system.ports(A), large, "smaller", "small")
    step, _ = await step_by_step(system, kind, checkpoint=step.checkpoint)
    assert "serves again" in step.note and await same(system)


async def test_conflicts_are_listed_up_to_a_size_and_a_large_one_by_its_size_alone(system: System) -> None:
    journal = system.ports(A)._state.metadata.journal
    for number, size in enumerate((MAX_EVENT_BYTES + 1, *[400_000] * 8)):
        row = row_of(f"shelves/{number}", (0, 1), B, padding=str(size))
        journal[row.key, row.version] = conflict_of(record_of(row), Why.LATE)
    client = system.stores[A]
    answer = await client.ask(client.recovery.ListConflicts, pb.ListConflictsRequest(limit=100), CALL_SECONDS)
    first, *others = answer.conflicts
    assert (first.event, first.left_out_bytes > MAX_EVENT_BYTES) == (b"", True)
    assert 4 <= len(others) <= 6 and all(one.event for one in others)
    found, _ = await Conflicts(system.stores, system.migration, lambda record, **_: record.key).list()
    assert "too many to show" in found[0].content
