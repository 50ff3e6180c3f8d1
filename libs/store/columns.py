"""Projections of a row's payload that a store keeps beside it: the columns that lists filter by, and the lease's
mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from libs.contract.pages import ACCOUNT, Filter
from libs.ownership.model import Row


@dataclass(frozen=True, slots=True)
class Columns:
    """The projections of one row. They are empty if the payload cannot be read."""

    equals: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: str = ""
    """Mark of the grant or renewal of a lease that the row shows; "" if it shows no lease. When the mark changes, the
    store begins to count `Row.lease_seconds` again, the time for which it has known the lease."""


ColumnsOf = Callable[[Row], Columns]


def matches(row: Row, columns: Columns, wanted: Filter) -> bool:
    """Return whether a row matches a filter. Every adapter's list must agree with this function.

    A deleted row without payload was never a record: it keeps a request to delete a record that did not exist. No list
    shows it.
    """
    return (
        (row.live or (wanted.show_deleted and bool(row.payload)))
        and all(columns.equals.get(name) == value for name, value in wanted.equals)
        and all(columns.labels.get(name) == value for name, value in wanted.labels)
        and (wanted.accounts is None or columns.equals.get(ACCOUNT) in wanted.accounts)
    )
