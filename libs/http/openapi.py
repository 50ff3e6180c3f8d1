"""A contract's newest schema version as an OpenAPI 3.1 document, which describes `libs.http.rest`.

`protos/openapi.py` makes it at build time, since compiled modules have no comments. No method is special here. Sources:
https://spec.openapis.org/oas/v3.1.1.html, https://google.aip.dev/127.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from libs.contract.descriptors import Contract, Method
from libs.http import openapi_parts as parts
from libs.http.bindings import WHOLE, Binding, Routes
from libs.http.comments import Comments
from libs.http.events import EVENTS, LINES
from libs.http.json_schema import REQUIRED, Schema, Schemas, behaves, singular
from libs.http.templates import TOKEN, Template, split_verb
from libs.http.values import is_parameter

VERSION = "3.1.1"
JSON = "application/json"
_DEPTH = 4
"""Depth to which the fields of messages become query parameters."""


@dataclass(frozen=True, slots=True)
class PathParameter:
    name: str
    field: str
    """Path of the field whose value holds the parameter, or ""."""
    segments: str
    """Pattern: "*" or "**"."""


def document(contract: Contract, comments: Comments) -> dict[str, Any]:
    return _Document(contract, comments).write()


def open_path(template: Template) -> tuple[str, tuple[PathParameter, ...]]:
    """The path in OpenAPI's form: "/v1/{name=sandboxes/*}:undelete" becomes "/v1/sandboxes/{sandbox}:undelete"."""
    path, verb = split_verb(template.text, behind=template.text.rfind("}"))
    found: list[PathParameter] = []
    shown: list[str] = []
    place = 0
    for token in TOKEN.finditer(path):
        shown.append(_shown(path[place : token.start()], "", found))
        shown.append(_shown(token[2] or "*", token[1], found))
        place = token.end()
    shown.append(_shown(path[place:], "", found))
    return "".join(shown) + (f":{verb}" if verb else ""), tuple(found)


def _shown(segments: str, field: str, found: list[PathParameter]) -> str:
    out: list[str] = []
    for segment in segments.split("/"):
        if segment in ("*", "**"):
            before = out[-1] if out and not out[-1].startswith("{") else ""
            name = singular(before) or field.rpartition(".")[2] or "segment"
            taken = sum(parameter.name.rstrip("0123456789") == name for parameter in found)
            found.append(PathParameter(f"{name}{taken + 1}" if taken else name, field, segment))
            segment = "{" + found[-1].name + "}"
        out.append(segment)
    return "/".join(out)


