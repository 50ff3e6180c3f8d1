"""Helpers that all doors share above ASGI: metadata from headers, bodies within a limit, responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from libs.errors import InvalidField
from libs.http.call import DoorCall
from libs.http.errors import BodyTooLarge, WrongMediaType
from libs.identity.port import AUTHORIZATION
from libs.rpc import metadata
from libs.rpc.errors import Pairs
from libs.rpc.limits import METADATA_BYTES

_OURS = "baton-"
_NAME = re.compile(r"[a-z0-9_.-]+(?<!-bin)")
"""Name of text metadata. Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Custom-Metadata"."""
_PAIR_BYTES = 32
"""Bytes that HTTP/2 counts for a header beside its name and value."""
_ALWAYS = frozenset({metadata.TRACEPARENT, "tracestate", "user-agent", AUTHORIZATION})
_LOOSE = frozenset({"user-agent"})
"""Headers that clients send by default: a value that cannot travel as metadata is dropped, not refused."""

SECURITY = {"x-content-type-options": "nosniff", "cache-control": "no-cache"}
"""Headers of every response, unless it sets them itself."""
_WAIT = "wait="
_QUERY_PARAMETERS = 100
STATE = "connection"
"""Key of the connection in the scope's state."""


class Connection(Protocol):
    peer_identity: Mapping[str, list[bytes]]
    """Names in the client's certificate, by gRPC's keys."""

    def abort(self) -> None:
        """Close the connection now and drop unsent bytes."""


def metadata_of(headers: Headers, schema_name: str = "") -> tuple[tuple[str, str], ...]:
    """The headers that are gRPC metadata, in lower case, within gRPC's form and size limits. Raises InvalidField."""
    found = []
    size = 0
    for name, value in headers.items():
        if not (name in _ALWAYS or name.startswith(_OURS) or name == schema_name):
            continue
        if not _NAME.fullmatch(name):
            raise InvalidField("header", name, "a name of letters, digits, '_', '.' and '-' that does not end in -bin")
        if value.isascii() and value.isprintable():
            found.append((name, value))
            size += len(name) + len(value) + _PAIR_BYTES
        elif name not in _LOOSE:
            raise InvalidField(name, value, "printable ASCII")
    if size > METADATA_BYTES:
        raise InvalidField("headers", f"{size} bytes", f"at most {METADATA_BYTES} bytes of metadata in headers")
    return tuple(found)


def peer_of(scope: Scope) -> str:
    """The peer's address in gRPC's notation."""
    host, port = scope.get("client") or ("unknown", 0)
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def names_of(scope: Scope) -> Mapping[str, list[bytes]]:
    """Names in the certificate of the client; empty without one."""
    connection = connection_of(scope)
    return connection.peer_identity if connection is not None else {}


def connection_of(scope: Scope) -> Connection | None:
    found: Connection | None = scope.get("state", {}).get(STATE)
    return found


def deadline_of(headers: Headers) -> float | None:
    """Seconds until the caller's deadline; None without one. Raises InvalidField."""
    name, text = "X-Server-Timeout", headers.get("x-server-timeout")
    if text is None:
        wishes = [wish.strip() for wish in headers.get("prefer", "").split(",")]
        name, text = "Prefer", next((wish.removeprefix(_WAIT) for wish in wishes if wish.startswith(_WAIT)), None)
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.0 < found < 1e6:
        raise InvalidField(name, text, "a number of seconds, more than 0 and without a unit")
    return found


def query_pairs(raw: bytes, note: str = "") -> list[tuple[str, str]]:
    """The parameters of a query string. `note` is a remedy that is added to the error's. Raises InvalidField."""
    if not raw:
        return []
    try:
        return parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_QUERY_PARAMETERS,
        )
    except ValueError as error:
        expected = f"name=value&name=value in percent-encoded UTF-8{note} ({error})"
        raise InvalidField("query", raw[:80].decode("latin-1"), expected) from None


def has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """Raises BodyTooLarge, WrongMediaType, InvalidField."""
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise WrongMediaType(f"content-encoding: {encoding[:40]!r} is not read here: send the body as it is")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise BodyTooLarge(limit)
    body = bytearray()
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise InvalidField("body", f"{len(body)} bytes", "a complete body")
        body += event.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(limit)
        more = event.get("more_body", False)
    return bytes(body)


def answer_headers(call: DoorCall, *, prefix: str = "", trailers: bool = True) -> dict[str, str]:
    """The metadata of a call as headers, and HTTP's own headers for those that have one.

    `prefix`: prefix of the names of trailing metadata. `trailers`: False if trailing metadata is not known yet or is
    sent in another way.
    """
    initial = texts(call.initial)
    trailing = texts(call.trailers) if trailers else {}
    found = initial | {prefix + name: value for name, value in trailing.items()}
    known = initial | trailing
    if age := known.get(metadata.AGE_SECONDS):
        found["age"] = str(int(float(age)))
    if metadata.DEPRECATED in known:
        # RFC 9745 asks for a date. The date is unknown here, so any past one serves.
        found["deprecation"] = "@0"
    return found


def texts(pairs: Pairs) -> dict[str, str]:
    """The part of the metadata that HTTP carries to a client."""
    return {name: value for name, value in pairs if isinstance(value, str) and name.startswith(_OURS)}


def media_type(headers: Headers) -> str:
    """Media type of the body in lower case. Raises WrongMediaType for text that is not in UTF-8."""
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if charset.startswith("charset=") and charset not in ("charset=utf-8", "charset=utf8"):
        raise WrongMediaType(f"content-type: {headers['content-type'][:80]!r} is not in UTF-8")
    return kind.strip().lower()


def matches_etag(if_none_match: str, etag: str) -> bool:
    """Whether the header names the etag. Weak comparison: https://www.rfc-editor.org/rfc/rfc9110#name-if-none-match."""
    named = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in named or etag in named


async def begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": encoded({**SECURITY, **headers})})


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers in ASGI's form."""
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]


async def respond(
    send: Send, status: int, headers: dict[str, str], data: bytes = b"", kind: str = "", *, body: bool = True
) -> None:
    """Send a whole response. If `body` is False, send only the headers, as for HEAD."""
    if kind:
        headers["content-type"] = kind
    if status not in (204, 304):
        headers["content-length"] = str(len(data))
    await begin(send, status, headers)
    message: dict[str, Any] = {"type": "http.response.body", "body": data if body else b""}
    await send(message)
