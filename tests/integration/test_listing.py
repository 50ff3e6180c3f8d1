"""A list that is merged from both stores' pages when one of them fails, and in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import grpc
import pytest

from libs.errors import BatonError, Overloaded
from libs.ownership.model import Store
from libs.rpc import metadata
from libs.rpc.errors import Internal, reason_of
from libs.store import memory
from libs.store.inspection import ExportQuery
from services.router.flows.calls import listing
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.integration.test_forward import Moody, writes_go_to_b
from tests.system.whole import System, running_system


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


async def put(system: System, isbn: str) -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=isbn))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def lend(system: System, isbn: str, reader: str) -> None:
    order = pb.LendOrder(path=f"shelf/r/{isbn}", reader=reader, token=str(uuid4()))
    await system.client.multi_callable("/toy.Shelf/Lend")(order.SerializeToString(), timeout=5)


async def page(system: System, reader: str = "", token: str = "") -> tuple[str, str, str, bool]:
    """The books of one page, its token, the stores that it is from, and whether it is stale."""
    order = pb.BrowseOrder(reader=reader)
    setattr(order, "from", token)
    call = system.client.multi_callable("/toy.Shelf/Browse")(
        order.SerializeToString(), timeout=5, metadata=grpc.aio.Metadata((metadata.EXPLAIN, "1"))
    )
    books = pb.Books.FromString(await call)
    trailers = dict(await call.trailing_metadata() or ())
    isbns = "".join(book.path.rpartition("/")[2] for book in books.found)
    return isbns, books.more, str(trailers[metadata.STORE]), trailers[metadata.STALE] == "1"


async def test_a_page_without_a_match_is_not_an_answer_before_its_time_is_over(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isbn in "1234567":
        await put(system, isbn)
    await lend(system, "6", "ann")
    monkeypatch.setattr(memory, "LIST_ROWS", 1)
    monkeypatch.setattr(listing, "PAGE_SECONDS", 60.0)
    assert (await page(system, "ann"))[0] == "6"


async def test_a_page_that_is_stale_in_part_is_stale(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    for isbn in "1234567":
        await put(system, isbn)
    await lend(system, "6", "ann")
    copies, _ = await system.ports(Store.A).inspection.export(ExportQuery())
    await system.ports(Store.B).transfers.apply(copies)
    await writes_go_to_b(system)
    monkeypatch.setattr(memory, "LIST_ROWS", 1)
    monkeypatch.setattr(listing, "PAGE_SECONDS", 60.0)
    Moody(system, Store.A, Internal())
    assert (await page(system, "ann"))[2:] == ("B", True)
    assert (await page(system, "ann"))[2:] == ("A,B", False)


async def test_a_page_has_as_many_records_as_an_answer_may_have_bytes(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isbn in "123":
        await put(system, isbn)
    monkeypatch.setattr(listing, "ANSWER_BYTES", 2 * len(pb.Book(path="shelf/r/1").SerializeToString()))
    isbns, token, _, _ = await page(system)
    assert isbns == "12"
    assert (await page(system, token=token))[:2] == ("3", "")


async def test_every_name_that_only_one_store_shows_is_looked_up_at_the_other(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LOOK_UP", 2)
    for isbn in "123":
        await put(system, isbn)
        await lend(system, isbn, "ann")
    await writes_go_to_b(system)
    for isbn in "123":
        await lend(system, isbn, "bob")
    assert (await page(system, "ann"))[0] == "", "A has the old rows still, and they match"
    assert (await page(system, "bob"))[0] == "123"


async def test_a_store_that_fails_when_names_are_looked_up_leaves_the_others_page(system: System) -> None:
    await put(system, "1")
    Moody(system, Store.B, None, Internal())
    assert await page(system) == ("1", "", "A", True)


@pytest.mark.parametrize("before", [(), (None,)])
async def test_what_a_store_refuses_of_a_list_is_the_answer(system: System, before: tuple[BatonError | None]) -> None:
    """A refusal is no outage: also when names are looked up."""
    await put(system, "1")
    Moody(system, Store.B, *before, Overloaded())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await page(system)
    assert reason_of(refused.value)[0] == Overloaded.reason
    assert system.patience.away_since(Store.B, 1e9) == 1e9
