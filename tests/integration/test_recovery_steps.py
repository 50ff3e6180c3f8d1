"""Single steps of a recovery: the terms in which it seizes, and the comparison before it opens the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from libs.clock import SystemClock
from libs.ownership.model import Store, Version, bucket_of
from libs.ownership.terms import next_term
from libs.store.recovery import Why
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.jobs.recover import Recover
from services.router.flows.stores import Refused
from tests.contracts.store_adapters import put
from tests.integration.test_recovery import KEYS, b_owns, recover, step_by_step
from tests.integration.test_recovery import _at_once as _at_once
from tests.integration.test_recovery import system as system
from tests.system.whole import System, never_arrived

A, B = Store.A, Store.B
BUCKET = bucket_of(KEYS[0])


async def b_has_seized(system: System, term: int) -> None:
    """B has a bucket, without a record, in a term of its own that A has not seen."""
    await system.ports(A).transfers.release_bucket(BUCKET, B)
    (released,) = await system.ports(A).transfers.bucket_owners([BUCKET])
    await system.ports(B).transfers.adopt_bucket(released)
    await system.ports(B).seizures.seize(BUCKET, term)


async def test_a_recovery_seizes_in_terms_above_those_of_the_lost_store(system: System) -> None:
    """A lower term leaves the bucket to the recovered store, and both would create records in it."""
    term = next_term(next_term(0, A), B)
    await b_has_seized(system, term)
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    step, _ = await step_by_step(system, recover(system))
    assert "serves again" in step.note
    found = [(await system.ports(store).transfers.bucket_owners([BUCKET]))[0] for store in Store]
    assert [(one.owner, one.term) for one in found] == [(A, next_term(term, A))] * 2


def lacks(system: System) -> None:
    never_arrived(system.ports(B), KEYS[0])


def lags(system: System) -> None:
    rows = system.ports(B)._state.rows
    rows[KEYS[0]] = replace(rows[KEYS[0]], version=Version(2, 1))


def has_another(system: System) -> None:
    rows = system.ports(B)._state.rows
    rows[KEYS[1]] = replace(rows[KEYS[0]], key=KEYS[1])


@pytest.mark.parametrize(
    ("differs", "waits"),
    [
        (lacks, f"1 records have not arrived, 0 exist only at B: {KEYS[0]}"),
        (lags, f"1 records have not arrived, 0 exist only at B: {KEYS[0]}"),
        (has_another, f"0 records have not arrived, 1 exist only at B: {KEYS[1]}"),
    ],
)
async def test_a_recovered_store_is_not_opened_before_it_has_the_same_records(
    system: System, differs: Callable[[System], None], waits: str
) -> None:
    await b_owns(system, KEYS[:1])
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    kind = recover(system)
    _, checkpoint = await step_by_step(system, kind, until="compare")
    rows = dict(system.ports(B)._state.rows)
    differs(system)
    step = await compared(kind, checkpoint)
    assert step.waits == waits
    system.ports(B)._state.rows = rows
    assert not (await compared(kind, step.checkpoint)).waits


async def compared(kind: Recover, checkpoint: bytes) -> Step:
    """Steps until all buckets are compared, or one waits."""
    while True:
        arguments = {"store": "B", "confirm": "service_layer"}
        step = await kind.step(Position(arguments, checkpoint, limit=100, job="recover-2", number=2))
        if step.waits or b'"stage": "compare"' not in step.checkpoint:
            return step
        checkpoint = step.checkpoint


async def test_a_recovery_ends_when_its_store_serves(system: System) -> None:
    await system.ports(B).recovery.fence("it went back")
    b = system.backends[B]
    await b.admission_loop.admit()
    kind = recover(system)
    _, checkpoint = await step_by_step(system, kind, until="await")
    at = Position({"store": "B", "confirm": "service_layer"}, checkpoint, limit=100, job="recover-2", number=2)
    step = await kind.step(at)
    assert (step.waits, step.finished) == ("B is starting to serve", False)
    await b.admission_loop.admit()
    assert b.serving.serving and (await kind.step(at)).finished


async def test_a_record_that_only_the_recovered_store_has_goes_to_its_journal(system: System) -> None:
    """The log never got it, so the seizer has no row that would replace it."""
    await b_owns(system, KEYS[:2])
    for store in Store:
        never_arrived(system.ports(store), KEYS[1])
    rows = system.ports(B)._state.rows
    rows[KEYS[1]] = replace(rows[KEYS[0]], key=KEYS[1])
    system.ports(B)._state.counted[bucket_of(KEYS[1])] += 1
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    step, _ = await step_by_step(system, recover(system))
    assert "with 1 records; its journal has 1 conflicts" in step.note
    assert [(one.key, one.why) for one in await system.ports(B).seizures.conflicts(10)] == [(KEYS[1], Why.LEFT)]
    assert KEYS[1] not in rows


@pytest.mark.parametrize(("seconds", "late"), [(100.0, False), (100_000.0, True)])
async def test_a_recovery_that_will_take_longer_than_four_hours_says_so(
    system: System, seconds: float, late: bool
) -> None:
    await b_owns(system, KEYS[:4])
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    kind = recover(system)
    _, checkpoint = await step_by_step(system, kind, until="fill")
    began = {**json.loads(checkpoint), "fill_began": SystemClock().now() - seconds}
    arguments = {"store": "B", "confirm": "service_layer"}
    step = await kind.step(Position(arguments, json.dumps(began).encode(), limit=1, job="recover-2", number=2))
    assert (step.done, step.total) == (1, 4)
    assert step.note.endswith("LONGER THAN THE BOUND") is late, step.note


async def test_a_recovered_store_reads_the_log_on_from_where_its_seizer_had_read_it(system: System) -> None:
    """The log may have dropped earlier events, and the store needs none of them."""
    await b_owns(system, KEYS[:4])
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    kind = recover(system)
    _, checkpoint = await step_by_step(system, kind, until="take")
    await system.ports(B).feed.restart({})
    at = Position({"store": "B", "confirm": "service_layer"}, checkpoint, limit=100, job="recover-2", number=2)
    await kind.step(at)
    ends = {int(part): end for part, end in json.loads(checkpoint)["ends"].items()}
    assert sum(ends.values()) > 0 and (await system.ports(B).feed.state()).next_offsets == ends


async def test_a_recheck_leaves_its_order_at_the_other_store_first(system: System) -> None:
    """If the lost store's database is restored once more, it learns there which orders are late."""
    await system.ports(B).recovery.fence("the log begins at 100000: a wrong address", since={})
    await system.backends[B].admission_loop.admit()
    at = Position({"store": "B", "recheck": "true"}, b"", limit=100, job="recover-3", number=3)
    with pytest.raises(Refused, match="both the other store and the log must answer"):
        await recover(system).step(at)
    order = (await system.ports(A).recovery.standing()).order
    assert order is not None and (order.job, order.number) == ("recover-3", 3)


async def test_a_seizure_says_how_much_the_lost_store_may_own(system: System) -> None:
    await b_owns(system, KEYS[:2])
    for key in KEYS[2:5]:
        await put(system.ports(A), key, f"make {key}", key)
    await system.ports(A).transfers.release([KEYS[2]], B, create=False)
    await system.ports(B).recovery.fence("it went back")
    await system.backends[B].admission_loop.admit()
    kind = recover(system)
    _, checkpoint = await step_by_step(system, kind, until="plan")
    at = Position({"store": "B", "confirm": "service_layer"}, checkpoint, limit=100, job="recover-2", number=2)
    assert (
        await kind.step(at)
    ).note == "seizing 3 buckets with 3 records of the lost store; it may create records in 2 of them"
