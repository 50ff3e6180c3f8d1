"""A store that requires codes applies no event without a right one: from the log, at a retry, or by a replay."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from libs.backend.admission import Admission
from libs.backend.event_auth import UNAUTHENTICATED, EventAuth
from libs.backend.feed import CLAIM_SECONDS, UNPARK_SECONDS
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.codes import HEADER, Codes
from libs.eventlog.key_ring import KeyRing, KeyRingUnfit
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import UNREADABLE_HEADER, Event, EventLog
from libs.ownership.limits import MAX_REVISION, MAX_TERM_STEP
from libs.ownership.model import Record, Row, Store, Version, bucket_of
from libs.ownership.terms import TERMS_TYPE
from libs.ownership.wire import STORE_NUMBERS, event_of, record_to_pb
from libs.pb.baton.replication.v1 import recovery_pb2 as rpb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc.errors import reason_of
from libs.sandboxes.validation import COLLECTION
from libs.store.port import FeedState
from tests.system.store import Auth, HeldKeys, OneStore, refusal, running_store
from tests.waiting import eventually

RING = KeyRing("one", {"one": b"1" * 32, "two": b"2" * 32})
STRANGER = KeyRing("one", {"one": b"3" * 32})
TOPIC = "memory"


def codes(ring: KeyRing = RING, topic: str = TOPIC) -> Codes:
    return Codes(lambda: ring, topic)


def record(made_id: str, revision: int = 1, origin: Store = Store.A, term: int = 0) -> Record:
    key, version = COLLECTION + made_id, Version(term, revision)
    payload = Sandbox(name=key).SerializeToString()
    return Record(Row(key, version, origin, version, True, payload, 2), (), origin, 1.0)


def plain(made_id: str, revision: int = 1, origin: Store = Store.A) -> Event:
    headers = HeaderWriter(origin.value, "baton.record.v1").write(COLLECTION + made_id, (0, revision), 1.0)
    return Event(COLLECTION + made_id, event_of(record(made_id, revision, origin)), headers)


def signed(made_id: str, revision: int = 1, ring: KeyRing = RING, topic: str = TOPIC) -> Event:
    return codes(ring, topic).sign(plain(made_id, revision))


def terms_event(made_id: str, term: int) -> Event:
    buckets = [rpb.Terms.Bucket(bucket=bucket_of(COLLECTION + made_id), term=term)]
    value = rpb.Terms(store=STORE_NUMBERS[Store.A], buckets=buckets).SerializeToString()
    return Event("", value, HeaderWriter("A", TERMS_TYPE).write("", (0, 0), 1.0))


HEARTBEAT = Event("", b"", HeaderWriter("A", "baton.heartbeat.v1").write("", (0, 0), 1.0))


@asynccontextmanager
async def requiring(log: MemoryEventLog | None = None, keys: HeldKeys | None = None) -> AsyncIterator[OneStore]:
    """Store B with its feed running; it requires codes from the log's present end on."""
    auth = Auth("require", keys or HeldKeys(RING))
    async with running_store(Store.B, log=log or MemoryEventLog(1), auth=auth) as at, feeding(at):
        await eventually(lambda: checked(at))
        yield at