class _Document:
    def __init__(self, contract: Contract, comments: Comments) -> None:
        self._contract = contract
        self._comments = comments
        self._routes = Routes.of(contract)
        first: Any = next(iter(contract.methods.values())).request_class
        self._service = first.DESCRIPTOR.file.pool.FindServiceByName(contract.service)
        self._schemas = Schemas(self._service.file.package, comments)
        self._codes: set[int] = set()

    def write(self) -> dict[str, Any]:
        paths = self._paths()
        old = self._old_forms()
        parts.add_error(self._schemas)
        schemas = self._contract.schemas
        shared = dict(parts.PARAMETERS)
        if schemas.metadata:
            shared[schemas.metadata] = parts.header(
                schemas.metadata,
                f"Schema version of this call: this document describes version {schemas.newest}. Send it"
                f" with every call: the old service takes version {schemas.oldest} if it is missing.",
                {"type": "string", "enum": [str(one) for one in range(schemas.oldest, schemas.newest + 1)]},
                str(schemas.newest),
            )
        return {
            "openapi": VERSION,
            "info": {
                "title": self._service.name,
                "version": self._service.file.package.rpartition(".")[2],
                "description": "\n\n".join(filter(None, (self._comments.at(self._contract.service).text, *old, _NOTE))),
            },
            "servers": [{"url": "/", "description": "This listener."}],
            "tags": [{"name": self._service.name, "description": self._comments.at(self._contract.service).text}],
            "security": [{}, {parts.BEARER: []}],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self._schemas.found.items())),
                "parameters": shared,
                "headers": dict(parts.HEADERS),
                "securitySchemes": parts.SECURITY_SCHEMES,
                "responses": {f"Error{code}": parts.error_response(code) for code in sorted(self._codes)},
            },
        }

    def _old_forms(self) -> Iterator[str]:
        """A note on each schema version that this document does not describe."""
        schemas = self._contract.schemas
        for version, forms in schemas.forms.items():
            pairs = []
            for message, form in forms.items():
                pool = self._service.file.pool
                here = self._schemas.reference(pool.FindMessageTypeByName(message))["$ref"].rpartition("/")[2]
                there = self._schemas.reference(pool.FindMessageTypeByName(form))["$ref"].rpartition("/")[2]
                pairs.append(f"`{there}` in the place of `{here}`")
            yield (
                f"This document describes schema version {schemas.newest}. A caller that sends `{schemas.metadata}:"
                f" {version}` writes and reads {', '.join(pairs)}."
            )

    def _paths(self) -> Schema:
        found: dict[str, Schema] = {}
        seen: dict[str, int] = {}
        for name, method in self._contract.methods.items():
            for binding in self._routes:
                if binding.method is not method:
                    continue
                path, parameters = open_path(binding.template)
                seen[name] = seen.get(name, 0) + 1
                operation = self._operation(binding, parameters)
                operation["operationId"] = name if seen[name] == 1 else f"{name}{seen[name]}"
                found.setdefault(path, {})[binding.verb.lower()] = operation
        return found

    def _operation(self, binding: Binding, path: Sequence[PathParameter]) -> Schema:
        method = binding.method
        descriptor: MethodDescriptor = self._service.methods_by_name[method.name]
        request = descriptor.input_type
        text = self._comments.at(descriptor.full_name).text
        operation: Schema = {"operationId": "", "tags": [self._service.name]}
        if text:
            operation |= {"summary": text.partition(". ")[0].rstrip("."), "description": text}
        if descriptor.GetOptions().deprecated:
            operation["deprecated"] = True
        operation["parameters"] = [
            *self._path_parameters(request, path, binding.template),
            *self._query(request, binding),
            *map(parts.parameter_reference, self._headers(method, request, descriptor.output_type, binding)),
        ]
        if binding.body:
            operation["requestBody"] = self._body(binding, request)
        operation["responses"] = self._responses(binding, descriptor.output_type, keyed=bool(path))
        return operation

    def _path_parameters(
        self, request: Descriptor, path: Sequence[PathParameter], template: Template
    ) -> Iterator[Schema]:
        for parameter in path:
            pattern = "^[^/]+$" if parameter.segments == "*" else "^.+$"
            found: Schema = {
                "name": parameter.name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1, "pattern": pattern},
            }
            if parameter.field:
                field = _field(request, parameter.field)
                comment = self._comments.at(field.full_name)
                found["description"] = f"Part of `{parameter.field}`. {comment.text} Write a colon as %3A.".replace(
                    "  ", " "
                )
                if isinstance(comment.example, str):
                    # If the value has several parts, the last one is the example of this parameter.
                    found["example"] = comment.example.rpartition("/")[2]
            yield found

    def _query(self, request: Descriptor, binding: Binding) -> Iterator[Schema]:
        if binding.body == WHOLE:
            return
        bound = {*binding.template.fields, binding.body}
        for path, field in _scalars(request, "", "", bound, _DEPTH):
            schema = self._schemas.field(field)
            description, examples = schema.pop("description", ""), schema.pop("examples", [])
            found: Schema = {"name": path, "in": "query", "schema": schema}
            if description:
                found["description"] = description
            if behaves(field, REQUIRED):
                found["required"] = True
            if examples:
                found["example"] = examples[0]
            yield found

    def _headers(self, method: Method, request: Descriptor, reply: Descriptor, binding: Binding) -> Iterator[str]:
        if self._contract.schemas.metadata:
            yield self._contract.schemas.metadata
        if method.request_id:
            yield parts.IDEMPOTENCY_KEY
        body = request.fields_by_name.get(binding.body)
        taken = body.message_type if body is not None and body.message_type is not None else request
        if not method.is_read and "etag" in {*request.fields_by_name, *taken.fields_by_name} and not method.creates:
            yield parts.IF_MATCH
        if method.is_read and "etag" in reply.fields_by_name:
            yield parts.IF_NONE_MATCH
        if method.watch is not None:
            yield parts.LAST_EVENT_ID
        yield from parts.ALWAYS

    def _body(self, binding: Binding, request: Descriptor) -> Schema:
        if binding.body == WHOLE:
            bound = set(binding.template.fields)
            schema = self._schemas.message(request, bound)
            needs, example = self._schemas.needs(request, bound), self._schemas.example(request, bound)
            required = "required" in needs
            schema |= needs if "properties" not in needs else {"allOf": [needs]}
        else:
            field = _field(request, binding.body)
            schema, required = self._schemas.field(field), behaves(field, REQUIRED)
            kind = field.message_type
            example = self._schemas.example(kind) if kind is not None else schema.get("examples", [None])[0]
            needs = self._schemas.needs(kind) if kind is not None and binding.method.creates else {}
            if needs:
                schema = {"allOf": [schema, needs]}
        content = {"schema": schema} | ({"example": example} if example else {})
        return {"required": required, "content": {JSON: content}}

    def _responses(self, binding: Binding, reply: Descriptor, *, keyed: bool) -> Schema:
        method = binding.method
        once = method.watch is None
        etag = once and "etag" in reply.fields_by_name
        varies = once and bool(self._contract.schemas.metadata)
        found: Schema = {
            "200": {
                "description": "A stream of answers." if method.watch else "The answer.",
                "headers": parts.answer_headers(etag=etag, varies=varies),
                "content": self._answers(method, reply)
                if method.watch
                else {JSON: {"schema": self._reply(binding, reply)}},
            }
        }
        if etag and method.is_read:
            found["304"] = {
                "description": "The record is still the one that `If-None-Match` names.",
                "headers": parts.answer_headers(etag=True, varies=varies),
            }
        codes = parts.error_codes(keyed=keyed, body=bool(binding.body))
        self._codes |= set(codes)
        return found | {str(code): {"$ref": f"#/components/responses/Error{code}"} for code in codes}

    def _reply(self, binding: Binding, reply: Descriptor) -> Schema:
        if binding.response_body:
            return self._schemas.field(_field(reply, binding.response_body))
        return self._schemas.reference(reply)

    def _answers(self, method: Method, reply: Descriptor) -> Schema:
        item = self._schemas.reference(reply)
        name = item["$ref"].rpartition("/")[2]
        assert method.watch is not None, "the method is a watch"
        either = {"anyOf": [item, {"$ref": "#/components/schemas/Error"}]}
        event = {
            "type": "object",
            "description": "One server-sent event; the response has many.",
            "required": ["data"],
            "properties": {
                "id": {
                    "type": "string",
                    "description": f"The `{method.watch.resume_token}` of the data, which `Last-Event-ID` gives back.",
                },
                "event": {
                    "type": "string",
                    "enum": ["message", "error"],
                    "description": "`error`: the last one of a stream that does not end in order.",
                },
                "data": {"type": "string", "contentMediaType": JSON, "contentSchema": either},
            },
        }
        lines = (
            f"One JSON object a line, for a caller that accepts only this: a `{name}`, or an `Error` as the last one."
        )
        line = {"type": "string", "description": lines, "contentMediaType": JSON, "contentSchema": either}
        return {EVENTS: {"schema": event}, LINES: {"schema": line}}


_NOTE = (
    "JSON is proto3's JSON mapping: fields with their default value are left out of answers, 64-bit integers are"
    " strings, names are in lowerCamelCase (the proto's own names are read too). A request with a field, a parameter or"
    " a key that is not described here is refused with its name. Every GET may be a HEAD. OPTIONS returns `Allow`, as"
    " does a 405, for a method that the path does not have. Errors follow https://google.aip.dev/193."
)


def _field(message: Descriptor, path: str) -> FieldDescriptor:
    *parents, last = path.split(".")
    for name in parents:
        inner = message.fields_by_name[name].message_type
        assert inner is not None, "the routes have checked the path"
        message = inner
    return message.fields_by_name[last]


def _scalars(
    message: Descriptor, shown: str, above: str, bound: set[str], depth: int
) -> Iterator[tuple[str, FieldDescriptor]]:
    """Fields that a query can set, with their paths in JSON's names. `bound`: fields that are set elsewhere."""
    for field in message.fields:
        path = above + field.name
        if path in bound:
            continue
        if is_parameter(field):
            yield shown + field.json_name, field
        elif field.message_type is not None and not field.is_repeated and depth:
            yield from _scalars(field.message_type, f"{shown}{field.json_name}.", f"{path}.", bound, depth - 1)
