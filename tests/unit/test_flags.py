"""Flag names from the contract, and the flags that a router uses when sources disagree or are unavailable."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest

from libs.clock import ManualClock
from libs.contract.descriptors import Contract
from libs.errors import InvalidField
from libs.flags.memory import MemoryFlags
from libs.flags.port import FlagReading, FlagSource, FlagsUnavailable
from libs.ownership.model import Store
from services.router.control.codec import job_from_json, job_to_json, setting_from_json, setting_to_json
from services.router.core.flags import FlagNames
from services.router.core.jobs import Job, JobState
from services.router.core.pending import PendingCall
from services.router.core.phase import IllegalMove, Phase, Setting, advance, next_phase, rollback, set_flag
from services.router.core.plan import LASTING_SECONDS, NO_FLAGS, Flags, aim, home, target
from services.router.flows.steering.flags import ANSWER_SECONDS, Switches
from tests.shelf import CONTRACT as SHELF
from tests.waiting import eventually

SANDBOXES = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
NAMES = FlagNames.of(SANDBOXES)
ALL = "sandbox.routing.use_service_layer"
CREATE = "sandbox.routing.create_sandbox_use_service_layer"
GET = "sandbox.routing.get_sandbox_use_service_layer"


def test_the_sandbox_contract_has_the_flags_of_the_seed() -> None:
    operations = [f"sandbox.routing.{name}_sandbox_use_service_layer" for name in ("create", "get", "list", "update")]
    assert NAMES.all == (ALL, *operations, "sandbox.routing.delete_sandbox_use_service_layer")


def test_another_contract_has_other_flags_and_only_for_what_it_can_do() -> None:
    assert FlagNames.of(SHELF).all == (
        "toy.routing.use_service_layer",
        "toy.routing.create_shelf_use_service_layer",
        "toy.routing.get_shelf_use_service_layer",
        "toy.routing.list_shelf_use_service_layer",
        "toy.routing.update_shelf_use_service_layer",
    )


def test_prefix_and_noun_can_be_given() -> None:
    names = FlagNames.of(SHELF, "books", "book")
    assert names.everything == "books.use_service_layer"
    assert names.operations["get"] == "books.get_book_use_service_layer"


@pytest.mark.parametrize("name", ["", "create", ALL.upper(), ALL + " ", "toy.routing.use_service_layer"])
def test_an_unknown_flag_is_refused_with_all_that_there_are(name: str) -> None:
    with pytest.raises(InvalidField) as caught:
        NAMES.check(name)
    assert all(known in caught.value.message for known in NAMES.all)


def test_values_steer_by_operation_and_foreign_names_steer_nothing() -> None:
    values = {ALL: None, CREATE: False, GET: None, "toy.routing.use_service_layer": True}
    assert NAMES.steering(values) == Flags(None, {"create": False})


def test_a_flag_is_set_changed_and_unset_and_each_makes_a_generation() -> None:
    one = set_flag(set_flag(Setting(3), GET, True), CREATE, False)
    assert (one.generation, one.flags) == (5, ((CREATE, False), (GET, True)))
    assert set_flag(one, GET, False).flags == ((CREATE, False), (GET, False))
    assert set_flag(set_flag(one, GET, None), CREATE, None).flags == ()
    assert set_flag(Setting(), GET, None).flags == ()


def test_phases_come_and_go_and_flags_stay() -> None:
    setting = set_flag(Setting(1, Phase.DUAL_WRITE), GET, True)
    assert rollback(advance(setting, next_phase(setting)), Phase.OFF).flags == setting.flags


def test_in_the_last_phase_no_flag_leads_to_a_store_that_may_be_shut_down() -> None:
    last = Setting(1, Phase.DEPRECATED)
    with pytest.raises(IllegalMove, match="DEPRECATED"):
        set_flag(last, ALL, False)
    assert set_flag(last, ALL, True).flags == ((ALL, True),)
    flags = Flags(False, {"get": False})
    assert target(last, flags, "get", 7) == (Store.B, "phase")
    assert home(last, flags, 7) is Store.B


def test_flags_survive_being_written_and_old_settings_have_none() -> None:
    setting = set_flag(Setting(1), GET, False)
    assert setting_from_json(setting_to_json(setting)) == setting
    old = json.loads(setting_to_json(Setting(1)))
    del old["flags"]
    assert setting_from_json(json.dumps(old)) == Setting(1)


def test_a_router_keeps_the_fields_of_a_newer_release() -> None:
    """In the setting, in the calls that wait, and in jobs."""
    call = PendingCall("c1", "StartJob", b"x", "idp:ann", "", "", 1.0)
    fields = json.loads(setting_to_json(Setting(1, pending=(call,))))
    fields["later"] = {"a": [1, None]}
    fields["pending"][0]["witness"] = "idp:eve"
    after = set_flag(setting_from_json(json.dumps(fields)), GET, False)
    fields |= {"generation": 2, "flags": {GET: False}}
    assert json.loads(setting_to_json(after)) == fields
    job = json.loads(job_to_json(Job("backfill", "backfill to B", "ann"))) | {"later": 7}
    paused = replace(job_from_json(json.dumps(job), 3, 1), state=JobState.PAUSED)
    assert json.loads(job_to_json(paused)) == job | {"state": "PAUSED"}


@pytest.mark.parametrize("value", [1, "true", None])
def test_a_written_flag_that_is_no_boolean_is_refused_by_name(value: object) -> None:
    fields = json.loads(setting_to_json(Setting(1)))
    fields["flags"] = {GET: value}
    with pytest.raises(ValueError, match=GET):
        setting_from_json(json.dumps(fields))


def test_the_aim_of_the_mover_changes_with_homes_only() -> None:
    setting = Setting(1, Phase.DUAL_WRITE, 100)
    assert aim(set_flag(setting, GET, True), Flags(None, {"get": True})) == aim(setting, NO_FLAGS)
    for other in (advance(setting, next_phase(setting)), rollback(setting, Phase.OFF)):
        assert aim(other, NO_FLAGS) != aim(setting, NO_FLAGS)
    assert aim(setting, Flags(True)) != aim(setting, NO_FLAGS)


class Said(FlagSource):
    """A provider with values that the test sets."""

    name = "the provider"

    def __init__(self) -> None:
        self.seen: dict[str, FlagReading] = {}
        self.away = ""
        self.looks = 0
        self.free = threading.Event()
        self.free.set()

    def evaluate(self, names: Sequence[str]) -> Mapping[str, FlagReading]:
        self.looks += 1
        self.free.wait(30)
        if self.away:
            raise FlagsUnavailable(self.away)
        return {name: self.seen.get(name, FlagReading(None)) for name in names}

    async def watch(self, timeout_seconds: float) -> None:
        await asyncio.sleep(min(timeout_seconds, 0.01))

    def close(self) -> None:
        self.free.set()


@pytest.fixture
def provider() -> Said:
    return Said()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def switches(provider: Said, clock: ManualClock) -> AsyncIterator[Switches]:
    made = Switches(NAMES, MemoryFlags("control store"), provider, clock)
    yield made
    made.close()


def view(switches: Switches, name: str) -> tuple[bool | None, str, str]:
    found = next(view for view in switches.views(0.5, "") if view.name == name)
    return found.value, found.source, found.trouble


async def test_before_anybody_has_spoken_all_flags_are_unset(switches: Switches, provider: Said) -> None:
    provider.away = "no route"
    with pytest.raises(FlagsUnavailable):
        await switches.refresh()
    assert switches.current == NO_FLAGS
    assert [seen.good_seconds_ago for seen in switches.views(0.5, "")] == [None] * 6


async def test_the_operator_goes_before_the_provider(switches: Switches, provider: Said) -> None:
    provider.seen = {GET: FlagReading(True), CREATE: FlagReading(True)}
    await switches.refresh()
    switches.take(set_flag(Setting(1), GET, False))
    assert switches.current == Flags(None, {"get": False, "create": True})
    assert view(switches, GET) == (False, "control store", "")
    assert view(switches, CREATE) == (True, "the provider", "")
    switches.take(Setting(3))
    assert switches.current.operations["get"] is True


async def test_a_provider_that_is_away_leaves_what_it_said_last(
    switches: Switches, provider: Said, clock: ManualClock
) -> None:
    provider.seen = {ALL: FlagReading(True)}
    await switches.refresh()
    provider.away, provider.seen = "connection lost", {}
    clock.advance(90)
    with pytest.raises(FlagsUnavailable):
        await switches.refresh()
    assert switches.current.use_service_layer is True
    assert view(switches, ALL) == (True, "the provider", "connection lost")
    assert switches.views(0.5, "")[0].good_seconds_ago == 90
    provider.away = ""
    await switches.refresh()
    assert switches.current == NO_FLAGS
    assert view(switches, ALL) == (None, "the provider", "")


async def test_a_flag_that_a_provider_changes_is_one_line_in_the_log(
    switches: Switches, provider: Said, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for seen in (FlagReading(True), FlagReading(True), FlagReading(False), FlagReading(False)):
        provider.seen = {ALL: seen}
        await switches.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        f"flag {ALL} = true (was unset), by the provider",
        f"flag {ALL} = false (was true), by the provider",
    ]


async def test_a_value_of_a_wrong_type_leaves_the_flags_last_good_one(switches: Switches, provider: Said) -> None:
    provider.seen = {GET: FlagReading(True), CREATE: FlagReading(True)}
    await switches.refresh()
    provider.seen = {GET: FlagReading(None, "TYPE_MISMATCH"), CREATE: FlagReading(False)}
    await switches.refresh()
    assert switches.current == Flags(None, {"get": True, "create": False})
    assert view(switches, GET) == (True, "the provider", "TYPE_MISMATCH")


async def test_a_value_of_a_wrong_type_from_the_start_is_as_unset(switches: Switches, provider: Said) -> None:
    provider.seen = {GET: FlagReading(None, "TYPE_MISMATCH")}
    await switches.refresh()
    assert switches.current == NO_FLAGS
    assert view(switches, GET) == (None, "the provider", "TYPE_MISMATCH")


async def test_a_provider_that_hangs_is_away_and_is_not_asked_again_meanwhile(
    switches: Switches, provider: Said
) -> None:
    provider.free.clear()
    provider.seen = {ALL: FlagReading(False)}
    for _ in range(2):
        with pytest.raises(FlagsUnavailable, match=f"no answer within {ANSWER_SECONDS:g} s"):
            await switches.refresh()
    assert provider.looks == 1
    provider.free.set()
    await switches.refresh()
    assert (provider.looks, switches.current.use_service_layer) == (1, False)
    assert switches.trouble == ""


def sees(switches: Switches, value: bool | None) -> bool:
    return switches.current.operations.get("get") is value


async def test_a_provider_is_looked_at_in_the_background(switches: Switches, provider: Said) -> None:
    (loop,) = switches.loops
    running = asyncio.create_task(loop.run())
    for value in (True, False, None):
        provider.seen = {GET: FlagReading(value)}
        await eventually(partial(sees, switches, value))
    provider.away = "connection lost"
    await eventually(lambda: switches.trouble == "connection lost")
    provider.away, provider.seen = "", {GET: FlagReading(True)}
    await eventually(partial(sees, switches, True))
    running.cancel()


def test_without_a_provider_there_is_nothing_to_run() -> None:
    switches = Switches(NAMES, MemoryFlags("control store"), None, ManualClock())
    assert switches.loops == []
    assert view(switches, GET) == (None, "control store", "")
    assert [seen.good_seconds_ago for seen in switches.views(float("inf"), "away")] == [None] * 6
    switches.close()


async def test_records_follow_false_when_it_has_lasted_and_true_at_once(switches: Switches, clock: ManualClock) -> None:
    def lasting(value: bool | None) -> bool | None:
        switches.take(set_flag(Setting(1), ALL, value))
        assert switches.current.use_service_layer is value
        return switches.lasting.use_service_layer

    assert lasting(False) is None
    clock.advance(LASTING_SECONDS - 0.1)
    assert lasting(False) is None
    clock.advance(0.1)
    assert lasting(False) is False
    assert lasting(True) is True
    assert lasting(False) is True, "until it has lasted, what it was before"
    clock.advance(LASTING_SECONDS - 0.1)
    assert lasting(True) is True
    assert lasting(False) is True, "and it counts from when it became false"
    assert lasting(None) is None


async def test_flags_of_operations_do_not_start_the_wait_anew(switches: Switches, clock: ManualClock) -> None:
    switches.take(set_flag(Setting(1), ALL, False))
    clock.advance(LASTING_SECONDS - 1)
    switches.take(set_flag(set_flag(Setting(1), ALL, False), GET, True))
    assert switches.lasting == Flags(None, {"get": True})
    clock.advance(1)
    assert switches.lasting == Flags(False, {"get": True})
