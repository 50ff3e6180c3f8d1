"""Message classes of a contract in each schema version, for doors that read and write fields.

Over gRPC, a caller of an old schema version brings its own generated classes. Over HTTP the server reads and writes its
JSON, so it needs the old version's messages. The contract's option `schema` names them (`forms`). For each such version
the contract's file is built again, with the fields of the old message in the place of the new one's. A field of the
newest version stays if the old version uses neither its number nor its name: old callers keep it as an unknown field
and send it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from libs.contract.descriptors import Contract, Method
from libs.contract.unfit import UnfitContract


class Forms:
    """Classes of requests and replies by schema version."""

    def __init__(self, contract: Contract) -> None:
        self._pools = {version: _pool(contract, version, names) for version, names in contract.schemas.forms.items()}

    def request(self, method: Method, schema: int) -> type[Message]:
        return self._class(method.request_class, schema)

    def reply(self, method: Method, schema: int) -> type[Message]:
        return self._class(method.reply_class, schema)

    def _class(self, newest: type[Message], schema: int) -> type[Message]:
        pool = self._pools.get(schema)
        if pool is None:
            return newest
        return GetMessageClass(pool.FindMessageTypeByName(newest.DESCRIPTOR.full_name))


def _pool(contract: Contract, version: int, names: Mapping[str, str]) -> DescriptorPool:
    """`names`: full names of the contract's messages, and of the messages that take their place."""
    method = next(iter(contract.methods.values()))
    known: Any = method.request_class.DESCRIPTOR.file.pool
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            full_name = f"{proto.package}.{message.name}"
            if full_name in names:
                _replace(message, full_name, _message(known, names[full_name], version))
        pool.Add(proto)

    add(known.FindFileContainingSymbol(contract.service))
    return pool


def _message(pool: Any, name: str, version: int) -> DescriptorProto:
    proto = DescriptorProto()
    try:
        pool.FindMessageTypeByName(name).CopyToProto(proto)
    except KeyError:
        raise UnfitContract(f"schema version {version} names the message {name!r}, which does not exist") from None
    for field in proto.field:
        # Its nested types move with it.
        if field.type_name:
            field.type_name = field.type_name.replace(f".{name}.", ".?.")
    return proto


def _replace(message: DescriptorProto, full_name: str, by: DescriptorProto) -> None:
    numbers, names = {field.number for field in by.field}, {field.name for field in by.field}
    kept = [field for field in message.field if field.number not in numbers and field.name not in names]
    for field in by.field:
        if field.type_name:
            field.type_name = field.type_name.replace(".?.", f".{full_name}.")
    nested = {one.name for one in by.nested_type}
    by.nested_type.extend(one for one in message.nested_type if one.name not in nested)
    by.enum_type.extend(message.enum_type)
    by.field.extend(kept)
    del message.field[:], message.nested_type[:], message.reserved_range[:], message.oneof_decl[:]
    message.field.extend(by.field)
    message.nested_type.extend(by.nested_type)
    message.oneof_decl.extend(by.oneof_decl)
