"""What stores keep of a sandbox beside it: what a list can filter by, and which lease it shows."""

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
    """State, account, labels and lease; none for a stub and for a payload that is not a sandbox, or of a version that
    this program does not know.

    Old records may hold an account longer than an index takes, and zeros, which not every database takes. No filter can
    ask for those; but a store that cannot keep a record would never take it over.
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
