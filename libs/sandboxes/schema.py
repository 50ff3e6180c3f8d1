"""Schema versions of sandboxes, as one table of forms.

Rule 1: all code works on the model, a `Sandbox` of the newest version. A form converts the bytes of its version to the
model and back; no other code handles several versions.

Rule 2: conversions lose nothing. Fields that a version lacks stay in the message under their numbers in the model; a
program of that version keeps them as unknown fields.

Rule 3: a record is kept in the newest version of its writers. Field `schema_version` has the same number in every
version, so a stored answer names its own version.

Rule 4: content of a version that is not in the table is neither read nor written (`SchemaUnknown`); its bytes are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from libs.contract.schemas import NEWEST, RecordCorrupt, SchemaUnknown
from libs.errors import InvalidField
from libs.ownership.model import Row
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes import schema_v1

METADATA = "sandbox-schema-version"
"""Metadata of a call, as in the contract's option."""


@dataclass(frozen=True, slots=True)
class Form:
    """Encoding of a sandbox in one schema version."""

    version: int
    write: Callable[[Sandbox], bytes]
    """Convert from the model, whose `schema_version` is already this version. Deterministic."""
    read: Callable[[bytes], Sandbox]
    """Convert to the model. Raises DecodeError for bytes that are not a sandbox, InvalidField for an impossible
    value."""
    paths: Mapping[str, str] | None = None
    """Fields that a client of the version can change: its names, and the model's. None: the model's own names."""
    numbers: frozenset[int] = field(default_factory=frozenset)
    """Field numbers that only this version uses."""
    keep_exact: Callable[[Sandbox, Sandbox], None] | None = None
    """`keep_exact(update, current)` restores exact values in an update where it repeats the rounded values that the
    version shows of the current sandbox. None: the version shows every value exactly."""

    @property
    def is_model(self) -> bool:
        """The version is the model's own."""
        return self.read is read_model

    @contextmanager
    def own_field_names(self) -> Iterator[None]:
        """Make InvalidField name fields as this version does."""
        try:
            yield
        except InvalidField as error:
            renamed = self._renamed(error.field)
            if renamed == error.field:
                raise
            text = error.message.removeprefix(error.field)
            raise _renamed(error, renamed, renamed + text) from None

    def _renamed(self, field_name: str) -> str:
        for mine, models in (self.paths or {}).items():
            place = f"sandbox.{models}"
            if field_name == place or field_name.startswith((f"{place}[", f"{place} ")):
                return f"sandbox.{mine}{field_name.removeprefix(place)}"
        return field_name


def _renamed(error: InvalidField, name: str, message: str) -> InvalidField:
    made = InvalidField(name, "", error.expected)
    made.args = (message,)
    return made


def write_model(sandbox: Sandbox) -> bytes:
    return sandbox.SerializeToString(deterministic=True)


def read_model(data: bytes) -> Sandbox:
    return Sandbox.FromString(data)


class Schemas:
    """A table of forms, one per version."""

    def __init__(self, forms: Sequence[Form]) -> None:
        self._forms = {form.version: form for form in forms}
        self.versions = tuple(sorted(self._forms))
        self.oldest, self.newest = self.versions[0], self.versions[-1]

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"

    def form(self, version: int, name: str = "") -> Form:
        """Form of a version; 0 is the newest. Raises SchemaUnknown with the record's name."""
        found = self._forms.get(version or self.newest)
        if found is None:
            raise SchemaUnknown(version, f"this store understands {self}", name)
        return found

    def model_of(self, row: Row) -> Sandbox:
        """Convert the row's payload to the model; `schema_version` is the row's. Raises SchemaUnknown, DecodeError."""
        form = self.form(row.schema_version, row.key)
        sandbox = form.read(row.payload)
        sandbox.schema_version = form.version
        return sandbox

    def model_of_request(self, sandbox: Sandbox, version: int) -> Sandbox:
        """Convert a client's sandbox of this version to the model. Raises InvalidField, DecodeError."""
        form = self.form(version)
        unknown = UnknownFieldSet(sandbox)
        for number in [unknown[place].field_number for place in range(len(unknown))]:
            for other in self._forms.values():
                if other is not form and number in other.numbers:
                    expected = (
                        f"version {other.version} has it: send {METADATA}: {other.version} in the call's metadata"
                    )
                    raise InvalidField("sandbox", f"field {number}", expected)
        return sandbox if form.is_model else form.read(write_model(sandbox))

    def exactly(self, update: Sandbox, current: Sandbox, version: int) -> Sandbox:
        """The client's update with exact values where it repeats rounded ones of the current sandbox: see
        `Form.keep_exact`."""
        keep = self.form(version).keep_exact
        if keep is None:
            return update
        exact = Sandbox()
        exact.CopyFrom(update)
        keep(exact, current)
        return exact

    def write(self, sandbox: Sandbox, version: int) -> bytes:
        """Encode the model in a version. It must not be used afterwards."""
        form = self.form(version)
        sandbox.schema_version = form.version
        return form.write(sandbox)

    def converted(self, row: Row, to: int) -> bytes:
        """The row's sandbox in version `to`. Raises SchemaUnknown, RecordCorrupt."""
        have, want = self.form(row.schema_version, row.key), self.form(to)
        try:
            model = have.read(row.payload)
        except (DecodeError, InvalidField):
            raise RecordCorrupt(row.key) from None
        return row.payload if have is want else self.write(model, want.version)

    def answer(self, data: bytes, to: int) -> bytes:
        """A stored answer in version `to`. Raises SchemaUnknown."""
        have, want = self.form(Sandbox.FromString(data).schema_version), self.form(to)
        return data if have is want or not data else self.write(have.read(data), want.version)


FLAT = Form(1, schema_v1.write, schema_v1.read, schema_v1.PATHS, schema_v1.NUMBERS, schema_v1.keep_exact)
STRUCTURED = Form(2, write_model, read_model)

SCHEMAS = Schemas((FLAT, STRUCTURED))

__all__ = ["FLAT", "METADATA", "NEWEST", "SCHEMAS", "STRUCTURED", "Form", "Schemas", "read_model", "write_model"]
