"""Tools over the Model Context Protocol, by the official SDK. Source: https://modelcontextprotocol.io/specification.

The SDK takes more than a second to import, so a process imports this module when the first MCP request arrives.

A failed call is a result with `isError`, which an agent reads and acts on: reason, message, remedy. Its structured
content is the error's status in REST's form. The schemas of replies allow additional fields, so this content fits them.
Only requests for an unknown tool or resource are protocol errors.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import grpc
import mcp_types as types
from google.protobuf import json_format
from google.rpc import error_details_pb2
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from libs.errors import BatonError
from libs.http.call import DoorCall, Ended
from libs.http.comments import Comments
from libs.http.errors import Failure, failure_of
from libs.http.gateway import failure
from libs.http.json_body import read_object, serialized
from libs.http.tools import Caller, Records, Tool, tools_of
from libs.rpc.errors import Internal, Pairs, log_defect

# The SDK logs each request at the level of ordinary messages.
logging.getLogger("mcp").setLevel(logging.WARNING)

JSON = "application/json"
NOT_FOUND = -32002
"""JSON-RPC code for a missing resource. Source: the specification, "Resources", "Error Handling"."""

_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""The same call may succeed later."""

_ADVICE: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "correct the argument and call again",
    grpc.StatusCode.NOT_FOUND: "check the name: a list shows which there are",
    grpc.StatusCode.ALREADY_EXISTS: "use another name, or read and change the one that exists",
    grpc.StatusCode.FAILED_PRECONDITION: "read the record, then decide anew",
    grpc.StatusCode.ABORTED: "read the record, then decide anew",
    grpc.StatusCode.PERMISSION_DENIED: "ask a person: calling again does not help",
    grpc.StatusCode.UNAUTHENTICATED: "ask a person: calling again does not help",
    grpc.StatusCode.UNIMPLEMENTED: "use another tool",
}

_INSTRUCTIONS = " ".join(
    (
        "One tool for each method of {service}.",
        "Arguments and results are proto3 JSON: 64-bit integers are text, and a result leaves out a field that has its"
        " default value.",
        "After a lost answer, or an error that advises it, call a write again with the same request id: it has one"
        " effect.",
        "A write without a request id gets one, which _meta of the result contains.",
        "An error begins with its reason and ends with a remedy.",
        "A result whose _meta has baton-stale 1 may lack the newest writes.",
    )
)


class OpeningCaller(Caller, Protocol):
    """A caller that opens calls for MCP requests."""

    def open(self, request: Any, read: Callable[[], Awaitable[bytes]]) -> DoorCall:
        """`request`: the HTTP request that carried it; None over stdio. Raises InvalidField."""
        ...

    def schema(self, metadata: Pairs) -> int: ...

    def answered(self, request: Any, call: DoorCall) -> None:
        """Take the metadata of the handler's answer."""
        ...


@dataclass(slots=True)
class _Outcome:
    """Outcome of a call: a reply or an error."""

    reply: Any = None
    failed: Failure | None = None
    metadata: Pairs = ()
    request_id: str = ""


