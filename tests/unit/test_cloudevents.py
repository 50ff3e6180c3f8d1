"""Message headers as CloudEvents 1.0 has them, checked with the `cloudevents` library as the other side."""

from datetime import UTC, datetime

import pytest
from cloudevents.core.bindings import kafka as peer
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from libs.eventlog.cloudevents import CONTENT_TYPE, Attributes, HeadersInvalid, HeaderWriter, read_headers

WRITER = HeaderWriter("b", "sandbox.changed.v1")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALUE = b"\x0a\x03\xff\x00\x01"


def test_the_headers_are_those_of_the_binding() -> None:
    headers = WRITER.write("sandboxes/a", (2, 17), 1_700_000_000.25, TRACEPARENT)
    assert sorted(headers) == [
        ("ce_id", b"sandboxes/a/2.17"),
        ("ce_source", b"/baton/b"),
        ("ce_specversion", b"1.0"),
        ("ce_subject", b"sandboxes/a"),
        ("ce_time", b"2023-11-14T22:13:20.250000Z"),
        ("ce_type", b"sandbox.changed.v1"),
        ("content-type", b"application/protobuf"),
        ("traceparent", TRACEPARENT.encode()),
    ]


def test_without_a_trace_there_is_no_traceparent() -> None:
    assert "traceparent" not in dict(WRITER.write("sandboxes/a", (0, 1), 0.0))


@given(
    key=st.text(st.characters(codec="utf-8"), max_size=20),
    term=st.integers(0, 2**63 - 1),
    revision=st.integers(0, 2**63 - 1),
    microseconds=st.integers(0, 4_000_000_000_000_000),
    traceparent=st.none() | st.just(TRACEPARENT),
)
def test_what_was_written_is_read(
    key: str, term: int, revision: int, microseconds: int, traceparent: str | None
) -> None:
    time = microseconds / 1_000_000
    read = read_headers(WRITER.write(key, (term, revision), time, traceparent))
    assert read == Attributes(key, term, revision, "b", "sandbox.changed.v1", time, traceparent)


@pytest.mark.parametrize("key", ["sandboxes/a", "sandboxes/ä-☃", "sandboxes/a/1.2"])
def test_the_peer_reads_ours(key: str) -> None:
    headers = dict(WRITER.write(key, (2, 17), 1_700_000_000.25, TRACEPARENT))
    found = peer.from_binary(peer.KafkaMessage(headers=headers, key=key, value=VALUE), JSONFormat())
    assert found.get_specversion() == "1.0"
    assert found.get_id() == f"{key}/2.17"
    assert found.get_source() == "/baton/b"
    assert found.get_type() == "sandbox.changed.v1"
    assert found.get_subject() == key
    assert found.get_time() == datetime.fromtimestamp(1_700_000_000.25, UTC)
    assert found.get_datacontenttype() == CONTENT_TYPE
    assert found.get_data() == VALUE


def test_ours_reads_the_peers() -> None:
    sent = CloudEvent(
        attributes={
            "specversion": "1.0",
            "id": "sandboxes/ä/2.17",
            "source": "/baton/a",
            "type": "sandbox.changed.v1",
            "subject": "sandboxes/ä",
            "time": datetime.fromtimestamp(1_700_000_000.25, UTC),
            "datacontenttype": CONTENT_TYPE,
            "partitionkey": "sandboxes/ä",
        },
        data=VALUE,
    )
    message = peer.to_binary(sent, JSONFormat())
    assert message.value == VALUE
    assert read_headers(message.headers.items()) == Attributes(
        "sandboxes/ä", 2, 17, "a", "sandbox.changed.v1", 1_700_000_000.25
    )


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ce_specversion", b"0.3", "ce_specversion is '0.3', it must be '1.0'"),
        ("content-type", b"application/json", "content-type is 'application/json', it must be 'application/protobuf'"),
        ("ce_id", b"sandboxes/a/2", "ce_id is 'sandboxes/a/2', it must be sandboxes/a/<term>.<revision>"),
        ("ce_id", b"sandboxes/a/2.-1", "ce_id is"),
        ("ce_id", b"sandboxes/other/2.17", "ce_id is"),
        ("ce_source", b"/elsewhere/b", "ce_source is '/elsewhere/b', it must be /baton/<store>"),
        ("ce_source", b"/baton/", "ce_source is '/baton/'"),
        ("ce_time", b"yesterday", "ce_time is 'yesterday', it must be a time of RFC 3339"),
        ("ce_time", b"2023-11-14T22:13:20", "ce_time is '2023-11-14T22:13:20', it must have an offset from UTC"),
        ("ce_type", b"\xff", "a value is not UTF-8"),
    ],
)
def test_a_bad_header_is_named(name: str, value: bytes, problem: str) -> None:
    headers = dict(WRITER.write("sandboxes/a", (2, 17), 0.0)) | {name: value}
    with pytest.raises(HeadersInvalid, match=problem):
        read_headers(headers.items())


@pytest.mark.parametrize("name", [name for name, _ in WRITER.write("sandboxes/a", (2, 17), 0.0)])
def test_a_missing_header_is_named(name: str) -> None:
    headers = dict(WRITER.write("sandboxes/a", (2, 17), 0.0))
    del headers[name]
    with pytest.raises(HeadersInvalid, match=f"{name} is missing"):
        read_headers(headers.items())
