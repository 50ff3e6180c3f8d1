"""Schema versions of sandboxes, as one table of forms.

Rule 1: all code works on the model, a `Sandbox` of the newest version. A form turns the bytes of its version into the
model and back; nothing else knows that there are other versions.
Rule 2: nothing is lost on the way. What a version has no field for stays in the message under the model's number, where
a program of that version keeps it as fields that it does not know.
Rule 3: a record is kept in the version that it was written with, which is the newest of those that its writers speak.
Field `schema_version` has the same number in every version, so an answer that was kept says what it is in.
Rule 4: of a version that is not in the table nothing is read and nothing written (`SchemaUnknown`); its bytes are kept.
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
"""As the contract's option has it."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one version writes a sandbox."""

    version: int
    write: Callable[[Sandbox], bytes]
    """From the model, whose `schema_version` is this one already; the same bytes for the same model."""
    read: Callable[[bytes], Sandbox]
    """Raises DecodeError for what is no sandbox, InvalidField for a value that no sandbox has."""
    paths: Mapping[str, str] | None = None
    """What a client of the version can change: its names of fields, and the model's. None: the model's own."""
    numbers: frozenset[int] = field(default_factory=frozenset)
    """Fields that stand in messages of no other version."""
    keep_exact: Callable[[Sandbox, Sandbox], None] | None = None
    """Of what a client of the version says in an update, and of the sandbox as it is: puts exact values into the first,
    where it says what the version shows of the second. None: the version shows everything exactly."""

    @property
    def is_model(self) -> bool:
        """Its messages need no reading."""
        return self.read is read_model

    @contextmanager
    def words(self) -> Iterator[None]:
        """Refusals name fields as this version does."""
        try:
            yield
        except InvalidField as error:
            renamed = self._renamed(error.field)
            if renamed == error.field:
                raise
            text = error.message.removeprefix(error.field)
            raise _renamed(error, renamed, renamed + text) from None

    def _renamed(self, said: str) -> str:
        for mine, models in (self.paths or {}).items():
            place = f"sandbox.{models}"
            if said == place or said.startswith((f"{place}[", f"{place} ")):
                return f"sandbox.{mine}{said.removeprefix(place)}"
        return said


def _renamed(error: InvalidField, name: str, message: str) -> InvalidField:
    made = InvalidField(name, "", error.expected)
    made.args = (message,)
    return made


def write_model(sandbox: Sandbox) -> bytes:
    return sandbox.SerializeToString(deterministic=True)


def read_model(data: bytes) -> Sandbox:
    return Sandbox.FromString(data)


class Schemas:
    """A table of forms."""

    def __init__(self, forms: Sequence[Form]) -> None:
        """One of each version."""
        self._forms = {form.version: form for form in forms}
        self.versions = tuple(sorted(self._forms))
        self.oldest, self.newest = self.versions[0], self.versions[-1]

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"

    def form(self, version: int, name: str = "") -> Form:
        """0 is the newest. Raises SchemaUnknown, which names the record."""
        found = self._forms.get(version or self.newest)
        if found is None:
            raise SchemaUnknown(version, f"this store understands {self}", name)
        return found

    def model_of(self, row: Row) -> Sandbox:
        """What a row holds; its `schema_version` is the one that it is kept in. Raises SchemaUnknown, DecodeError."""
        form = self.form(row.schema_version, row.key)
        sandbox = form.read(row.payload)
        sandbox.schema_version = form.version
        return sandbox

    def model_of_request(self, sandbox: Sandbox, version: int) -> Sandbox:
        """What a client of the version means by the sandbox in its request. Raises InvalidField, DecodeError."""
        form = self.form(version)
        unknown = UnknownFieldSet(sandbox)
        for number in [unknown[place].field_number for place in range(len(unknown))]:
            for other in self._forms.values():
                if other is not form and number in other.numbers:
                    expected = f"version {other.version} has it: say {METADATA}: {other.version} in the call's metadata"
                    raise InvalidField("sandbox", f"field {number}", expected)
        return sandbox if form.is_model else form.read(write_model(sandbox))

    def exactly(self, said: Sandbox, current: Sandbox, version: int) -> Sandbox:
        """What a client of the version says in an update of a sandbox, and what it has not changed as it is there."""
        keep = self.form(version).keep_exact
        if keep is None:
            return said
        exact = Sandbox()
        exact.CopyFrom(said)
        keep(exact, current)
        return exact

    def write(self, sandbox: Sandbox, version: int) -> bytes:
        """In that version's form. The model is left in that version too: it must not be used any more."""
        form = self.form(version)
        sandbox.schema_version = form.version
        return form.write(sandbox)

    def converted(self, row: Row, to: int) -> bytes:
        """The row's sandbox as a client of version `to` reads it. Raises SchemaUnknown, RecordCorrupt."""
        have, want = self.form(row.schema_version, row.key), self.form(to)
        try:
            model = have.read(row.payload)
        except (DecodeError, InvalidField):
            raise RecordCorrupt(row.key) from None
        return row.payload if have is want else self.write(model, want.version)

    def answer(self, data: bytes, to: int) -> bytes:
        """As `converted`, of an answer that was kept: it says what it is in. Raises SchemaUnknown."""
        have, want = self.form(Sandbox.FromString(data).schema_version), self.form(to)
        return data if have is want or not data else self.write(have.read(data), want.version)


FLAT = Form(1, schema_v1.write, schema_v1.read, schema_v1.PATHS, schema_v1.NUMBERS, schema_v1.keep_exact)
STRUCTURED = Form(2, write_model, read_model)

SCHEMAS = Schemas((FLAT, STRUCTURED))

__all__ = ["FLAT", "METADATA", "NEWEST", "SCHEMAS", "STRUCTURED", "Form", "Schemas", "read_model", "write_model"]
