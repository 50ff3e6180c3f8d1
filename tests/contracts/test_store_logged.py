"""Every store tells which of its changes are not in the log yet."""

from __future__ import annotations

from libs.store.port import StorePorts
from tests.contracts.store_adapters import own, put

KEY = "sandboxes/a"
KEYS = ["sandboxes/b", "sandboxes/c"]


async def test_a_change_is_unlogged_until_exactly_it_is_acknowledged(store: StorePorts) -> None:
    await own(store, [KEY, *KEYS])
    names = [(KEY, (await put(store, KEY, f"r{number}", "w")).version) for number in range(3)]
    names.append((KEYS[0], (await put(store, KEYS[0], "r", "w")).version))
    never = (KEYS[1], names[0][1])
    assert await store.outbox.unlogged([*names, never]) == set(names)
    assert await store.outbox.unlogged(names[1:2]) == {names[1]}
    await store.outbox.ack([names[0], names[3]])
    assert await store.outbox.unlogged([*names, never]) == {names[1], names[2]}
    assert await store.outbox.unlogged([]) == set()
