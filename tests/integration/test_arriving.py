"""A write that takes its record along when it follows a handoff."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from libs.ownership.errors import NotOwner
from libs.ownership.model import Record, Store, Version
from libs.ownership.wire import record_to_pb
from libs.pb.baton.record.v1 import record_pb2
from libs.rpc import metadata
from services.router.core.phase import Phase
from services.router.flows.moving.transfer import STEP_SECONDS, Transfer
from services.router.flows.steering.migration import Decision
from services.router.flows.stores import Refused
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step

A, B = Store.A, Store.B
ONE, TWO = "shelf/r/1", "shelf/r/2"


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        for isbn in ("1", "2"):
            order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=isbn))
            await running.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)
        yield running


async def go_to_b(system: System) -> None:
    while system.setting.current.phase is not Phase.DUAL_READ:
        await step(system.migration, Decision("a test", "because", override=True))


def lending(path: str) -> bytes:
    return pb.LendOrder(path=path, reader="ann", token=str(uuid4())).SerializeToString()


async def lend(system: System, path: str, *extra: tuple[str, bytes]) -> str:
    call = system.client.multi_callable("/toy.Shelf/Lend")
    return pb.Book.FromString(await call(lending(path), timeout=5, metadata=extra)).reader


async def lend_at(system: System, store: Store, path: str, arriving: Record) -> None:
    extra = (metadata.ARRIVING_BIN, record_to_pb(arriving).SerializeToString())
    await system.stores[store].call("/toy.Shelf/Lend", lending(path), 5, (extra,))


async def released(system: System, to: Store, path: str = ONE) -> Record:
    """The record, released to this store and not adopted."""
    (result,) = (await system.ports(to.other).transfers.release([path], to, create=False)).results
    assert result.record is not None
    return result.record


class Steps:
    """Writes that reach B, and records that are adopted apart from them."""

    def __init__(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = 0
        self.apart: list[str] = []
        write, adopt = system.ports(B).records.write, Transfer.adopt

        async def counted(*arguments: object) -> object:
            self.writes += 1
            return await write(*arguments)  # type: ignore[arg-type]

        async def adopted(
            transfer: Transfer, records: Sequence[record_pb2.Record], to: Store, seconds: float = STEP_SECONDS
        ) -> None:
            self.apart += [one.key for one in records]
            await adopt(transfer, records, to, seconds)

        monkeypatch.setattr(type(system.ports(B).records), "write", lambda _, *arguments: counted(*arguments))
        monkeypatch.setattr(Transfer, "adopt", adopted)


async def test_a_write_takes_its_record_along_and_a_large_record_goes_apart(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await go_to_b(system)
    steps = Steps(system, monkeypatch)
    assert await lend(system, ONE) == "ann"
    assert (steps.writes, steps.apart) == (2, []), "denied, and repeated with the record"
    monkeypatch.setattr("services.router.flows.moving.handoff.ARRIVING_BYTES", 10)
    assert await lend(system, TWO) == "ann"
    assert (steps.writes, steps.apart) == (4, [TWO])
    for path in (ONE, TWO):
        found = await system.ports(B).records.read(path)
        assert found.owner is B and found.version == (0, 3), "put, released, lent"


async def test_a_store_of_an_earlier_release_leaves_the_record_and_gets_the_next_ones_apart(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def left(*_: object) -> None:
        pass

    await go_to_b(system)
    monkeypatch.setattr("libs.backend.calls.adopt_along", left)
    steps = Steps(system, monkeypatch)
    assert await lend(system, ONE) == "ann"
    assert (steps.writes, steps.apart) == (3, [ONE])
    assert await lend(system, TWO) == "ann"
    assert (steps.writes, steps.apart) == (5, [ONE, TWO])


async def test_a_write_is_decided_by_the_stored_row_and_not_by_the_record_that_it_takes_along(system: System) -> None:
    late = await released(system, B)
    await system.ports(B).transfers.apply([late])
    await system.ports(A).transfers.apply([await released(system, A)])
    with pytest.raises(NotOwner):
        await lend_at(system, B, ONE, late)
    found = await system.ports(B).records.read(ONE)
    assert (found.version, found.owner) == ((0, 3), A), "the older version changes nothing"


async def test_a_write_takes_no_other_record_along(system: System) -> None:
    with pytest.raises(Refused, match=metadata.ARRIVING_BIN):
        await lend_at(system, B, TWO, await released(system, B, ONE))
    assert (await system.ports(B).records.read(ONE)).row is None


async def test_a_record_of_a_later_term_that_a_write_takes_along_fences_the_store_first(system: System) -> None:
    record = await released(system, B)
    later = replace(record, row=replace(record.row, version=Version(2, 1)))
    with pytest.raises(Refused):
        await lend_at(system, B, ONE, later)
    assert (await system.ports(B).recovery.standing()).fence_reason != ""


async def test_a_client_cannot_make_a_store_adopt_a_record(system: System) -> None:
    (found,) = await system.ports(A).records.read_many([ONE])
    assert found.row is not None
    forged = replace(found.row, version=Version(0, 9), payload=b"")
    record = record_to_pb(Record(forged, (), A, 0.0)).SerializeToString()
    assert await lend(system, ONE, (metadata.ARRIVING_BIN, record)) == "ann"
    assert (await system.ports(A).records.read(ONE)).version == (0, 2)
