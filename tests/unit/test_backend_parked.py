"""Parked events over the wire: one is tried again or dropped by its position."""

from __future__ import annotations

import pytest

from libs.backend.feed import UNPARK_SECONDS
from libs.eventlog.memory import MemoryEventLog
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import recovery_pb2 as rpb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.store.port import FeedStep, Parked, Position
from tests.system.store import running_store
from tests.unit.test_backend_feed import applying, event, seized, state_when
from tests.waiting import eventually


async def test_a_parked_event_is_tried_again_by_its_place_and_says_why_it_still_cannot_be_applied() -> None:
    async with running_store(Store.B) as at:
        parked = (Parked(0, 1, "bad", "why", b"\xff"), Parked(0, 2, "sandboxes/a", "why", event("a").value))
        await at.store.transfers.apply([], FeedStep((Position(0, 0, 3),), parked))
        bad = await at.replication.RetryParked(pb.RetryParkedRequest(partition=0, offset=1))
        assert (bad.found, bad.applied) == (True, False)
        assert "not a serialized record" in bad.reason
        again = pb.RetryParkedRequest(partition=0, offset=2)
        good = await at.replication.RetryParked(again)
        assert (good.found, good.applied, good.reason) == (True, True, "")
        assert (await at.store.records.read("sandboxes/a")).row is not None
        assert (await at.replication.RetryParked(again)).found is False
        listed = await at.replication.ListParked(pb.ListParkedRequest())
        assert [(one.offset, one.key) for one in listed.parked] == [(1, "bad")]
        nowhere = pb.ListParkedRequest.Position(partition=1, offset=1)
        assert not (await at.replication.ListParked(pb.ListParkedRequest(position=nowhere))).parked


async def test_a_parked_event_is_dropped_by_its_place_and_nothing_is_applied() -> None:
    async with running_store(Store.B) as at:
        parked = (Parked(0, 1, "sandboxes/a", "why", event("a").value),)
        await at.store.transfers.apply([], FeedStep((Position(0, 0, 3),), parked))
        drop = pb.DropParkedRequest(partition=0, offset=1)
        assert (await at.replication.DropParked(drop)).found is True
        assert (await at.replication.DropParked(drop)).found is False
        assert (await at.store.records.read("sandboxes/a")).row is None


class _Confirming:
    """The other store confirms a term from some moment on."""

    def __init__(self) -> None:
        self.term = 0

    async def __call__(self) -> rpb.GetStandingResponse:
        return await seized(self.term)()


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "in time"])
async def test_a_parked_event_of_a_higher_term_fences_the_store_when_it_is_tried_again(by_hand: bool) -> None:
    """Applied alone it would take the term in silence, and no later event would show that the share was seized."""
    confirming = _Confirming()
    async with applying(MemoryEventLog(1), confirming) as at:
        await at.log.append([event("a", 1, term=2)])
        assert (await state_when(at, 1)).parked_now == 1
        confirming.term = 2
        if by_hand:
            retry = pb.RetryParkedRequest(partition=0, offset=0)
            assert (await at.replication.RetryParked(retry)).applied
        else:
            at.clock.advance(UNPARK_SECONDS)

        async def applied() -> bool:
            return (await at.store.feed.state()).parked_now == 0

        await eventually(applied)
        assert "seized" in (await at.store.recovery.standing()).fence_reason
