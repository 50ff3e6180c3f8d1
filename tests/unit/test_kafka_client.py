"""Shutdown of Kafka's clients never looks like a cancellation of the caller, and topics wait for a controller."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaConnectionError

from libs.eventlog import kafka_client, kafka_topic
from libs.eventlog.kafka_client import stop_within
from libs.eventlog.kafka_topic import KafkaSettings
from libs.eventlog.port import Retention


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


class Admin:
    """A client of a broker that has just been woken: it names no controller at first, then one that is away."""

    def __init__(self, **_: Any) -> None:
        self._seen = [([], -1), ([{"node_id": 2}], 1), ([{"node_id": 1}], 1)]
        self._topics: list[dict[str, Any]] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def describe_cluster(self) -> dict[str, Any]:
        brokers, controller = self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]
        return {"brokers": brokers, "controller_id": controller}

    async def describe_topics(self) -> list[dict[str, Any]]:
        return self._topics

    async def create_topics(self, topics: list[NewTopic]) -> Any:
        if len(self._seen) > 1:
            raise AttributeError("'NoneType' object has no attribute 'nodeId'")
        (one,) = topics
        self._topics = [{"topic": one.name, "partitions": [{"leader": 1}] * one.num_partitions}]
        return SimpleNamespace(topic_errors=[(one.name, 0, None)])

    async def describe_configs(self, _: Any) -> list[Any]:
        found = {
            "cleanup.policy": "delete",
            "max.message.bytes": "9000000",
            "retention.ms": "7200000",
            "retention.bytes": "-1",
        }
        entries = [(name, value, False, False, False) for name, value in found.items()]
        return [SimpleNamespace(resources=[(0, None, 2, "topic", entries)])]


async def test_a_topic_is_made_once_the_brokers_have_a_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_topic, "AIOKafkaAdminClient", Admin)
    monkeypatch.setattr(kafka_client, "AIOKafkaAdminClient", Admin)
    settings = KafkaSettings(bootstrap="127.0.0.1:1", topic="events", create=True, append_timeout_seconds=30.0)
    assert await kafka_topic.check_topic(settings) == Retention(7200.0, by_size=False)
