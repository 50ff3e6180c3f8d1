"""The contract by Connect, at a store and at a router in one process, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack

import pytest
from google.rpc import error_details_pb2

from libs.http import streams
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox
from libs.rpc import gate as gates
from libs.rpc.errors import Context
from libs.rpc.server import RawService
from tests.http_client import ask, connected
from tests.system.http import BAD_FRAMES, CREATE, JSON, NAME, OPEN, Door, envelope, envelopes, http_door, watching
from tests.system.store import CONTRACT, SERVICE, listening, new
from tests.waiting import eventually

PROTO = "application/proto"
STREAM_JSON, STREAM_PROTO = "application/connect+json", "application/connect+proto"


@pytest.fixture(params=["store", "router"])
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    async with OPEN[request.param]() as found:
        yield found


@pytest.fixture
async def store() -> AsyncIterator[Door]:
    async with OPEN["store"]() as found:
        yield found


@pytest.fixture
async def router() -> AsyncIterator[Door]:
    async with OPEN["router"]() as found:
        yield found


@pytest.fixture
async def old_store() -> AsyncIterator[Door]:
    async with OPEN["old store"]() as found:
        yield found


async def test_a_call_by_json_and_by_proto_gives_the_same_answer(door: Door) -> None:
    made = await door.post("CreateSandbox", CREATE, connect_protocol_version="1")
    assert (made.status, made.headers["content-type"]) == (200, JSON)
    assert made.json()["name"] == NAME and made.json()["revision"] == "1", "64 bit integers are texts in JSON"
    request = pb.GetSandboxRequest(name=NAME).SerializeToString()
    found = await door.post("GetSandbox", request, PROTO)
    assert (found.status, found.headers["content-type"]) == (200, PROTO)
    assert Sandbox.FromString(found.body).etag == made.json()["etag"]


async def test_reads_are_answered_by_get(door: Door) -> None:
    await door.post("CreateSandbox", CREATE)
    text = json.dumps({"name": NAME})
    binary = base64.urlsafe_b64encode(pb.GetSandboxRequest(name=NAME).SerializeToString()).decode()
    for query in (
        {"encoding": "json", "message": text, "connect": "v1"},
        {"message": base64.urlsafe_b64encode(text.encode()).decode(), "base64": "1", "encoding": "json"},
        {"message": text, "base64": "0", "encoding": "json", "other": "parameter"},
        {"message": text, "encoding": "json", "compression": "identity"},
    ):
        found = await door.get("GetSandbox", **query)
        assert (found.status, found.headers["content-type"], found.json()["name"]) == (200, JSON, NAME)
    for message in (binary, binary.rstrip("=")):
        found = await door.get("GetSandbox", encoding="proto", base64="1", message=message, connect="v1")
        assert (found.status, found.headers["content-type"]) == (200, PROTO)
        assert Sandbox.FromString(found.body).name == NAME


async def test_writes_and_streams_are_not_answered_by_get(door: Door) -> None:
    for method, allowed in (("CreateSandbox", "POST"), ("WatchSandboxes", "POST")):
        found = await door.get(method, encoding="json", message="{}")
        assert (found.status, found.headers["allow"], found.json()["code"]) == (405, allowed, "unimplemented")
    found = await ask(door.address, "PUT", f"/{SERVICE}/GetSandbox", b"{}", {"content-type": JSON})
    assert (found.status, found.headers["allow"]) == (405, "GET, POST")


async def test_an_error_has_code_message_and_details(door: Door) -> None:
    found = await door.post("GetSandbox", json.dumps({"name": NAME}).encode())
    assert (found.status, found.headers["content-type"]) == (404, JSON)
    assert found.json()["code"] == "not_found" and NAME in found.json()["message"]
    (detail,) = found.json()["details"]
    assert detail["type"] == "google.rpc.ErrorInfo" and "=" not in detail["value"]
    padded = detail["value"] + "=" * (-len(detail["value"]) % 4)
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(padded))
    assert (info.domain, detail["debug"]["domain"], detail["debug"]["reason"]) == ("baton", "baton", info.reason)
    by_proto = await door.post("GetSandbox", pb.GetSandboxRequest(name=NAME).SerializeToString(), PROTO)
    assert (by_proto.headers["content-type"], by_proto.json()["code"]) == (JSON, "not_found")


async def test_metadata_comes_as_headers_and_trailers_with_their_prefix(router: Door, old_store: Door) -> None:
    made = await router.post("CreateSandbox", CREATE, baton_explain="1")
    assert made.headers["trailer-baton-store"] == "A" and "baton-store" not in made.headers
    failed = await router.post("GetSandbox", b'{"name":"sandboxes/other"}', baton_explain="1")
    assert (failed.status, failed.headers["trailer-baton-store"]) == (404, "A")
    told = await old_store.post("GetSandbox", b'{"name":"sandboxes/other"}', sandbox_schema_version="1")
    assert [name for name in told.headers if "baton-" in name] == ["trailer-baton-deprecated"]


async def test_json_is_in_the_callers_schema_version(old_store: Door) -> None:
    flat = json.dumps({"sandboxId": "one", "sandbox": {"account": "acme", "image": "image:1", "cpu": 1.5}}).encode()
    made = await old_store.post("CreateSandbox", flat)
    assert (made.status, made.json()["image"], made.json()["cpu"]) == (200, "image:1", 1.5)
    newer = await old_store.post("GetSandbox", json.dumps({"name": NAME}).encode(), sandbox_schema_version="2")
    assert newer.json()["spec"] == {"image": "image:1", "cpuMillis": "1500"}
    request = pb.GetSandboxRequest(name=NAME).SerializeToString()
    assert FlatSandbox.FromString((await old_store.post("GetSandbox", request, PROTO)).body).image == "image:1"


async def test_a_repeated_call_has_one_effect(door: Door) -> None:
    body = json.dumps(json.loads(CREATE) | {"requestId": "7c2c9c0a-8f5f-4d5e-9d57-0f6a6f3f3d10"}).encode()
    first, second = await door.post("CreateSandbox", body), await door.post("CreateSandbox", body)
    assert (first.status, first.body) == (200, second.body)


@pytest.mark.parametrize("kind", [STREAM_JSON, STREAM_PROTO])
async def test_a_watch_shows_each_change(door: Door, kind: str) -> None:
    def names(data: bytes) -> list[str]:
        if kind == STREAM_JSON:
            return [sandbox["name"] for sandbox in json.loads(data).get("sandboxes", [])]
        return [sandbox.name for sandbox in pb.WatchSandboxesResponse.FromString(data).sandboxes]

    body = envelope(b"{}" if kind == STREAM_JSON else b"")
    async with watching(door, body, kind) as (reader, headers):
        assert headers["content-type"] == kind
        flags, first = await reader.next()
        assert (flags, names(first)) == (0, [])
        await door.post("CreateSandbox", CREATE)
        while names((await reader.next())[1]) != [NAME]:
            pass
    await eventually(lambda: door.gate.streams == 0, what="the stream of a caller who left ends")


async def test_a_watch_ends_with_an_error_in_its_last_envelope(door: Door) -> None:
    async with watching(door, envelope(b"{}"), STREAM_JSON, connect_timeout_ms="300") as (reader, _):
        while not (found := await reader.next())[0]:
            pass
    flags, end = found
    assert flags == 2
    assert json.loads(end)["error"]["code"] == "deadline_exceeded"


async def test_a_drain_ends_watches_with_unavailable(store: Door) -> None:
    async with watching(store, envelope(b"{}"), STREAM_JSON) as (reader, _):
        await reader.next()
        store.end_streams()
        while not (found := await reader.next())[0]:
            pass
        assert json.loads(found[1])["error"]["code"] == "unavailable"


BAD_CALLS: dict[str, tuple[bytes, str, dict[str, str], tuple[int, str], str]] = {
    "broken JSON": (b'{"sandbox_id":', JSON, {}, (400, "invalid_argument"), "body"),
    "no JSON": (b"", JSON, {}, (400, "invalid_argument"), "body"),
    "a list": (b"[]", JSON, {}, (400, "invalid_argument"), "a JSON object"),
    "no UTF-8": (b'{"sandboxId":"\xff"}', JSON, {}, (400, "invalid_argument"), "UTF-8"),
    "an unknown field": (b'{"sandbox":{"bogus":1}}', JSON, {}, (400, "invalid_argument"), "bogus"),
    "a key twice": (b'{"sandboxId":"a","sandboxId":"b"}', JSON, {}, (400, "invalid_argument"), "sandboxId"),
    "a wrong type": (b'{"sandboxId":1}', JSON, {}, (400, "invalid_argument"), "sandboxId"),
    "no message": (b"\xff\xff", PROTO, {}, (400, "invalid_argument"), "CreateSandboxRequest"),
    "a large message": (b"\x00" * (1 << 20 | 1), PROTO, {}, (413, "invalid_argument"), "1048576 bytes"),
    "another codec": (CREATE, "application/xml", {}, (415, "invalid_argument"), "application/xml"),
    "no codec": (CREATE, "", {}, (415, "invalid_argument"), "application/json"),
    "a stream's codec": (CREATE, STREAM_JSON, {}, (415, "invalid_argument"), STREAM_JSON),
    "another charset": (CREATE, JSON + "; charset=latin-1", {}, (415, "invalid_argument"), "UTF-8"),
    "compressed": (CREATE, JSON, {"content_encoding": "gzip"}, (501, "unimplemented"), "identity"),
    "another version": (CREATE, JSON, {"connect_protocol_version": "2"}, (400, "invalid_argument"), "Version"),
    "a text as timeout": (CREATE, JSON, {"connect_timeout_ms": "1s"}, (400, "invalid_argument"), "Connect-Timeout-Ms"),
    "a long timeout": (CREATE, JSON, {"connect_timeout_ms": "1" * 11}, (400, "invalid_argument"), "10 digits"),
    "another schema": (CREATE, JSON, {"sandbox_schema_version": "9"}, (400, "invalid_argument"), "1 to 2"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_a_bad_call_has_a_clear_error_and_leaves_nothing(store: Door, case: str) -> None:
    body, kind, headers, expected, named = BAD_CALLS[case]
    found = await store.post("CreateSandbox", body, kind, **headers)
    assert (found.status, found.json()["code"]) == expected
    assert named in found.json()["message"]
    assert found.headers["content-type"] == JSON
    assert await store.is_untouched()


BAD_STREAMS: dict[str, tuple[bytes, dict[str, str], str, str]] = {
    **{case: (body, {}, "invalid_argument", named) for case, (body, named) in BAD_FRAMES.items()},
    "broken JSON": (envelope(b"{"), {}, "invalid_argument", "JSON"),
    "an unknown field": (envelope(b'{"bogus":1}'), {}, "invalid_argument", "bogus"),
    "a bad filter": (envelope(b'{"filter":"nonsense"}'), {}, "invalid_argument", "filter"),
    "a compressed stream": (envelope(b"{}"), {"connect_content_encoding": "gzip"}, "unimplemented", "identity"),
    "another version": (envelope(b"{}"), {"connect_protocol_version": "2"}, "invalid_argument", "Version"),
    "a bad timeout": (envelope(b"{}"), {"connect_timeout_ms": "0"}, "invalid_argument", "Connect-Timeout-Ms"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
async def test_a_bad_stream_ends_with_a_clear_error_and_leaves_nothing(store: Door, case: str) -> None:
    body, headers, code, named = BAD_STREAMS[case]
    found = await store.post("WatchSandboxes", body, STREAM_JSON, **headers)
    assert (found.status, found.headers["content-type"]) == (200, STREAM_JSON)
    ((flags, end),) = envelopes(found.body)
    error = json.loads(end)["error"]
    assert (flags, error["code"]) == (2, code)
    assert named in error["message"]
    assert await store.is_untouched()


@pytest.mark.parametrize(
    ("query", "expected", "named"),
    [
        ({"message": "{}"}, (415, "invalid_argument"), "encoding"),
        ({"message": "{}", "encoding": "xml"}, (415, "invalid_argument"), "xml"),
        ({"encoding": "json"}, (400, "invalid_argument"), "message"),
        ({"encoding": "json", "message": "*", "base64": "1"}, (400, "invalid_argument"), "base64"),
        ({"encoding": "json", "message": "{}", "compression": "gzip"}, (501, "unimplemented"), "identity"),
        ({"encoding": "json", "message": "{}", "connect": "v2"}, (400, "invalid_argument"), "connect"),
    ],
)
async def test_a_bad_query_has_a_clear_error(
    store: Door, query: dict[str, str], expected: tuple[int, str], named: str
) -> None:
    found = await store.get("GetSandbox", **query)
    assert (found.status, found.json()["code"]) == expected
    assert named in found.json()["message"]


@pytest.mark.parametrize("query", ["encoding=json&message=%ff", "encoding=json&message={}&message={}", "x", ""])
async def test_a_query_that_cannot_be_read_is_refused(store: Door, query: str) -> None:
    found = await ask(store.address, "GET", f"/{SERVICE}/GetSandbox?{query}")
    assert found.status in (400, 415) and found.json()["code"] == "invalid_argument"


async def test_an_unknown_method_is_unimplemented(door: Door) -> None:
    for method in ("Nothing", "", "GetSandbox/", "getsandbox"):
        found = await door.post(method, b"{}")
        assert (found.status, found.json()["code"]) == (404, "unimplemented")
        assert "GetSandbox" in found.json()["message"]


async def test_a_deadline_ends_a_call(store: Door) -> None:
    async with connected(store.address) as connection:
        head = f"POST /{SERVICE}/GetSandbox HTTP/1.1\r\nhost: test\r\ncontent-type: {JSON}\r\ncontent-length: 10\r\n"
        await connection.send((head + "connect-timeout-ms: 100\r\n\r\n").encode())
        found = (await connection.read_raw()).decode()
        assert found.startswith("HTTP/1.1 504 ") and '"code":"deadline_exceeded"' in found
        assert '"reason":"DEADLINE_EXCEEDED"' in found
    await eventually(store.is_untouched)


BIG = pb.WatchSandboxesResponse(removed=["x" * 1000] * 1000).SerializeToString()


async def _endless(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
    while True:
        yield BIG


@pytest.mark.parametrize(
    ("verb", "path", "headers", "body"),
    [
        ("POST", f"/{SERVICE}/WatchSandboxes", {"content-type": STREAM_PROTO}, envelope(b"")),
        ("POST", f"/{SERVICE}/WatchSandboxes", {"content-type": "application/grpc-web"}, envelope(b"")),
        ("GET", "/v1/sandboxes:watch", {}, None),
    ],
)
async def test_a_caller_who_takes_nothing_loses_the_connection(
    monkeypatch: pytest.MonkeyPatch, verb: str, path: str, headers: dict[str, str], body: bytes | None
) -> None:
    monkeypatch.setattr(gates, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(streams, "FAREWELL_SECONDS", 0.1)
    service = RawService(SERVICE, {}, {"WatchSandboxes": _endless})
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(listening(service))
        listener = await stack.enter_async_context(http_door(CONTRACT, service, server))
        connection = await stack.enter_async_context(connected(listener.address))
        await connection.request(verb, path, body, headers)
        await eventually(lambda: server.gate.streams == 1)
        await eventually(lambda: server.gate.streams == 0 and "connections=0" in repr(listener))


async def test_a_caller_who_leaves_within_the_request_leaves_nothing(store: Door) -> None:
    head = f"POST /{SERVICE}/WatchSandboxes HTTP/1.1\r\nhost: test\r\ncontent-type: {STREAM_JSON}\r\n"
    async with connected(store.address) as connection:
        await connection.send((head + "content-length: 7\r\n\r\n").encode() + envelope(b"{}")[:6])
        await eventually(lambda: store.gate.streams == 1)
    await eventually(store.is_untouched)


async def test_calls_above_the_limit_are_refused_as_over_grpc(store: Door) -> None:
    store.gate.in_flight += 1000
    try:
        found = await store.post("GetSandbox", json.dumps({"name": NAME}).encode())
    finally:
        store.gate.in_flight -= 1000
    assert (found.status, found.json()["code"], found.headers["retry-after"]) == (429, "resource_exhausted", "1")
    assert [detail["type"] for detail in found.json()["details"]] == ["google.rpc.ErrorInfo", "google.rpc.RetryInfo"]


async def test_many_calls_share_a_connection(store: Door) -> None:
    async with connected(store.address) as connection:
        for _ in range(3):
            await connection.request("POST", f"/{SERVICE}/ListSandboxes", b"{}", {"content-type": JSON})
            assert (await connection.answer()).status == 200
            await connection.request("POST", f"/{SERVICE}/ListSandboxes", b"{", {"content-type": JSON})
            assert (await connection.answer()).status == 400


async def test_a_grpc_client_gets_what_connect_has_written(store: Door) -> None:
    answers = await asyncio.gather(*(store.post("CreateSandbox", new().SerializeToString(), PROTO) for _ in range(5)))
    names = {Sandbox.FromString(answer.body).name for answer in answers}
    listed = await store.post("ListSandboxes", b"{}")
    assert {sandbox["name"] for sandbox in listed.json()["sandboxes"]} == names
