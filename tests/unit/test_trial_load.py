"""A trial's clients, against a store behind real listeners that answers, refuses and fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from libs.errors import BatonError, LockTimeout, StoreNotReady
from libs.ownership.model import Store
from libs.pb.sandbox.v1.sandbox_service_pb2 import CreateSandboxRequest, UpdateSandboxRequest
from libs.proving.history import linearizability
from libs.proving.history.history import READS, WRITES, Call, Outcome
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.requests import COLLECTION, Mix, Names, Request
from libs.proving.trial.stats import Finished, Stats
from libs.rpc.caller import make_id
from libs.rpc.errors import Context, pass_on
from libs.rpc.metadata import STALE
from libs.rpc.server import RawService
from tests.system.store import CONTRACT, SERVICE, OneStore, listening, running_store
from tests.waiting import eventually


@dataclass
class Front:
    """A stand-in for a router that may misbehave in front of a store. `before` and `after` may raise errors for
    clients."""

    store: OneStore
    before: Callable[[str], BatonError | None] = lambda method: None
    after: Callable[[str], BatonError | None] = lambda method: None
    stale: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    async def answer(self, method: str, request: bytes, context: Context) -> bytes:
        self.seen[method] += 1
        if error := self.before(method):
            raise error
        call = self.store.public.multi_callable(f"/{SERVICE}/{method}")(request, timeout=5.0)
        data = await self._result(call, context)
        if error := self.after(method):
            raise error
        if self.stale:
            context.set_trailing_metadata(((STALE, "1"),))
        return data

    @staticmethod
    async def _result(call: Awaitable[bytes], context: Context) -> bytes:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            await pass_on(context, error)


@asynccontextmanager
async def fronted() -> AsyncIterator[tuple[Front, str]]:
    """A store behind a front, and the front's address."""
    async with running_store(Store.A) as store:
        front = Front(store)

        def handler(method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
            return lambda request, context: front.answer(method, request, context)

        service = RawService(SERVICE, {name: handler(name) for name in CONTRACT.methods})
        async with listening(service) as server:
            yield front, server.address


def plan(**changes: float) -> LoadPlan:
    return LoadPlan(clients=2, calls_per_second=0, made_names=3, **changes)  # type: ignore[arg-type]


async def test_a_load_records_what_the_store_answers_and_that_history_is_linearizable(tmp_path: Path) -> None:
    async with fronted() as (_, address):
        load = Load(plan(), [address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.requests >= 400)
    calls = load.calls()
    assert {call.method for call in calls} >= {"get", "list", "create", "update", "delete"}
    assert linearizability.check(calls).ok
    assert load.stats.errors == Counter()
    assert load.stats.acknowledged_writes == sum(call.method in WRITES and call.outcome is Outcome.OK for call in calls)
    assert all(call.revision for call in calls if call.method in WRITES and call.outcome is Outcome.OK)


async def test_a_write_whose_answer_is_lost_is_sent_again_and_has_one_effect(tmp_path: Path) -> None:
    async with fronted() as (front, address):
        lost: list[str] = []

        def lose(method: str) -> BatonError | None:
            # Every third write is done, and its answer lost.
            if method.startswith(("Get", "List")) or front.seen.total() % 3:
                return None
            lost.append(method)
            return StoreNotReady()

        front.after = lose
        load = Load(plan(), [address], tmp_path)
        async with load.running():
            await eventually(lambda: len(lost) >= 40)
    calls = load.calls()
    attempts = Counter(call.request_id for call in calls if call.request_id)
    assert max(attempts.values()) > 1
    assert load.stats.unknown_outcomes == 0
    assert load.stats.errors["STORE_NOT_READY"] == len(lost)
    assert linearizability.check(calls).ok
    revisions = _revisions(calls)
    assert all(len(found) == 1 for found in revisions.values())


async def test_writes_without_an_answer_are_given_up_as_unknown_while_reads_go_on(tmp_path: Path) -> None:
    async with fronted() as (front, address):
        front.before = lambda method: None if method.startswith(("Get", "List")) else StoreNotReady()
        load = Load(plan(retry_seconds=0.5), [address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.requests >= 300)
    calls = load.calls()
    assert load.stats.unknown_outcomes > 0
    assert load.stats.acknowledged_writes == 0
    assert {call.outcome for call in calls if call.method in WRITES} == {Outcome.UNKNOWN}
    assert any(call.method in READS and call.not_found for call in calls)


async def test_only_a_definite_refusal_is_recorded_as_failed(tmp_path: Path) -> None:
    async with fronted() as (front, address):
        front.before = lambda method: LockTimeout() if front.seen.total() % 2 else None
        load = Load(plan(), [address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.refused["SANDBOX_NOT_FOUND"] and load.stats.errors["LOCK_TIMEOUT"])
    reasons = {call.outcome: set[str]() for call in load.calls()}
    for call in load.calls():
        reasons[call.outcome].add(call.reason)
    assert "LOCK_TIMEOUT" in reasons[Outcome.UNKNOWN]
    assert "LOCK_TIMEOUT" not in reasons[Outcome.FAILED]
    assert "SANDBOX_NOT_FOUND" in reasons[Outcome.FAILED]


async def test_reads_that_are_marked_stale_are_recorded_as_stale(tmp_path: Path) -> None:
    async with fronted() as (front, address):
        front.stale = True
        load = Load(plan(), [address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.answered_reads >= 20)
    answered = [call for call in load.calls() if call.method in READS and call.outcome is Outcome.OK]
    assert answered and all(call.stale for call in answered)
    assert load.stats.stale_reads > 0


async def test_a_client_turns_to_another_router_when_one_is_away(tmp_path: Path) -> None:
    async with fronted() as (front, address), listening() as gone:
        await gone.drain(0.0)
        load = Load(replace(plan(), clients=1), [gone.address, address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.acknowledged_writes >= 20)
        assert front.seen.total() >= 20


async def test_a_client_that_fails_by_a_defect_ends_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Mix) -> Request:
        raise ZeroDivisionError

    monkeypatch.setattr(Mix, "next", broken)
    async with fronted() as (_, address):
        load = Load(plan(), [address], tmp_path)
        with pytest.raises(ZeroDivisionError):
            async with load.running():
                await asyncio.Event().wait()


def test_every_write_has_a_value_and_a_request_id_of_its_own() -> None:
    names = Names([f"{COLLECTION}hot-0"])
    wanted = [request for client in (0, 1) for request in _requests(Mix(client, names, 0.3, seed=7), 300)]
    writes = [request for request in wanted if not request.is_read]
    values = [request.value for request in writes if request.value]
    assert len({request.request_id for request in writes}) == len(writes)
    assert len(set(values)) == len(values)


def test_a_create_without_an_id_is_about_the_name_that_the_router_makes() -> None:
    names = Names([f"{COLLECTION}hot-0"])
    requests = _requests(Mix(0, names, 1.0, seed=7), 100)
    made = [request for request in requests if request.method == "create" and not _create(request).sandbox_id]
    method = CONTRACT.methods["CreateSandbox"]
    assert made
    for request in made:
        assert method.key is not None
        assert request.request_id is not None
        assert method.key.with_id(_create(request), make_id(request.request_id)) == request.key


def test_a_conditional_update_names_the_etag_that_the_client_saw() -> None:
    name = f"{COLLECTION}hot-0"
    names = Names([], [name])
    mix = Mix(0, names, 0.0, seed=7)
    mix.etags[name] = '"0-9"'
    updates = [request for request in _requests(mix, 200) if request.method == "update"]
    etags = {UpdateSandboxRequest.FromString(request.message).sandbox.etag for request in updates}
    assert etags == {"", '"0-9"'}


def test_a_window_counts_what_was_under_way_in_it_from_its_beginning_on() -> None:
    stats = Stats()
    for start, end, method in ((0.0, 1.0, "get"), (0.5, 2.5, "update"), (2.0, 2.2, "get"), (4.0, 9.0, "create")):
        stats.add(Finished(start, end, method, Outcome.OK, 1))
    stats.error("UNAVAILABLE", 2.1)
    stats.error("UNAVAILABLE", 3.1)
    window = stats.window(2.0, 3.0)
    assert (window.requests, window.slowest_method, window.errors) == (2, "update", 1)
    assert window.slowest_milliseconds == pytest.approx(500)
    assert stats.window(20.0, 21.0).requests == 0


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="clients=0"):
        LoadPlan(clients=0)
    with pytest.raises(ValueError, match="deadline_seconds=0"):
        LoadPlan(deadline_seconds=0)


def _requests(mix: Mix, count: int) -> list[Request]:
    return [mix.next() for _ in range(count)]


def _create(request: Request) -> CreateSandboxRequest:
    return CreateSandboxRequest.FromString(request.message)


def _revisions(calls: list[Call]) -> dict[str, set[tuple[int, int]]]:
    found: dict[str, set[tuple[int, int]]] = {}
    for call in calls:
        if call.request_id and call.outcome is Outcome.OK and call.revision:
            found.setdefault(call.request_id, set()).add(call.revision)
    return found
