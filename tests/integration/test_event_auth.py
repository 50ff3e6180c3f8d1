"""Authenticated events through a router: what it sends is signed, and what it replays or shows is checked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from libs.backend.event_auth import EventAuth
from libs.clock import SystemClock
from libs.eventlog.cloudevents import HeaderWriter, read_headers
from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, Stored
from libs.eventlog.signed import SignedLog
from libs.ownership.model import Record, Row, Store, Version
from libs.ownership.orders import Order
from libs.ownership.terms import TERMS_TYPE
from libs.ownership.wire import event_of
from libs.store.port import FeedStep, Parked, Position
from libs.tasks import Loop
from services.router.cli.failure import Exit
from services.router.core.jobs import Job
from services.router.flows.feed import relay as flows_relay
from services.router.flows.feed.relay import EVENT_TYPE, HEARTBEAT_TYPE, Relay
from services.router.flows.jobs.seizure import BucketTerm, Seizure
from services.router.flows.stores import Refused
from tests.commands import baton
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import HeldKeys
from tests.waiting import eventually

RING = KeyRing("one", {"one": b"1" * 32})
STRANGER = KeyRing("one", {"one": b"2" * 32})
CODES = Codes(lambda: RING, "memory")
BOOK = "rooms/r/books/1"
LOOP = Loop("relay", lambda _: _never())


async def _never() -> None:
    raise AssertionError


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    """Both stores require codes; the router has the keys."""
    async with running_controlled_system(feeds=False, mover=False, codes=CODES) as running:
        for store in Store:
            await require(running, store)
        yield running


async def require(controlled: ControlledSystem, store: Store, mode: str = "require") -> None:
    system = controlled.system
    auth = EventAuth(mode, "memory", system.ports(store).feed, HeldKeys(RING))  # type: ignore[arg-type]
    await auth.begin(system.log)
    system.backends[store].feed.arrivals.auth = auth


def relay(controlled: ControlledSystem, codes: Codes | None, log: MemoryEventLog | None = None) -> Relay:
    system = controlled.system
    under = log or system.log
    signed = SignedLog(under, codes) if codes else under
    return Relay(system.stores[Store.A], signed, system.control, "router-1", SystemClock(), codes=codes)


async def events(log: MemoryEventLog) -> list[Stored]:
    async with log.reader(dict.fromkeys(range(16), 0)) as reader:
        return await reader.poll(1000, 0.01)


async def test_every_kind_of_message_that_a_router_sends_has_a_right_code(controlled: ControlledSystem) -> None:
    system, sender = controlled.system, relay(controlled, CODES)
    await controlled.put(2)
    await sender.run_once(LOOP)
    sender._last_sent = -1e9
    await sender.run_once(LOOP)
    seizure = Seizure(
        system.stores, controlled.flows.connections.event_log, SystemClock(), Store.A, Order(1, 1, 1, "c", "j")
    )
    await seizure.append_terms([BucketTerm(1, 1)])
    found = await events(system.log)
    kinds = {read_headers(stored.event.headers).type for stored in found}
    assert kinds == {EVENT_TYPE, HEARTBEAT_TYPE, TERMS_TYPE}
    assert [CODES.why_wrong(stored.event) for stored in found] == [""] * 4


async def test_a_store_keeps_its_changes_from_a_relay_that_does_not_sign_and_another_one_takes_over(
    controlled: ControlledSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows_relay, "LEASE_SECONDS", 0.01)
    system = controlled.system
    await require(controlled, Store.A, "sign")
    await controlled.put(1)
    for codes in (None, Codes(lambda: STRANGER, "memory"), Codes(lambda: RING, "other")):
        with pytest.raises(Refused, match="gives its changes only to relays that sign them"):
            await relay(controlled, codes).run_once(LOOP)
    assert await events(system.log) == []
    assert len(await system.ports(Store.A).outbox.pull(10, 0)) == 1
    other = relay(controlled, CODES)
    other._holder = "router-2"
    await other.run_once(LOOP)
    await other.acknowledge()
    (stored,) = await events(system.log)
    assert CODES.why_wrong(stored.event) == ""
    assert await system.ports(Store.A).outbox.pull(10, 0) == []


def plain(number: int) -> Event:
    key, version = f"rooms/r/books/{number:05}", Version(0, 1)
    row = Row(key, version, Store.A, version, True, b"content", 1)
    headers = HeaderWriter("A", EVENT_TYPE).write(key, version, 1.7e9)
    return Event(key, event_of(Record(row, (), Store.A, 1.7e9)), headers)


async def replayed(controlled: ControlledSystem, arguments: Mapping[str, str]) -> tuple[Job, Any]:
    job = await controlled.flows.jobs.start("replay", {"to": "B", "start": "start", **arguments}, "ann", 0.0)

    async def over() -> Job | None:
        found = await controlled.flows.jobs.job(job.id)
        return None if found.state.wants_a_runner else found

    ended = await eventually(over)
    assert ended is not None
    return ended, json.loads(ended.report)


async def held(controlled: ControlledSystem) -> set[int]:
    keys = [plain(number).key for number in range(10)]
    found = await controlled.system.ports(Store.B).records.read_many(keys)
    return {number for number, one in enumerate(found) if one.row is not None}


FORGED = Codes(lambda: STRANGER, "memory")
ELSEWHERE = Codes(lambda: RING, "other")


async def test_a_replay_gives_older_events_only_after_confirmation_and_forged_ones_never() -> None:
    async with running_controlled_system(feeds=False, mover=False, codes=CODES) as controlled:
        log = controlled.system.log
        await log.append([plain(0), CODES.sign(plain(1)), FORGED.sign(plain(2))])
        await require(controlled, Store.B)
        later = [plain(3), CODES.sign(plain(4)), FORGED.sign(plain(5)), ELSEWHERE.sign(plain(6))]
        await log.append([*later, replace(plain(7), headers=CODES.sign(plain(8)).headers)])

        job, report = await replayed(controlled, {"dry_run": "yes"})
        assert (report["applied"], report["unauthenticated"], report["older"]) == (2, 6, 2)
        assert await held(controlled) == set()
        job, report = await replayed(controlled, {})
        assert (report["applied"], report["unauthenticated"], report["older"]) == (2, 6, 2)
        assert "refused 6 without a right code; 2 of them are older than the check" in job.note
        assert await held(controlled) == {1, 4}

        result = await baton(
            controlled, "replay", "--to", "B", "--from", "start", "--accept-unsigned", "--wait", "--yes", "-o", "json"
        )
        assert result.exit_code == Exit.OK, result.stderr
        assert await held(controlled) == {0, 1, 2, 4}
        (latest,) = await controlled.store.journal(1)
        assert "accept_unsigned yes" in latest.reason and latest.actor == "ann@host"


async def test_a_router_without_keys_replays_nothing_to_a_store_that_requires_codes() -> None:
    async with running_controlled_system(feeds=False, mover=False) as controlled:
        await controlled.system.log.append([plain(0)])
        await require(controlled, Store.B)
        result = await baton(controlled, "replay", "--to", "B", "--from", "start", "--yes", "--wait")
        assert result.exit_code == Exit.FAILED and "has no keys to check them" in result.stderr
        assert await held(controlled) == set()


async def test_each_event_is_shown_with_the_state_of_its_code(controlled: ControlledSystem) -> None:
    log = controlled.system.log
    for event in (plain(0), CODES.sign(plain(1)), FORGED.sign(plain(2)), ELSEWHERE.sign(plain(3))):
        await log.append([event])
    shown = await baton(controlled, "events", "tail", "-o", "json")
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [one["code"] for one in found] == ["NONE", "RIGHT", "WRONG", "WRONG"]
    assert [bool(one["code_trouble"]) for one in found] == [False, False, True, True]
    lines = (await baton(controlled, "events", "tail")).stdout.splitlines()
    assert "signed" not in lines[0] and "signed" in lines[1] and "code is wrong" in " ".join(lines[2:])
    one = (await baton(controlled, "events", "show", plain(1).key)).stdout
    assert "signed" in one


async def test_a_router_without_keys_shows_codes_as_unchecked() -> None:
    async with running_controlled_system(feeds=False, mover=False) as controlled:
        await controlled.system.log.append([CODES.sign(plain(1))])
        shown = await baton(controlled, "events", "tail", "-o", "json")
        assert json.loads(shown.stdout)["code"] == "UNCHECKED"


async def test_events_without_a_code_are_alarmed_and_dropped_together(controlled: ControlledSystem) -> None:
    parked = tuple(
        Parked(0, offset, BOOK, "UNAUTHENTICATED: no header baton-mac", b"x", unauthenticated=offset > 0)
        for offset in range(4)
    )
    await controlled.system.ports(Store.B).transfers.apply([], FeedStep((Position(0, 0, 9),), parked))
    await controlled.system.observer.poll()
    status = await baton(controlled, "status")
    assert "store B has refused 3 events without a right code" in " ".join(status.stdout.split())
    doctor = await baton(controlled, "doctor")
    assert "3 parked events have no right code" in " ".join(doctor.stdout.split())
    words = ["events", "drop", "--store", "B", "--unauthenticated", "--yes"]
    assert (await baton(controlled, *words)).exit_code == Exit.USAGE
    assert (await baton(controlled, *words, "0/1", "--reason", "both")).exit_code == Exit.USAGE
    dropped = await baton(controlled, *words, "--reason", "forged", "-o", "json")
    assert dropped.exit_code == Exit.OK, dropped.stderr
    assert json.loads(dropped.stdout)["count"] == 3
    state = await controlled.system.ports(Store.B).feed.state()
    assert (state.parked_now, state.unauthenticated_now) == (1, 0)
    (latest,) = await controlled.store.journal(1)
    assert latest.reason == "forged (B: 3 events without a right code)"
    again = await baton(controlled, *words, "--reason", "again", "-o", "json")
    assert json.loads(again.stdout)["count"] == 0
    assert (await controlled.store.journal(1))[0] == latest, "what does not happen is not journaled"
