"""Connect and gRPC-Web without a socket: envelopes, deadlines, queries, errors."""

from __future__ import annotations

import base64
import json
import struct

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from libs.errors import BatonError, InvalidField
from libs.http import connect, grpc_web
from libs.http.envelopes import HEAD_BYTES, pack, unpack_one
from libs.http.errors import HTTP_CODES, BodyTooLarge, Compressed, Failure, failure_from, failure_of
from libs.rpc.errors import Internal

LIMIT = 100

CONNECT_CODES = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
"""https://connectrpc.com/docs/protocol#error-codes."""


@given(st.binary(max_size=LIMIT))
def test_what_is_packed_is_unpacked(message: bytes) -> None:
    assert pack(message)[:HEAD_BYTES] == struct.pack(">BI", 0, len(message))
    assert unpack_one(pack(message), LIMIT) == message


@given(st.binary(max_size=2 * LIMIT))
def test_any_other_body_is_refused(body: bytes) -> None:
    try:
        message = unpack_one(body, LIMIT)
    except (InvalidField, BodyTooLarge):
        return
    assert body == pack(message)


@pytest.mark.parametrize("behind", [b"x", pack(b"x")])
def test_bytes_behind_the_message_are_refused(behind: bytes) -> None:
    with pytest.raises(InvalidField, match=f"{len(behind)} bytes after the message"):
        unpack_one(pack(b"abc") + behind, LIMIT)


@pytest.mark.parametrize("flags", [1, 2, 4, 64, 128, 255])
def test_an_envelope_with_a_flag_is_refused(flags: int) -> None:
    with pytest.raises(InvalidField, match=f"flags of the message: {flags} is not valid"):
        unpack_one(pack(b"x", flags), LIMIT)


def test_a_length_above_the_limit_is_refused_before_the_message_is_there() -> None:
    with pytest.raises(BodyTooLarge, match="larger than 100 bytes"):
        unpack_one(struct.pack(">BI", 0, LIMIT + 1), LIMIT)
    assert unpack_one(pack(b"x" * LIMIT), LIMIT) == b"x" * LIMIT


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("1", 0.001), ("1500", 1.5), ("9999999999", 9999999.999), ("0010", 0.01)]
)
def test_connect_timeouts_are_milliseconds(text: str | None, seconds: float | None) -> None:
    headers = Headers({"connect-timeout-ms": text} if text else {})
    assert connect.timeout_seconds(headers) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1s", "²", "12345678901", " 1", "1_0", "1\n"])
def test_other_connect_timeouts_are_refused(text: str) -> None:
    with pytest.raises(InvalidField, match="Connect-Timeout-Ms"):
        connect.timeout_seconds(Headers({"connect-timeout-ms": text}))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600.0), ("2M", 120.0), ("3S", 3.0), ("4m", 0.004), ("5u", 5e-6), ("6n", 6e-9), ("99999999S", 99999999.0)],
)
def test_grpc_timeouts_have_a_unit(text: str, seconds: float) -> None:
    assert grpc_web.timeout_seconds(Headers({"grpc-timeout": text})) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "S", "0S", "1s", "1h", "123456789S", "-1S", "1.5S", "1 S"])
def test_other_grpc_timeouts_are_refused(text: str) -> None:
    with pytest.raises(InvalidField, match="grpc-timeout"):
        grpc_web.timeout_seconds(Headers({"grpc-timeout": text}))


@given(st.binary(max_size=LIMIT), st.booleans())
def test_a_message_in_a_query_is_read_with_and_without_padding(message: bytes, padded: bool) -> None:
    text = base64.urlsafe_b64encode(message).decode()
    assert connect.query_message({"message": text if padded else text.rstrip("="), "base64": "1"}) == message


def test_a_query_without_a_message_or_with_a_compressed_one_is_refused() -> None:
    with pytest.raises(InvalidField, match="message"):
        connect.query_message({"encoding": "json"})
    with pytest.raises(InvalidField, match="base64"):
        connect.query_message({"message": "é", "base64": "1"})
    with pytest.raises(Compressed, match="identity"):
        connect.query_message({"message": "e30", "base64": "1", "compression": "br"})
    assert connect.query_message({"message": "é", "base64": "2"}) == "é".encode(), "other values mean no base64"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_each_code_has_the_name_and_the_http_code_of_connect(code: grpc.StatusCode) -> None:
    found = failure_from(code, "x", {})
    assert found.http_code == CONNECT_CODES[connect.error_of(found)["code"]] == HTTP_CODES[code]


def test_an_error_shows_details_that_are_known_and_keeps_those_that_are_not() -> None:
    status = status_pb2.Status(code=5, message="gone")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="R", domain="baton"))
    unknown = status.details.add()
    unknown.type_url, unknown.value = "type.googleapis.com/no.such.Type", b"\x08\x01"
    found = connect.error_of(Failure(status, 404))
    known, other = found["details"]
    assert (found["code"], found["message"]) == ("not_found", "gone")
    assert known["type"] == "google.rpc.ErrorInfo" and known["debug"] == {"reason": "R", "domain": "baton"}
    assert other == {"type": "no.such.Type", "value": "CAE"}


def test_an_error_without_details_has_none() -> None:
    assert connect.error_of(failure_from(grpc.StatusCode.CANCELLED, "", {})) == {"code": "canceled", "message": ""}


def test_the_end_of_a_stream_is_an_empty_object_or_error_and_metadata() -> None:
    assert connect.end_of_stream(None, {}) == b"{}"
    found = json.loads(connect.end_of_stream(failure_of(Internal()), {"baton-store": "A"}))
    assert (found["error"]["code"], found["metadata"]) == ("internal", {"baton-store": ["A"]})


class Odd(BatonError):
    """100 % of ü
    and a second line"""


def test_trailers_of_grpc_web_are_one_line_each() -> None:
    assert grpc_web.trailers_of(None, {"baton-store": "A"}) == b"baton-store: A\r\ngrpc-status: 0\r\n"
    lines = grpc_web.trailers_of(failure_of(Odd()), {}).decode("ascii").split("\r\n")
    assert lines[0] == "grpc-status: 13"
    assert lines[1].startswith("grpc-message: 100 %25 of %C3%BC%0A")
    assert lines[2].startswith("grpc-status-details-bin: ") and lines[3:] == [""]


def test_frames_in_text_are_base64() -> None:
    assert grpc_web.from_text(base64.b64encode(pack(b"x"))) == pack(b"x")
    for body in (b"*", b"AA", "é".encode()):
        with pytest.raises(InvalidField, match="base64"):
            grpc_web.from_text(body)
