"""Shutdown of Kafka's clients: it never looks like a cancellation of the caller."""

from __future__ import annotations

import asyncio

from aiokafka.errors import KafkaConnectionError

from libs.eventlog.kafka_client import stop_within


class Connections:
    def __init__(self, error: BaseException | None) -> None:
        self._error = error
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1
        if self._error is not None:
            raise self._error


class Consumer:
    """A consumer that is stopped while it waits to repeat a fetch."""

    def __init__(self, connections: Connections) -> None:
        self._client = connections

    async def stop(self) -> None:
        raise asyncio.CancelledError


async def test_a_client_whose_connections_were_closed_in_a_cancelled_stop_is_stopped() -> None:
    connections = Connections(asyncio.CancelledError())
    await stop_within(Consumer(connections), 5)
    assert connections.closed == 1


async def test_connections_that_cannot_be_closed_do_not_fail_the_caller() -> None:
    connections = Connections(KafkaConnectionError("gone"))
    await stop_within(Consumer(connections), 5)
    assert connections.closed == 1
