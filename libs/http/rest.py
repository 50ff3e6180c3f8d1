"""REST by a contract's `google.api.http` options: proto3 JSON in and out, errors by AIP-193, watches as events.

Headers may replace fields: `Idempotency-Key` the request id, `If-Match` the etag, `Last-Event-ID` the resume token.
`X-Server-Timeout` (seconds) or `Prefer: wait=2` sets the deadline. A field that is given twice (path, query, body,
header) must have the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from libs.contract.descriptors import Method
from libs.errors import BatonError, InvalidField
from libs.http.asgi import (
    answer_headers,
    connection_of,
    deadline_of,
    has_body,
    matches_etag,
    media_type,
    metadata_of,
    names_of,
    peer_of,
    query_pairs,
    read_body,
    respond,
)
from libs.http.bindings import WHOLE, Binding, Route, Routes, allowed
from libs.http.call import DoorCall, Ended
from libs.http.errors import Failure, NoSuchVerb, WrongMediaType
from libs.http.events import form_for
from libs.http.gateway import Gateway, failure
from libs.http.json_body import read_message, serialized, write_message
from libs.http.origins import check_page
from libs.http.streams import StreamedAnswer
from libs.http.values import fields_of, put_value, put_values

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class _Request:
    """A recognised request."""

    route: Route
    headers: Headers
    query: bytes
    schema: int

    @property
    def method(self) -> Method:
        return self.route.binding.method


class RestDoor:
    """An ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self.routes = Routes.of(gateway.contract)
        self._gateway = gateway

    def __repr__(self) -> str:
        return f"<RestDoor {self._gateway.contract.service}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        verb, path = scope["method"], scope["raw_path"].decode("latin-1")
        try:
            if verb == "OPTIONS":
                await respond(send, 204, {"allow": ", ".join(self._allowed(path))})
                return
            check_page(scope)
            route = self.routes.find(verb, path)
            scope["route"] = route.binding.template.text
            headers = Headers(scope=scope)
            if not route.binding.body and has_body(headers):
                raise InvalidField("body", "a body", f"send none: {verb} takes its fields from the path and the query")
            metadata = metadata_of(headers, self._gateway.contract.schemas.metadata)
            request = _Request(route, headers, scope["query_string"], self._gateway.schema(metadata))
            seconds = deadline_of(headers)
        except BatonError as error:
            await _refuse(send, failure(error))
            return
        build = self._builder(request, receive)
        call = DoorCall(metadata, peer_of(scope), build, seconds, names_of(scope))
        if request.method.watch is None:
            await self._answer(request, call, send, body=verb != "HEAD")
            return
        form = form_for(headers, self._shown(request))
        if verb == "HEAD":
            # A stream has no end, so HEAD makes no call.
            await respond(send, 200, form.headers(call), body=False)
            return
        await StreamedAnswer(form, send, connection_of(scope)).run(self._gateway, request.method, call, receive)

    def _allowed(self, path: str) -> list[str]:
        verbs = []
        for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            try:
                self.routes.find(verb, path)
            except BatonError as error:
                if isinstance(error, NoSuchVerb):
                    continue
                raise
            verbs.append(verb)
        return allowed(verbs)

    async def _answer(self, request: _Request, call: DoorCall, send: Send, *, body: bool) -> None:
        try:
            data = await self._gateway.answer(request.method, call)
        except Ended as ended:
            await _refuse(send, failure(ended), call)
            return
        reply = self._gateway.forms.reply(request.method, request.schema).FromString(data)
        headers = answer_headers(call)
        if version_header := self._gateway.contract.schemas.metadata:
            # The etag is the record's in any schema version: a cache must keep the versions apart.
            headers["vary"] = version_header
        etag = getattr(reply, "etag", "")
        if etag:
            # The message's etag already has its quotes: https://google.aip.dev/154.
            headers["etag"] = etag
            if request.method.is_read and matches_etag(request.headers.get("if-none-match", ""), etag):
                await respond(send, 304, headers)
                return
        await respond(send, 200, headers, self._write(request.route.binding, reply), JSON, body=body)

    def _shown(self, request: _Request) -> Callable[[bytes], tuple[bytes, str]]:
        """Converts one message of a watch to JSON and its resume token."""
        kind = self._gateway.forms.reply(request.method, request.schema)
        watch = request.method.watch
        assert watch is not None, "the method is a watch"

        def show(data: bytes) -> tuple[bytes, str]:
            answer = kind.FromString(data)
            return write_message(answer), getattr(answer, watch.resume_token)

        return show

    @staticmethod
    def _write(binding: Binding, reply: Message) -> bytes:
        return write_message(getattr(reply, binding.response_body) if binding.response_body else reply)

    def _builder(self, request: _Request, receive: Receive) -> Callable[[], Any]:
        """Reads and builds the request, within the gate's limits. Raises BatonError."""

        async def build() -> bytes:
            message = self._gateway.forms.request(request.method, request.schema)()
            binding = request.route.binding
            if binding.body:
                # JSON is longer than its message. The gate checks the size of the message.
                body = await read_body(receive, request.headers, 2 * self._gateway.request_bytes)
                if body:
                    _read_body(binding, request.headers, body, message)
            for path, text in request.route.values:
                _put(message, path, text, "the path")
            _put_query(binding, request, message)
            _put_headers(request, message)
            return serialized(message)

        return build


