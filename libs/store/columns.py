"""What a store keeps beside a row's payload, as projections of it: what a list can filter by, and the lease's mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from libs.contract.pages import Filter
from libs.ownership.model import Row


@dataclass(frozen=True, slots=True)
class Columns:
    """Of one row. A row whose payload cannot be read has none."""

    equals: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: str = ""
    """Which grant or renewal of a lease the row shows; "" for none. When it changes, the store begins to count how long
    it has known the lease (`Row.lease_seconds`)."""


ColumnsOf = Callable[[Row], Columns]


def matches(row: Row, columns: Columns, wanted: Filter) -> bool:
    """The verdict of a filter on a row: what every adapter's list must agree with. A row that is deleted and has no
    payload was never a record (it remembers a request to delete what was not there): no list shows it."""
    return (
        (row.live or (wanted.show_deleted and bool(row.payload)))
        and all(columns.equals.get(name) == value for name, value in wanted.equals)
        and all(columns.labels.get(name) == value for name, value in wanted.labels)
    )
