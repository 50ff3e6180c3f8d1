"""How a caller's time is shared out among the attempts at stores that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import pytest

from libs.clock import ManualClock
from libs.errors import Overloaded, OwnerUnavailable
from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, Version, bucket_of
from libs.rpc import metadata
from services.router.core.plan import Target
from services.router.flows.calls import forward
from services.router.flows.calls.forward import LEAST_SECONDS, MARGIN_SECONDS, ClientCall, Forward, ReadPolicy
from services.router.flows.calls.listing import ListCall, Listing
from services.router.flows.calls.patience import Patience, Waiting
from services.router.flows.moving.handoff import Moved
from services.router.flows.stores import Answer, Away, Metadata, Refused, StoreClient
from services.router.flows.traffic import Traffic
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.integration.test_forward import Moody
from tests.integration.test_router import put
from tests.shelf import CONTRACT
from tests.system.whole import System, running_system

T = TypeVar("T")

A, B = Store.A, Store.B
KEY = "shelf/r/1"
SECONDS = 10.0
"""That the caller waits."""
BOUND_SECONDS = 5.0
PHASE = Target(A, "phase")
LEND = pb.LendOrder(path=KEY, reader="ann", token=str(uuid4())).SerializeToString()
LOOK = pb.LookOrder(path=KEY).SerializeToString()


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


def failed(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    none = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, none, none, "it does not answer")


class Attempts:
    """The store and the time of each attempt. An attempt at a store that hangs uses its time up."""

    def __init__(self, clock: ManualClock, hanging: Collection[Store], lost: Collection[Store]) -> None:
        self.made: list[tuple[Store, float]] = []
        self._clock = clock
        self._hanging = hanging
        self._lost = lost

    def note(self, store: Store, seconds: float) -> None:
        self.made.append((store, round(seconds, 6)))
        if store in self._hanging:
            self._clock.advance(seconds)
            raise Away(store, failed(grpc.StatusCode.DEADLINE_EXCEEDED))
        if store in self._lost:
            raise Away(store, failed(grpc.StatusCode.UNAVAILABLE))


class TimedStore(StoreClient):
    """A store's real client, with the attempts noted."""

    def __init__(self, client: StoreClient, attempts: Attempts) -> None:
        super().__init__(client.store, client.channel, None)
        self._attempts = attempts

    async def call(self, path: str, request: bytes, timeout_seconds: float, extra: Metadata = ()) -> Answer:
        self._attempts.note(self.store, timeout_seconds)
        return await super().call(path, request, timeout_seconds, extra)

    async def ask(self, method: Any, request: Any, timeout_seconds: float, extra: Any = ()) -> Any:
        self._attempts.note(self.store, timeout_seconds)
        return await super().ask(method, request, timeout_seconds, extra)


class OneTry(Patience):
    """Waits for no store, and keeps for how long each call would have waited."""

    def __init__(self, clock: ManualClock, seconds: float, away_seconds: float) -> None:
        """`away_seconds`: for how long the stores have been lost before the call."""
        super().__init__(Traffic(), seconds)
        self.waits: list[float] = []
        self._clock = clock
        self._away_seconds = away_seconds

    def away_since(self, store: Store, now: float) -> float:
        return now - self._away_seconds

    async def call(self, work: Callable[[], Awaitable[T]], waiting: Waiting) -> T:
        try:
            return await work()
        except Away as away:
            self.waits.append(round(waiting.until(away) - self._clock.monotonic(), 6))
            raise


class Asked:
    """A forwarder and a lister of one caller, by a clock that stands still between attempts."""

    def __init__(
        self,
        system: System,
        *hanging: Store,
        lost: Collection[Store] = (),
        patience_seconds: float = 0.0,
        away_seconds: float = 0.0,
        seconds: float = SECONDS,
    ) -> None:
        clock = ManualClock()
        self.attempts = Attempts(clock, hanging, lost)
        self.patience = OneTry(clock, patience_seconds, away_seconds)
        stores = {store: TimedStore(client, self.attempts) for store, client in system.stores.items()}
        traffic, policy = system.traffic, ReadPolicy()
        self._ends_at = clock.monotonic() + seconds
        self._forward = Forward(stores, system.handoffs, traffic, clock, policy, self.patience)
        self._listing = Listing(stores, traffic, policy, system.shadow, clock, self.patience)

    async def call(self, name: str, request: bytes, to: Target = PHASE) -> Answer:
        return await self._forward.call(
            ClientCall(
                method=CONTRACT.methods[name],
                request=request,
                key=KEY,
                bucket=bucket_of(KEY),
                may_create=False,
                extra=((metadata.PRINCIPAL, "ann"),),
                deadline=self._ends_at,
                answer_by=self._ends_at - MARGIN_SECONDS,
            ),
            to,
        )

    async def browse(self) -> Answer:
        order = pb.BrowseOrder()
        listed = ListCall(CONTRACT.methods["Browse"], order, order.SerializeToString(), self._ends_at)
        return await self._listing.call(listed, A)


async def test_a_store_that_hangs_leaves_a_read_time_for_a_second_attempt_and_for_the_other_store(
    system: System,
) -> None:
    """40 % of the time that is left for each attempt at an owner; all that is left for the replica."""
    asked = Asked(system, A)
    with pytest.raises(Refused) as refused:
        await asked.call("Look", LOOK)
    assert refused.value.reason == "NO_SUCH_BOOK", "B has no replica of it"
    assert asked.attempts.made == [(A, 4.0), (A, 2.4), (B, 1.44), (B, 3.6)]


