"""Reconcile and validate over two live stores: planted differences are found in one run, without false ones."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from libs.backend.comparison import Comparison
from libs.clock import SystemClock
from libs.errors import InvalidField
from libs.ownership.limits import MAX_COPY_BYTES
from libs.ownership.model import NEVER, Row, Store, Version, bucket_of
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop
from services.router.flows.jobs.kind import JobKind, Position, Step
from services.router.flows.jobs.reconcile_job import Reconcile
from services.router.flows.jobs.validate import Validate
from services.router.flows.moving.transfer import Transfer
from tests.integration.test_router import lend, put
from tests.system.control import running_loops
from tests.system.whole import System, never_arrived, running_system
from tests.waiting import eventually

A, B = Store.A, Store.B
NOBODY = {"MISSING": 0, "EXTRA": 0, "STALE": 0, "CORRUPT": 0, "OWNER": 0}


def path(number: int) -> str:
    return f"shelf/r/{number:03}"


def rows(system: System, store: Store) -> dict[str, Row]:
    return system.ports(store)._state.rows


def plant(system: System, store: Store, key: str, **fields: object) -> None:
    """Changes a row as no protocol would."""
    rows(system, store)[key] = replace(rows(system, store)[key], **fields)  # type: ignore[arg-type]


def reconcile(system: System) -> Reconcile:
    return Reconcile(system.stores, Transfer(system.stores), system.log, SystemClock())


Chance = random.Random


async def run(kind: JobKind, arguments: Mapping[str, str], crashes: Chance | None = None) -> dict[str, Any]:
    """The report of a run, of which only its checkpoints are kept. `crashes`: some steps are repeated, as if their
    completion was not recorded."""
    kind.lane(arguments)
    at = Position(arguments, b"", 100)
    async with asyncio.timeout(20):
        while True:
            step: Step = await kind.step(at)
            if crashes is not None and crashes.random() < 0.5:
                continue
            at = replace(at, checkpoint=step.checkpoint, done=at.done + step.done, report=step.report or at.report)
            if step.finished:
                assert at.done == step.total == 1024
                report: dict[str, Any] = json.loads(at.report)
                return report
            await asyncio.sleep(min(step.wait_seconds, 0.01))


async def same(system: System) -> bool:
    return rows(system, A) == rows(system, B)


@asynccontextmanager
async def stocked(count: int = 12, **options: Any) -> AsyncIterator[System]:
    """With so many records, the same at both stores; A owns them."""
    async with running_system(mover=False, **options) as system:
        for number in range(count):
            await put(system, f"{number:03}")
        await eventually(lambda: same(system))
        yield system


def lose(system: System, store: Store, key: str) -> None:
    never_arrived(system.ports(store), key)


def faults(system: System) -> dict[str, str]:
    """Plants one of each kind; returns the keys with their kinds. A owns all records."""
    lose(system, B, path(0))
    lose(system, A, path(1))
    plant(system, A, path(2), version=Version(0, 2), write_version=Version(0, 2), payload=b"\n\x0bshelf/r/002")
    plant(system, B, path(3), payload=b"other")
    plant(system, B, path(4), owner=B)
    plant(system, B, path(5), version=Version(0, 9), write_version=Version(0, 9))
    kinds = ("MISSING", "EXTRA", "STALE", "CORRUPT", "OWNER", "OWNER")
    return {path(number): kind for number, kind in enumerate(kinds)}


async def test_equal_stores_are_told_by_their_digests_alone() -> None:
    async with stocked() as system:
        report = await run(reconcile(system), {})
        assert (report["records"], report["different"], report["buckets_walked"]) == (12, 0, 0)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
async def test_each_kind_of_fault_is_found_in_one_run_wherever_that_is_interrupted(seed: int | None) -> None:
    async with stocked() as system:
        planted = faults(system)
        crashes = None if seed is None else random.Random(seed)
        report = await run(reconcile(system), {}, crashes)
        assert {one["key"]: one["kind"] for one in report["differences"]} == planted
        assert report["found"] == {"MISSING": 1, "EXTRA": 1, "STALE": 1, "CORRUPT": 1, "OWNER": 2}
        assert {one["key"] for one in report["differences"] if one["repaired"]} == {path(0), path(2)}
        assert (report["repaired"], report["left"]) == (2, 4)
        for key in (path(0), path(2)):
            assert rows(system, B)[key] == rows(system, A)[key]
        again = await run(reconcile(system), {})
        assert {one["key"]: one["kind"] for one in again["differences"]} == {
            key: kind for key, kind in planted.items() if kind not in ("MISSING", "STALE")
        }


async def test_a_repair_lowers_no_version_and_takes_nothing_from_the_owner() -> None:
    async with stocked() as system:
        faults(system)
        before = {store: dict(rows(system, store)) for store in Store}
        await run(reconcile(system), {})
        assert rows(system, A) == before[A]
        for key, row in before[B].items():
            assert rows(system, B)[key].version >= row.version


async def test_without_repair_what_is_found_stays_as_it_is() -> None:
    async with stocked() as system:
        faults(system)
        before = {store: dict(rows(system, store)) for store in Store}
        report = await run(reconcile(system), {"repair": "no"})
        assert (report["different"], report["repaired"]) == (6, 0)
        assert {store: dict(rows(system, store)) for store in Store} == before


@pytest.mark.parametrize(
    "edited",
    [{"live": False}, {"write_version": NEVER}, {"schema_version": 7}, {"bases": (Version(0, 1),)}],
    ids=lambda edited: next(iter(edited)),
)
async def test_an_edit_that_keeps_version_and_payload_is_found_when_deep_and_mended_when_named(
    edited: dict[str, object],
) -> None:
    async with stocked() as system:
        plant(system, B, path(3), **edited)
        assert (await run(reconcile(system), {}))["different"] == 0, "kept digests do not cover it"
        deep = await run(reconcile(system), {"deep": "yes"})
        assert {one["key"]: one["kind"] for one in deep["differences"]} == {path(3): "CORRUPT"}
        named = await run(reconcile(system), {"deep": "yes", "corrupt": path(3)})
        assert (named["different"], named["repaired"]) == (1, 1)
        assert rows(system, B)[path(3)] == rows(system, A)[path(3)]


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_a_corrupt_record_is_mended_when_a_person_names_it_and_with_its_owners_content(seed: int | None) -> None:
    async with stocked() as system:
        faults(system)
        good = rows(system, A)[path(3)]
        crashes = None if seed is None else random.Random(seed)
        report = await run(reconcile(system), {"corrupt": path(3)}, crashes)
        assert {one["key"] for one in report["differences"] if one["repaired"]} == {path(0), path(2), path(3)}
        await eventually(lambda: rows(system, A)[path(3)] == rows(system, B)[path(3)])
        mended = rows(system, A)[path(3)]
        assert (mended.payload, mended.owner, mended.write_version) == (good.payload, A, good.write_version)
        assert mended.version > good.version


async def test_a_release_that_never_arrived_is_taken_with_the_requests_that_it_has_served() -> None:
    async with stocked(feeds=False, count=0) as system:
        token = "7b0d1c58-3a4e-4c55-9f0e-0a3d9d9a1c01"
        await put(system, "000", token)
        await system.ports(A).transfers.release([path(0)], B, create=False)
        system.ports(A)._state.outbox.clear()
        report = await run(reconcile(system), {})
        assert (report["found"]["MISSING"], report["repaired"]) == (1, 1)
        assert rows(system, B)[path(0)].owner is B
        assert token in {request for _, _, request in system.ports(B)._state.served}


async def test_what_is_on_its_way_is_no_difference() -> None:
    async with stocked(feeds=False, count=0) as system:
        for number in range(5):
            await put(system, f"{number:03}")
        kind, relay, feed = reconcile(system), system.relays[A], system.backends[B].feed
        at = Position({}, b"", 100)
        waits: list[str] = []
        for _ in range(6):
            step = await kind.step(at)
            at = replace(at, checkpoint=step.checkpoint, report=step.report or at.report)
            waits.append(step.waits)
        assert (
            "5 records differ, perhaps because their changes are in transit: 5 changes are not in the log yet" in waits
        )
        assert json.loads(at.report)["different"] == 0
        async with running_loops(Loop("relay", relay.run_once)):
            await eventually(lambda: not system.ports(A)._state.outbox)
            assert "store B has 5 events of the log to read" in (await kind.step(at)).waits
            async with running_loops(feed.loop):
                await eventually(lambda: same(system))
        step = await kind.step(at)
        assert json.loads(step.report or "")["found"] == NOBODY


async def test_a_record_that_has_moved_on_meanwhile_is_no_difference() -> None:
    async with stocked() as system:
        first, second, third = (Version(0, number) for number in (1, 2, 3))
        plant(system, A, path(1), version=second, write_version=second)
        kind, at = reconcile(system), Position({}, b"", 100)
        for _ in range(2):
            step = await kind.step(at)
            at = replace(at, checkpoint=step.checkpoint, report=step.report or at.report)
        assert rows(system, B)[path(1)].version == first
        # The doubtful record has arrived, and the next change is on its way.
        plant(system, B, path(1), version=second, write_version=second)
        plant(system, A, path(1), version=third, write_version=third)

        async def looked() -> Step:
            step = await kind.step(at)
            assert not step.waits
            return step

        # The positions of a store's own events are stored a moment later.
        assert json.loads((await eventually(looked)).report or "")["found"] == NOBODY


def keys_of_one_bucket(count: int) -> list[str]:
    names = (f"shelf/r/{number}" for number in itertools.count())
    return sorted(itertools.islice((name for name in names if bucket_of(name) == 7), count))


@pytest.mark.parametrize("deep", ["yes", "no"])
async def test_a_bucket_of_many_pages_and_more_doubts_than_a_checkpoint_holds(
    deep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.flows.jobs.bucket_comparison.PAGE_ROWS", 4)
    monkeypatch.setattr("services.router.flows.jobs.reconcile_job.DOUBTS", 3)
    monkeypatch.setattr("libs.backend.comparison.PAGE_ROWS", 3)
    keys = keys_of_one_bucket(24)
    async with stocked(count=0) as system:
        for place, key in enumerate(keys):
            row = Row(key, Version(0, 1), A, Version(0, 1), True, b"", 1)
            rows(system, A)[key] = row
            if place not in (0, 5, 6, 7, 8, 9, 10, 11, 23):
                rows(system, B)[key] = row
        for key in keys[3:5]:
            rows(system, B)[key] = replace(rows(system, B)[key], payload=b"other")
        for key in keys[12:17]:
            lose(system, A, key)
        report = await run(reconcile(system), {"deep": deep})
        assert report["found"] == {**NOBODY, "MISSING": 9, "CORRUPT": 2, "EXTRA": 5}
        assert (report["repaired"], report["records"]) == (9, 19)
        assert [one["key"] for one in report["differences"]] == [
            key for place, key in enumerate(keys) if place in (0, 3, 4, *range(5, 17), 23)
        ]
        ages = await run(Validate(system.stores, SystemClock()), {})
        assert [ages[name] for name in ("only_in_b", "different", "in_both")] == [5, 2, 19]


def count_rows(monkeypatch: pytest.MonkeyPatch) -> Counter[Store]:
    """Rows of whole pages that a store returns from now on, by store."""
    found = Counter[Store]()
    looks = Comparison.looks

    async def counted(self: Comparison, request: pb.LookAtRecordsRequest) -> pb.LookAtRecordsResponse:
        answer = await looks(self, request)
        if not request.keys:
            found[self._me] += len(answer.looks)
        return answer

    monkeypatch.setattr(Comparison, "looks", counted)
    return found


def make_older(monkeypatch: pytest.MonkeyPatch, older: Store) -> None:
    """The store does not know the parts of a bucket."""
    digests, looks = Comparison.digests, Comparison.looks

    async def without_parts(self: Comparison, buckets: Any, *, deep: bool, parts: bool) -> pb.DigestBucketsResponse:
        return await digests(self, buckets, deep=deep, parts=parts and self._me is not older)

    async def all_rows(self: Comparison, request: pb.LookAtRecordsRequest) -> pb.LookAtRecordsResponse:
        if self._me is older:
            request.ClearField("parts")
        return await looks(self, request)

    monkeypatch.setattr(Comparison, "digests", without_parts)
    monkeypatch.setattr(Comparison, "looks", all_rows)


@pytest.mark.parametrize("older", [None, A, B])
async def test_of_a_large_bucket_the_rows_of_differing_parts_are_read_alone(
    older: Store | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of the release before reads all."""
    monkeypatch.setattr("services.router.flows.jobs.bucket_comparison.PAGE_ROWS", 4)
    keys = keys_of_one_bucket(300)
    if older is not None:
        make_older(monkeypatch, older)
    async with stocked(count=0) as system:
        for key in keys:
            row = Row(key, Version(0, 1), A, Version(0, 1), True, b"", 1)
            rows(system, A)[key], rows(system, B)[key] = row, row
        lose(system, B, keys[20])
        lose(system, A, keys[30])
        plant(system, B, keys[40], payload=b"other")
        plant(system, A, keys[50], version=Version(0, 2), write_version=Version(0, 2))
        read = count_rows(monkeypatch)
        report = await run(reconcile(system), {})
        assert report["found"] == {**NOBODY, "MISSING": 1, "CORRUPT": 1, "EXTRA": 1, "STALE": 1}
        assert {store: count < 100 for store, count in read.items()} == {A: older is None, B: older is None}


