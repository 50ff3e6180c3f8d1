"""Columns that stores derive from a sandbox: the fields that a list filters by, and the lease."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from libs.contract.schemas import SchemaUnknown
from libs.errors import InvalidField
from libs.ownership.model import Row
from libs.sandboxes.leases import mark_of
from libs.sandboxes.schema import SCHEMAS, Schemas
from libs.sandboxes.transitions import state_name
from libs.sandboxes.validation import MAX_ACCOUNT_CHARACTERS
from libs.store.columns import Columns

__all__ = ["sandbox_columns", "state_name"]


def sandbox_columns(row: Row, schemas: Schemas = SCHEMAS) -> Columns:
    """State, account, labels and lease. Empty for a stub, and for a payload that is not a sandbox or has an unknown
    schema version.

    Old records may hold an account longer than an index takes, and NUL characters, which not every database takes. No
    filter can ask for those, so they are left out: otherwise a store would refuse the whole record.
    """
    if not row.payload:
        return Columns()
    try:
        sandbox = schemas.model_of(row)
    except (DecodeError, SchemaUnknown, InvalidField):
        return Columns()
    equals = {"state": state_name(sandbox.state)}
    if len(sandbox.account) <= MAX_ACCOUNT_CHARACTERS and "\0" not in sandbox.account:
        equals["account"] = sandbox.account
    labels = {name: value for name, value in sandbox.labels.items() if "\0" not in name + value}
    return Columns(equals, labels, mark_of(sandbox))