async def test_an_attempt_at_a_write_has_all_the_time_of_its_call(system: System) -> None:
    """One that ends sooner would leave more outcomes unknown."""
    asked = Asked(system, A)
    with pytest.raises(OwnerUnavailable):
        await asked.call("Lend", LEND)
    assert asked.attempts.made[0] == (A, SECONDS)
    assert asked.attempts.made[-1] == (B, LEAST_SECONDS), "the attempts after it have hardly any, and no less"


async def test_a_store_that_hangs_leaves_a_list_time_for_a_second_attempt(system: System) -> None:
    asked = Asked(system, B)
    assert (await asked.browse()).is_stale
    assert set(asked.attempts.made) == {(A, 4.0), (B, 4.0)}


WAITS = (
    # patience, away for, read, write, list
    (60.0, 0.0, 4.9, 9.8, 4.9),
    (2.0, 0.0, 2.0, 2.0, 2.0),
    (2.0, 1.5, 0.5, 2.0, 0.5),
)


@pytest.mark.parametrize(("patience_seconds", "away_seconds", "read", "write", "listed"), WAITS)
async def test_a_call_waits_for_a_lost_store_by_its_kind(
    system: System, patience_seconds: float, away_seconds: float, read: float, write: float, listed: float
) -> None:
    """A read and a list can be answered by the other store. So they wait at most for half of their caller's time, and
    only in the first seconds of an outage. A write waits as long as its caller does. None waits longer than the
    router's patience."""
    for name, request, seconds in (("Look", LOOK, read), ("Lend", LEND, write), ("Browse", b"", listed)):
        asked = Asked(system, lost=frozenset(Store), patience_seconds=patience_seconds, away_seconds=away_seconds)
        with pytest.raises((Away, OwnerUnavailable)):
            await (asked.call(name, request) if request else asked.browse())
        assert set(asked.patience.waits) == {seconds}, name


@pytest.mark.parametrize("outcome", ["busy", "refused", "taken elsewhere", "too slow"])
async def test_a_record_that_cannot_be_brought_is_written_where_it_is(
    system: System, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    await put(system, "1")

    async def bring(key: str, to: Store, denied: NotOwner, *, create: bool, along: bool = False) -> Moved:
        match outcome:
            case "refused":
                raise Away(A, failed(grpc.StatusCode.UNAVAILABLE))
            case "taken elsewhere":
                raise NotOwner(A, Version(0, 1), absent=False)
            case "too slow":
                await asyncio.Event().wait()
        return Moved.BUSY

    monkeypatch.setattr(system.handoffs, "bring", bring)
    seconds = 0.3 if outcome == "too slow" else SECONDS
    asked = Asked(system, seconds=seconds)
    answer = await asyncio.wait_for(asked.call("Lend", LEND, Target(B, "phase")), BOUND_SECONDS)
    assert (answer.store, pb.Book.FromString(answer.data).reader) == (A, "ann")


async def test_a_record_that_moves_on_each_time_is_brought_again_after_pauses_that_grow(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several callers want it elsewhere; without pauses they would take it from each other for as long as they try."""
    await put(system, "1")
    pauses: list[float] = []

    async def bring(key: str, to: Store, denied: NotOwner, *, create: bool, along: bool = False) -> Moved:
        return Moved.HERE

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(system.handoffs, "bring", bring)
    monkeypatch.setattr(forward, "asyncio", SimpleNamespace(sleep=sleep, timeout=asyncio.timeout))
    asked = Asked(system)
    with pytest.raises(OwnerUnavailable, match="moving from store to store"):
        await asked.call("Lend", LEND, Target(B, "phase"))
    assert asked.attempts.made == [(B, SECONDS)] * 5
    assert pauses == [0.01, 0.02, 0.04, 0.08]


@pytest.mark.parametrize(
    ("hanging", "lost", "patience_seconds", "waiting", "asked_stores"),
    [
        ((), (A,), 5.0, 0, [A, A, B]),
        ((), (A,), 0.0, 0, [A, B]),
        ((), (A,), 5.0, 1, [A, B]),
        ((A,), (), 5.0, 0, [A, B]),
    ],
)
async def test_a_write_is_sent_at_once_to_another_process_of_a_store_that_may_have_one(
    system: System,
    hanging: Collection[Store],
    lost: Collection[Store],
    patience_seconds: float,
    waiting: int,
    asked_stores: list[Store],
) -> None:
    """Not if calls wait for the store already, and not if the attempt has used the time up."""
    system.traffic.waiting[A] = waiting
    asked = Asked(system, *hanging, lost=lost, patience_seconds=patience_seconds)
    with pytest.raises(OwnerUnavailable):
        await asked.call("Lend", LEND)
    assert [store for store, _ in asked.attempts.made] == asked_stores


async def test_a_refusal_by_the_other_store_does_not_end_the_wait_for_the_first_one(system: System) -> None:
    """The record may come to the first store, which then carries the write out."""
    Moody(system, B, Overloaded())
    asked = Asked(system, lost=(A,), patience_seconds=5.0)
    with pytest.raises(OwnerUnavailable):
        await asked.call("Lend", LEND)
    assert asked.patience.waits == [5.0]