class McpServer:
    """An MCP server over one caller. A transport serves its `sdk`."""

    def __init__(self, caller: OpeningCaller, more: Iterable[Tool] = ()) -> None:
        """`more`: additional tools of this process."""
        self._caller = caller
        self._tools = {tool.name: tool for tool in (*tools_of(caller), *more)}
        self._records = tuple(Records.of(caller, self._tools.values()))
        self._listed: dict[int, types.ListToolsResult] = {}
        service = caller.contract.service
        self.sdk: Server[Any] = Server(
            service,
            version=version("baton"),
            instructions=_INSTRUCTIONS.format(service=service),
            # No argument travels as a header.
            get_tool_input_schema=lambda name: None,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
        )
        # The SDK's tracing has no collector here.
        self.sdk.middleware.clear()

    def __repr__(self) -> str:
        return f"<McpServer {self._caller.contract.service} tools={len(self._tools)}>"

    async def _list_tools(self, ctx: ServerRequestContext[Any, Any], params: Any) -> types.ListToolsResult:
        schema = self._schema(ctx)
        if schema not in self._listed:
            comments = Comments.load(self._caller.contract, schema)
            tools = [_listed(tool, comments, schema) for tool in self._tools.values()]
            self._listed[schema] = types.ListToolsResult(tools=tools)
        return self._listed[schema]

    async def _call_tool(
        self, ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            names = ", ".join(self._tools)
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:80]!r}: the tools are {names}")
        outcome = await self._run(tool, ctx.request, params.arguments or {})
        meta: dict[str, Any] = {name: value for name, value in outcome.metadata if isinstance(value, str)}
        if outcome.request_id:
            meta[tool.argument(0)] = outcome.request_id
        if outcome.failed is not None:
            text, structured = error_text(outcome.failed, tool.argument(0), outcome.request_id), outcome.failed.body()
        else:
            structured = json_format.MessageToDict(outcome.reply)
            text = tool.text(outcome.reply) if tool.text else json.dumps(structured, ensure_ascii=False)
        return types.CallToolResult(
            content=[types.TextContent(text=text)],
            structured_content=structured,
            is_error=outcome.failed is not None,
            _meta=meta or None,
        )

    async def _list_resources(self, ctx: ServerRequestContext[Any, Any], params: Any) -> types.ListResourcesResult:
        """Empty: the list method's tool returns the records page by page."""
        return types.ListResourcesResult(resources=[])

    async def _list_templates(
        self, ctx: ServerRequestContext[Any, Any], params: Any
    ) -> types.ListResourceTemplatesResult:
        comments = Comments.load(self._caller.contract)
        templates = [
            types.ResourceTemplate(
                name=records.scheme,
                uri_template=records.template,
                description=comments.at(records.tool.full_name).text,
                mime_type=JSON,
            )
            for records in self._records
        ]
        return types.ListResourceTemplatesResult(resource_templates=templates)

    async def _read_resource(
        self, ctx: ServerRequestContext[Any, Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        for records in self._records:
            try:
                arguments = records.arguments(params.uri)
            except BatonError as error:
                raise MCPError(types.INVALID_PARAMS, error.message) from None
            if arguments is not None:
                break
        else:
            forms = ", ".join(records.template for records in self._records)
            raise MCPError(NOT_FOUND, f"there is no resource {params.uri[:200]!r}: the templates are {forms}")
        outcome = await self._run(records.tool, ctx.request, arguments)
        if outcome.failed is not None:
            raise MCPError(_code(outcome.failed), error_text(outcome.failed), outcome.failed.body())
        text = json_format.MessageToJson(outcome.reply, indent=None, ensure_ascii=False)
        contents = types.TextResourceContents(uri=params.uri, mime_type=JSON, text=text)
        return types.ReadResourceResult(contents=[contents])

    def _schema(self, ctx: ServerRequestContext[Any, Any]) -> int:
        try:
            return self._caller.schema(self._caller.open(ctx.request, _unread).invocation_metadata())
        except BatonError as error:
            raise MCPError(types.INVALID_PARAMS, error.message) from None

    async def _run(self, tool: Tool, request: Any, arguments: dict[str, Any]) -> _Outcome:
        outcome = _Outcome()
        schema = 0

        async def read() -> bytes:
            message = tool.request(schema)()
            read_object(arguments, message, "arguments")
            if tool.request_id:
                outcome.request_id = getattr(message, tool.request_id) or str(uuid.uuid4())
                setattr(message, tool.request_id, outcome.request_id)
            return serialized(message)

        try:
            call = self._caller.open(request, read)
            schema = self._caller.schema(call.invocation_metadata())
            try:
                outcome.reply = tool.reply(schema).FromString(await tool.answer(call))
            finally:
                self._caller.answered(request, call)
                outcome.metadata = tuple(
                    pair for pair in (*call.initial, *call.trailers) if pair[0].startswith("baton-")
                )
        except (BatonError, Ended) as error:
            outcome.failed = failure(error)
        # The outermost handler of a tool call: the log gets the stack trace, the client a status.
        except Exception as error:  # noqa: BLE001
            log_defect(error)
            outcome.failed = failure_of(Internal())
        return outcome


def error_text(failed: Failure, argument: str = "", request_id: str = "") -> str:
    """Text of an error: "REASON: message; remedy". `argument`: name of the write's request id."""
    advice = _ADVICE.get(failed.code, "")
    if failed.code in _AGAIN:
        seconds = failed.retry_after
        when = f"in {seconds} s" if seconds else "later"
        same = f" with {argument} {request_id}, which has one effect" if request_id else ""
        advice = f"call again {when}{same}"
    message = failed.status.message.rstrip(".;")
    return f"{_reason(failed)}: {message}" + (f"; {advice}" if advice else "")


def _reason(failed: Failure) -> str:
    """Reason in the error's ErrorInfo; for foreign errors the name of the code."""
    info = error_details_pb2.ErrorInfo()
    for detail in failed.status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return str(info.reason)
    return failed.code.name


def _code(failed: Failure) -> int:
    if failed.code is grpc.StatusCode.NOT_FOUND:
        return NOT_FOUND
    return types.INVALID_PARAMS if failed.code is grpc.StatusCode.INVALID_ARGUMENT else types.INTERNAL_ERROR


def _listed(tool: Tool, comments: Comments, schema: int) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.name.replace("_", " ").capitalize(),
        description=tool.description(comments, schema),
        input_schema=tool.input_schema(comments, schema),
        output_schema=tool.output_schema(comments, schema),
        annotations=types.ToolAnnotations(
            read_only_hint=tool.is_read,
            destructive_hint=tool.is_destructive,
            idempotent_hint=tool.is_read or bool(tool.request_id),
            open_world_hint=False,
        ),
    )


async def _unread() -> bytes:
    return b""
