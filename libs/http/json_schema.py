"""JSON Schema of messages in proto3's JSON mapping.

Sources: https://protobuf.dev/programming-guides/json/, https://json-schema.org/draft/2020-12/schema (the dialect of
OpenAPI 3.1), https://google.aip.dev/203 (field behavior).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from libs.http.comments import Comments

Schema = dict[str, Any]

REQUIRED = field_behavior_pb2.REQUIRED
OUTPUT_ONLY = field_behavior_pb2.OUTPUT_ONLY
IMMUTABLE = field_behavior_pb2.IMMUTABLE

_INT32, _UINT32 = {"type": "integer", "format": "int32"}, {"type": "integer", "format": "uint32", "minimum": 0}
_INT64 = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}
_UINT64 = {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"}

_NOT_FINITE: Schema = {"enum": ["NaN", "Infinity", "-Infinity"]}

DEFS = "#/$defs/"
"""Prefix of references in a standalone schema."""

_SCALARS: Mapping[int, Schema] = MappingProxyType(
    {
        FieldDescriptor.CPPTYPE_INT32: _INT32,
        FieldDescriptor.CPPTYPE_UINT32: _UINT32,
        FieldDescriptor.CPPTYPE_INT64: _INT64,
        FieldDescriptor.CPPTYPE_UINT64: _UINT64,
        FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
        FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
        FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
        FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    }
)

_WELL_KNOWN: Mapping[str, Schema] = MappingProxyType(
    {
        "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
        "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
        "google.protobuf.FieldMask": {
            "type": "string",
            "pattern": r"^(([A-Za-z0-9.]+|\*)(,([A-Za-z0-9.]+|\*))*)?$",
        },
        "google.protobuf.Any": {
            "type": "object",
            "properties": {"@type": {"type": "string"}},
            "required": ["@type"],
        },
        "google.protobuf.Struct": {"type": "object"},
        "google.protobuf.Value": {},
        "google.protobuf.ListValue": {"type": "array"},
        "google.protobuf.Empty": {"type": "object"},
    }
)


class Schemas:
    """Schemas of messages and enums by name, collected as they are referenced."""

    def __init__(
        self, package: str, comments: Comments, place: str = "#/components/schemas/", *, strict: bool = True
    ) -> None:
        """`package`: prefix that names omit. `place`: prefix of references. `strict`: the schema of requests, with
        known fields only; else of replies, which may come from a newer program: with unknown fields and enum values,
        and with numbers that are not finite."""
        self._package = f"{package}."
        self._comments = comments
        self._place = place
        self._strict = strict
        self.found: dict[str, Schema] = {}

    def reference(self, kind: Descriptor | EnumDescriptor) -> Schema:
        name = kind.full_name.removeprefix(self._package)
        if name not in self.found:
            self.found[name] = {}  # A message may contain itself.
            self.found[name] = self.message(kind) if isinstance(kind, Descriptor) else self._enum(kind)
        return {"$ref": self._place + name}

    def message(self, kind: Descriptor, leave_out: Collection[str] = ()) -> Schema:
        """The schema of a message that is an object in JSON. `leave_out`: names of fields to omit."""
        fields = [field for field in kind.fields if field.name not in leave_out]
        properties = {field.json_name: self.field(field) for field in fields}
        schema = self._described({"type": "object"}, kind.full_name) | {"properties": properties}
        return schema | {"additionalProperties": False} if self._strict else schema

    def alone(self, kind: Descriptor) -> Schema:
        """The message's schema with all schemas that it references, for a `place` of DEFS."""
        schema = self.message(kind)
        return schema | {"$defs": self.found} if self.found else schema

    def field(self, field: FieldDescriptor) -> Schema:
        schema = self._described(self._of_field(field), field.full_name)
        example = self._comments.at(field.full_name).example
        if example is not None:
            schema["examples"] = [example]
        if behaves(field, OUTPUT_ONLY):
            schema["readOnly"] = True
        if behaves(field, IMMUTABLE):
            note = "Immutable: set at creation only."
            schema["description"] = f"{schema['description']} {note}" if "description" in schema else note
        return schema

    def needs(self, kind: Descriptor, leave_out: Collection[str] = ()) -> Schema:
        """Required fields of a request and of its messages; {} if there are none.

        They stand beside the message's schema, since replies and updates may lack fields that a creation needs
        (AIP-203).
        """
        needed = [field for field in kind.fields if behaves(field, REQUIRED) and field.name not in leave_out]
        if not needed:
            return {}
        deeper = {
            field.json_name: inner
            for field in needed
            if field.message_type is not None and not field.is_repeated and (inner := self.needs(field.message_type))
        }
        return {"required": [field.json_name for field in needed]} | ({"properties": deeper} if deeper else {})

    def example(
        self, kind: Descriptor, leave_out: Collection[str] = (), above: tuple[Descriptor, ...] = ()
    ) -> dict[str, Any]:
        """Fields that a caller may set and that have an example; {} if none has. `above`: the messages that contain
        this one."""
        found: dict[str, Any] = {}
        for field in kind.fields:
            if behaves(field, OUTPUT_ONLY) or field.name in leave_out or behaves(field, field_behavior_pb2.IDENTIFIER):
                continue
            example, inner = self._comments.at(field.full_name).example, field.message_type
            if example is None and inner is not None and not field.is_repeated and inner not in (*above, kind):
                example = self.example(inner, above=(*above, kind)) or None
            if example is not None:
                found[field.json_name] = example
        return found

    def _of_field(self, field: FieldDescriptor) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._one(message.fields_by_name["value"])}
        if field.is_repeated:
            return {"type": "array", "items": self._one(field)}
        return self._one(field)

    def _one(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            known = _WELL_KNOWN.get(field.message_type.full_name)
            return dict(known) if known is not None else self.reference(field.message_type)
        if field.enum_type is not None:
            return self.reference(field.enum_type)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64", "format": "byte"}
        scalar = dict(_SCALARS[field.cpp_type])
        return scalar if self._strict or scalar["type"] != "number" else {"anyOf": [scalar, _NOT_FINITE]}

    def _enum(self, kind: EnumDescriptor) -> Schema:
        schema: Schema = {"type": "string", "enum": [value.name for value in kind.values]}
        if not self._strict:
            schema = {"anyOf": [schema, {"type": "integer", "description": "A value of a newer version."}]}
        return self._described(schema, kind.full_name)

    def _described(self, schema: Schema, full_name: str) -> Schema:
        text = self._comments.at(full_name).text
        return schema | {"description": text} if text else schema


def behaves(field: FieldDescriptor, behavior: int) -> bool:
    """Whether the proto gives the field this `google.api.field_behavior`."""
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def singular(noun: str) -> str:
    """Singular of a collection's name: "sandbox" for "sandboxes"."""
    for ending, pattern in (("y", r"ies$"), ("", r"(?<=x)es$|(?<=ch)es$|(?<=sh)es$|(?<=ss)es$"), ("", r"(?<!s)s$")):
        if re.search(pattern, noun):
            return re.sub(pattern, ending, noun)
    return noun
