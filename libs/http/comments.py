"""Comments of .proto files. Compiled modules have none.

They come from a descriptor image (`protos/generate.py --image`), or from the module `comments` that
`protos/generate.py` writes into the root package of the compiled modules.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from libs.contract.descriptors import Contract
from libs.contract.schemas import NEWEST
from libs.errors import BatonError

OWN_ROOT = "libs.pb"

_EXAMPLE = re.compile(r"^ ?Example: (.+)$", re.MULTILINE)

_Place = tuple[int, ...]
"""Path in a file's descriptor: field numbers and indexes."""


class UnfitComment(BatonError):
    """The example in a comment is not JSON."""


@dataclass(frozen=True, slots=True)
class Comment:
    text: str = ""
    """Paragraphs separated by an empty line, without line breaks inside."""
    example: Any = None
    """Value of a line `Example: VALUE`, which is JSON."""


NO_COMMENT = Comment()


@dataclass(frozen=True, slots=True)
class Comments:
    """Comments by the full name of the described element."""

    found: Mapping[str, Comment] = field(default_factory=dict)

    @classmethod
    def of(cls, image: FileDescriptorSet) -> Comments:
        found: dict[str, Comment] = {}
        for file in image.file:
            texts = {tuple(part.path): part.leading_comments for part in file.source_code_info.location}
            for name, place in _places(file):
                if text := texts.get(place, ""):
                    found[name] = _read(text, name)
        return cls(MappingProxyType(found))

    @classmethod
    def load(cls, contract: Contract, schema: int = NEWEST) -> Comments:
        """The written comments of the contract and of Baton's own protos. In an old schema version, a message has the
        comments of the form that takes its place."""
        found: dict[str, Comment] = {}
        for root in dict.fromkeys((OWN_ROOT, _root(contract))):
            found |= {name: Comment(*comment) for name, comment in _written(root).items()}
        for message, form in contract.schemas.forms.get(schema, {}).items():
            of_form = {name: text for name, text in found.items() if name == form or name.startswith(f"{form}.")}
            found |= {message + name.removeprefix(form): text for name, text in of_form.items()}
        return cls(MappingProxyType(found))

    def at(self, full_name: str) -> Comment:
        return self.found.get(full_name, NO_COMMENT)


def _root(contract: Contract) -> str:
    """Root package: "libs.pb" if package "sandbox.v1" is compiled as "libs.pb.sandbox.v1"."""
    method = next(iter(contract.methods.values()))
    pool: Any = method.request_class.DESCRIPTOR.file.pool
    package = pool.FindFileContainingSymbol(contract.service).package
    return contract.package.removesuffix(package).removesuffix(".")


def _written(root: str) -> Mapping[str, tuple[str, Any]]:
    """Written comments of a root package; {} if another generator made the modules."""
    try:
        found: Mapping[str, tuple[str, Any]] = importlib.import_module(f"{root}.comments").COMMENTS
    except (ImportError, AttributeError, ValueError):
        return {}
    return found


def _read(text: str, name: str) -> Comment:
    shown = _EXAMPLE.search(text)
    example = None
    if shown is not None:
        try:
            example = json.loads(shown[1])
        except ValueError as error:
            raise UnfitComment(f"{name}: Example: {shown[1]} is not JSON: {error}") from None
    paragraphs = re.split(r"\n\s*\n", _EXAMPLE.sub("", text))
    return Comment("\n\n".join(filter(None, (" ".join(part.split()) for part in paragraphs))), example)


def _places(file: FileDescriptorProto) -> Iterator[tuple[str, _Place]]:
    number = FileDescriptorProto.DESCRIPTOR.fields_by_name
    for at, message in enumerate(file.message_type):
        yield from _of_message(message, file.package, (number["message_type"].number, at))
    for at, enum in enumerate(file.enum_type):
        yield from _of_parts(enum, enum.value, "value", file.package, (number["enum_type"].number, at))
    for at, service in enumerate(file.service):
        yield from _of_parts(service, service.method, "method", file.package, (number["service"].number, at))


def _of_message(message: DescriptorProto, scope: str, place: _Place) -> Iterator[tuple[str, _Place]]:
    number = DescriptorProto.DESCRIPTOR.fields_by_name
    name = f"{scope}.{message.name}"
    yield from _of_parts(message, message.field, "field", scope, place)
    for at, nested in enumerate(message.nested_type):
        yield from _of_message(nested, name, (*place, number["nested_type"].number, at))
    for at, enum in enumerate(message.enum_type):
        yield from _of_parts(enum, enum.value, "value", name, (*place, number["enum_type"].number, at))


def _of_parts(
    whole: DescriptorProto | EnumDescriptorProto | ServiceDescriptorProto,
    parts: Sequence[Any],
    field_name: str,
    scope: str,
    place: _Place,
) -> Iterator[tuple[str, _Place]]:
    """Names of enum values are qualified by the enum, unlike in protobuf."""
    name = f"{scope}.{whole.name}"
    yield name, place
    number = type(whole).DESCRIPTOR.fields_by_name[field_name].number
    for at, part in enumerate(parts):
        yield f"{name}.{part.name}", (*place, number, at)
