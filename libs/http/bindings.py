"""Routes from HTTP requests to methods, made from a contract's `google.api.http` options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from libs.contract.descriptors import Contract, Method
from libs.contract.unfit import UnfitContract
from libs.http.errors import NoSuchPath, NoSuchVerb
from libs.http.templates import Template, decode, split_verb

VERBS = ("get", "put", "post", "delete", "patch")
WHOLE = "*"
"""The `body` of a binding whose body is the whole request."""
HEAD, OPTIONS = "HEAD", "OPTIONS"
_PATHS_CHARACTERS = 1000
"""Maximum length of the paths in an error message."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One HTTP form of one method."""

    method: Method
    verb: str
    """"GET"."""
    template: Template
    body: str
    """Request field that the body fills, WHOLE, or "" for no body."""
    response_body: str
    """Reply field that the response body holds, or "" for the whole reply."""


@dataclass(frozen=True, slots=True)
class Route:
    """The binding that a request matches, and the values in its path."""

    binding: Binding
    values: tuple[tuple[str, str], ...]
    """Field paths with their values from the request's path."""


@dataclass(frozen=True, slots=True)
class Routes:
    """All bindings of a contract."""

    bindings: Mapping[str, tuple[Binding, ...]]
    """Bindings by the custom verb of the path: "undelete", or "" for a path without one."""

    @classmethod
    def of(cls, contract: Contract) -> Routes:
        """Raises UnfitContract, UnfitTemplate."""
        found: dict[str, list[Binding]] = {}
        for method in contract.methods.values():
            for binding in _bindings(method, _descriptor(contract, method)):
                found.setdefault(binding.template.verb, []).append(binding)
        return cls(MappingProxyType({verb: tuple(bindings) for verb, bindings in found.items()}))

    def __iter__(self) -> Iterator[Binding]:
        return (binding for bindings in self.bindings.values() for binding in bindings)

    def find(self, verb: str, raw_path: str) -> Route:
        """`raw_path`: the path as it was sent, still encoded. Raises NoSuchPath, NoSuchVerb, InvalidField."""
        path, custom = split_verb(raw_path)
        wanted = "GET" if verb == HEAD else verb
        others: list[str] = []
        for binding in self.bindings.get(custom, ()):
            values = binding.template.match(path)
            if values is None:
                continue
            if binding.verb == wanted:
                decoded = (decode(*pair) for pair in zip(binding.template.fields, values, strict=True))
                return Route(binding, tuple(zip(binding.template.fields, decoded, strict=True)))
            others.append(binding.verb)
        if others:
            raise NoSuchVerb(verb, allowed(others))
        hint = f"; after a colon stands a verb, here {custom[:80]!r}: write a colon in a name as %3A" if custom else ""
        paths = ", ".join(dict.fromkeys(binding.template.text for binding in self))[:_PATHS_CHARACTERS]
        raise NoSuchPath(f"there is nothing at {raw_path[:200]!r}: the paths are {paths}{hint}", path=raw_path[:200])


def allowed(verbs: Iterable[str]) -> list[str]:
    """The verbs, with OPTIONS, and with HEAD if GET is among them."""
    found = list(dict.fromkeys(verbs))
    return [*found, *([HEAD] if "GET" in found else []), OPTIONS]


def _descriptor(contract: Contract, method: Method) -> MethodDescriptor:
    pool: Any = method.request_class.DESCRIPTOR.file.pool
    found: MethodDescriptor = pool.FindServiceByName(contract.service).methods_by_name[method.name]
    return found


def _bindings(method: Method, descriptor: MethodDescriptor) -> Iterator[Binding]:
    options = descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    rule = options.Extensions[annotations_pb2.http]
    for one in (rule, *rule.additional_bindings):
        yield _binding(method, descriptor, one)


def _binding(method: Method, descriptor: MethodDescriptor, rule: http_pb2.HttpRule) -> Binding:
    kind = rule.WhichOneof("pattern")
    if kind not in VERBS:
        raise UnfitContract(f"{descriptor.full_name}: google.api.http has the pattern {kind!r}, not one of {VERBS}")
    template = Template.parse(getattr(rule, kind))
    for path in template.fields:
        _check_path(descriptor.input_type, path, descriptor.full_name)
    if rule.body and rule.body != WHOLE:
        _check_path(descriptor.input_type, rule.body, descriptor.full_name)
    if rule.response_body:
        _check_path(descriptor.output_type, rule.response_body, descriptor.full_name)
    return Binding(method, kind.upper(), template, rule.body, rule.response_body)


def _check_path(message: Descriptor, path: str, where: str) -> None:
    found: Descriptor | None = message
    for name in path.split("."):
        field = found.fields_by_name.get(name) if found is not None else None
        if field is None:
            raise UnfitContract(f"{where}: google.api.http names the field {path!r}, which {message.full_name} lacks")
        found = field.message_type
