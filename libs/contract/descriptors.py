"""A contract, read from its compiled descriptors: reads and writes, keys, shapes of lists and watches.

This is all that a router uses of a service. To add a method to a contract, edit its .proto.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from libs.contract.account_option import account_field
from libs.contract.accounts import AccountField
from libs.contract.pages import filter_hash
from libs.contract.requests import parse_request
from libs.contract.schemas import ONE_SCHEMA, SchemaVersions
from libs.contract.unfit import UnfitContract
from libs.errors import InvalidField
from libs.pb.baton.options.v1 import options_pb2

OPERATIONS = ("create", "get", "list", "update", "delete")

_METADATA_NAME = re.compile(r"[a-z][a-z0-9-]*")
_PLACEHOLDER = re.compile(r"\{([a-z0-9_.]+)\}")


@dataclass(frozen=True, slots=True)
class Key:
    """The record's key in a request."""

    template: str
    """Format string: "sandboxes/{}"."""
    parts: tuple[Callable[[Any], str], ...]
    made_id: int | None
    """Index of the part that is generated if it is empty."""
    paths: tuple[str, ...] = ()
    """Field paths of the parts: ("sandbox.name",)."""

    def of(self, request: Message) -> str:
        return self.template.format(*(part(request) for part in self.parts))

    def lacks_id(self, request: Message) -> bool:
        return self.made_id is not None and not self.parts[self.made_id](request)

    def put(self, request: Message, *values: str) -> None:
        """Set the fields of the request so that its key has these parts."""
        for path, value in zip(self.paths, values, strict=True):
            *parents, last = path.split(".")
            message: Any = request
            for parent in parents:
                message = getattr(message, parent)
            setattr(message, last, value)

    def with_id(self, request: Message, made: str) -> str:
        values = [part(request) for part in self.parts]
        if self.made_id is not None:
            values[self.made_id] = made
        return self.template.format(*values)


@dataclass(frozen=True, slots=True)
class ListShape:
    """Positions of a list's fields."""

    items_tag: bytes
    """Bytes before each item in the serialized reply: field number and wire type."""
    token_tag: bytes
    page_token: str
    page_size: str
    default_page_size: int
    max_page_size: int
    items: str
    """Reply field that holds the items."""


@dataclass(frozen=True, slots=True)
class WatchShape:
    """Fields of a watch."""

    items_tag: bytes
    removed: str
    resume_token: str
    """Field of both request and reply."""
    reset: str
    synced: str


@dataclass(frozen=True, slots=True)
class Method:
    path: str
    """Path: "/sandbox.v1.SandboxService/GetSandbox"."""
    name: str
    is_read: bool
    operation: str
    request_class: type[Message]
    reply_class: type[Message]
    key: Key | None
    shape: ListShape | None
    creates: bool
    creates_if: str
    request_id: str
    ignored_reply_fields: tuple[str, ...]
    watch: WatchShape | None = None
    """Set for a method that streams changes."""
    revision: str = ""
    """Reply field with the record's revision, for a write that replies with the record."""
    changes_nothing_if: str = ""
    probe_if: str = ""
    """Synthetic writes set this field and use a key that never existed."""
    new_key: re.Pattern[str] | None = None
    """Pattern for keys of new records; None: any key."""
    unordered_reply_fields: tuple[str, ...] = ()
    tolerated_reply_times: tuple[tuple[str, int], ...] = ()
    """Path, and milliseconds."""

    def parse(self, request: bytes) -> Message:
        """Raises InvalidField if the bytes are not a request of this method."""
        return parse_request(self.request_class, request)

    def may_create(self, request: Message) -> bool:
        """Whether the call may create its record. The store still rejects bad input.

        An old record may have a key that is not allowed for new ones. A call with such a key changes an existing
        record. Without a record it must not move the bucket's ownership: the owner refuses it.
        """
        if not (self.creates or (self.creates_if and getattr(request, self.creates_if))):
            return False
        return self.new_key is None or self.key is None or self.new_key.fullmatch(self.key.of(request)) is not None

    def changes_nothing(self, request: Message) -> bool:
        """Whether the request is a read or only validates."""
        return self.is_read or bool(self.changes_nothing_if and getattr(request, self.changes_nothing_if))

    def page(self, request: Message) -> tuple[int, str, bytes]:
        """Page size, token and question hash of a list request. Raises InvalidField."""
        shape = self.shape
        if shape is None:
            raise ValueError(f"{self.path} is not a list")
        size = getattr(request, shape.page_size)
        token = getattr(request, shape.page_token)
        if size < 0:
            raise InvalidField(shape.page_size, size, f"0 for {shape.default_page_size}, or 1 to {shape.max_page_size}")
        question = self.request_class()
        question.CopyFrom(request)
        question.ClearField(shape.page_size)
        question.ClearField(shape.page_token)
        asked = filter_hash(self.name, question.SerializeToString(deterministic=True))
        return min(size or shape.default_page_size, shape.max_page_size), token, asked

    def watched(self, request: Message) -> tuple[str, bytes]:
        """Token and question hash of a watch request."""
        if self.watch is None:
            raise ValueError(f"{self.path} is not a watch")
        token: str = getattr(request, self.watch.resume_token)
        question = self.request_class()
        question.CopyFrom(request)
        question.ClearField(self.watch.resume_token)
        return token, filter_hash(self.name, question.SerializeToString(deterministic=True))