@pytest.mark.parametrize("older", [A, B])
async def test_all_rows_are_compared_with_those_of_a_store_that_knows_no_parts(
    older: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older(monkeypatch, older)
    async with stocked(count=0) as system:
        keys = keys_of_one_bucket(10)
        for number, key in enumerate(keys):
            rows(system, A if number % 2 else B)[key] = Row(key, Version(0, 1), A, Version(0, 1), True, b"", 1)
        report = await run(reconcile(system), {"repair": "no"})
        assert report["found"] == {**NOBODY, "MISSING": 5, "EXTRA": 5}


@pytest.mark.parametrize("empty", [A, B])
async def test_a_bucket_without_rows_at_one_store_is_read_whole(empty: Store) -> None:
    async with stocked(count=0) as system:
        keys = keys_of_one_bucket(70)
        for key in keys:
            rows(system, empty.other)[key] = Row(key, Version(0, 1), A, Version(0, 1), True, b"", 1)
        report = await run(reconcile(system), {"repair": "no"})
        assert report["found"] == {**NOBODY, "MISSING" if empty is B else "EXTRA": 70}


async def test_under_load_a_fault_is_found_and_none_is_invented() -> None:
    async with stocked(count=31) as system:
        ended = asyncio.Event()
        chance = random.Random(5)

        async def write(writer: int) -> int:
            written = 0
            while not ended.is_set():
                await lend(system, path(chance.randrange(30)), f"reader-{writer}-{written}")
                written += 1
            return written

        async def move() -> int:
            moved = 0
            while not ended.is_set():
                failed = await Transfer(system.stores).take([path(chance.randrange(30))], chance.choice([A, B]))
                moved += not failed
            return moved

        tasks = [asyncio.create_task(work) for work in (write(1), write(2), move())]
        for number in range(4):
            report = await run(reconcile(system), {"deep": "yes"} if number == 2 else {})
            assert report["found"] == NOBODY, report
        lose(system, B, path(30))
        report = await run(reconcile(system), {})
        assert report["found"] == {**NOBODY, "MISSING": 1} and report["repaired"] == 1
        ended.set()
        assert all(await asyncio.gather(*tasks))


async def test_a_store_that_is_away_is_waited_for() -> None:
    async with stocked() as system:
        await system.stop(B)
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await reconcile(system).step(Position({}, b"", 100))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"repair": "perhaps"}, "repair: 'perhaps' is not valid: yes or no"),
        ({"deep": "1"}, "deep: '1' is not valid: yes or no"),
        ({"fast": "yes"}, "'fast' is not valid: one of repair, deep, corrupt"),
    ],
)
async def test_what_makes_no_sense_is_refused(arguments: dict[str, str], said: str) -> None:
    async with stocked(count=0) as system:
        with pytest.raises(InvalidField, match=said):
            reconcile(system).lane(arguments)


async def test_validate_tells_what_only_one_store_has_and_what_differs() -> None:
    async with stocked() as system:
        faults(system)
        report = await run(Validate(system.stores, SystemClock()), {})
        counts = ("records_a", "records_b", "only_in_a", "only_in_b", "different", "unknown")
        assert [report[name] for name in counts] == [11, 11, 1, 1, 4, 4]
        with pytest.raises(InvalidField, match="this job takes no arguments"):
            Validate(system.stores, SystemClock()).lane({"deep": "yes"})


async def test_a_record_that_is_too_large_to_copy_is_left_out_and_named() -> None:
    async with stocked() as system:
        lose(system, B, path(0))
        lose(system, B, path(1))
        plant(system, A, path(0), payload=b"x" * (MAX_COPY_BYTES + 1))
        report = await run(reconcile(system), {})
        assert (report["repaired"], report["left"], report["left_out"]) == (1, 1, 1)
        assert report["why"].startswith(f"{path(0)} has {MAX_COPY_BYTES + 1} bytes")