@asynccontextmanager
async def feeding(at: OneStore) -> AsyncIterator[None]:
    task = asyncio.create_task(at.feed.loop.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def checked(at: OneStore) -> bool:
    return bool((await at.store.feed.state()).checked_from)


async def state_when(at: OneStore, read: int) -> FeedState:
    async def reached() -> FeedState | None:
        state = await at.store.feed.state()
        return state if state.read >= read else None

    found = await eventually(reached)
    assert found is not None
    return found


async def holds(at: OneStore, made_id: str) -> bool:
    return (await at.store.records.read(COLLECTION + made_id)).row is not None


TAMPERED = signed("a")
REFUSED = {
    "no code": [plain("a")],
    "a stranger's key": [signed("a", ring=STRANGER)],
    "another topic": [signed("a", topic="other")],
    "another record's code": [replace(plain("a"), headers=signed("b").headers)],
    "another value": [replace(TAMPERED, value=signed("a", 2).value)],
    "another revision's code": [replace(plain("a", 2), headers=signed("a").headers)],
    "two codes": [replace(TAMPERED, headers=(*TAMPERED.headers, TAMPERED.headers[-1]))],
    "a header that could not be read": [
        replace(TAMPERED, headers=((UNREADABLE_HEADER, b"headers: a name is not UTF-8"), *TAMPERED.headers))
    ],
    "a heartbeat": [HEARTBEAT],
    "a heartbeat with a record's code": [replace(HEARTBEAT, headers=(*HEARTBEAT.headers, TAMPERED.headers[-1]))],
    "a seizure": [terms_event("a", 2)],
    "a later release's message": [Event("", b"?", HeaderWriter("A", "baton.other.v9").write("", (0, 0), 1.0))],
    "its own event": [plain("a", origin=Store.B)],
    "nothing": [Event("", b"")],
    "garbage": [Event("bad\0key", b"\xff\xff", (("x", b"\xff"),))],
}


@pytest.mark.parametrize("why", REFUSED)
async def test_a_message_without_a_right_code_is_parked_with_its_headers_and_changes_nothing(why: str) -> None:
    async with requiring() as at:
        forged = REFUSED[why]
        await at.log.append([*forged, signed("behind")])
        state = await state_when(at, len(forged) + 1)
        assert (state.applied, state.parked, state.parked_now, state.unauthenticated) == (1, 1, 1, 1)
        assert not await holds(at, "a") and await holds(at, "behind")
        assert not (await at.store.recovery.standing()).fence_reason
        assert at.feed.trouble == ""
        (parked,) = (await at.replication.ListParked(pb.ListParkedRequest())).parked
        assert parked.reason.startswith(f"{UNAUTHENTICATED}: ") and parked.unauthenticated
        assert (parked.topic, parked.event) == (TOPIC, forged[0].value)
        assert tuple((one.name, one.value) for one in parked.headers) == forged[0].headers

        again = await at.replication.RetryParked(pb.RetryParkedRequest(partition=0, offset=parked.offset))
        assert again.found and again.reason.startswith(UNAUTHENTICATED)
        at.clock.advance(UNPARK_SECONDS)
        await at.log.append([signed("last")])
        await state_when(at, len(forged) + 2)
        state = await at.store.feed.state()
        assert (state.parked_now, state.unauthenticated_now) == (1, 1)
        assert not await holds(at, "a")


async def test_a_heartbeat_without_a_right_code_does_not_count_as_news_of_the_other_store() -> None:
    async with requiring() as at:
        await at.log.append([HEARTBEAT])
        await state_when(at, 1)
        assert at.feed.behind_seconds() is None
        await at.log.append([codes().sign(HEARTBEAT)])
        await state_when(at, 2)
        await eventually(lambda: at.feed.behind_seconds() is not None)


async def test_a_right_seizure_fences_the_store() -> None:
    async with requiring() as at:
        await at.log.append([codes().sign(terms_event("a", 2))])
        await state_when(at, 1)
        assert "seized" in (await at.store.recovery.standing()).fence_reason


async def test_events_that_were_in_the_log_when_the_check_began_are_applied_and_later_ones_need_a_code() -> None:
    log = MemoryEventLog(1)
    await log.append([plain("before"), signed("signed"), signed("strange", ring=STRANGER)])
    async with requiring(log) as at:
        await log.append([plain("after")])
        state = await state_when(at, 4)
        assert (state.applied, state.unauthenticated) == (3, 1)
        assert state.checked_from == {0: 3}
        assert not await holds(at, "after")


async def test_a_restart_keeps_where_the_check_began() -> None:
    async with requiring() as at:
        task_offsets = (await at.store.feed.state()).checked_from
    log = MemoryEventLog(1)
    auth = Auth("require", HeldKeys(RING))
    async with running_store(Store.B, log=log, auth=auth) as at:
        async with feeding(at):
            await eventually(lambda: checked(at))
        # While no process runs, unsigned events arrive.
        await log.append([plain("late")])
        async with feeding(at):
            state = await state_when(at, 1)
        assert (state.checked_from, state.unauthenticated) == (task_offsets, 1)


@pytest.mark.parametrize("mode", ["off", "sign"])
async def test_in_the_other_modes_no_event_needs_a_code_and_the_check_is_forgotten(mode: str) -> None:
    auth = Auth("sign", HeldKeys(RING)) if mode == "sign" else Auth("off")
    log = MemoryEventLog(1)
    async with running_store(Store.B, log=log, auth=auth) as at:
        await at.store.feed.start_checking({0: 0})
        async with feeding(at):
            await log.append([plain("a"), signed("b", ring=STRANGER), signed("c")])
            state = await state_when(at, 3)
        assert (state.applied, state.unauthenticated, state.checked_from) == (3, 0, {})


async def test_a_process_that_requires_codes_begins_again_if_another_one_has_forgotten_where_it_began() -> None:
    async with requiring() as at:
        await at.log.append([signed("a")])
        await state_when(at, 1)
        await at.store.feed.stop_checking()
        at.clock.advance(CLAIM_SECONDS)
        await at.log.append([signed("b")])
        await eventually(lambda: checked(at))
        before = (await at.store.feed.state()).read
        await at.log.append([plain("c")])
        assert (await state_when(at, before + 1)).unauthenticated == 1


async def test_an_event_of_a_key_that_comes_late_is_applied_at_a_retry() -> None:
    keys = HeldKeys(KeyRing("one", {"one": b"1" * 32}))
    async with requiring(keys=keys) as at:
        await at.log.append([codes(KeyRing("two", RING.keys)).sign(plain("a"))])
        state = await state_when(at, 1)
        assert (state.unauthenticated, state.applied) == (1, 0)
        keys.content = RING
        at.clock.advance(UNPARK_SECONDS)

        async def applied() -> bool:
            return await holds(at, "a")

        await eventually(applied)
        assert (await at.store.feed.state()).parked_now == 0


async def test_a_parked_event_without_a_code_is_not_applied_after_the_check_was_switched_off() -> None:
    log = MemoryEventLog(1)
    async with requiring(log) as at:
        await log.append([plain("a")])
        await state_when(at, 1)
        for mode in ("sign", "off"):
            keys = HeldKeys(RING) if mode == "sign" else None
            at.feed.arrivals.auth = EventAuth(mode, TOPIC, at.store.feed, keys)
            at.clock.advance(UNPARK_SECONDS)
            again = await at.replication.RetryParked(pb.RetryParkedRequest(partition=0, offset=0))
            assert again.reason.startswith(UNAUTHENTICATED), mode
        assert not await holds(at, "a")


async def test_an_event_that_was_parked_for_another_reason_needs_a_code_at_a_retry_unless_it_is_older() -> None:
    log = MemoryEventLog(1)
    bad = replace(plain("a"), value=b"\xff")
    await log.append([bad])
    async with requiring(log) as at:
        await log.append([codes().sign(bad)])
        state = await state_when(at, 2)
        assert (state.parked, state.unauthenticated) == (2, 0)
        for offset in (0, 1):
            again = await at.replication.RetryParked(pb.RetryParkedRequest(partition=0, offset=offset))
            assert "not a serialized record" in again.reason, "its code is no trouble"
        # After the log was replaced, an offset of the former one shows no age.
        await at.store.feed.restart({0: 2})
        await at.feed.arrivals.auth.learn()
        reasons = [
            (await at.replication.RetryParked(pb.RetryParkedRequest(partition=0, offset=offset))).reason
            for offset in (0, 1)
        ]
        assert reasons[0].startswith(UNAUTHENTICATED) and "not a serialized record" in reasons[1]


async def test_all_events_of_a_log_that_replaced_another_one_need_a_code() -> None:
    async with requiring() as at:
        await at.log.append([signed("a")])
        await state_when(at, 1)
        await at.log.replace()
        await at.log.append([plain("forged")])
        await eventually(lambda: at.feed.replaced)
        await at.replication.RestartFeed(pb.RestartFeedRequest())
        assert (await at.store.feed.state()).checked_from == {0: 0}
        await at.log.append([plain("b"), signed("c")])

        async def read() -> bool:
            return await holds(at, "c")

        await eventually(read)
        assert not await holds(at, "b")


async def test_a_replayed_record_is_taken_only_from_a_router_that_checks_codes() -> None:
    async with requiring() as at:
        request = pb.AdoptRecordsRequest(records=[record_to_pb(record("a"))], from_log=True)
        error = await refusal(at.replication.AdoptRecords(request))
        assert reason_of(error)[0] == "REPLAY_UNCHECKED"
        assert not await holds(at, "a")
        request.checked = True
        assert (await at.replication.AdoptRecords(request)).applied == 1
        # An export needs no code: the internal listener authenticates the router.
        copied = pb.AdoptRecordsRequest(records=[record_to_pb(record("b"))])
        assert (await at.replication.AdoptRecords(copied)).applied == 1


async def test_a_forged_event_is_no_evidence_against_a_store_that_requires_codes() -> None:
    """It would fence the store at its start."""
    async with running_store(Store.B, log=MemoryEventLog(1), auth=Auth("require", HeldKeys(RING))) as at:
        await at.store.feed.start_checking({0: 0})

        async def open_log() -> EventLog:
            return at.log

        def admission() -> Admission:
            return Admission(at.store, open_log, None, at.feed.arrivals.read, at.feed.arrivals.auth)

        of_its_own = plain("a", 7, origin=Store.B)
        await at.log.append([of_its_own, terms_event("a", 2)])
        assert await admission().decide() == ""
        await at.log.append([codes().sign(of_its_own)])
        assert "which this store made" in await admission().decide()


PROOFS: Sequence[tuple[str, bytes, bool]] = [
    ("none", b"", False),
    ("right", codes().proof(), True),
    ("the second key", codes(KeyRing("two", RING.keys)).proof(), True),
    ("a stranger", codes(STRANGER).proof(), False),
    ("another topic", codes(topic="other").proof(), False),
    ("an event's code", codes().sign(Event("", b"")).headers[-1][1], False),
]


@pytest.mark.parametrize("mode", ["sign", "require"])
@pytest.mark.parametrize(("name", "proof", "fits"), PROOFS, ids=[name for name, _, _ in PROOFS])
async def test_a_store_gives_its_changes_only_to_a_relay_that_signs(
    mode: str, name: str, proof: bytes, fits: bool
) -> None:
    auth = Auth(mode, HeldKeys(RING))  # type: ignore[arg-type]
    async with running_store(Store.A, log=MemoryEventLog(1), auth=auth) as at:
        for aside in (False, True):
            request = pb.PullChangesRequest(limit=1, relay_code=proof, aside=aside)
            if fits:
                await at.replication.PullChanges(request)
            else:
                assert reason_of(await refusal(at.replication.PullChanges(request)))[0] == "RELAY_UNSIGNED", name


async def test_a_store_without_the_check_gives_its_changes_to_every_relay() -> None:
    async with running_store(Store.A, log=MemoryEventLog(1)) as at:
        for _, proof, _ in PROOFS:
            await at.replication.PullChanges(pb.PullChangesRequest(limit=1, relay_code=proof))


def test_a_mode_that_needs_keys_is_refused_without_them() -> None:
    with pytest.raises(KeyRingUnfit, match="set event_keys"):
        EventAuth("require", TOPIC, None)  # type: ignore[arg-type]


async def test_the_status_shows_mode_keys_offsets_and_refused_events() -> None:
    keys = HeldKeys(RING, "the event keys are not TOML")
    async with requiring(keys=keys) as at:
        await at.log.append([plain("a")])
        await state_when(at, 1)
        feed = (await at.replication.GetStatus(pb.GetStatusRequest())).feed
        assert (feed.event_auth, list(feed.event_keys)) == ("require", ["one", "two"])
        assert feed.event_keys_trouble == keys.trouble
        assert dict(feed.checked_from) == {0: 0}
        assert (feed.unauthenticated, feed.unauthenticated_now, feed.parked_now) == (1, 1, 1)


@pytest.mark.parametrize("term", [MAX_TERM_STEP + 2, 2**61, MAX_REVISION - 1])
async def test_a_forged_seizure_of_a_far_term_changes_nothing_in_any_mode(term: int) -> None:
    async with running_store(Store.B, log=MemoryEventLog(1)) as at, feeding(at):
        far = replace(record("a").row, version=Version(term, 1))
        await at.log.append([terms_event("a", term), Event(far.key, event_of(Record(far, (), Store.A, 1.0)))])
        state = await state_when(at, 2)
        assert (state.applied, state.parked) == (0, 1)
        assert not (await at.store.recovery.standing()).fence_reason
        assert {one.term for one in await at.store.transfers.bucket_owners()} == {0}


def test_a_header_of_a_code_is_found_in_any_case() -> None:
    event = signed("a")
    capital = tuple((name.upper() if name == HEADER else name, content) for name, content in event.headers)
    assert codes().why_wrong(replace(event, headers=capital)) == ""
