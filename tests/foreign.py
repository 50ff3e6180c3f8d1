"""Kafka messages that Baton never writes: hand-made batches, sent unchanged."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import NoError, NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.waiting import eventually

_MAGIC, _NOBODY = 2, -1
_LENGTH_AT, _EPOCH_AT, _CRC_AT, _ATTRIBUTES_AT, _BODY_AT = 8, 12, 17, 21, 61
_GZIP = 1

Headers = Sequence[tuple[str, bytes]]


def batch(
    messages: Sequence[tuple[bytes | None, bytes | None, Headers]],
    damage: Callable[[bytes], bytes] = bytes,
    *,
    packed: bool = False,
) -> bytes:
    """A batch of keys, values and headers. `damage` changes its bytes, but not their number. `packed`: compressed with
    gzip, which hides content from the broker's checks."""
    builder: Any = DefaultRecordBatchBuilder(_MAGIC, 0, 0, _NOBODY, _NOBODY, _NOBODY, 1 << 20)
    for offset, (key, value, headers) in enumerate(messages):
        builder.append(offset, 1_700_000_000_000, key, value, list(headers))
    made = bytes(builder.build())
    data = bytearray(damage(made))
    assert damage is bytes or (len(data) == len(made) and data != made), "nothing was damaged"
    if packed:
        data[_BODY_AT:] = gzip.compress(data[_BODY_AT:])
        struct.pack_into(">i", data, _LENGTH_AT, len(data) - _EPOCH_AT)
        struct.pack_into(">h", data, _ATTRIBUTES_AT, _GZIP)
    struct.pack_into(">I", data, _CRC_AT, calc_crc32c(bytes(data[_ATTRIBUTES_AT:])))
    assert DefaultRecordBatch(bytes(data)).validate_crc()
    return bytes(data)


async def send_batch(bootstrap: str, topic: str, partition: int, data: bytes) -> None:
    """Send a batch. Retries while the broker does not lead a new topic yet; raises its other errors."""

    async def taken() -> bool:
        node = producer.client.cluster.leader_for_partition(TopicPartition(topic, partition))
        response = await producer.client.send(node, ProduceRequest(None, -1, 5000, [(topic, [(partition, data)])]))
        error = for_code(response.topics[0][1][0][1])
        if error not in (NoError, NotLeaderForPartitionError):
            raise error(f"{topic}/{partition}")
        return error is NoError

    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.partitions_for(topic)
        await eventually(taken)


async def send_compressed(bootstrap: str, topic: str, partition: int, codec: str, values: Sequence[bytes]) -> None:
    """Send values in one batch, with keys `sandboxes/<codec>`."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=codec, linger_ms=50) as producer:
        sent = [await producer.send(topic, value, f"sandboxes/{codec}".encode(), partition) for value in values]
        for future in sent:
            await future
