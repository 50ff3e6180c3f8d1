"""What a list of sandboxes can filter by."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from libs.ownership.model import Row
from libs.pb.sandbox.v1 import sandbox_pb2 as pb
from libs.sandboxes.transitions import state_name
from libs.store.columns import Columns

__all__ = ["sandbox_columns", "state_name"]


def sandbox_columns(row: Row) -> Columns:
    """State, account and labels; none for a stub and for a payload that is not a sandbox."""
    if not row.payload:
        return Columns()
    try:
        sandbox = pb.Sandbox.FromString(row.payload)
    except DecodeError:
        return Columns()
    return Columns({"state": state_name(sandbox.state), "account": sandbox.account}, dict(sandbox.labels))
