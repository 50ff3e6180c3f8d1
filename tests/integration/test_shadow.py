"""Shadow reads over two backends: each class is planted and found, and no client notices anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest

from libs.ownership.model import Store, Version, bucket_of
from libs.rpc import metadata
from libs.tasks import Loop
from services.router.core.compare import STATUS, Kind
from services.router.core.measure import ShadowCounts
from services.router.core.phase import Phase
from services.router.flows.calls.forward import ClientCall
from services.router.flows.calls.shadow import ShadowLimits
from services.router.flows.stores import Answer
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.integration.shadowing import BY_HAND, KEY, book, decided, edit, lend, look, put, replicated, send, shadowed
from tests.shelf import CONTRACT
from tests.system.control import running_loops
from tests.system.whole import QUICK_SHADOW, System
from tests.waiting import eventually

SECRET = "hunter2"


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with shadowed() as running:
        yield running


async def test_answers_that_are_the_same_match(system: System) -> None:
    await put(system)
    await replicated(system)
    await look(system)
    assert await decided(system) == {"compared": 1, "match": 1}
    assert not system.shadow.report().differences


async def test_errors_are_compared_by_code_and_reason(system: System) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await look(system, "shelf/r/none")
    assert await decided(system) == {"compared": 1, "match": 1}
    await put(system)
    await replicated(system)
    edit(system, Store.B, live=False)
    await look(system)
    assert await decided(system, 2) == {"compared": 2, "match": 1, "mismatch": 1}
    assert system.shadow.report().differences[0].fields == (STATUS,)


async def test_other_content_at_the_same_version_is_a_mismatch_and_shows_no_values(system: System) -> None:
    await put(system)
    await lend(system, SECRET)
    await replicated(system)
    edit(system, Store.B, payload=book("somebody"))
    assert (await look(system)).reader == SECRET
    assert await decided(system) == {"compared": 1, "mismatch": 1}
    (found,) = system.shadow.report().differences
    assert (found.kind, found.key, found.operation) == (Kind.MISMATCH, KEY, "get")
    assert found.fields == ("reader", "lent")
    assert [(side.store, side.version) for side in found.sides] == [(Store.A, (0, 2)), (Store.B, (0, 2))]
    assert found.sides[0].content != found.sides[1].content
    assert SECRET not in repr(found) and SECRET not in repr(system.shadow.report())


async def test_a_mismatch_that_is_gone_at_the_second_look_does_not_count(system: System) -> None:
    await put(system)
    await replicated(system)
    good = system.ports(Store.B)._state.rows[KEY].payload
    edit(system, Store.B, payload=book("somebody"))
    await look(system)
    await eventually(lambda: system.shadow.report().waiting == 1)
    edit(system, Store.B, payload=good)
    assert await decided(system) == {"compared": 1, "stale": 1}


async def test_while_the_other_store_is_behind_an_older_row_is_no_finding() -> None:
    async with shadowed(feeds=False) as system:
        feed = system.backends[Store.B].feed.loop
        async with running_loops(relay_of(system, Store.A), system.backends[Store.A].feed.loop):
            await put(system)
            await eventually(lambda: (system.observer.view(Store.B).lag_seconds or 0) > 0)
            await look(system)
            await eventually(lambda: system.shadow.report().waiting == 1)
            waited = (system.observer.view(Store.B).lag_seconds or 0) + 10 * QUICK_SHADOW.settle_seconds
            await eventually(lambda: (system.observer.view(Store.B).lag_seconds or 0) > waited)
            assert system.shadow.counts.compared == 0, "it waits as long as the feed is behind"
            async with running_loops(feed):
                assert await decided(system) == {"compared": 1, "stale": 1}


async def test_a_lag_without_end_makes_no_finding_either() -> None:
    limits = replace(QUICK_SHADOW, patience_seconds=0.1)
    async with shadowed(feeds=False, shadow_limits=limits) as system, running_loops(relay_of(system, Store.A)):
        await put(system)
        await eventually(lambda: (system.observer.view(Store.B).lag_seconds or 0) > 0)
        await look(system)
        assert await decided(system) == {"compared": 1, "stale": 1}


def relay_of(system: System, store: Store) -> Loop:
    return Loop("relay", system.relays[store].run_once)


async def test_while_the_log_is_away_nobody_knows_what_should_have_arrived() -> None:
    limits = replace(QUICK_SHADOW, patience_seconds=0.3)
    async with shadowed(shadow_limits=limits) as system:
        await put(system)
        await replicated(system)
        del system.ports(Store.B)._state.rows[KEY]
        system.log.reachable = False
        await eventually(lambda: system.observer.log_trouble)
        await look(system)
        assert await decided(system) == {"compared": 1, "stale": 1}


async def test_what_is_missed_once_is_looked_for_again(system: System) -> None:
    await put(system)
    await replicated(system)
    row = system.ports(Store.B)._state.rows.pop(KEY)
    await look(system)
    await eventually(lambda: [suspect for suspect in system.shadow._waiting if suspect.missed])
    system.ports(Store.B)._state.rows[KEY] = row
    assert await decided(system) == {"compared": 1, "stale": 1}


async def test_an_answer_that_is_old_only_because_time_went_by_needs_no_second_look() -> None:
    async with shadowed(shadow_limits=replace(QUICK_SHADOW, settle_seconds=600)) as system:
        await put(system)
        await replicated(system)
        method = CONTRACT.methods["Look"]
        request = pb.LookOrder(path=KEY).SerializeToString()
        call = ClientCall(method, request, KEY, bucket_of(KEY), False, (), 0.0)
        system.shadow.offer(call, Answer(Store.A, book("before")))
        assert await decided(system) == {"compared": 1, "stale": 1}


async def test_a_stale_answer_is_not_compared() -> None:
    async with shadowed(shadow_limits=replace(QUICK_SHADOW, workers=1, settle_seconds=600)) as system:
        await put(system)
        await replicated(system)
        a = system.backends[Store.A].serving
        a.stop("a test says so")
        _, trailers = await send(system, "Look", pb.LookOrder(path=KEY))
        assert metadata.STALE in trailers
        a.serve()
        edit(system, Store.B, payload=book("somebody"))
        await look(system)
        await eventually(lambda: system.shadow.report().waiting == 1, what="the one worker has come to the last read")
        assert system.shadow.counts.compared == 0


async def test_a_record_that_is_gone_beyond_the_lag_is_missing(system: System) -> None:
    await put(system)
    await replicated(system)
    del system.ports(Store.B)._state.rows[KEY]
    await look(system)
    assert await decided(system) == {"compared": 1, "missing": 1}
    (found,) = system.shadow.report().differences
    assert (found.kind, found.sides[1].version) == (Kind.MISSING, (0, 0))


async def test_a_version_that_never_arrives_is_missing(system: System) -> None:
    await put(system)
    await lend(system, "ann")
    await replicated(system)
    edit(system, Store.B, version=Version(0, 1), payload=book(""))
    await look(system)
    assert await decided(system) == {"compared": 1, "missing": 1}


async def test_a_record_that_changes_all_the_time_is_not_missing(system: System) -> None:
    await put(system)
    await replicated(system)

    async def write(loop: Loop) -> None:
        await lend(system, str(uuid4()))

    async with running_loops(Loop("writer", write)):
        for _ in range(30):
            await look(system)
        counts = await decided(system, 30)
    assert counts["compared"] == counts.get("match", 0) + counts.get("stale", 0) == 30


async def test_a_store_that_fails_is_an_error_and_the_client_has_its_answer(system: System) -> None:
    await put(system)
    await replicated(system)
    system.backends[Store.B].serving.stop("a test says so")
    assert (await look(system)).path == KEY
    assert await decided(system) == {"compared": 1, "error": 1}
    (found,) = system.shadow.report().differences
    assert found.sides[1].content == "UNAVAILABLE/STORE_NOT_READY"


async def test_with_the_other_store_dead_clients_are_served_as_ever() -> None:
    async with shadowed(mover=False) as system:
        await put(system)
        await system.stop(Store.B)
        await eventually(lambda: not system.observer.view(Store.B).reachable)
        before = (system.traffic.reads[Store.A], system.traffic.failures.total())
        for _ in range(50):
            data, trailers = await send(system, "Look", pb.LookOrder(path=KEY))
            assert pb.Book.FromString(data).path == KEY and metadata.STALE not in trailers
        assert (system.traffic.reads[Store.A], system.traffic.failures.total()) == (before[0] + 50, before[1])
        assert system.shadow.report().skipped == 50
        assert system.shadow.counts == ShadowCounts()


async def test_shadow_reads_are_no_traffic(system: System) -> None:
    await put(system)
    await replicated(system)
    for _ in range(20):
        await look(system)
    assert await decided(system, 20) == {"compared": 20, "match": 20}
    assert (system.traffic.reads[Store.A], system.traffic.reads[Store.B]) == (20, 0)


async def test_writes_are_never_sent_twice(system: System) -> None:
    await put(system)
    await lend(system, "ann")
    await replicated(system)
    await look(system)
    assert await decided(system) == {"compared": 1, "match": 1}, "the read alone"
    assert system.ports(Store.B)._state.rows[KEY].owner is Store.A
    assert not system.ports(Store.B)._state.outbox


async def test_reads_beyond_the_queue_are_dropped_and_counted() -> None:
    async with shadowed(shadow_limits=replace(QUICK_SHADOW, queue=3, workers=0)) as system:
        await put(system)
        for _ in range(5):
            assert (await look(system)).path == KEY
        assert (system.shadow.counts.dropped, system.shadow.report().queued) == (2, 3)


@pytest.mark.parametrize("limits", [ShadowLimits(queue_bytes=20, workers=0), ShadowLimits(queue=0x100, waiting=0)])
async def test_what_is_too_much_to_keep_is_dropped_and_counted(limits: ShadowLimits) -> None:
    async with shadowed(shadow_limits=limits) as system:
        await put(system)
        await replicated(system)
        edit(system, Store.B, payload=book("somebody"))
        await look(system)
        await eventually(lambda: system.shadow.counts.dropped == 1)


async def test_room_is_given_back_when_a_read_was_compared() -> None:
    async with shadowed(shadow_limits=replace(QUICK_SHADOW, queue_bytes=60)) as system:
        await put(system)
        await replicated(system)
        for number in range(1, 6):
            await look(system)
            assert await decided(system, number) == {"compared": number, "match": number}


async def test_a_request_that_is_too_large_to_be_kept_is_not_asked_again(system: System) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await look(system, "x" * 70_000)
    assert system.shadow.counts.dropped == 1


async def test_without_a_share_nothing_is_compared(system: System) -> None:
    await put(system)
    await system.migration.set_shadow(BY_HAND, 0)
    await look(system)
    report = system.shadow.report()
    assert (report.counts, report.queued, report.skipped) == (ShadowCounts(), 0, 0)


async def test_a_small_share_is_sampled() -> None:
    async with shadowed(permille=100, shadow_limits=replace(QUICK_SHADOW, queue=1000, workers=0)) as system:
        await put(system)
        await asyncio.gather(*(look(system) for _ in range(600)))
        assert 20 < system.shadow.report().queued < 120, "60 of 600 on average"


async def test_counts_begin_anew_when_the_share_is_set(system: System) -> None:
    await put(system)
    await replicated(system)
    edit(system, Store.B, payload=book("somebody"))
    await look(system)
    await decided(system)
    await look(system)
    await eventually(lambda: system.shadow.report().waiting == 1)
    await system.migration.set_shadow(BY_HAND, 1000)
    report = system.shadow.report()
    assert (report.counts.compared, report.waiting, report.differences) == (0, 0, [])


async def test_a_compared_with_a_shows_the_noise_and_is_no_evidence() -> None:
    async with shadowed(same=True) as system:
        await put(system)
        await replicated(system)
        edit(system, Store.B, payload=book("somebody"))
        await look(system)
        await eventually(lambda: system.shadow.report().counts.match == 1)
        assert system.shadow.report().same
        assert system.shadow.counts == ShadowCounts()


async def test_a_field_without_sense_is_noise_when_a_is_compared_with_a() -> None:
    async with shadowed(same=True) as system:
        await put(system)
        rows = system.ports(Store.A)._state

        async def change(loop: Loop) -> None:
            rows.rows[KEY] = replace(rows.rows[KEY], payload=book(str(uuid4())))
            await asyncio.sleep(0)

        async def found() -> bool:
            await look(system)
            return system.shadow.report().counts.mismatch > 0

        async with running_loops(Loop("noise", change)):
            await eventually(found)


async def test_where_b_answers_a_is_asked() -> None:
    async with shadowed(phase=Phase.DUAL_READ) as system:
        await eventually(lambda: system.mover.settled)
        await put(system)
        await replicated(system)
        edit(system, Store.A, payload=book("somebody"))
        await look(system)
        assert await decided(system) == {"compared": 1, "mismatch": 1}
        assert [side.store for side in system.shadow.report().differences[0].sides] == [Store.B, Store.A]


async def test_a_new_phase_without_comparison_ends_it(system: System) -> None:
    await system.migration.rollback(BY_HAND, Phase.OFF)
    assert system.setting.current.shadow_permille == 0
    await put(system)
    await look(system)
    assert system.shadow.report().queued == 0
