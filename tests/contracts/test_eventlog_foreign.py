"""Messages of other programs in the log: none stops a reader, and each shows its readable parts."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from libs.eventlog.kafka import KafkaEventLog
from libs.eventlog.kafka_records import Batches
from libs.eventlog.port import UNREADABLE_HEADER, Event, why_unreadable
from libs.eventlog.sqlite import SqliteEventLog
from libs.proving.servers.kafka import Kafka
from tests.contracts.eventlog_adapters import event, kafka_settings, read
from tests.foreign import batch, send_batch, send_compressed

BEFORE, BAD, BEHIND = (b"k1", b"v1", [("n", b"1")]), (b"k2", b"v2", [("nnn", b"2")]), (b"k3", b"v3", [("n", b"3")])
NAME = b"\x06nnn\x022"


def changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
async def test_a_message_whose_header_name_is_not_utf_8_shows_the_rest_and_is_passed(
    kafka: Kafka, kafka_topic: str, packed: bool
) -> None:
    damaged = batch([BEFORE, BAD, BEHIND], changed(NAME, b"\x06\xff\xfen\x022"), packed=packed)
    await send_batch(kafka.bootstrap, kafka_topic, 3, damaged)
    async with KafkaEventLog.open(kafka_settings(kafka, kafka_topic)) as log:
        await log.append([event("sandboxes/a")], partition=3)
        async with log.reader({3: 0}) as reader:
            found = await read(reader, 4)
    assert [stored.offset for stored in found] == [0, 1, 2, 3]
    first, bad, behind, last = [stored.event for stored in found]
    assert first == Event("k1", b"v1", (("n", b"1"),)) and behind == Event("k3", b"v3", (("n", b"3"),))
    assert (bad.key, bad.value, why_unreadable(bad)) == ("k2", b"v2", "headers: a name is not UTF-8")
    assert last == event("sandboxes/a")
    assert [why_unreadable(one) for one in (first, behind, last)] == ["", "", ""]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize(
    ("new", "why"),
    [
        (b"\xfe\xff\xff\x7fn\x022", "headers: "),
        (b"\x02\x05nnn\x022", "headers: "),
        (b"\x02\x7ennn\x022", "headers: "),
        (b"\x02\x04nnn\x022", "headers: "),
        (b"\xff" * 7, "headers: "),
    ],
    ids=["a huge count", "a length below zero", "a length beyond the end", "bytes that are left", "garbage"],
)
def test_a_header_block_that_makes_no_sense_leaves_key_and_value_and_the_messages_around(
    packed: bool, new: bytes, why: str
) -> None:
    """The broker of the tests refuses such a block; others do not look."""
    first, bad, behind = _messages(batch([BEFORE, BAD, BEHIND], changed(b"\x02" + NAME, new), packed=packed))
    assert (first.key, behind.key, behind.offset) == (b"k1", b"k3", 2)
    assert (bad.offset, bad.key, bad.value, bad.headers[0][0]) == (1, b"k2", b"v2", UNREADABLE_HEADER)
    assert bad.headers[0][1].startswith(why.encode())


def test_a_message_without_key_and_value_in_its_bounds_is_one_unreadable_message() -> None:
    _, bad, behind = _messages(batch([BEFORE, BAD, BEHIND], changed(b"\x04k2\x04v2", b"\x7ek2\x04v2")))
    assert (bad.offset, bad.key, behind.key) == (1, None, b"k3")
    assert b"key and value: " in bad.headers[0][1]


def test_a_batch_that_cannot_be_unpacked_is_one_unreadable_message_at_its_last_offset() -> None:
    data = bytearray(batch([BEFORE, BAD, BEHIND], packed=True))
    data[70:74] = b"\xff\xff\xff\xff"
    (bad,) = _messages(bytes(data))
    assert (bad.offset, bad.key) == (2, None) and b"cannot be unpacked" in bad.headers[0][1]


def _messages(data: bytes) -> list[Any]:
    batches = Batches(data)
    return list(batches.next_batch())


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_messages_in_every_codec_are_read(kafka: Kafka, kafka_topic: str, codec: str) -> None:
    values = [f"{number} ".encode() * 200 for number in range(5)]
    await send_compressed(kafka.bootstrap, kafka_topic, 3, codec, values)
    async with KafkaEventLog.open(kafka_settings(kafka, kafka_topic)) as log, log.reader({3: 0}) as reader:
        found = await read(reader, len(values))
    assert [stored.event for stored in found] == [Event(f"sandboxes/{codec}", value) for value in values]


async def test_a_row_that_another_program_wrote_into_the_file_stops_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteEventLog.open(path) as log:
        await log.append([event("sandboxes/a", 1)], partition=3)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("INSERT INTO event VALUES (3, 1, 'k2', x'7632', x'00000003ff', 1.0)")
            other.execute("INSERT INTO event VALUES (3, 2, CAST(x'ff6b33' AS TEXT), 'v3', x'', 1.0)")
            other.execute("UPDATE part SET next = 3 WHERE part = 3")
        async with log.reader({3: 0}) as reader:
            _, bad, odd = [stored.event for stored in await read(reader, 3)]
    assert (bad.key, bad.value, "headers: " in why_unreadable(bad)) == ("k2", b"v2", True)
    assert odd == Event("\ufffdk3", b"v3")