@dataclass(frozen=True, slots=True)
class Contract:
    service: str
    """Full name of the service."""
    methods: Mapping[str, Method]
    """Methods by name without the service."""
    schemas: SchemaVersions = ONE_SCHEMA
    account: AccountField | None = None
    """The field that the option `account` marks; None if records have no accounts."""
    package: str = ""
    """Package of the compiled module, "libs.pb.sandbox.v1"; "" unless made by `load`."""

    @classmethod
    def load(cls, place: str) -> Contract:
        """Load from "package.module_pb2:ServiceName". Raises UnfitContract."""
        module_name, _, service_name = place.partition(":")
        try:
            file = importlib.import_module(module_name).DESCRIPTOR
            service = file.services_by_name[service_name]
        except (ImportError, AttributeError, KeyError, ValueError):
            raise UnfitContract(f"{place!r} is not a contract: give 'package.module_pb2:ServiceName'") from None
        return replace(cls.of(service), package=module_name.rpartition(".")[0])

    @classmethod
    def of(cls, service: ServiceDescriptor) -> Contract:
        methods = {method.name: _method(method) for method in service.methods}
        schemas = _schemas(service)
        return cls(service.full_name, MappingProxyType(methods), schemas, account_field(service, schemas))


def _schemas(service: ServiceDescriptor) -> SchemaVersions:
    options = service.GetOptions()
    if not options.HasExtension(options_pb2.schema):
        return ONE_SCHEMA
    rule = options.Extensions[options_pb2.schema]
    if not _METADATA_NAME.fullmatch(rule.metadata) or not 0 < rule.oldest <= rule.newest:
        raise UnfitContract(
            f"{service.full_name}: schema: metadata must be a name in lower case, and oldest 1 to newest; they are"
            f" {rule.metadata!r}, {rule.oldest} and {rule.newest}"
        )
    forms: dict[int, dict[str, str]] = {}
    for form in rule.forms:
        forms.setdefault(form.version, {})[form.message] = form.form
    return SchemaVersions(rule.metadata, rule.oldest, rule.newest, MappingProxyType(forms))


def _method(descriptor: MethodDescriptor) -> Method:
    options = descriptor.GetOptions()
    where = descriptor.full_name
    if not options.HasExtension(options_pb2.method):
        raise UnfitContract(f"{where} lacks the option (baton.options.v1.method)")
    rule = options.Extensions[options_pb2.method]
    is_read = options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    _refuse_other_streams(descriptor, rule, where, is_read=is_read)
    if rule.operation not in OPERATIONS:
        raise UnfitContract(f"{where}: operation {rule.operation!r} is not one of {', '.join(OPERATIONS)}")
    if [bool(rule.key), rule.HasField("list"), rule.HasField("watch")].count(True) != 1:
        raise UnfitContract(f"{where}: give either a key or a list, or a watch")
    if not is_read and not (rule.key and rule.request_id):
        raise UnfitContract(f"{where} writes: it needs a key and a request_id field")
    for name in filter(None, (rule.request_id, rule.creates_if, rule.changes_nothing_if, rule.probe_if)):
        _field(descriptor.input_type, name, where)
    if rule.revision:
        _field(descriptor.output_type, rule.revision, where)
    return Method(
        path=f"/{descriptor.containing_service.full_name}/{descriptor.name}",
        name=descriptor.name,
        is_read=is_read,
        operation=rule.operation,
        request_class=GetMessageClass(descriptor.input_type),
        reply_class=GetMessageClass(descriptor.output_type),
        key=_key(descriptor.input_type, rule, where) if rule.key else None,
        shape=_shape(descriptor, rule.list, where) if rule.HasField("list") else None,
        creates=rule.creates,
        creates_if=rule.creates_if,
        request_id=rule.request_id,
        ignored_reply_fields=tuple(rule.ignored_reply_fields),
        watch=_watch(descriptor, rule.watch, where) if rule.HasField("watch") else None,
        revision=rule.revision,
        changes_nothing_if=rule.changes_nothing_if,
        probe_if=rule.probe_if,
        new_key=_pattern(rule.new_key_pattern, where),
        unordered_reply_fields=tuple(rule.unordered_reply_fields),
        tolerated_reply_times=tuple((one.field, one.milliseconds) for one in rule.tolerated_reply_times),
    )


