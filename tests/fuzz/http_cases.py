"""Cases for the HTTP listeners: REST, Connect, gRPC-Web, MCP, pages, and bytes that are no request."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from google.protobuf.message import Message

from libs.contract.descriptors import Contract
from libs.http.bindings import Binding, Routes
from libs.pb.sandbox.v1 import sandbox_service_pb2
from tests.fuzz.case import HTTP, RAW, Case
from tests.fuzz.messages import Maker
from tests.fuzz.words import client_words

_SERVICE = sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"]
_ROUTES: tuple[Binding, ...] = tuple(Routes.of(Contract.of(_SERVICE)))


def http_case(random: Random, listener: str, unique: str) -> Case:
    maker = Maker(random, client_words(unique))
    ways: Sequence[tuple[float, Callable[[Random, Maker], Case]]] = (
        (0.45, _rest_case),
        (0.2, _connect_case),
        (0.1, _grpc_web_case),
        (0.15, _mcp_case),
        (0.04, _page_case),
        (0.06, _raw_case),
    )
    shares, makers = [share for share, _ in ways], [make for _, make in ways]
    return replace(random.choices(makers, shares)[0](random, maker), listener=listener)


def _rest_case(random: Random, maker: Maker) -> Case:
    binding = random.choice(_ROUTES)
    kind: Any = binding.method.request_class.DESCRIPTOR
    message: Any = maker.message(kind)
    path = binding.template.text
    for field in binding.template.fields:
        value: Any = message
        for part in field.split("."):
            value = getattr(value, part)
        before, _, rest = path.partition("{")
        path = before + quote(value, safe="/:" if random.random() < 0.9 else "") + rest.partition("}")[2]
    query = [
        f"{quote(one.json_name)}={quote(_query_value(random, maker, one))}"
        for one in kind.fields
        if one.message_type is None and random.random() < 0.3
    ]
    if random.random() < 0.1:
        query.append(random.choice(("x=1", "pageSize=NaN", "filter=%ff", "=", "&&", "sandbox.spec.env.A=1", "a[b]=1")))
    verb = (
        binding.verb if random.random() < 0.95 else random.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"))
    )
    body = b""
    if binding.body:
        inner = message if binding.body == "*" else getattr(message, binding.body)
        body = _json(random, inner)
    target = f"{verb} {path}" + (f"?{'&'.join(query)}" if query else "")
    return Case("", HTTP, target, body, _headers(random, "application/json"))


def _query_value(random: Random, maker: Maker, one: Any) -> str:
    value = maker.value(one, 0.7)
    if isinstance(value, bool):
        return random.choice(("true", "false", "1", "TRUE"))
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _headers(random: Random, kind: str) -> tuple[tuple[str, str], ...]:
    if random.random() < 0.08:
        kind = random.choice(("text/plain", "application/xml", "", "application/json; charset=utf-16", "x" * 200))
    found = [("content-type", kind)]
    if random.random() < 0.3:
        found += random.sample(
            (
                ("accept", random.choice(("*/*", "text/event-stream", "image/png", ";;;"))),
                ("accept-encoding", "gzip, br"),
                ("content-encoding", random.choice(("gzip", "identity", "x"))),
                ("if-match", random.choice(('"0.1"', "*", "W/x", '"', "a,b"))),
                ("sandbox-schema-version", random.choice(("1", "2", "99", "x"))),
                ("x-request-id", "x" * 3000),
                ("idempotency-key", random.choice(("1", "00000000-0000-0000-0000-000000000001"))),
                ("connect-timeout-ms", random.choice(("1", "-1", "x", "9" * 12))),
                ("connect-protocol-version", random.choice(("1", "2"))),
                ("grpc-timeout", random.choice(("1n", "1S", "999999999H", "x"))),
                ("origin", "http://evil.example"),
                ("baton-principal", "admin"),
                ("baton-token", "wrong"),
                ("cookie", "a=b; c"),
                ("range", "bytes=0-1"),
                ("expect", "100-continue"),
            ),
            2,
        )
    return tuple(found)


def _json(random: Random, message: Message) -> bytes:
    """The message as JSON, or JSON of wrong types and shapes, or no JSON."""
    try:
        found: Any = json_format.MessageToDict(message, preserving_proto_field_name=random.random() < 0.1)
    except (ValueError, TypeError, json_format.Error):
        # A Timestamp, Duration or FieldMask out of its range has no JSON.
        found = {}
    way = random.random()
    if way < 0.5:
        return json.dumps(found).encode()
    if way < 0.8:
        return json.dumps(_warped(random, found)).encode()
    text = json.dumps(found)
    return random.choice(
        (
            text.encode()[: random.randrange(len(text) + 1)],
            text.encode("utf-16"),
            b'{"a":' * 3000,
            b"[" * 100_000,
            b'{"labels": {"a": "\\ud800"}}',
            b'{"labels": {"a": "\xff"}}',
            text.encode() + b"}",
            b"",
            b"null",
            b'"x"',
            b"1e999",
            b"NaN",
            b'{"spec": {"image": "a", "image": "b"}, "spec": {}}',
            b'{"spec": {"cpuMillis": ' + b"9" * 5000 + b"}}",
            b'{"spec": {"timeout": "1e999s"}}',
            b"\xef\xbb\xbf" + text.encode(),
            random.randbytes(64),
        )
    )


_WRONG: Sequence[Any] = (None, True, 0, -1, 2**63, 1.5, 1e308, "", "x", "\0", [], [[]], [None], {}, {"a": {"b": {}}},
                         {"@type": "type.googleapis.com/google.protobuf.Any"}, float("nan"), float("inf"))  # fmt: skip


def _warped(random: Random, value: Any) -> Any:
    """The value with some parts replaced, renamed or added."""
    if random.random() < 0.15:
        return random.choice(_WRONG)
    if isinstance(value, dict):
        found = {name: _warped(random, inner) for name, inner in value.items()}
        if random.random() < 0.3:
            found[random.choice(("x", "", "__class__", "@type", "schema_version", "uid", "\ud800"))] = random.choice(
                _WRONG
            )
        return found
    if isinstance(value, list):
        return [_warped(random, inner) for inner in value] * random.choice((1, 1, 2, 200))
    return value


def _connect_case(random: Random, maker: Maker) -> Case:
    method = random.choice(list(_SERVICE.methods))
    path = f"/{_SERVICE.full_name}/{method.name}" if random.random() < 0.97 else f"/{_SERVICE.full_name}/{'x' * 300}"
    proto = random.random() < 0.4
    streams = method.server_streaming
    body = maker.data(method.input_type) if proto else _json(random, maker.message(method.input_type))
    if streams or random.random() < 0.05:
        body = struct.pack(">BI", random.choice((0, 0, 0, 1, 2, 255)), len(body) + random.choice((0, 0, 0, 7))) + body
    kind = f"application/{'connect+' if streams else ''}{'proto' if proto else 'json'}"
    if random.random() < 0.1:
        query = random.choice(("encoding=json&message=%7B%7D", "encoding=x", "message=!!&base64=1&encoding=proto", ""))
        return Case("", HTTP, f"GET {path}?{query}", b"", _headers(random, kind))
    return Case("", HTTP, f"POST {path}", body, _headers(random, kind))


def _grpc_web_case(random: Random, maker: Maker) -> Case:
    method = random.choice(list(_SERVICE.methods))
    data = maker.data(method.input_type)
    body = (
        struct.pack(">BI", random.choice((0, 0, 0, 1, 128)), (len(data) + random.choice((0, 0, 0, 0, 1, -1))) % 2**32)
        + data
    )
    kind = random.choice(("application/grpc-web+proto", "application/grpc-web", "application/grpc-web-text"))
    return Case("", HTTP, f"POST /{_SERVICE.full_name}/{method.name}", body, _headers(random, kind))


def _mcp_case(random: Random, maker: Maker) -> Case:
    method = random.choice(list(_SERVICE.methods))
    try:
        arguments: Any = json_format.MessageToDict(maker.message(method.input_type))
    except (ValueError, TypeError, json_format.Error):
        arguments = {}
    name = "".join("_" + one.lower() if one.isupper() else one for one in method.name).strip("_")
    call = {"name": random.choice((name, name, name, "no_such_tool", 1)), "arguments": arguments}
    request: Any = {"jsonrpc": "2.0", "id": random.choice((1, "a", None, 1.5)), "method": "tools/call", "params": call}
    if random.random() < 0.3:
        request["method"] = random.choice(
            ("tools/list", "initialize", "ping", "resources/list", "x", "notifications/x", 7)
        )
        request["params"] = random.choice(({}, [], None, {"protocolVersion": "x"}, {"cursor": "\0"}))
    if random.random() < 0.4:
        request = _warped(random, request)
    body = json.dumps(request).encode() if random.random() < 0.9 else _json(random, maker.message(method.input_type))
    headers = (*_headers(random, "application/json"), ("accept", "application/json, text/event-stream"))
    if random.random() < 0.3:
        headers += (("mcp-protocol-version", random.choice(("2025-06-18", "1999-01-01", "x"))),)
    return Case("", HTTP, f"{random.choice(('POST', 'POST', 'POST', 'POST', 'GET', 'DELETE'))} /mcp", body, headers)


_PATHS: Sequence[str] = (
    "/", "/openapi.json", "/try.js", "/healthz", "/readyz", "/favicon.ico", "//", "/%", "/v1", "/v1/", "/v1/sandboxes/",
    "/v1/../../x", "/mcp/", "/mcp/x", "*", "/v1/sandboxes:nothing", "/" + "x" * 9000,
)  # fmt: skip


def _page_case(random: Random, maker: Maker) -> Case:
    path = random.choice(_PATHS)
    verb = random.choice(("GET", "HEAD", "POST", "OPTIONS", "BREW"))
    return Case(
        "", HTTP, f"{verb} {path}", b"" if random.random() < 0.7 else b"x", _headers(random, "application/json")
    )


_HEADS: Sequence[bytes] = (
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
    b"GET  HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n{}",
    b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
    b"POST /mcp HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{}",
    b"GET /v1/sandboxes?\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nx: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 3000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 50,
    b"GET http://evil.example/ HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
)


def _raw_case(random: Random, maker: Maker) -> Case:
    data = bytearray(random.choice(_HEADS))
    if random.random() < 0.5:
        for _ in range(random.choice((1, 3, 10))):
            data[random.randrange(len(data))] = random.randrange(256)
    if random.random() < 0.2:
        data = data[: random.randrange(len(data))]
    return Case("", RAW, "", bytes(data))
