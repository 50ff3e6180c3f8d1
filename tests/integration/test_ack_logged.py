"""A router that answers a write, in the phases that its setting names, only when the write is in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest

from libs.eventlog.port import Event
from libs.ownership.model import Store
from libs.rpc.errors import reason_of
from libs.tasks import Loop
from services.router.core.phase import Phase
from tests.integration.test_router import go_to, lend, look, put
from tests.system.control import running_loops
from tests.system.store import SHELF
from tests.system.whole import System, running_system
from tests.waiting import eventually

PATH = "shelf/r/1"
LOGGED = frozenset({Phase.SHADOW, Phase.CUTOVER})


async def logged_keys(system: System) -> list[str]:
    ends = await system.log.ends()
    async with system.log.reader(dict.fromkeys(ends, 0)) as reader:
        return [stored.event.key for stored in await reader.poll(1000, 0.0) if stored.event.key]


async def test_the_phase_decides_when_a_write_is_answered() -> None:
    async with running_system(feeds=False, mover=False, logged=LOGGED) as system:
        await put(system, "0")
        assert await logged_keys(system) == []
        await go_to(system, Phase.SHADOW)
        call = asyncio.create_task(put(system, "1"))
        await eventually(lambda: PATH in system.ports(Store.A)._state.rows)
        assert not call.done()
        relay = system.relays[Store.A]
        async with running_loops(Loop("relay", relay.run_once)):
            assert (await call).path == PATH
            assert PATH in await logged_keys(system)
            assert (await look(system, PATH))[0].path == PATH


async def test_a_write_that_moves_its_record_waits_for_its_own_event_at_the_new_owner() -> None:
    async with running_system(mover=False, logged=LOGGED) as system:
        await put(system, "1")
        await go_to(system, Phase.CUTOVER)
        assert (await lend(system, PATH, "ann")).reader == "ann"
        assert await system.ports(Store.B).outbox.pull(10, 0) == []
        assert (await logged_keys(system)).count(PATH) >= 2


def tried(system: System) -> list[str]:
    """Keys that relays bring to the log, from now on, each time."""
    keys, append = list[str](), system.log.append

    async def noted(events: Sequence[Event], partition: int | None = None) -> None:
        keys.extend(event.key for event in events)
        await append(events, partition)

    system.log.append = noted  # type: ignore[method-assign]
    return keys


async def test_once_the_relay_knows_that_the_log_is_away_writes_are_refused_at_once_and_leave_nothing() -> None:
    async with running_system(replace(SHELF, log_wait_seconds=60.0), mover=False, logged=LOGGED) as system:
        await go_to(system, Phase.SHADOW)
        system.log.reachable = False
        tries = tried(system)
        first = asyncio.create_task(put(system, "1"))
        # After the second one the store has heard of the first one.
        await eventually(lambda: tries.count(PATH) > 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await put(system, "2")
        assert reason_of(refused.value)[0] == "LOG_UNAVAILABLE"
        assert not first.done(), "it was committed before: its outcome is not known yet"
        assert list(system.ports(Store.A)._state.rows) == [PATH]
        assert system.traffic.failures[Store.A] == system.traffic.failures[Store.B] == 0
        system.log.reachable = True
        assert (await first).path == PATH

        async def answered() -> bool:
            with suppress(grpc.aio.AioRpcError):
                return (await put(system, "2")).path == "shelf/r/2"
            return False

        await eventually(answered)


async def test_while_the_log_is_away_writes_are_unknown_and_no_store_is_blamed() -> None:
    async with running_system(replace(SHELF, log_wait_seconds=0.3), mover=False, logged=LOGGED) as system:
        await put(system, "1")
        await go_to(system, Phase.SHADOW)
        await eventually(lambda: not system.ports(Store.A)._state.outbox)
        system.log.reachable = False
        token = str(uuid4())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lend(system, PATH, "ann", token)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refused.value)[0] == "NOT_LOGGED"
        assert system.traffic.failures[Store.A] == system.traffic.failures[Store.B] == 0
        assert system.ports(Store.B)._state.rows[PATH].owner is Store.A
        assert (await look(system, PATH))[0].reader == "ann"
        system.log.reachable = True

        async def answered() -> bool:
            with suppress(grpc.aio.AioRpcError):
                return (await lend(system, PATH, "ann", token)).lent == 2
            return False

        await eventually(answered)
        assert (await look(system, PATH))[0].lent == 2