def _read_body(binding: Binding, headers: Headers, body: bytes, message: Message) -> None:
    if media_type(headers) != JSON:
        kind = headers.get("content-type", "")[:80]
        raise WrongMediaType(f"content-type: {kind!r} is not read here: send JSON in UTF-8 as {JSON}")
    if binding.body == WHOLE:
        read_message(body, message)
        return
    target = getattr(message, binding.body)
    target.SetInParent()
    read_message(body, target, binding.body)


def _put(message: Message, path: str, text: str, source: str) -> None:
    """Set the field. Raises InvalidField if it already has another value."""
    *parents, last = path.split(".")
    target: Any = message
    for name in parents:
        target = getattr(target, name)
    field: FieldDescriptor = target.DESCRIPTOR.fields_by_name[last]
    before = type(target)()
    before.CopyFrom(target)
    put_value(target, field, path, text)
    earlier = getattr(before, last)
    if earlier and earlier != getattr(target, last):
        raise InvalidField(path, earlier, f"the same as in {source}: {text}, or nothing")


def _put_query(binding: Binding, request: _Request, message: Message) -> None:
    pairs = query_pairs(request.query)
    bound = {path for path, _ in request.route.values}
    for name, value in pairs:
        first = fields_of(message.DESCRIPTOR).get(name.partition(".")[0])
        if binding.body == WHOLE or (first is not None and binding.body == first.name):
            raise InvalidField(name, value, "in the body of the request, not in its query")
        if name in bound:
            raise InvalidField(name, value, "in the path of the request, not in its query")
    put_values(message, pairs, "query parameter")


def _put_headers(request: _Request, message: Message) -> None:
    method, headers = request.method, request.headers
    # An empty value is refused: a caller whose variable is unset would write unconditionally, or twice.
    if (key := headers.get("idempotency-key")) is not None:
        if not key.strip('"'):
            raise InvalidField("Idempotency-Key", key, "a UUID, or leave the header out")
        if not method.request_id:
            raise InvalidField("Idempotency-Key", key, "leave the header out: this method changes nothing")
        _put(message, method.request_id, key.strip('"'), "Idempotency-Key")
    if (match := headers.get("if-match")) is not None:
        _put_etag(request.route.binding, message, match)
    if token := headers.get("last-event-id"):
        if method.watch is None:
            raise InvalidField("Last-Event-ID", token, "leave the header out: this method is not a watch")
        _put(message, method.watch.resume_token, token, "Last-Event-ID")


def _put_etag(binding: Binding, message: Message, match: str) -> None:
    etag = match.strip()
    if not (len(etag) > 2 and etag[0] == etag[-1] == '"') or '"' in etag[1:-1]:
        raise InvalidField("If-Match", match, "one strong etag in double quotes, as in an answer's ETag")
    fields = message.DESCRIPTOR.fields_by_name
    resource = fields.get(binding.body)
    if binding.method.creates:
        raise InvalidField("If-Match", match, "leave the header out: a record to be created has no etag yet")
    if "etag" in fields:
        _put(message, "etag", etag, "If-Match")
    elif resource is not None and resource.message_type and "etag" in resource.message_type.fields_by_name:
        _put(message, f"{binding.body}.etag", etag, "If-Match")
    else:
        raise InvalidField("If-Match", match, "leave the header out: this method takes no etag")


async def _refuse(send: Send, failed: Failure, call: DoorCall | None = None) -> None:
    headers = answer_headers(call) if call is not None else {}
    await respond(send, failed.http_code, headers | failed.headers(), failed.json(), JSON)
