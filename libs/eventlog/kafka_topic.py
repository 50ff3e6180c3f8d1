"""Settings of the Kafka log, and the check of its topic."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from libs.eventlog.kafka_client import stop_within, wait_for_controller, why_away
from libs.eventlog.port import MAX_EVENT_BYTES, LogUnavailable, Retention, TopicUnfit
from libs.eventlog.security import KafkaAccess

_FRAMING_BYTES = 32 * 1024
_LOOK_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Address of the log, and time limits.

    With `create`, a missing topic is created, with `replication_factor` copies, of which `min_insync_replicas` must
    hold an event before it counts as appended, kept for `retention_hours`. An existing topic is never changed.
    """

    bootstrap: str
    topic: str
    partitions: int = 16
    create: bool = False
    replication_factor: int = 3
    min_insync_replicas: int = 2
    retention_hours: float = 7 * 24
    append_timeout_seconds: float = 10.0
    request_timeout_seconds: float = 4.0
    access: KafkaAccess = field(default_factory=KafkaAccess)

    def client(self) -> dict[str, Any]:
        """Arguments of every client: where the brokers are, and how they are reached."""
        return {
            "bootstrap_servers": self.bootstrap,
            "request_timeout_ms": round(self.request_timeout_seconds * 1000),
            **self.access.options(),
        }


async def check_topic(settings: KafkaSettings) -> Retention:
    """Check that the topic can serve as the log and return its retention. A missing topic is created if the settings
    allow.

    Raises:
        TopicUnfit: it cannot serve; the message has the remedy.
        LogUnavailable: the broker is unavailable.
    """
    admin = AIOKafkaAdminClient(**settings.client())
    try:
        async with asyncio.timeout(settings.append_timeout_seconds):
            await admin.start()
            found = await _describe(admin, settings.topic)
            if found is None:
                found = await _create(admin, settings)
            _check_partitions(found, settings)
            config = await _config(admin, settings.topic)
            _check_config(config, settings.topic)
            age = int(config["retention.ms"])
            return Retention(None if age < 0 else age / 1000, by_size=int(config["retention.bytes"]) >= 0)
    except (KafkaError, OSError, TimeoutError) as error:
        reason = await why_away(settings.client()) or repr(error)
        raise LogUnavailable(f"topic {settings.topic} at {settings.bootstrap}: {reason}") from error
    finally:
        await stop_within(admin, settings.request_timeout_seconds)


async def _describe(admin: Any, topic: str) -> dict[str, Any] | None:
    """The topic's metadata, or None. Requests all topics, since a request for one may create it."""
    for found in await admin.describe_topics():
        if found["topic"] == topic:
            return dict(found)
    return None


async def _create(admin: Any, settings: KafkaSettings) -> dict[str, Any]:
    if not settings.create:
        raise TopicUnfit(
            f"{settings.topic} does not exist at {settings.bootstrap}; make it with {settings.partitions} partitions"
            " and cleanup.policy=delete"
        )
    topic = NewTopic(
        settings.topic,
        settings.partitions,
        settings.replication_factor,
        topic_configs={
            "cleanup.policy": "delete",
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": str(settings.min_insync_replicas),
            "retention.ms": str(round(settings.retention_hours * 3_600_000)),
            "unclean.leader.election.enable": "false",
        },
    )
    await wait_for_controller(admin)
    answer = (await admin.create_topics([topic])).topic_errors[0]
    code, message = answer[1], answer[2]
    # Another process may have created it meanwhile. Then it is checked like any other.
    if code not in (0, TopicAlreadyExistsError.errno):
        raise TopicUnfit(f"{settings.topic} could not be made: {for_code(code).__name__}: {message}")
    while True:
        found = await _describe(admin, settings.topic)
        if found is not None and all(partition["leader"] >= 0 for partition in found["partitions"]):
            return found
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _config(admin: Any, topic: str) -> dict[str, str]:
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    code, message, _, _, entries = answer.resources[0]
    if code:
        raise for_code(code)(message)
    return {entry[0]: entry[1] for entry in entries}


def _check_partitions(found: dict[str, Any], settings: KafkaSettings) -> None:
    count = len(found["partitions"])
    if count != settings.partitions:
        raise TopicUnfit(
            f"{settings.topic} has {count} partitions, the settings say {settings.partitions}; make them equal"
            " (adding partitions to a topic in use moves keys: make a new topic)"
        )


def _check_config(config: dict[str, str], topic: str) -> None:
    policy = config["cleanup.policy"]
    if policy != "delete":
        raise TopicUnfit(f"{topic} has cleanup.policy={policy}, it must be delete: compaction loses events; change it")
    limit = int(config["max.message.bytes"])
    wanted = MAX_EVENT_BYTES + _FRAMING_BYTES
    if limit < wanted:
        raise TopicUnfit(f"{topic} has max.message.bytes={limit}, it must be at least {wanted}; raise it")
