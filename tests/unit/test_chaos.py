"""Flip storms: the next flip, the way back, and leaks."""

from __future__ import annotations

import random

import grpc
import pytest

from libs.pb.baton.telemetry.v1 import telemetry_pb2
from libs.proving.trial.chaos import CANARIES, COHORT_NAMES, HOLDING, Flip, State, StormPlan, choose, sequence, way_to
from libs.proving.trial.chaos_report import StormReport
from libs.proving.trial.vitals import Growth, Tolerance, Vitals, growth, look
from libs.proving.trial.walk import PHASES
from libs.telemetry.vitals import Gauges, vitals
from services.router.cli.chaos import parse_duration, parse_stores
from services.router.cli.failure import CommandFailed, Exit
from services.router.core import phase as phases
from services.router.core.cohort_changes import add_cohort, remove_cohort, set_share
from services.router.core.cohorts import Cohort
from services.router.core.phase import Phase, Setting

FLAGS = ("routing.use", "routing.create_use")
SEEDS = range(40)


def walked(seed: int, start: State, count: int = 60) -> list[tuple[State, Flip]]:
    """Each flip of a storm, with the state that it meets."""
    state, found = start, []
    for flip in sequence(start, FLAGS, seed, count):
        found.append((state, flip))
        state = flip.after(state)
    return found


def as_the_router_does(setting: Setting, flip: Flip) -> Setting:
    """Raises IllegalMove."""
    match flip.kind:
        case "flag":
            return phases.set_flag(setting, flip.flag, flip.value)
        case "canary":
            return phases.set_canary(setting, flip.permille)
        case "cohort":
            return as_cohort(setting, flip)
        case "shadow":
            return phases.set_shadow(setting, flip.permille, same=flip.same)
        case "lift":
            return phases.lift_hold(setting)
        case "advance":
            return phases.advance(setting, Phase(flip.to))
    return phases.rollback(setting, Phase(flip.to))


def as_cohort(setting: Setting, flip: Flip) -> Setting:
    match flip.change:
        case "Add":
            return add_cohort(setting, Cohort(flip.cohort, COHORT_NAMES, permille=flip.permille))
        case "Set":
            return set_share(setting, flip.cohort, flip.permille)
    return remove_cohort(setting, flip.cohort)


