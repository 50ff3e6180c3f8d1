"""The Connect protocol: unary calls by POST, reads by GET too, and streams in envelopes.

Source: https://connectrpc.com/docs/protocol. Messages are not compressed, in either direction.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from libs.contract.descriptors import Method
from libs.errors import BatonError, InvalidField
from libs.http import codecs
from libs.http.asgi import (
    answer_headers,
    connection_of,
    has_body,
    media_type,
    metadata_of,
    names_of,
    peer_of,
    query_pairs,
    read_body,
    respond,
    texts,
)
from libs.http.call import DoorCall, Ended
from libs.http.codecs import Codec, codec_of
from libs.http.envelopes import HEAD_BYTES, pack, unpack_one
from libs.http.errors import Compressed, Failure, NoSuchVerb, WrongMediaType
from libs.http.gateway import Gateway, failure
from libs.http.origins import check_page
from libs.http.streams import StreamedAnswer

UNARY_KINDS = {"application/json": codecs.JSON, "application/proto": codecs.PROTO}
STREAM_KINDS = {"application/connect+json": codecs.JSON, "application/connect+proto": codecs.PROTO}
_KINDS = {name: kind for kind, name in UNARY_KINDS.items()}
JSON = "application/json"
END_STREAM = 0x02
"""Flag of the envelope that ends a stream."""
_IDENTITY = "identity"
_TIMEOUT = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class _Request:
    method: Method
    headers: Headers
    query: dict[str, str]
    """Query parameters of a GET."""
    codec_name: str
    kind: str
    """Content type of the response."""


class Connect:
    """Serves the methods of one contract."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def serve(self, method: Method, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_page(scope)
            _check_verb(method, scope["method"])
            request = _request(method, scope)
        except BatonError as error:
            await refuse(send, failure(error), accepted=accepted_kinds(method))
            return
        if method.watch is None:
            await self._unary(request, scope, receive, send)
        else:
            await self._stream(request, scope, receive, send)

    async def _unary(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call, codec = self._call(request, scope, receive)
        except BatonError as error:
            await refuse(send, failure(error))
            return
        try:
            answer = await self._gateway.answer(request.method, call)
        except Ended as ended:
            await refuse(send, failure(ended), call)
            return
        headers = answer_headers(call, prefix="trailer-")
        await respond(send, 200, headers, codec.write(answer), request.kind)

    async def _stream(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call, codec = self._call(request, scope, receive)
        except BatonError as error:
            end = pack(end_of_stream(failure(error), {}), END_STREAM)
            await respond(send, 200, {}, end, request.kind)
            return
        form = _Enveloped(request.kind, codec)
        await StreamedAnswer(form, send, connection_of(scope)).run(self._gateway, request.method, call, receive)

    def _call(self, request: _Request, scope: Scope, receive: Receive) -> tuple[DoorCall, Codec]:
        headers = request.headers
        _check_version(request)
        found = metadata_of(headers, self._gateway.contract.schemas.metadata)
        codec = codec_of(request.codec_name, self._gateway, request.method, self._gateway.schema(found))
        return DoorCall(
            found, peer_of(scope), self._reader(request, codec, receive), timeout_seconds(headers), names_of(scope)
        ), codec

    def _reader(self, request: _Request, codec: Codec, receive: Receive) -> Callable[[], Awaitable[bytes]]:
        """Read the request within the gate's limits."""
        limit = codec.growth * self._gateway.request_bytes

        async def read_query() -> bytes:
            return codec.read(query_message(request.query))

        async def read_post() -> bytes:
            return codec.read(await read_body(receive, request.headers, limit))

        async def read_envelope() -> bytes:
            body = await read_body(receive, request.headers, limit + HEAD_BYTES)
            return codec.read(unpack_one(body, limit))

        if request.query:
            return read_query
        return read_post if request.method.watch is None else read_envelope


class _Enveloped:
    """A Connect stream: messages, then one envelope with error and trailing metadata. Its HTTP code is always 200."""

    def __init__(self, kind: str, codec: Codec) -> None:
        self._kind = kind
        self._codec = codec

    def headers(self, call: DoorCall) -> dict[str, str]:
        return answer_headers(call, trailers=False) | {"content-type": self._kind}

    def answer(self, data: bytes) -> bytes:
        return pack(self._codec.write(data))

    def last(self, call: DoorCall, failed: Failure | None) -> bytes:
        return pack(end_of_stream(failed, texts(call.trailers)), END_STREAM)

    async def refuse(self, call: DoorCall, failed: Failure, send: Send) -> bool:
        return False


def accepted_kinds(method: Method) -> list[str]:
    return list(UNARY_KINDS if method.watch is None else STREAM_KINDS)


def query_message(query: dict[str, str]) -> bytes:
    """The decoded message of a GET. Raises InvalidField, Compressed."""
    if (compression := query.get("compression", _IDENTITY)) != _IDENTITY:
        raise Compressed("compression", compression)
    message = query.get("message")
    if message is None:
        raise InvalidField("message", "", "the request's message, encoded as the parameter `encoding` names")
    if query.get("base64") != "1":
        return message.encode()
    padded = message.rstrip("=")
    try:
        return base64.b64decode(padded + "=" * (-len(padded) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidField("message", message, "base64 with the alphabet of URLs, since base64=1") from None


def timeout_seconds(headers: Headers) -> float | None:
    """Seconds until the caller's deadline. Raises InvalidField."""
    text = headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not _TIMEOUT.fullmatch(text) or not int(text):
        raise InvalidField("Connect-Timeout-Ms", text, "whole milliseconds, more than 0, of at most 10 digits")
    return int(text) / 1000


def error_of(failed: Failure) -> dict[str, Any]:
    code = "canceled" if failed.code is grpc.StatusCode.CANCELLED else failed.code.name.lower()
    found: dict[str, Any] = {"code": code, "message": failed.status.message}
    if failed.status.details:
        found["details"] = [_detail(detail) for detail in failed.status.details]
    return found


def end_of_stream(failed: Failure | None, metadata: dict[str, str]) -> bytes:
    found: dict[str, Any] = {}
    if failed is not None:
        found["error"] = error_of(failed)
    if metadata:
        found["metadata"] = {name: [value] for name, value in metadata.items()}
    return _json(found)


async def refuse(
    send: Send, failed: Failure, call: DoorCall | None = None, *, accepted: list[str] | None = None
) -> None:
    """`accepted`: the content types that the method takes, for a request of another type."""
    headers = answer_headers(call, prefix="trailer-") if call is not None else {}
    if failed.http_code == 415 and accepted:
        headers["accept-post"] = ", ".join(accepted)
    await respond(send, failed.http_code, headers | failed.headers(), _json(error_of(failed)), JSON)


def _check_verb(method: Method, verb: str) -> None:
    allowed = ["GET", "POST"] if method.is_read and method.watch is None else ["POST"]
    if verb not in allowed:
        raise NoSuchVerb(verb, allowed)


def _request(method: Method, scope: Scope) -> _Request:
    headers = Headers(scope=scope)
    if scope["method"] == "GET":
        if has_body(headers):
            raise InvalidField("body", "a body", "send none: a GET has its message in the query")
        query = _query(scope["query_string"])
        name = query.get("encoding", "")
        if name not in _KINDS:
            raise WrongMediaType(f"encoding: {name[:40]!r} is not one of {', '.join(_KINDS)}")
        return _Request(method, headers, query, name, _KINDS[name])
    kind = media_type(headers)
    kinds = UNARY_KINDS if method.watch is None else STREAM_KINDS
    if kind not in kinds:
        raise WrongMediaType(f"content-type: {kind[:80]!r} is not one of {', '.join(kinds)}")
    return _Request(method, headers, {}, kinds[kind], kind)


def _query(raw: bytes) -> dict[str, str]:
    """Parameters that the protocol does not define are allowed. Raises InvalidField."""
    pairs = query_pairs(raw, "; a binary message wants base64=1")
    found = dict(pairs)
    for name in ("connect", "encoding", "message", "base64", "compression"):
        if sum(other == name for other, _ in pairs) > 1:
            raise InvalidField(name, found[name], "one parameter of this name")
    return found


def _check_version(request: _Request) -> None:
    version = request.headers.get("connect-protocol-version", "1")
    if version != "1":
        raise InvalidField("Connect-Protocol-Version", version, "1")
    version = request.query.get("connect", "v1")
    if version != "v1":
        raise InvalidField("connect", version, "v1")
    name = "content-encoding" if request.method.watch is None else "connect-content-encoding"
    if (encoding := request.headers.get(name, _IDENTITY).lower()) != _IDENTITY:
        raise Compressed(name, encoding)


def _detail(detail: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": detail.type_url.rpartition("/")[2],
        "value": base64.b64encode(detail.value).rstrip(b"=").decode(),
    }
    try:
        debug = json_format.MessageToDict(detail)
    except (TypeError, DecodeError):
        # The detail has an unknown type.
        return found
    debug.pop("@type", None)
    return found | {"debug": debug}


def _json(found: dict[str, Any]) -> bytes:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
