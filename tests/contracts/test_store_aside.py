"""Every store's promises about events that the log refuses."""

from __future__ import annotations

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Version
from libs.store.aside import Refusal
from libs.store.limits import OutboxLimits
from libs.store.port import StorePorts
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import own, put
from tests.waiting import eventually

KEY, OTHER = "sandboxes/a", "sandboxes/b"
FIRST = KEY, Version(0, 1)
TOO_LARGE = "too large for the log"


async def refused(store: StorePorts) -> None:
    """The first of two changes is set aside."""
    await own(store, [KEY, OTHER])
    await put(store, KEY, "r1", "one")
    await put(store, OTHER, "r1", "one")
    assert await store.aside.set_aside([Refusal(*FIRST, TOO_LARGE)]) == [FIRST]


async def logged(store: StorePorts) -> None:
    """All that is pulled is acknowledged."""
    while entries := await store.outbox.pull(10, 0):
        await store.outbox.ack([(entry.key, entry.version) for entry in entries])


async def test_a_refused_event_leaves_the_outbox_and_is_shown_with_its_reason(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    (before,) = await store.outbox.pull(10, 0)
    await refused(store)
    assert [entry.key for entry in await store.outbox.pull(10, 0)] == [OTHER]
    (entry,) = await store.aside.entries(10)
    assert (entry.change, entry.reason) == (before, TOO_LARGE)
    assert await store.aside.count() == 1

    async def only_the_other_waits() -> bool:
        return (await store.outbox.depth()).entries == 1

    await eventually(only_the_other_waits)


async def test_a_refused_event_counts_as_not_logged_until_the_log_has_it(store: StorePorts) -> None:
    await refused(store)
    assert await store.outbox.unlogged([FIRST, (OTHER, Version(0, 1))]) == {FIRST, (OTHER, Version(0, 1))}
    await logged(store)
    assert await store.outbox.unlogged([FIRST, (OTHER, Version(0, 1))]) == {FIRST}
    assert await store.aside.remove([FIRST]) == 1
    assert await store.aside.remove([FIRST]) == 0
    assert await store.outbox.unlogged([FIRST]) == set()


async def test_a_refused_event_does_not_age_the_outbox(make_store: MakeStore) -> None:
    async with make_store(OutboxLimits(seconds=100)) as store:
        await refused(store)
        await logged(store)
        await store.upkeep.tick(1000)
        await put(store, OTHER, "r2", "two")
        assert (await store.outbox.depth()).oldest_seconds < 100


async def test_an_event_that_is_in_the_log_by_now_is_not_set_aside(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    await logged(store)
    assert await store.aside.set_aside([Refusal(*FIRST, TOO_LARGE)]) == []
    assert await store.aside.count() == 0


async def test_no_more_than_a_bound_is_set_aside(make_store: MakeStore) -> None:
    async with make_store() as store:
        await own(store, [KEY])
        for number in range(1002):
            await put(store, KEY, f"r{number}", "w")
        refusals = [Refusal(KEY, Version(0, revision), TOO_LARGE) for revision in range(1, 1003)]
        assert len(await store.aside.set_aside(refusals)) == 1000
        assert await store.aside.set_aside(refusals[1000:]) == []
        assert len(await store.outbox.pull(10, 0)) == 2


async def test_a_refused_event_is_forgotten_after_the_retry_window_if_a_newer_one_is_in_the_log(
    store: StorePorts,
) -> None:
    await refused(store)
    await logged(store)
    await store.upkeep.tick(RETRY_WINDOW_SECONDS + 1)
    assert await store.aside.prune() == 0, "the log has nothing of it"
    await put(store, KEY, "r2", "smaller")
    assert await store.aside.prune() == 0, "nor has it the newer one yet"
    await logged(store)
    assert await store.aside.prune() == 1
    assert await store.aside.count() == 0