def setting_of(state: State) -> Setting:
    return Setting(
        generation=7,
        phase=Phase(state.phase),
        canary_permille=state.canary_permille,
        hold=state.hold,
        flags=tuple(sorted(state.flags.items())),
        shadow_permille=state.shadow_permille,
        shadow_same=state.shadow_same,
        cohorts=tuple(Cohort(name, f"{name}/*", permille=share) for name, share in state.cohorts.items()),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_every_flip_is_one_that_the_router_allows_and_does_what_it_says(seed: int) -> None:
    setting = Setting(generation=1)
    for state, flip in walked(seed, State("OFF")):
        setting = as_the_router_does(setting, flip)
        after = flip.after(state)
        assert (setting.phase.value, setting.canary_permille, setting.hold) == (
            after.phase,
            after.canary_permille,
            after.hold,
        ), f"{flip} at {state}"
        assert dict(setting.flags) == after.flags
        assert {cohort.name: cohort.permille for cohort in setting.cohorts} == after.cohorts
        assert (setting.shadow_permille, setting.shadow_same) == (after.shadow_permille, after.shadow_same)


def test_a_storm_makes_every_kind_of_flip_and_never_enters_the_last_phase() -> None:
    flips = [flip for seed in SEEDS for _, flip in walked(seed, State("OFF"))]
    assert {flip.kind for flip in flips} == {"flag", "canary", "cohort", "shadow", "advance", "rollback", "lift"}
    assert {flip.to for flip in flips if flip.to} == set(PHASES)
    assert "DEPRECATED" not in PHASES
    assert {flip.value for flip in flips if flip.kind == "flag"} == {True, False, None}
    assert {flip.permille for flip in flips if flip.kind == "canary"} == set(CANARIES)


def test_no_flip_leaves_everything_as_it_is() -> None:
    for seed in SEEDS:
        assert all(flip.after(state) != state for state, flip in walked(seed, State("OFF")))


def test_a_seed_makes_the_same_storm() -> None:
    assert sequence(State("OFF"), FLAGS, 5, 50) == sequence(State("OFF"), FLAGS, 5, 50)
    assert sequence(State("OFF"), FLAGS, 5, 50) != sequence(State("OFF"), FLAGS, 6, 50)


def test_phases_are_flipped_when_there_are_no_flags() -> None:
    assert choose(random.Random(1), State("OFF"), ()).kind == "advance"


@pytest.mark.parametrize(
    "wanted",
    [
        State("OFF"),
        State("OFF", hold=True),
        State("SHADOW", hold=True, flags={FLAGS[0]: True}),
        State("DUAL_WRITE", 100, flags={FLAGS[1]: False}),
        State("DUAL_WRITE", 0, hold=True),
        State("DUAL_READ", shadow_permille=5, shadow_same=True),
        State("DUAL_READ", cohorts={"staging": 500, "last": 0}),
        State("DUAL_WRITE", 100, cohorts={"staging": 500, "last": 0}),
        State("CUTOVER", cohorts={"staging": 1000, "last": 0}),
        State("SHADOW", hold=True, shadow_permille=1000),
        State("CUTOVER", flags={FLAGS[0]: False}),
    ],
)
@pytest.mark.parametrize("seed", range(10))
def test_a_storm_finds_back_to_where_it_began(wanted: State, seed: int) -> None:
    state = wanted
    for _, flip in walked(seed, wanted, 30):
        state = flip.after(state)
    for _ in range(30):
        flip_back = way_to(state, wanted)
        if flip_back is None:
            break
        as_the_router_does(setting_of(state), flip_back)
        state = flip_back.after(state)
    assert state == wanted


def test_going_back_holds_exactly_where_the_router_holds() -> None:
    for phase in PHASES[:-1]:
        held = phases.rollback(Setting(1, Phase.CUTOVER), Phase(phase)).hold
        assert held is (phase in HOLDING)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.5s", 0.5), ("500ms", 0.5), ("30s", 30.0), ("10m", 600.0), ("1h", 3600.0), (" 2s ", 2.0)]
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration("--every", text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "1d", "1e3s", "nans", "0s", "49ms", "25h"])
def test_another_duration_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(CommandFailed, match="ms, s, m or h, from 50ms to 24h") as caught:
        parse_duration("--every", text)
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize("text", ["1.2.3.4:5", "C=1.2.3.4:5", "A=", "A=nowhere", "=1.2.3.4:5"])
def test_a_store_that_is_not_named_with_its_address_is_refused(text: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        parse_stores(text, "")
    assert caught.value.code is Exit.USAGE
    assert "--stores" in str(caught.value)


def test_stores_are_read_with_all_their_processes() -> None:
    found = [(one.store, one.address, one.token) for one in parse_stores("A=h:1, B=h:2,B=h:3", "secret")]
    assert found == [("A", "h:1", "secret"), ("B", "h:2", "secret"), ("B", "h:3", "secret")]


@pytest.mark.parametrize(("every", "lasting", "flips"), [(0.5, 25.0, 50), (30.0, 600.0, 20), (2.0, 2.0, 1)])
def test_a_plan_knows_how_many_flips_it_has(every: float, lasting: float, flips: int) -> None:
    assert StormPlan(every, lasting).flips == flips


BEFORE = Vitals(pid=1, tasks=20, descriptors=30, resident_bytes=1000, connections=2, locks=1)
MAY = Tolerance(tasks=5, descriptors=5, resident_bytes=100)


def grown(**after: int) -> Growth:
    fields = {"pid": 1, "tasks": 20, "descriptors": 30, "resident_bytes": 1000, "connections": 0, "locks": 0} | after
    return Growth("a", BEFORE, Vitals(**fields), MAY)


def test_what_is_within_the_tolerance_is_no_leak() -> None:
    one = grown(tasks=25, descriptors=35, resident_bytes=1100)
    assert one.ok
    assert set(one.leaks.values()) == {0}


@pytest.mark.parametrize(
    ("kind", "after", "leaked"),
    [
        ("tasks", 26, 6),
        ("descriptors", 36, 6),
        ("resident_bytes", 1101, 101),
        ("connections", 1, 1),
        ("locks", 1, 1),
    ],
)
def test_what_is_more_is_a_leak_and_named(kind: str, after: int, leaked: int) -> None:
    one = grown(**{kind: after})
    assert not one.ok
    assert {name: much for name, much in one.leaks.items() if much} == {kind: leaked}
    assert one.as_dict()[kind]["leaked"] == leaked


def test_a_process_that_was_restarted_is_not_compared() -> None:
    one = grown(pid=2, locks=5, tasks=500)
    assert (one.restarted, one.ok) == (True, True)


async def test_what_is_busy_at_one_look_only_is_no_leak() -> None:
    looks = iter([(1, 90), (0, 90), (1, 10)])

    async def ask() -> telemetry_pb2.Vitals:
        locks, tasks = next(looks)
        return telemetry_pb2.Vitals(pid=1, locks=locks, tasks=tasks)

    found = await growth({"a": ask}, {"a": BEFORE}, MAY, 20.0)
    assert [(one.ok, one.after.locks, one.after.tasks) for one in found] == [(True, 0, 10)]


async def test_what_stays_is_a_leak_when_the_time_is_over() -> None:
    async def ask() -> telemetry_pb2.Vitals:
        return telemetry_pb2.Vitals(pid=1, locks=1)

    (one,) = await growth({"a": ask}, {"a": BEFORE}, MAY, 0.0)
    assert one.leaks["locks"] == 1


async def test_a_process_that_does_not_answer_any_more_is_said_to_have_been_restarted() -> None:
    async def away() -> telemetry_pb2.Vitals:
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    assert await look({"a": away}) == {}
    (one,) = await growth({"a": away}, {"a": BEFORE}, MAY, 0.0)
    assert one.restarted


async def test_a_process_tells_its_own_vitals() -> None:
    told = vitals(Gauges(connections=lambda: 3, locks=lambda: 2))
    assert (told.connections, told.locks) == (3, 2)
    assert told.tasks >= 1
    assert told.descriptors > 2
    assert told.resident_bytes > 2**20
    more = vitals()
    assert (more.connections, more.locks, more.pid) == (0, 0, told.pid)


def test_a_report_with_a_problem_is_not_ok() -> None:
    report = StormReport(seed=1)
    assert report.ok
    assert report.as_dict()["lost"] is None
    report.problems.append("lost 1: sandboxes/x")
    assert not report.ok
