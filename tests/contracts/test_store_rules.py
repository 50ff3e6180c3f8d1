"""The contract of stores for the records of a cohort: by a pattern of names, or by the index of accounts."""

from __future__ import annotations

from typing import Any

import pytest

from libs.ownership.model import Store
from libs.store.inspection import ExportQuery
from libs.store.port import StorePorts
from tests.contracts.store_adapters import record_of, row_of

ROWS = {
    "sandboxes/a": ("acme", Store.A, ""),
    "sandboxes/stg": ("acme", Store.A, ""),
    "sandboxes/stg-": ("corp", Store.B, ""),
    "sandboxes/stg-1": ("acme", Store.A, ""),
    "sandboxes/stg-2": ("acme", Store.B, ""),
    "sandboxes/stg-3": ("acme", Store.A, "yes"),
    "sandboxes/stg-é": ("corp", Store.A, ""),
    "sandboxes/stg.": ("corp", Store.A, ""),
}
STAGING = ["sandboxes/stg-", "sandboxes/stg-1", "sandboxes/stg-2", "sandboxes/stg-3", "sandboxes/stg-é"]
ACME = ["sandboxes/a", "sandboxes/stg", "sandboxes/stg-1", "sandboxes/stg-2", "sandboxes/stg-3"]

CASES = [
    ({"pattern": "sandboxes/stg-*"}, STAGING),
    ({"pattern": "sandboxes/stg-1"}, ["sandboxes/stg-1"]),
    ({"pattern": "sandboxes/stg"}, ["sandboxes/stg"]),
    ({"pattern": "sandboxes/none*"}, []),
    ({"pattern": "*"}, list(ROWS)),
    ({"account": "acme"}, ACME),
    ({"account": "nobody"}, []),
    ({"pattern": "sandboxes/stg-*", "account": "acme"}, STAGING[1:4]),
]


@pytest.fixture
async def filled(store: StorePorts) -> StorePorts:
    rows = [
        row_of(key, (0, 1), owner, account=account, deleted=deleted) for key, (account, owner, deleted) in ROWS.items()
    ]
    await store.transfers.apply([record_of(row) for row in rows])
    return store


async def keys(store: StorePorts, *, owned_only: bool = False, **rule: Any) -> list[str]:
    """List the keys by pages of two."""
    found: list[str] = []
    more = True
    while more:
        query = ExportQuery(found[-1] if found else "", 2, owned_only=owned_only, **rule)
        page, more = await store.inspection.keys(query)
        found += page
    return found


@pytest.mark.parametrize(("rule", "expected"), CASES, ids=lambda value: "+".join(map(str, value)) or "none")
async def test_the_keys_of_a_pattern_or_an_account_are_listed_deleted_ones_too(
    filled: StorePorts, rule: dict[str, Any], expected: list[str]
) -> None:
    assert await keys(filled, **rule) == expected
    owners = {key: owner for key, (_, owner, _) in ROWS.items()}
    (mine,) = {
        owner for owner in Store if await keys(filled, owned_only=True) == [k for k in ROWS if owners[k] is owner]
    }
    assert await keys(filled, owned_only=True, **rule) == [key for key in expected if owners[key] is mine]
