"""The option `account` of a contract, checked when the contract is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from libs.contract.accounts import AccountField
from libs.contract.schemas import SchemaVersions
from libs.contract.unfit import UnfitContract
from libs.pb.baton.options.v1 import options_pb2


def account_field(service: ServiceDescriptor, schemas: SchemaVersions) -> AccountField | None:
    """The field of the service's records that the option marks; None if it marks none.

    Raises UnfitContract unless it is a string of the records' message that cannot change, in every schema version.
    """
    old = {form for forms in schemas.forms.values() for form in forms.values()}
    found = {
        message.full_name: message
        for message in _reachable(service)
        if message.full_name not in old and _marked(message)
    }
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise UnfitContract(f"{service.full_name}: the option `account` is in {names}: only one message may have it")
    ((record, message),) = found.items()
    for name in _items(service):
        if name != record:
            raise UnfitContract(f"{record} has the option `account`, but a list or watch shows {name}")
    forms = {schemas.newest: message}
    for version, others in schemas.forms.items():
        if record in others:
            forms[version] = _form(service, others[record])
    made = {version: (GetMessageClass(form), _checked(form)) for version, form in forms.items()}
    return AccountField(record, made[schemas.newest][1], MappingProxyType(made), schemas.newest)


def _form(service: ServiceDescriptor, name: str) -> Any:
    try:
        return service.file.pool.FindMessageTypeByName(name)
    except KeyError:
        raise UnfitContract(f"{service.full_name}: schema: there is no message {name!r}") from None


def _checked(message: Any) -> str:
    """Name of the message's marked field. Raises UnfitContract."""
    fields = _marked(message)
    where = message.full_name
    if len(fields) != 1:
        raise UnfitContract(f"{where}: {len(fields)} fields have the option `account`: exactly one must")
    (field,) = fields
    if field.type != FieldDescriptor.TYPE_STRING or field.is_repeated:
        raise UnfitContract(f"{where}.{field.name} has the option `account`: it must be a string")
    if field_behavior_pb2.IMMUTABLE not in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]:
        raise UnfitContract(
            f"{where}.{field.name} has the option `account`: it must be (google.api.field_behavior) = IMMUTABLE, since"
            " callers see a record by its account"
        )
    return str(field.name)


def _marked(message: Any) -> list[Any]:
    return [field for field in message.fields if field.GetOptions().Extensions[options_pb2.account]]


def _items(service: ServiceDescriptor) -> Iterator[str]:
    """Full names of the messages that lists and watches show."""
    for method in service.methods:
        rule = method.GetOptions().Extensions[options_pb2.method]
        for items in (rule.list.items, rule.watch.items):
            kind: Any = method.output_type.fields_by_name[items].message_type if items else None
            if kind is not None:
                yield kind.full_name


def _reachable(service: ServiceDescriptor) -> Iterator[Any]:
    """Each message that a request or a reply of the service may hold."""
    left: list[Any] = [kind for method in service.methods for kind in (method.input_type, method.output_type)]
    seen: set[str] = set()
    while left:
        message = left.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            yield message
            left += [field.message_type for field in message.fields if field.message_type is not None]
