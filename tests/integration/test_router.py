"""The router over two backends, with a contract that shares nothing with sandboxes: all it knows are descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import grpc
import pytest

from libs.clock import SystemClock
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import BUCKETS, Record, Row, Store, Version, bucket_of
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from libs.store import memory
from libs.tasks import Loop
from services.router.core.phase import Phase, Setting
from services.router.flows.calls import listing
from services.router.flows.moving.mover import STUCK_SECONDS, Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from services.router.flows.steering.observe import SettingCache
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step
from tests.waiting import eventually

BY_HAND = Decision("a test", "because", override=True)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


@pytest.fixture
async def living() -> AsyncIterator[System]:
    """With relays, apply loops and mover."""
    async with running_system() as running:
        yield running


async def send(system: System, method: str, request: bytes) -> tuple[bytes, dict[str, str]]:
    call = system.client.multi_callable(f"/toy.Shelf/{method}")(request, timeout=5)
    answer = await call
    return answer, {name: str(value) for name, value in await call.trailing_metadata() or ()}


async def put(system: System, isbn: str, token: str = "") -> pb.Book:
    order = pb.PutOrder(token=token or str(uuid4()), where=pb.Place(room="r", isbn=isbn))
    return pb.Book.FromString((await send(system, "Put", order.SerializeToString()))[0])


async def lend(system: System, path: str, reader: str, token: str = "", *, buy: bool = False) -> pb.Book:
    order = pb.LendOrder(path=path, reader=reader, token=token or str(uuid4()), buy=buy)
    return pb.Book.FromString((await send(system, "Lend", order.SerializeToString()))[0])


async def look(system: System, path: str) -> tuple[pb.Book, dict[str, str]]:
    data, trailers = await send(system, "Look", pb.LookOrder(path=path).SerializeToString())
    return pb.Book.FromString(data), trailers


async def browse(system: System, *, reader: str = "", most: int = 0) -> list[str]:
    """All pages."""
    paths: list[str] = []
    token = ""
    while True:
        order = pb.BrowseOrder(most=most, reader=reader)
        setattr(order, "from", token)
        page = pb.Books.FromString((await send(system, "Browse", order.SerializeToString()))[0])
        paths += [book.path for book in page.found]
        token = page.more
        if not token:
            return paths


async def go_to(system: System, phase: Phase) -> None:
    while system.setting.current.phase is not phase:
        await step(system.migration, BY_HAND)


def owner(system: System, store: Store, key: str) -> Store | None:
    row = system.ports(store)._state.rows.get(key)
    return row.owner if row else None


async def test_a_write_is_made_at_a_until_the_phase_says_b(system: System) -> None:
    await put(system, "1")
    assert owner(system, Store.A, "shelf/r/1") is Store.A
    assert owner(system, Store.B, "shelf/r/1") is None


async def test_an_id_that_the_client_leaves_out_is_made_from_its_request_id(system: System) -> None:
    token = str(uuid4())
    first, again = await put(system, "", token), await put(system, "", token)
    assert first.path.startswith("shelf/r/") and len(first.path) == len("shelf/r/") + 36
    assert again == first


async def test_a_record_is_handed_over_when_a_write_meets_it_at_the_other_store(system: System) -> None:
    await put(system, "1")
    await go_to(system, Phase.DUAL_READ)
    book = await lend(system, "shelf/r/1", "ann")
    assert owner(system, Store.A, "shelf/r/1") is Store.B
    assert owner(system, Store.B, "shelf/r/1") is Store.B
    assert book.lent == 3, "create, release, lend"
    assert system.traffic.handoffs == 1


async def test_a_retry_after_the_handoff_gets_the_same_answer_and_has_no_second_effect(system: System) -> None:
    await put(system, "1")
    token = str(uuid4())
    first = await lend(system, "shelf/r/1", "ann", token)
    await go_to(system, Phase.DUAL_READ)
    again = await lend(system, "shelf/r/1", "ann", token)
    assert again == first
    row = system.ports(Store.B)._state.rows["shelf/r/1"]
    assert pb.Book.FromString(row.payload) == first


async def test_a_create_takes_the_bucket_owner_of_one_name_along_as_a_stub(system: System) -> None:
    await go_to(system, Phase.DUAL_READ)
    await put(system, "new")
    assert owner(system, Store.B, "shelf/r/new") is Store.B
    stub = system.ports(Store.A)._state.rows["shelf/r/new"]
    assert not stub.live and stub.owner is Store.B


async def test_a_write_that_may_not_create_moves_nothing(system: System) -> None:
    await go_to(system, Phase.DUAL_READ)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lend(system, "shelf/r/none", "ann")
    assert reason_of(refused.value)[0] == "NO_SUCH_BOOK"
    assert not system.ports(Store.A)._state.rows and not system.ports(Store.B)._state.rows


async def test_an_update_that_may_create_does_so_at_the_target(system: System) -> None:
    await go_to(system, Phase.DUAL_READ)
    book = await lend(system, "shelf/r/bought", "ann", buy=True)
    assert book.reader == "ann"
    assert owner(system, Store.B, "shelf/r/bought") is Store.B


async def test_a_read_finds_the_record_wherever_it_is(system: System) -> None:
    await put(system, "1")
    await go_to(system, Phase.DUAL_READ)
    book, trailers = await look(system, "shelf/r/1")
    assert book.path == "shelf/r/1"
    assert metadata.STALE not in trailers
    assert system.traffic.handoffs == 0, "a read moves nothing"


async def test_a_read_of_a_record_on_its_way_shows_the_newest_row(system: System) -> None:
    await put(system, "1")
    await system.ports(Store.A).transfers.release(["shelf/r/1"], Store.B, create=False)
    book, trailers = await look(system, "shelf/r/1")
    assert book.path == "shelf/r/1"
    assert metadata.STALE not in trailers


async def test_a_write_finishes_a_handoff_that_somebody_else_has_begun(system: System) -> None:
    await put(system, "1")
    await system.ports(Store.A).transfers.release(["shelf/r/1"], Store.B, create=False)
    await go_to(system, Phase.DUAL_READ)
    await lend(system, "shelf/r/1", "ann")
    assert owner(system, Store.B, "shelf/r/1") is Store.B


async def test_a_write_whose_target_is_a_brings_a_half_moved_record_home(system: System) -> None:
    await put(system, "1")
    await system.ports(Store.A).transfers.release(["shelf/r/1"], Store.B, create=False)
    await lend(system, "shelf/r/1", "ann")
    assert owner(system, Store.A, "shelf/r/1") is Store.A or owner(system, Store.B, "shelf/r/1") is Store.B
    book, _ = await look(system, "shelf/r/1")
    assert book.reader == "ann"


async def test_a_create_finishes_the_move_of_its_buckets_owner(system: System) -> None:
    bucket = bucket_of("shelf/r/1")
    await system.ports(Store.A).transfers.release_bucket(bucket, Store.B)
    await put(system, "1")
    bucket_owners = await system.ports(Store.B).transfers.bucket_owners([bucket])
    assert bucket_owners[0].owner is Store.B


async def test_a_list_merges_both_stores_and_shows_each_record_once(system: System) -> None:
    for number in range(9):
        await put(system, str(number))
    await go_to(system, Phase.DUAL_READ)
    for number in (1, 4, 7):
        await lend(system, f"shelf/r/{number}", "ann")
    assert await browse(system) == [f"shelf/r/{number}" for number in range(9)]
    assert await browse(system, most=1) == [f"shelf/r/{number}" for number in range(9)]
    assert await browse(system, reader="ann") == ["shelf/r/1", "shelf/r/4", "shelf/r/7"]


async def test_a_list_that_matches_hardly_anything_comes_in_short_and_empty_pages(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        await put(system, str(number))
    await go_to(system, Phase.DUAL_READ)
    await lend(system, "shelf/r/7", "ann")
    monkeypatch.setattr(memory, "LIST_ROWS", 1)
    monkeypatch.setattr(listing, "PAGE_SECONDS", -1.0)
    data, _ = await send(system, "Browse", pb.BrowseOrder(reader="ann").SerializeToString())
    first = pb.Books.FromString(data)
    assert not first.found and first.more, "an empty page that is not the last one"
    assert await browse(system, reader="ann") == ["shelf/r/7"]
    assert await browse(system, reader="nobody") == []
    assert await browse(system) == [f"shelf/r/{number}" for number in range(9)]


async def test_the_newest_rows_verdict_on_the_filter_counts(system: System) -> None:
    await put(system, "1")
    await lend(system, "shelf/r/1", "ann")
    await go_to(system, Phase.DUAL_READ)
    await lend(system, "shelf/r/1", "bob")
    assert await browse(system, reader="ann") == [], "A still has the old row, which matches"
    assert await browse(system, reader="bob") == ["shelf/r/1"]


async def test_a_store_that_is_away_leaves_the_others_page_marked_stale(living: System) -> None:
    system = living
    await put(system, "1")
    await eventually(lambda: owner(system, Store.B, "shelf/r/1") is Store.A, what="B has the replica")
    await system.stop(Store.A)
    data, trailers = await send(system, "Browse", pb.BrowseOrder().SerializeToString())
    assert [book.path for book in pb.Books.FromString(data).found] == ["shelf/r/1"]
    assert trailers[metadata.STALE] == "1"


async def test_a_read_whose_owner_is_away_is_answered_by_the_replica_marked_stale(living: System) -> None:
    system = living
    await put(system, "1")
    await eventually(lambda: owner(system, Store.B, "shelf/r/1") is Store.A, what="B has the replica")
    await system.stop(Store.A)
    book, trailers = await look(system, "shelf/r/1")
    assert book.path == "shelf/r/1"
    assert trailers[metadata.STALE] == "1"


async def test_a_write_whose_owner_is_away_is_unavailable(living: System) -> None:
    system = living
    await put(system, "1")
    await eventually(lambda: owner(system, Store.B, "shelf/r/1") is Store.A, what="B has the replica")
    await system.stop(Store.A)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lend(system, "shelf/r/1", "ann")
    assert reason_of(refused.value)[0] == "OWNER_UNAVAILABLE"


async def test_a_write_whose_target_is_away_is_made_at_the_store_that_owns_the_record(system: System) -> None:
    await put(system, "1")
    await go_to(system, Phase.DUAL_READ)
    await system.stop(Store.B)
    book = await lend(system, "shelf/r/1", "ann")
    assert book.reader == "ann"
    assert owner(system, Store.A, "shelf/r/1") is Store.A


async def test_the_mover_brings_every_bucket_to_b_and_back(living: System) -> None:
    system = living
    for number in range(40):
        await put(system, str(number))
    await go_to(system, Phase.DUAL_READ)
    await eventually(lambda: system.mover.settled and system.mover.buckets_at_b == BUCKETS, timeout_seconds=20)
    assert all(row.owner is Store.B for row in system.ports(Store.B)._state.rows.values())
    assert len(system.ports(Store.B)._state.rows) == 40
    await system.migration.rollback(BY_HAND, Phase.OFF)
    await eventually(lambda: system.mover.settled and system.mover.buckets_at_b == 0, timeout_seconds=20)
    assert all(row.owner is Store.A for row in system.ports(Store.A)._state.rows.values())


async def test_the_mover_turns_round_when_the_setting_changes_while_it_runs(living: System) -> None:
    system = living
    for number in range(40):
        await put(system, str(number))
    await go_to(system, Phase.DUAL_READ)
    await eventually(lambda: bool(system.mover.progress.done), timeout_seconds=20)
    await system.migration.rollback(BY_HAND, Phase.SHADOW)
    await eventually(lambda: system.mover.settled and system.mover.buckets_at_b == 0, timeout_seconds=20)


class _Waits(SettingCache):
    """Notes how long the mover would wait for another setting, and does not wait."""

    def __init__(self, system: System) -> None:
        super().__init__(system.control, SystemClock())
        self.seconds: list[float] = []

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting:
        self.seconds.append(timeout_seconds)
        return self.current


async def test_the_mover_waits_before_it_tries_again_what_it_could_not_move(system: System) -> None:
    version = Version(0, 1)
    row = Row("shelf/r/large", version, Store.A, version, True, b"x" * (MAX_PAYLOAD_BYTES + 1), 1)
    await system.ports(Store.A).transfers.apply([Record(row, (), Store.A, 0.0)])
    await go_to(system, Phase.DUAL_READ)
    waits = _Waits(system)
    await waits.refresh()
    mover = Mover(system.stores, Transfer(system.stores), waits, system.control, "router-1", SystemClock())
    await mover.run_once(Loop("mover", mover.run_once))
    assert waits.seconds == [], "all buckets have gone: what is left is seen at the next look"
    await mover.run_once(Loop("mover", mover.run_once))
    assert (waits.seconds, mover.buckets_at_b) == ([STUCK_SECONDS], BUCKETS - 1)


async def test_a_caller_who_leaves_does_not_stop_the_write(system: System) -> None:
    await put(system, "1")
    turn = system.ports(Store.A)._state.lock
    async with turn:
        order = pb.LendOrder(path="shelf/r/1", reader="ann", token=str(uuid4()))
        call = system.client.multi_callable("/toy.Shelf/Lend")(order.SerializeToString(), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError):
            await call

    async def reader() -> bool:
        return (await look(system, "shelf/r/1"))[0].reader == "ann"

    await eventually(reader, what="the write is finished without its caller")


async def test_concurrent_writers_under_flipping_phases_all_have_their_effect(system: System) -> None:
    await put(system, "hot")
    made: list[int] = []

    async def write(client: int) -> None:
        for number in range(15):
            book = await lend(system, "shelf/r/hot", f"{client}-{number}")
            made.append(book.lent)

    async def flip() -> None:
        for _ in range(6):
            await go_to(system, Phase.DUAL_READ)
            await asyncio.sleep(0)
            await system.migration.rollback(BY_HAND, Phase.OFF)
            await system.migration.lift_hold(BY_HAND)

    await asyncio.gather(flip(), *(write(client) for client in range(4)))
    assert len(made) == len(set(made)) == 60, "each write made a revision of its own"


@pytest.mark.parametrize(
    ("request_bytes", "method", "field"),
    [
        (b"\xff\xff\xff", "Look", "request"),
        (pb.BrowseOrder(most=-1).SerializeToString(), "Browse", "page_size"),
        (b"\x22\x08nonsense", "Browse", "from"),
        (pb.PutOrder(token="\u00e9", where=pb.Place(room="r", isbn="1")).SerializeToString(), "Put", "token"),
        (pb.PutOrder(token="a\n", where=pb.Place(room="r", isbn="1")).SerializeToString(), "Put", "token"),
        (pb.PutOrder(token="a" * 37, where=pb.Place(room="r", isbn="1")).SerializeToString(), "Put", "token"),
    ],
)
async def test_bad_input_is_refused_with_the_field(
    system: System, request_bytes: bytes, method: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(system, method, request_bytes)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, details = reason_of(refused.value)
    assert (reason, details["field"]) == ("INVALID_FIELD", "most" if field == "page_size" else field)
