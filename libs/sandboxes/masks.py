"""Update masks: the fields that an update takes from its request.

* No mask: every field that is set in the request, field by field in the spec. No field is cleared.
* Paths: those of `PATHS`. A named field that is not set is cleared; a map or a list is replaced as a whole.
* `*`, alone: all fields.

Unknown fields are taken with `*` and without a mask, those inside the spec also with `spec`. They replace the sandbox's
unknown fields of the same numbers; others stay, even if the request lacks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from libs.errors import InvalidField
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.unknown import take_unknown
from libs.sandboxes.validation import FIELD_CHECKS, SPEC_CHECKS

FIELD = "update_mask"
EVERYTHING = "*"
FIELDS = tuple(FIELD_CHECKS)
SPEC_FIELDS = tuple(SPEC_CHECKS)
PATHS = (*FIELDS, "spec", *(f"spec.{name}" for name in SPEC_FIELDS))

MAX_PATHS = 64

_NOT_FOR_CLIENTS = {
    **dict.fromkeys(
        ["uid", "schema_version", "revision", "etag", "create_time", "update_time", "delete_time"],
        "it is output only; ",
    ),
    "name": "a sandbox keeps its name; ",
    "lease": "AcquireLease, RenewLease and ReleaseLease change it; ",
    "account": "a sandbox keeps its account; ",
}


@dataclass(frozen=True, slots=True)
class Selection:
    """The fields that an update takes from its request."""

    fields: tuple[str, ...]
    spec_fields: tuple[str, ...]
    unknown: bool = False
    """Take unknown fields."""
    spec_unknown: bool = False
    """Take unknown fields of the spec."""
    whole: bool = False
    """The request describes the whole sandbox, not named fields."""


def select(paths: Sequence[str], sandbox: Sandbox, names: Mapping[str, str] | None = None) -> Selection:
    """The fields that the mask takes from this request. Raises InvalidField.

    `names`: field names of an older schema version, with those of the newest. Fields that are not among them stay
    unchanged, also with `*` and without a mask: a client must not change a field that its version lacks.
    """
    if len(paths) > MAX_PATHS:
        raise InvalidField(FIELD, f"{len(paths)} paths", f"at most {MAX_PATHS} paths")
    if names is not None:
        return _select_named(paths, sandbox, names)
    if not paths:
        return _populated(sandbox)
    if EVERYTHING in paths:
        if len(paths) > 1:
            raise InvalidField(FIELD, ",".join(paths), f'"{EVERYTHING}" stands alone')
        return Selection(FIELDS, SPEC_FIELDS, unknown=True, spec_unknown=True, whole=True)
    for path in paths:
        if path not in PATHS:
            why = _NOT_FOR_CLIENTS.get(path, "")
            raise InvalidField(FIELD, path, f'{why}the paths are {", ".join(PATHS)}, or "{EVERYTHING}"')
    whole_spec = "spec" in paths
    return Selection(
        tuple(name for name in FIELDS if name in paths),
        tuple(name for name in SPEC_FIELDS if whole_spec or f"spec.{name}" in paths),
        spec_unknown=whole_spec,
    )


def _select_named(paths: Sequence[str], sandbox: Sandbox, names: Mapping[str, str]) -> Selection:
    for path in paths:
        if path not in names and path != EVERYTHING:
            raise InvalidField(FIELD, path, f'the paths are {", ".join(names)}, or "{EVERYTHING}"')
    translated = [path if path == EVERYTHING else names[path] for path in paths]
    chosen = select(translated, sandbox)
    return replace(
        chosen,
        fields=tuple(name for name in chosen.fields if name in names.values()),
        spec_fields=tuple(name for name in chosen.spec_fields if f"spec.{name}" in names.values()),
        unknown=False,
        spec_unknown=False,
    )


def _populated(sandbox: Sandbox) -> Selection:
    set_fields = {field.name for field, _ in sandbox.ListFields()}
    set_in_spec = {field.name for field, _ in sandbox.spec.ListFields()}
    return Selection(
        tuple(name for name in FIELDS if name in set_fields),
        tuple(name for name in SPEC_FIELDS if name in set_in_spec),
        unknown=True,
        spec_unknown=True,
        whole=True,
    )


def apply(selection: Selection, target: Sandbox, source: Sandbox) -> None:
    """Copy the selected fields from `source` to `target`."""
    for name in selection.fields:
        _assign(target, source, name)
    for name in selection.spec_fields:
        _assign(target.spec, source.spec, name)
    if selection.spec_unknown:
        take_unknown(target.spec, source.spec)
    if selection.unknown:
        take_unknown(target, source)


def _assign(target: Message, source: Message, name: str) -> None:
    target.ClearField(name)
    field = source.DESCRIPTOR.fields_by_name[name]
    value = getattr(source, name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(target, name).update(value)
    elif field.is_repeated:
        getattr(target, name).extend(value)
    elif field.message_type is not None:
        if source.HasField(name):
            getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)
