"""The contract of a store's two queues: changes that wait for the log, and events read from it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from libs.ownership.errors import OutboxFull
from libs.ownership.model import Answered, Changed, Outcome
from libs.store.limits import PULL_BYTES, UNAUTHENTICATED_BYTES, UNAUTHENTICATED_EVENTS, OutboxLimits
from libs.store.port import FeedStep, Parked, Position, StorePorts, UnknownPartition
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import (
    everything,
    own,
    put,
    record_of,
    row_of,
    served_of,
)
from tests.waiting import eventually

KEY = "sandboxes/a"
KEYS = [f"sandboxes/{number:03d}" for number in range(30)]


async def fill(store: StorePorts, key: str) -> None:
    """Writes until the outbox refuses one. Raises OutboxFull."""
    for number in range(20):
        await put(store, key, f"r{number}", "w", padding="15000")


class TestOutbox:
    async def test_a_pull_waits_for_a_commit(self, store: StorePorts) -> None:
        await own(store, [KEY])
        pull = asyncio.create_task(store.outbox.pull(10, 10.0))
        await asyncio.sleep(0)
        await put(store, KEY, "r1", "one")
        assert [entry.key for entry in await pull] == [KEY]

    async def test_a_pull_gives_up_at_its_bound(self, store: StorePorts) -> None:
        assert await store.outbox.pull(10, 0.01) == []

    async def test_a_pull_is_about_one_mebibyte(self, store: StorePorts) -> None:
        await own(store, KEYS)
        for key in KEYS[:12]:
            await put(store, key, "r", "w", padding="200000")
        entries = await store.outbox.pull(100, 0)
        assert PULL_BYTES // 400_000 <= len(entries) <= PULL_BYTES // 200_000 + 1
        assert await store.outbox.pull(100, 0) == entries

    async def test_a_pull_leaves_changes_out_that_are_being_acknowledged(self, store: StorePorts) -> None:
        await own(store, KEYS)
        names = [(key, (await put(store, key, "r", "w")).version) for key in KEYS[:4]]
        assert [entry.key for entry in await store.outbox.pull(1, 0, frozenset(names[:2]))] == [KEYS[2]]
        assert await store.outbox.pull(10, 0.01, frozenset(names)) == []
        pull = asyncio.create_task(store.outbox.pull(10, 10.0, frozenset(names)))
        await asyncio.sleep(0)
        await put(store, KEYS[0], "r2", "w")
        (entry,) = await pull
        assert (entry.key, entry.version) != names[0], "a later change of the same record"

    async def test_its_depth_is_told(self, store: StorePorts) -> None:
        await own(store, KEYS)
        assert await store.outbox.depth() == (0, 0, 0.0)
        await put(store, KEYS[0], "r", "w")
        await store.upkeep.tick(7.0)
        await put(store, KEYS[1], "r", "w")
        entries = await store.outbox.pull(10, 0)
        size = sum(len(entry.event) for entry in entries)

        async def depth_is_known() -> bool:
            depth = await store.outbox.depth()
            return (depth.entries, depth.bytes) == (2, size) and depth.oldest_seconds == pytest.approx(7.0)

        await eventually(depth_is_known)

    async def test_a_full_one_refuses_writes_but_not_releases(self, make_store: MakeStore) -> None:
        async with make_store(OutboxLimits(entries=20)) as store:
            await own(store, KEYS)
            for key in KEYS[:20]:
                await put(store, key, "r", "w")
            with pytest.raises(OutboxFull):
                await put(store, KEYS[20], "r", "w")
            assert (await store.records.read(KEYS[20])).row is None
            assert isinstance(await put(store, KEYS[0], "r", "w"), Answered)
            released = await store.transfers.release(KEYS[:20], store.store.other, create=False)
            assert [result.outcome for result in released.results] == [Outcome.RELEASE] * 20, "all rows can leave"
            assert (await store.outbox.depth()).entries == 40
            # The reserve is for one release of each row: one that comes back and would leave again has to wait.
            back = record_of(row_of(KEYS[0], (0, 3), store.store))
            await store.transfers.apply([back])
            again = await store.transfers.release([KEYS[0]], store.store.other, create=False)
            assert [(result.outcome, result.record) for result in again.results] == [(None, None)]
            entries = await store.outbox.pull(100, 0)
            await store.outbox.ack([(entry.key, entry.version) for entry in entries[:21]])
            assert isinstance(await put(store, KEYS[20], "r", "w"), Changed)

    async def test_one_full_of_bytes_refuses_writes(self, make_store: MakeStore) -> None:
        async with make_store(OutboxLimits(bytes=100_000)) as store:
            await own(store, KEYS)
            await put(store, KEYS[0], "r", "w", padding="60000")
            with pytest.raises(OutboxFull):
                await put(store, KEYS[1], "r", "w", padding="60000")
            await put(store, KEYS[1], "r", "w")

    async def test_one_that_nobody_empties_refuses_writes(self, make_store: MakeStore) -> None:
        async with make_store(OutboxLimits(seconds=100)) as store:
            await own(store, KEYS)
            await put(store, KEYS[0], "r", "w")
            await store.upkeep.tick(101)
            requests = (f"r{number}" for number in itertools.count())

            async def is_refused() -> bool:
                try:
                    await put(store, KEYS[1], next(requests), "w")
                except OutboxFull:
                    return True
                return False

            await eventually(is_refused)
            await store.upkeep.tick(10_000)
            await store.transfers.release([KEYS[0]], store.store.other, create=False)
            assert (await store.records.read(KEYS[0])).owner is store.store.other

    async def test_one_full_of_bytes_lets_every_record_leave_with_its_served_requests(
        self, make_store: MakeStore
    ) -> None:
        async with make_store(OutboxLimits(bytes=200_000)) as store:
            await own(store, KEYS)
            for key in KEYS[:6]:
                await put(store, key, "r", "w", padding="15000")
            with pytest.raises(OutboxFull):
                await fill(store, KEYS[0])
            released = await store.transfers.release(KEYS[:6], store.store.other, create=False)
            assert [result.outcome for result in released.results] == [Outcome.RELEASE] * 6


class TestFeed:
    def _step(self, store: StorePorts, before: int, after: int, *parked: Parked) -> FeedStep:
        return FeedStep((Position(3, before, after),), parked)

    async def test_positions_and_counters_move_with_what_is_applied(self, store: StorePorts) -> None:
        records = [record_of(row_of(key, (0, 1), store.store.other)) for key in KEYS[:4]]
        parked = Parked(3, 4, "sandboxes/odd", "no record", b"\x00\xff", b"\x00h", "topic")
        step = FeedStep((Position(3, 0, 6), Position(5, 0, 2)), (parked,), skipped=2)
        assert await store.transfers.apply([*records, records[0]], step) == (4, 1)
        state = await store.feed.state()
        assert dict(state.next_offsets) == {3: 6, 5: 2}
        assert (state.applied, state.old, state.parked, state.journaled, state.parked_now) == (4, 3, 1, 0, 1)
        assert state.read == 8
        assert await store.feed.parked(10) == [parked]

    async def test_a_position_that_moved_changes_nothing(self, store: StorePorts) -> None:
        other = store.store.other
        await store.transfers.apply([], self._step(store, 0, 5))
        late = [record_of(row_of(KEY, (0, 1), other), served_of("r1", (0, 1)))]
        with pytest.raises(UnknownPartition):
            await store.transfers.apply(late, FeedStep((Position(1, 0, 2), Position(3, 0, 7)), skipped=3))
        state = await store.feed.state()
        assert dict(state.next_offsets) in ({3: 5}, {3: 5, 1: 0})
        assert state.read == 0
        assert await everything(store) == []
        await store.transfers.apply(late, self._step(store, 5, 7))
        assert (await store.feed.state()).next_offsets[3] == 7

    async def test_an_adopted_record_is_not_counted_as_read(self, store: StorePorts) -> None:
        assert await store.transfers.apply([record_of(row_of(KEY, (0, 1), store.store))]) == (1, 0)
        assert (await store.feed.state()).read == 0

    async def test_a_parked_event_is_applied_later_and_counted_once(self, store: StorePorts) -> None:
        parked = [Parked(3, offset, KEY, "why", b"event") for offset in (8, 4)]
        await store.transfers.apply([], self._step(store, 0, 9, *parked))
        read = (await store.feed.state()).read
        record = record_of(row_of(KEY, (0, 2), store.store.other), served_of("r1", (0, 2)))
        assert await store.feed.unpark(3, 4, record) == (1, 0)
        assert await store.feed.unpark(3, 4, record) == (0, 0)
        assert [one.offset for one in await store.feed.parked(10)] == [8]
        assert await store.feed.unpark(3, 8, record) == (0, 1)
        state = await store.feed.state()
        assert (state.read, state.parked_now) == (read, 0)
        assert (await store.records.read(KEY)).version == (0, 2)

    async def test_an_event_of_a_new_log_is_parked_at_the_place_of_one_of_the_former_log(
        self, store: StorePorts
    ) -> None:
        former, new = (Parked(3, 4, KEY, "why", event) for event in (b"former", b"new"))
        await store.transfers.apply([], self._step(store, 0, 9, former))
        await store.feed.restart({3: 4})
        await store.transfers.apply([], self._step(store, 4, 5, new))
        assert await store.feed.parked(10) == [new]

    async def test_an_event_without_a_code_takes_the_place_of_no_other_one(self, store: StorePorts) -> None:
        right = Parked(3, 4, KEY, "why", b"right")
        forged, again = (Parked(3, at, KEY, "no code", b"%d" % at, unauthenticated=True) for at in (4, 5))
        await store.transfers.apply([], self._step(store, 0, 5, right))
        await store.transfers.apply([], self._step(store, 5, 6, forged, again))
        await store.transfers.apply([], self._step(store, 6, 7, replace(again, event=b"newer")))
        assert await store.feed.parked(10) == [right, replace(again, event=b"newer")]
        await store.transfers.apply([], self._step(store, 7, 8, replace(right, offset=5)))
        assert await store.feed.parked(10) == [right, replace(right, offset=5)]

    async def test_only_the_last_events_without_a_code_are_kept_and_all_others(self, store: StorePorts) -> None:
        others = [Parked(3, offset, KEY, "why", b"other") for offset in (0, UNAUTHENTICATED_EVENTS + 20)]
        forged = [
            Parked(3, offset, KEY, "no code", b"forged", b"h", "topic", unauthenticated=True)
            for offset in range(1, UNAUTHENTICATED_EVENTS + 20)
        ]
        await store.transfers.apply([], self._step(store, 0, 5, others[0], *forged[:500]))
        await store.transfers.apply([], self._step(store, 5, 9, *forged[500:], others[1]))
        state = await store.feed.state()
        assert (state.parked_now, state.unauthenticated_now) == (UNAUTHENTICATED_EVENTS + 2, UNAUTHENTICATED_EVENTS)
        assert (state.parked, state.unauthenticated) == (len(forged) + 2, len(forged))
        assert await store.feed.parked(2 * UNAUTHENTICATED_EVENTS) == [others[0], *forged[19:], others[1]]
        assert await store.feed.drop(3, forged[-1].offset)
        assert (await store.feed.state()).unauthenticated_now == UNAUTHENTICATED_EVENTS - 1
        assert await store.feed.drop_unauthenticated() == UNAUTHENTICATED_EVENTS - 1
        assert await store.feed.parked(10) == others

    async def test_large_events_without_a_code_make_room_for_later_ones(self, store: StorePorts) -> None:
        size = UNAUTHENTICATED_BYTES // 8
        forged = [Parked(3, offset, KEY, "no code", bytes(size), unauthenticated=True) for offset in range(10)]
        for number, one in enumerate(forged):
            await store.transfers.apply([], self._step(store, number, number + 1, one))
        assert [one.offset for one in await store.feed.parked(20)] == [one.offset for one in forged[2:]]
        larger = replace(forged[0], offset=10, event=bytes(UNAUTHENTICATED_BYTES + 1))
        await store.transfers.apply([], self._step(store, 10, 11, larger))
        assert [one.offset for one in await store.feed.parked(20)] == [10]

    async def test_where_the_check_of_codes_starts_is_recorded_once(self, store: StorePorts) -> None:
        assert (await store.feed.state()).checked_from == {}
        assert await store.feed.start_checking({0: 5, 3: 0}) == {0: 5, 3: 0}
        assert await store.feed.start_checking({0: 9, 3: 9, 4: 9}) == {0: 5, 3: 0}
        await store.transfers.apply([], self._step(store, 0, 5))
        state = await store.feed.state()
        assert (state.checked_from, state.next_offsets) == ({0: 5, 3: 0}, {3: 5})
        await store.feed.restart({0: 7, 3: 7})
        assert (await store.feed.state()).checked_from == {0: 0, 3: 0}
        await store.feed.stop_checking()
        assert (await store.feed.state()).checked_from == {}
        await store.feed.restart({0: 8})
        assert (await store.feed.state()).checked_from == {}

    async def test_a_parked_event_is_found_by_its_place_and_dropped_without_being_applied(
        self, store: StorePorts
    ) -> None:
        parked = [Parked(3, offset, KEY, "why", b"event") for offset in (8, 4)]
        await store.transfers.apply([], self._step(store, 0, 9, *parked))
        before = await store.feed.state()
        assert await store.feed.parked(10, (3, 4)) == [parked[1]]
        assert await store.feed.parked(10, (4, 4)) == []
        assert await store.feed.drop(4, 4) is False
        assert await store.feed.drop(3, 4) is True
        assert await store.feed.drop(3, 4) is False
        assert await store.feed.parked(10) == [parked[0]]
        assert await store.feed.state() == replace(before, parked_now=1)
        assert await everything(store) == []

    async def test_parked_events_are_listed_on_from_a_place(self, store: StorePorts) -> None:
        places = [(3, 8), (2, 9), (3, 4), (11, 0)]
        await store.transfers.apply([], FeedStep((), tuple(Parked(*place, KEY, "why", b"event") for place in places)))

        async def after(place: tuple[int, int], limit: int = 10) -> list[tuple[int, int]]:
            return [(one.partition, one.offset) for one in await store.feed.parked_after(place, limit)]

        assert await after((-1, -1)) == sorted(places)
        assert await after((2, 9), 2) == [(3, 4), (3, 8)]
        assert await after((3, 5)) == [(3, 8), (11, 0)]
        assert await after((11, 0)) == []

    async def test_the_only_process_has_all_partitions(self, store: StorePorts) -> None:
        async def has_all() -> bool:
            return sorted(await store.feed.claim(16)) == list(range(16))

        await eventually(has_all)

    async def test_a_mark_moves_with_its_offset_and_is_forgotten_when_the_feed_is_moved_by_hand(
        self, store: StorePorts
    ) -> None:
        steps = (Position(0, 0, 5, "log/1"), Position(3, 0, 2, "log/2"))
        await store.transfers.apply([], FeedStep(steps))
        state = await store.feed.state()
        assert (state.next_offsets, state.marks) == ({0: 5, 3: 2}, {0: "log/1", 3: "log/2"})
        await store.transfers.apply([], FeedStep((Position(0, 5, 5, "log/3"),)))
        await store.recovery.skip_to({0: 4, 3: 9})
        state = await store.feed.state()
        assert (state.next_offsets, state.marks) == ({0: 5, 3: 9}, {0: "log/3", 3: ""})
        await store.feed.restart({0: 2, 3: 0, 7: 1})
        state = await store.feed.state()
        assert {part: after for part, after in state.next_offsets.items() if after} == {0: 2, 7: 1}
        assert not any(state.marks.values())
        with pytest.raises(UnknownPartition):
            await store.transfers.apply([], FeedStep((Position(0, 5, 6, "log/4"),)))
        await store.transfers.apply([], FeedStep((Position(0, 2, 3, "other/1"),)))
        assert (await store.feed.state()).marks[0] == "other/1"
