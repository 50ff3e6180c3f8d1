"""Errors cross the wire with reason, metadata and remedy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from libs.errors import BatonError, InvalidField, Overloaded
from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, Version
from libs.rpc.auth import TokenRefused
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import DETAILS_KEY, Context, own_metadata, pass_on, reason_of, status_of
from libs.rpc.server import RawService, Server, ServerConfig


@asynccontextmanager
async def serving(*services: RawService) -> AsyncIterator[tuple[Server, Channel]]:
    server = Server(ServerConfig("127.0.0.1:0", "public"), list(services))
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.drain(1.0)


def failing(error: Exception) -> RawService:
    async def fail(request: bytes, context: Context) -> bytes:
        raise error

    return RawService("test.Service", {"Fail": fail})


async def failure_of(error: Exception) -> grpc.aio.AioRpcError:
    async with serving(failing(error)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.multi_callable("/test.Service/Fail")(b"")
        return caught.value


def detail(error: grpc.aio.AioRpcError, kind: type[Message]) -> Message:
    (data,) = [value for name, value in error.trailing_metadata() or () if name == DETAILS_KEY]
    status = status_pb2.Status.FromString(data)
    found = kind()
    assert any(part.Unpack(found) for part in status.details), status
    return found


async def test_a_refused_owner_arrives_with_owner_and_version() -> None:
    error = await failure_of(NotOwner(Store.B, Version(2, 7), absent=False))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(error) == ("NOT_OWNER", {"owner": "B", "term": "2", "revision": "7", "absent": "false"})
    assert detail(error, error_details_pb2.PreconditionFailure).violations[0].type == "NOT_OWNER"  # type: ignore[attr-defined]


async def test_an_invalid_field_names_the_field_twice() -> None:
    error = await failure_of(InvalidField("page_size", -1, "0 to 500"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == ("INVALID_FIELD", {"field": "page_size"})
    violation = detail(error, error_details_pb2.BadRequest).field_violations[0]  # type: ignore[attr-defined]
    assert violation.field == "page_size"
    assert "0 to 500" in violation.description


async def test_an_error_that_may_pass_says_when_to_try_again() -> None:
    error = await failure_of(Overloaded())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = detail(error, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 200  # type: ignore[attr-defined]


async def test_a_defect_is_logged_but_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    error = await failure_of(RuntimeError("password=hunter2"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert reason_of(error) == ("INTERNAL", {})
    assert "hunter2" not in f"{error.details()}{error.trailing_metadata()}"
    assert "hunter2" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("text", ["x" * 50_000, "é" * 50_000, "\U0001f600" * 50_000, "\ud800" * 50_000])
async def test_trailers_stay_small_however_long_the_message(text: str) -> None:
    metadata = {f"name{number}": text for number in range(50)}
    error = await failure_of(BatonError(text, **metadata))
    assert reason_of(error)[0] == "INTERNAL"
    assert len(status_of(BatonError(text, **metadata)).SerializeToString()) < 4096


async def test_a_status_of_others_has_no_reason() -> None:
    async with serving(failing(Overloaded())) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.multi_callable("/test.Service/Unknown")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert reason_of(caught.value) == ("", {})


async def test_details_that_cannot_be_read_have_no_reason() -> None:
    metadata = grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), metadata, "")
    assert reason_of(error) == ("", {})


async def test_an_error_is_passed_on_as_it_was() -> None:
    async with serving(failing(InvalidField("name", "x", "a name"))) as (_, behind):

        async def forward(request: bytes, context: Context) -> bytes:
            try:
                return await behind.multi_callable("/test.Service/Fail")(request)
            except grpc.aio.AioRpcError as error:
                return await pass_on(context, error)

        async with serving(RawService("test.Front", {"Fail": forward})) as (_, channel):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.multi_callable("/test.Front/Fail")(b"")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == ("INVALID_FIELD", {"field": "name"})
    assert caught.value.details() == "name: 'x' is not valid: a name"


def test_headers_of_the_transport_are_not_passed_on() -> None:
    found = [
        ("grpc-status", "1"),
        ("user-agent", "x"),
        ("baton-stale", "1"),
        (DETAILS_KEY, b"1"),
        ("grpc-timeout", "1S"),
    ]
    assert own_metadata(found) == (("baton-stale", "1"), (DETAILS_KEY, b"1"))


async def test_a_detail_goes_to_the_log_once_and_never_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    secret = "/var/lib/a.db: disk I/O error at 10.0.0.7"
    for _ in range(3):
        error = await failure_of(Overloaded(detail=secret))
        assert "10.0.0.7" not in f"{error.details()}{error.trailing_metadata()}"
    assert caplog.text.count(secret) == 1


def passing(code: grpc.StatusCode, text: str, refused: BatonError | None = None) -> RawService:
    """A service that calls another one and passes its error on."""

    async def call(request: bytes, context: Context) -> bytes:
        details = () if refused is None else ((DETAILS_KEY, status_of(refused).SerializeToString()),)
        metadata = grpc.aio.Metadata(*details)
        return await pass_on(context, grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, text))

    return RawService("test.Service", {"Fail": call})


async def passed_on(service: RawService) -> grpc.aio.AioRpcError:
    async with serving(service) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.multi_callable("/test.Service/Fail")(b"")
        return caught.value


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE"),
        (grpc.StatusCode.CANCELLED, "OWNER_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        (grpc.StatusCode.UNKNOWN, "INTERNAL"),
    ],
)
async def test_the_transports_own_words_are_not_passed_on(code: grpc.StatusCode, reason: str) -> None:
    error = await passed_on(passing(code, "failed to connect to all addresses; last error: ipv4:10.0.0.7:50062"))
    assert reason_of(error)[0] == reason
    assert "10.0.0.7" not in f"{error.details()}{error.trailing_metadata()}"


async def test_a_token_that_another_process_refuses_is_our_trouble(caplog: pytest.LogCaptureFixture) -> None:
    error = await passed_on(passing(grpc.StatusCode.UNAUTHENTICATED, "baton-token", TokenRefused()))
    assert (error.code(), reason_of(error)[0]) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")
    assert "token" not in f"{error.details()}{error.trailing_metadata()}"
    assert "same token_file" in caplog.text


async def test_what_another_service_answered_without_a_reason_is_passed_on() -> None:
    error = await passed_on(passing(grpc.StatusCode.NOT_FOUND, "no such shelf"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such shelf")


def test_equal_errors_have_equal_bytes() -> None:
    names = [f"field{number}" for number in range(8)]
    errors = [BatonError("text", **{name: name for name in order}) for order in (names, names[::-1])]
    for _ in range(20):
        assert len({status_of(error).SerializeToString() for error in errors}) == 1
