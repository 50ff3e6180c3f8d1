"""A contract's methods as tools for agents: names, descriptions, schemas and hints, made from the descriptors.

A watch is not a tool: a tool has one result, and a stateless server cannot send later answers. Agents use the list
method.

`libs.http.mcp_server` serves the tools over MCP; this module needs no SDK.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast
from urllib.parse import unquote

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from libs.contract.descriptors import Contract, Method
from libs.contract.schemas import NEWEST
from libs.errors import InvalidField
from libs.http.call import DoorCall
from libs.http.comments import Comments
from libs.http.forms import Forms
from libs.http.json_schema import DEFS, Schema, Schemas

Answer = Callable[[DoorCall], Awaitable[bytes]]
"""Returns the serialized reply. Raises Ended, BatonError."""

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Caller(Protocol):
    """Executes the calls of a contract's tools."""

    @property
    def contract(self) -> Contract: ...

    @property
    def forms(self) -> Forms: ...

    async def answer(self, method: Method, call: DoorCall) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    """Name: "create_sandbox"."""
    full_name: str
    """Full name of the method: "sandbox.v1.SandboxService.CreateSandbox"."""
    request: Callable[[int], type[Message]]
    """Request class by schema version."""
    reply: Callable[[int], type[Message]]
    answer: Answer
    is_read: bool = True
    is_destructive: bool = False
    """The method may overwrite or remove records."""
    request_id: str = ""
    """Field with the request id of a write, which makes retries safe."""
    creates: bool = False
    """The request needs every required field of a new record."""
    text: Callable[[Message], str] | None = None
    """Converts the reply to text. None: the text is the reply as JSON."""

    def argument(self, schema: int) -> str:
        """Name of the argument that is the request id, or ""."""
        if not self.request_id:
            return ""
        name: str = self.request(schema).DESCRIPTOR.fields_by_name[self.request_id].json_name
        return name

    def description(self, comments: Comments, schema: int) -> str:
        text = comments.at(self.full_name).text or f"Calls {self.full_name}."
        if name := self.argument(schema):
            text += f" Give {name} (a UUID), and give the same one when you call again: the call has one effect."
        return text

    def input_schema(self, comments: Comments, schema: int) -> Schema:
        """Required fields are those of the newest schema version."""
        kind = _descriptor(self.request(schema))
        schemas = Schemas(kind.file.package, comments, DEFS)
        found, needs = schemas.alone(kind), schemas.needs(_descriptor(self.request(NEWEST)))
        if needs:
            found["required"] = needs["required"]
        if self.creates and self.request(schema) is self.request(NEWEST):
            for name, inner in needs.get("properties", {}).items():
                found["properties"][name] |= inner
        return found

    def output_schema(self, comments: Comments, schema: int) -> Schema:
        kind = _descriptor(self.reply(schema))
        return Schemas(kind.file.package, comments, DEFS, strict=False).alone(kind)


def tools_of(caller: Caller) -> Iterator[Tool]:
    """One tool for each unary method."""
    for method in caller.contract.methods.values():
        if method.watch is None:
            yield Tool(
                name=snake_case(method.name),
                full_name=f"{caller.contract.service}.{method.name}",
                request=partial(caller.forms.request, method),
                reply=partial(caller.forms.reply, method),
                answer=partial(caller.answer, method),
                is_read=method.is_read,
                is_destructive=not method.is_read and not method.creates,
                request_id=method.request_id,
                creates=method.creates,
            )


def _descriptor(message: type[Message]) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)


def snake_case(name: str) -> str:
    return _WORD.sub("_", name).lower()


@dataclass(frozen=True, slots=True)
class Records:
    """Records of a contract as resources: "sandbox://{name}" is the record that GetSandbox returns."""

    template: str
    tool: Tool
    scheme: str
    paths: tuple[str, ...]

    @classmethod
    def of(cls, caller: Caller, tools: Iterable[Tool]) -> Iterator[Records]:
        """One for each kind of record that a method reads by its key."""
        by_name = {tool.full_name: tool for tool in tools}
        for method in caller.contract.methods.values():
            if method.is_read and method.key is not None and method.watch is None:
                scheme = method.reply_class.DESCRIPTOR.name.lower()
                template = f"{scheme}://" + "/".join(f"{{{path}}}" for path in method.key.paths)
                tool = by_name[f"{caller.contract.service}.{method.name}"]
                yield cls(template, tool, scheme, method.key.paths)

    def arguments(self, uri: str) -> dict[str, str] | None:
        """Arguments of the read; None if the URI does not match. A "/" in a name need not be encoded. Raises
        InvalidField."""
        start = f"{self.scheme}://"
        if not uri.startswith(start):
            return None
        rest = uri.removeprefix(start)
        parts = [rest] if len(self.paths) == 1 else rest.split("/")
        if len(parts) != len(self.paths) or not all(parts):
            raise InvalidField("uri", uri[:200], f"of the form {self.template}")
        return dict(zip(self.paths, map(unquote, parts), strict=True))
