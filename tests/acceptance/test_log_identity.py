"""The topic is deleted and made anew while all processes run, under load: no event is passed over in silence."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.pb.baton.control.v1 import events_pb2
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.world import World
from tests.acceptance.talk import COLLECTION
from tests.acceptance.test_feed import WAIT_SECONDS, Site, running
from tests.waiting import eventually

PARTITIONS = 16
BEFORE, DURING = 60, 200


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


async def write_on(site: Site, made: list[str]) -> None:
    """Until cancelled; the ids that were acknowledged."""
    number = 0
    while True:
        number += 1
        with suppress(grpc.aio.AioRpcError):
            await site.make(f"during-{number}")
            made.append(f"during-{number}")


async def test_a_topic_that_was_deleted_and_made_anew_stops_the_feeds_until_a_person_restarts_them(
    tmp_path: Path, stack: Stack
) -> None:
    async with running(World.real(tmp_path, stack)) as site:
        for number in range(BEFORE):
            await site.make(f"before-{number}")
        await site.quiet()
        topic = site.world.servers.event_log.url.rpartition("/")[2]
        made = [f"before-{number}" for number in range(BEFORE)]
        writing = asyncio.create_task(write_on(site, made))
        try:
            await stack.kafka.delete_topic(topic)
            await stack.kafka.create_topic(topic, PARTITIONS, {"cleanup.policy": "delete", "retention.ms": "-1"})
            await eventually(lambda: len(made) >= BEFORE + DURING, WAIT_SECONDS)

            async def stopped() -> Any:
                stores = (await site.status())["stores"]
                return all("LOG_REPLACED" in store["feed_trouble"] for store in stores.values()) and stores

            await eventually(stopped, WAIT_SECONDS)
        finally:
            writing.cancel()
            await asyncio.wait([writing])
        reader = site.readers[1]
        held = {record.name for record in await reader.export()}
        assert held < {COLLECTION + name for name in made}, "what the feed has missed is not there by chance"
        restart = events_pb2.RestartEventsRequest(actor="acceptance", reason="the topic was deleted")
        answer = await site.walk._ask("RestartEvents", restart, once=True)
        await site.walk.end_of_job(answer.job)
        await site.quiet()
        for one in site.readers:
            held = {record.name for record in await one.export()}
            assert {COLLECTION + name for name in made} <= held
        stores = (await site.status())["stores"]
        assert [store["feed_trouble"] for store in stores.values()] == ["", ""]
