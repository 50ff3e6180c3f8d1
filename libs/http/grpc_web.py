"""gRPC-Web: gRPC's frames in an ordinary body, as bytes or base64 text, with the trailers as the last frame.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md. The HTTP code is always 200. Messages are not
compressed, in either direction.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from libs.contract.descriptors import Method
from libs.errors import BatonError, InvalidField
from libs.http.asgi import (
    answer_headers,
    connection_of,
    media_type,
    metadata_of,
    names_of,
    peer_of,
    read_body,
    respond,
    texts,
)
from libs.http.call import DoorCall, Ended
from libs.http.envelopes import HEAD_BYTES, pack, unpack_one
from libs.http.errors import Compressed, Failure, NoSuchVerb, failure_of
from libs.http.gateway import Gateway, failure
from libs.http.origins import check_page
from libs.http.streams import StreamedAnswer
from libs.rpc.errors import DETAILS_KEY

_BINARY = ("application/grpc-web", "application/grpc-web+proto")
_TEXT = ("application/grpc-web-text", "application/grpc-web-text+proto")
KINDS = frozenset({*_BINARY, *_TEXT})
TRAILERS = 0x80
"""Flag of the frame with the trailers."""
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_IDENTITY = "identity"


class GrpcWeb:
    """Serves the methods of one contract."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def serve(self, method: Method, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        kind = media_type(headers)
        try:
            check_page(scope)
            if scope["method"] != "POST":
                raise NoSuchVerb(scope["method"], ["POST"])
            if (encoding := headers.get("grpc-encoding", _IDENTITY).lower()) != _IDENTITY:
                raise Compressed("grpc-encoding", encoding)
            found = metadata_of(headers, self._gateway.contract.schemas.metadata)
            call = DoorCall(
                found, peer_of(scope), self._reader(headers, kind, receive), timeout_seconds(headers), names_of(scope)
            )
        except BatonError as error:
            await refuse(send, kind, failure_of(error))
            return
        form = _Frames(kind)
        if method.watch is not None:
            await StreamedAnswer(form, send, connection_of(scope)).run(self._gateway, method, call, receive)
            return
        try:
            body = form.whole(await self._gateway.answer(method, call), call)
        except Ended as ended:
            body = form.last(call, failure(ended))
        await respond(send, 200, form.headers(call), body)

    def _reader(self, headers: Headers, kind: str, receive: Receive) -> Callable[[], Awaitable[bytes]]:
        """Read the request within the gate's limits."""
        limit = self._gateway.request_bytes

        async def read() -> bytes:
            if kind in _TEXT:
                body = from_text(await read_body(receive, headers, 2 * limit))
            else:
                body = await read_body(receive, headers, limit + HEAD_BYTES)
            return unpack_one(body, limit)

        return read


class _Frames:
    """A gRPC-Web response. As text, each of its parts is encoded in base64 separately."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._encode: Callable[[bytes], bytes] = base64.b64encode if kind in _TEXT else bytes

    def headers(self, call: DoorCall) -> dict[str, str]:
        return answer_headers(call, trailers=False) | {"content-type": self._kind}

    def whole(self, data: bytes, call: DoorCall) -> bytes:
        """The body of a unary call."""
        return self._encode(pack(data) + pack(trailers_of(None, texts(call.trailers)), TRAILERS))

    def answer(self, data: bytes) -> bytes:
        return self._encode(pack(data))

    def last(self, call: DoorCall, failed: Failure | None) -> bytes:
        return self.end(failed, texts(call.trailers))

    def end(self, failed: Failure | None, metadata: dict[str, str]) -> bytes:
        return self._encode(pack(trailers_of(failed, metadata), TRAILERS))

    async def refuse(self, call: DoorCall, failed: Failure, send: Send) -> bool:
        return False


async def refuse(send: Send, kind: str, failed: Failure) -> None:
    """Respond to a request that is not a valid call."""
    headers = failed.headers()
    await respond(send, 200, headers, _Frames(kind).end(failed, {}), kind)


def trailers_of(failed: Failure | None, metadata: dict[str, str]) -> bytes:
    """Trailers in the form of HTTP/1.1 headers, in lower case."""
    found = dict(metadata)
    if failed is None:
        found["grpc-status"] = "0"
    else:
        details = base64.b64encode(failed.status.SerializeToString()).rstrip(b"=").decode()
        found |= {"grpc-status": str(failed.status.code), "grpc-message": _percent(failed.status.message)}
        found[DETAILS_KEY] = details
    return "".join(f"{name}: {value}\r\n" for name, value in found.items()).encode("latin-1", "replace")


def timeout_seconds(headers: Headers) -> float | None:
    """Seconds until the caller's deadline. Raises InvalidField."""
    text = headers.get("grpc-timeout")
    if text is None:
        return None
    found = _TIMEOUT.fullmatch(text)
    if found is None or not int(found[1]):
        raise InvalidField(
            "grpc-timeout", text, "a whole number of at most 8 digits, more than 0, and H, M, S, m, u or n"
        )
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def from_text(body: bytes) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise InvalidField("body", f"{len(body)} bytes", "frames in base64") from None


def _percent(message: str) -> str:
    """Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Status-Message"."""
    return quote(message.encode(errors="replace"), safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}")
