"""The contract by gRPC-Web, at a store and at a router in one process, over a real socket."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from urllib.parse import unquote

import pytest
from google.rpc import error_details_pb2, status_pb2

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from tests.http_client import Answer, ask
from tests.system.http import BAD_FRAMES, NAME, OPEN, Door, envelope, envelopes, watching
from tests.system.store import SERVICE, new
from tests.waiting import eventually

WEB, TEXT = "application/grpc-web+proto", "application/grpc-web-text"
TRAILERS = 0x80


@pytest.fixture(params=["store", "router"])
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    async with OPEN[request.param]() as found:
        yield found


@pytest.fixture
async def store() -> AsyncIterator[Door]:
    async with OPEN["store"]() as found:
        yield found


def trailers(frame: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in frame.decode().split("\r\n") if line)


def ended(answer: Answer) -> dict[str, str]:
    """The trailers of an answer that has nothing else."""
    ((flags, frame),) = envelopes(answer.body)
    assert (answer.status, flags) == (200, TRAILERS)
    return trailers(frame)


async def test_a_call_is_answered_by_a_message_and_trailers(door: Door) -> None:
    made = await door.post("CreateSandbox", envelope(new("one").SerializeToString()), WEB)
    assert (made.status, made.headers["content-type"]) == (200, WEB)
    (flags, message), (last, end) = envelopes(made.body)
    assert (flags, Sandbox.FromString(message).name) == (0, NAME)
    assert (last, trailers(end)["grpc-status"]) == (TRAILERS, "0")


async def test_metadata_is_in_the_trailers() -> None:
    async with OPEN["router"]() as router:
        request = envelope(new("one").SerializeToString())
        made = await router.post("CreateSandbox", request, WEB, baton_explain="1")
        assert trailers(envelopes(made.body)[1][1])["baton-store"] == "A"


async def test_an_error_is_in_the_trailers_with_its_details(door: Door) -> None:
    found = ended(await door.post("GetSandbox", envelope(pb.GetSandboxRequest(name=NAME).SerializeToString()), WEB))
    assert found["grpc-status"] == "5" and NAME in unquote(found["grpc-message"])
    data = found["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(data + "=" * (-len(data) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.domain == "baton"


async def test_text_is_base64_of_the_same_frames(door: Door) -> None:
    request = base64.b64encode(envelope(new("one").SerializeToString()))
    made = await door.post("CreateSandbox", request, TEXT)
    assert made.headers["content-type"] == TEXT
    message, (_, end) = envelopes(base64.b64decode(made.body))
    assert (Sandbox.FromString(message[1]).name, trailers(end)["grpc-status"]) == (NAME, "0")
    (frame,) = envelopes(base64.b64decode((await door.post("CreateSandbox", b"***", TEXT)).body))
    assert trailers(frame[1])["grpc-status"] == "3"


async def test_a_watch_shows_each_change_and_ends_with_trailers(door: Door) -> None:
    async with watching(door, envelope(b""), WEB) as (reader, headers):
        assert headers["content-type"] == WEB
        assert (await reader.next())[0] == 0
        await door.post("CreateSandbox", envelope(new("one").SerializeToString()), WEB)
        names: set[str] = set()
        while NAME not in names:
            flags, message = await reader.next()
            assert flags == 0
            names |= {sandbox.name for sandbox in pb.WatchSandboxesResponse.FromString(message).sandboxes}
        door.end_streams()
        while not (found := await reader.next())[0]:
            pass
    assert (found[0], trailers(found[1])["grpc-status"]) == (TRAILERS, "14")
    await eventually(lambda: door.gate.streams == 0)


@pytest.mark.parametrize("method", ["CreateSandbox", "WatchSandboxes"])
@pytest.mark.parametrize("case", BAD_FRAMES)
async def test_a_bad_frame_has_a_clear_error_and_leaves_nothing(store: Door, case: str, method: str) -> None:
    body, named = BAD_FRAMES[case]
    found = ended(await store.post(method, body, WEB))
    assert found["grpc-status"] == "3"
    assert named in unquote(found["grpc-message"])
    assert await store.is_untouched()


@pytest.mark.parametrize(
    ("headers", "code", "named"),
    [
        ({"grpc_timeout": "1"}, "3", "grpc-timeout"),
        ({"grpc_timeout": "123456789S"}, "3", "8 digits"),
        ({"grpc_timeout": "0S"}, "3", "grpc-timeout"),
        ({"grpc_encoding": "gzip"}, "12", "identity"),
        ({"sandbox_schema_version": "9"}, "3", "1 to 2"),
    ],
)
async def test_a_bad_header_has_a_clear_error(store: Door, headers: dict[str, str], code: str, named: str) -> None:
    found = ended(await store.post("CreateSandbox", envelope(new("one").SerializeToString()), WEB, **headers))
    assert found["grpc-status"] == code and named in unquote(found["grpc-message"])
    assert await store.is_untouched()


async def test_an_unknown_method_or_verb_is_unimplemented(store: Door) -> None:
    assert ended(await store.post("Nothing", envelope(b""), WEB))["grpc-status"] == "12"
    found = await ask(store.address, "PUT", f"/{SERVICE}/GetSandbox", b"", {"content-type": WEB})
    assert ended(found)["grpc-status"] == "12"


async def test_a_large_message_is_refused(store: Door) -> None:
    body = struct.pack(">BI", 0, 1 << 30) + b"x" * ((1 << 20) + 1)
    found = ended(await store.post("CreateSandbox", body, WEB))
    assert found["grpc-status"] == "3" and "larger than" in unquote(found["grpc-message"])