def _pattern(text: str, where: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UnfitContract(f"{where}: new_key_pattern {text!r} is not a regular expression: {error}") from None


def _refuse_other_streams(
    descriptor: MethodDescriptor, rule: options_pb2.MethodRule, where: str, *, is_read: bool
) -> None:
    """Refuse all streams but a read's answers with the option `watch`. Raises UnfitContract."""
    if descriptor.client_streaming or (descriptor.server_streaming and not (is_read and rule.HasField("watch"))):
        raise UnfitContract(
            f"{where} streams: only methods of one request can be routed, with one answer each; a read with the option"
            " `watch` may have many"
        )
    if rule.HasField("watch") and not descriptor.server_streaming:
        raise UnfitContract(f"{where}: a watch answers with a stream")


def _key(request: Descriptor, rule: options_pb2.MethodRule, where: str) -> Key:
    paths = _PLACEHOLDER.findall(rule.key)
    if not paths:
        raise UnfitContract(f"{where}: the key {rule.key!r} names no field of the request")
    for path in paths:
        message: Descriptor | None = request
        *parents, last = path.split(".")
        for name in parents:
            message = _field(message, name, where).message_type
        if _field(message, last, where).type != FieldDescriptor.TYPE_STRING:
            raise UnfitContract(f"{where}: the key's field {path} is not a string")
    if rule.made_id and rule.made_id not in paths:
        raise UnfitContract(f"{where}: made_id {rule.made_id!r} does not stand in the key {rule.key!r}")
    made_id = paths.index(rule.made_id) if rule.made_id else None
    return Key(_PLACEHOLDER.sub("{}", rule.key), tuple(map(attrgetter, paths)), made_id, tuple(paths))


def _shape(descriptor: MethodDescriptor, rule: options_pb2.ListRule, where: str) -> ListShape:
    items = _field(descriptor.output_type, rule.items, where)
    token = _field(descriptor.output_type, rule.next_page_token, where)
    for name in (rule.page_token, rule.page_size):
        _field(descriptor.input_type, name, where)
    if items.message_type is None or not items.is_repeated:
        raise UnfitContract(f"{where}: {rule.items} is not a repeated message")
    if not 0 < rule.default_page_size <= rule.max_page_size:
        raise UnfitContract(f"{where}: default_page_size must be 1 to max_page_size")
    return ListShape(
        items_tag=length_delimited(items.number),
        token_tag=length_delimited(token.number),
        page_token=rule.page_token,
        page_size=rule.page_size,
        default_page_size=rule.default_page_size,
        max_page_size=rule.max_page_size,
        items=items.name,
    )


def _watch(descriptor: MethodDescriptor, rule: options_pb2.WatchRule, where: str) -> WatchShape:
    reply = descriptor.output_type
    items, removed = _field(reply, rule.items, where), _field(reply, rule.removed, where)
    if items.message_type is None or not items.is_repeated:
        raise UnfitContract(f"{where}: {rule.items} is not a repeated message")
    if removed.type != FieldDescriptor.TYPE_STRING or not removed.is_repeated:
        raise UnfitContract(f"{where}: {rule.removed} is not a repeated string")
    for message in (descriptor.input_type, reply):
        if _field(message, rule.resume_token, where).type != FieldDescriptor.TYPE_STRING:
            raise UnfitContract(f"{where}: {rule.resume_token} of {message.full_name} is not a string")
    for name in (rule.reset, rule.synced):
        if _field(reply, name, where).type != FieldDescriptor.TYPE_BOOL:
            raise UnfitContract(f"{where}: {name} is not a bool")
    return WatchShape(length_delimited(items.number), removed.name, rule.resume_token, rule.reset, rule.synced)


def _field(message: Descriptor | None, name: str, where: str) -> FieldDescriptor:
    field = message.fields_by_name.get(name) if message is not None else None
    if field is None:
        raise UnfitContract(f"{where}: there is no field {name!r}" + (f" in {message.full_name}" if message else ""))
    return field


def length_delimited(number: int) -> bytes:
    """The tag of a field of bytes, a string or a message."""
    return varint(number << 3 | 2)


def varint(value: int) -> bytes:
    """Source: https://protobuf.dev/programming-guides/encoding/#varints."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
