"""Direct routes: which calls may leave the router out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ownership.model import BUCKETS, Store
from services.router.core.cohorts import Cohort
from services.router.core.phase import CANARY_FULL, Phase, Setting
from services.router.core.plan import NO_FLAGS, Flags, aim, canary_buckets, home, kinds, parts_from, target
from services.router.core.routes import NO_ROUTES, Facts, Routes, Rpc, Run, Settled, routes

A, B = Store.A, Store.B
BOTH = frozenset(Store)

GET = Rpc("/s/Get", "get", True, True)
UPDATE = Rpc("/s/Update", "update", False, True)
LIST = Rpc("/s/List", "list", True, False)
WATCH = Rpc("/s/Watch", "list", True, False)
RPCS = (GET, UPDATE, LIST, WATCH)

values = st.none() | st.booleans()
all_flags = st.builds(
    Flags, values, st.dictionaries(st.sampled_from(["get", "update", "list"]), st.booleans(), max_size=2)
)
settings = st.builds(
    Setting,
    generation=st.integers(0, 3),
    phase=st.sampled_from(Phase),
    canary_permille=st.integers(0, CANARY_FULL),
    hold=st.booleans(),
    rehearsal=st.lists(st.integers(0, BUCKETS - 1), max_size=4, unique=True).map(tuple),
    shadow_permille=st.integers(0, 1000),
    cohorts=st.lists(st.builds(Cohort, st.just("c"), st.just("s/*"), permille=st.integers(0, 1000)), max_size=2).map(
        tuple
    ),
)
some_settled = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([A, B, None])), min_size=1, max_size=12).map(
    lambda runs: tuple([store for count, store in runs for _ in range(count)] + [None] * BUCKETS)[:BUCKETS]
)
facts = st.builds(Facts, settings, all_flags, all_flags, some_settled, st.frozensets(st.sampled_from(Store)))
phases = st.frozensets(st.sampled_from(Phase))


def at_home(setting: Setting, flags: Flags = NO_FLAGS) -> Settled:
    return tuple(home(setting, flags, bucket) for bucket in range(BUCKETS))


def settled_facts(setting: Setting, flags: Flags = NO_FLAGS) -> Facts:
    """Everything is at its target and serves."""
    return Facts(setting, flags, flags, at_home(setting, flags), BOTH)


def runs_of(found: Routes, rpc: Rpc) -> tuple[Run, ...]:
    return next(one.runs for one in found.rpcs if one.path == rpc.path)


def store_of(found: Routes, rpc: Rpc, bucket: int) -> Store | None:
    return next((run.store for run in runs_of(found, rpc) if run.first <= bucket < run.end), None)


def may_be_direct(known: Facts, logged: frozenset[Phase], rpc: Rpc, bucket: int) -> Store | None:
    """The rule once more, bucket by bucket."""
    setting = known.setting
    store = target(setting, known.flags, rpc.operation, bucket).store
    conditions = [
        setting.generation > 0,
        rpc.is_keyed,
        rpc.is_read or setting.phase not in logged,
        known.settled[bucket] is store,
        home(setting, known.lasting_flags, bucket) is store,
        store in known.serving,
        bucket not in setting.rehearsal,
        not any(parts_from(setting, cohort, bucket) for cohort in aim(setting, NO_FLAGS).cohorts),
    ]
    return store if all(conditions) else None


@given(facts, phases)
def test_a_call_is_direct_exactly_where_no_router_is_needed(known: Facts, logged: frozenset[Phase]) -> None:
    found = routes(known, RPCS, logged)
    for rpc in RPCS if found is not NO_ROUTES else ():
        direct = {bucket: run.store for run in runs_of(found, rpc) for bucket in range(run.first, run.end)}
        expected = {bucket: may_be_direct(known, logged, rpc, bucket) for bucket in range(BUCKETS)}
        assert direct == {bucket: store for bucket, store in expected.items() if store is not None}
    assert (found is NO_ROUTES) == (not known.setting.generation)


@given(facts)
def test_runs_are_disjoint_in_order_and_as_few_as_possible(known: Facts) -> None:
    for rpc in routes(known, RPCS).rpcs:
        assert all(run.first < run.end for run in rpc.runs)
        for one, following in zip(rpc.runs, rpc.runs[1:], strict=False):
            assert one.end < following.first or (one.end == following.first and one.store is not following.store)


@given(facts)
def test_each_store_gets_its_own_runs_and_together_they_are_all(known: Facts) -> None:
    found = routes(known, RPCS)
    for rpc in found.rpcs:
        parts = [found.direct_at(store).get(rpc.path, ()) for store in Store]
        assert sorted(run for part in parts for run in part) == sorted(rpc.runs)
        assert all(run.store is store for store, part in zip(Store, parts, strict=True) for run in part)


@given(settings, all_flags, st.data())
def test_buckets_of_one_kind_have_one_target_and_one_home(setting: Setting, flags: Flags, data: st.DataObject) -> None:
    found = kinds(setting)
    assert sorted(bucket for kind in found for bucket in kind.buckets) == list(range(BUCKETS))
    drawn = data.draw(st.sampled_from(found))
    # An edge that is missing shows between the first and the last bucket of a kind.
    for kind, bucket in [
        (drawn, data.draw(st.sampled_from(drawn.buckets))),
        *((one, one.buckets[-1]) for one in found),
    ]:
        assert (bucket in setting.rehearsal) is kind.in_rehearsal
        assert home(setting, flags, bucket) is home(setting, flags, kind.first)
        for operation in ("create", "get", "list", "update", "delete"):
            assert target(setting, flags, operation, bucket) == target(setting, flags, operation, kind.first)


@given(settings.filter(lambda setting: setting.generation > 0), settings, all_flags, all_flags)
def test_a_change_takes_the_calls_that_it_steers_elsewhere_off_their_store_at_once(
    before: Setting, after: Setting, old_flags: Flags, flags: Flags
) -> None:
    """The records are still where the former setting wanted them."""
    known = Facts(after, flags, flags, at_home(before, old_flags), BOTH)
    found = routes(known, RPCS)
    for bucket in (0, 100, 500, BUCKETS - 1):
        old, new = home(before, old_flags, bucket), target(after, flags, "get", bucket).store
        if found is not NO_ROUTES and old is not new:
            assert store_of(found, GET, bucket) is None


def test_a_settled_phase_has_one_route_for_each_method_and_a_canary_two() -> None:
    cutover = routes(settled_facts(Setting(1, Phase.CUTOVER)), RPCS)
    assert [rpc.runs for rpc in cutover.rpcs] == [(Run(0, BUCKETS, B),)] * 2 + [()] * 2
    edge = canary_buckets(50)
    canary = routes(settled_facts(Setting(1, Phase.DUAL_WRITE, 50)), RPCS)
    assert runs_of(canary, GET) == (Run(0, edge, B), Run(edge, BUCKETS, A))


def test_lists_watches_and_unknown_buckets_go_to_a_router() -> None:
    known = settled_facts(Setting(1, Phase.CUTOVER))
    holes = tuple(None if bucket in {7, 8} else store for bucket, store in enumerate(known.settled))
    found = routes(replace(known, settled=holes), RPCS)
    assert runs_of(found, GET) == (Run(0, 7, B), Run(9, BUCKETS, B))
    assert runs_of(found, LIST) == runs_of(found, WATCH) == ()


def test_a_bucket_whose_target_is_about_to_change_goes_to_a_router() -> None:
    """The global flag has just become false: calls follow at once, records only after some seconds."""
    setting = Setting(1, Phase.CUTOVER)
    kill = replace(settled_facts(setting), flags=Flags(use_service_layer=False))
    assert not any(rpc.runs for rpc in routes(kill, RPCS).rpcs)
    back = replace(settled_facts(setting), lasting_flags=Flags(use_service_layer=False))
    assert not any(rpc.runs for rpc in routes(back, RPCS).rpcs)


def test_an_operations_flag_takes_only_its_own_calls_to_a_router() -> None:
    flags = Flags(operations={"update": False})
    found = routes(settled_facts(Setting(1, Phase.CUTOVER), flags), RPCS)
    assert (runs_of(found, GET), runs_of(found, UPDATE)) == ((Run(0, BUCKETS, B),), ())


def test_a_store_that_does_not_serve_gets_no_direct_calls() -> None:
    known = replace(settled_facts(Setting(1, Phase.DUAL_WRITE, 500)), serving=frozenset({A}))
    assert runs_of(routes(known, RPCS), GET) == (Run(512, BUCKETS, A),)


def test_writes_that_wait_for_the_log_go_to_a_router() -> None:
    found = routes(settled_facts(Setting(1, Phase.CUTOVER)), RPCS, {Phase.CUTOVER})
    assert (runs_of(found, GET), runs_of(found, UPDATE)) == ((Run(0, BUCKETS, B),), ())
    other = routes(settled_facts(Setting(1, Phase.DUAL_READ)), RPCS, {Phase.CUTOVER})
    assert runs_of(other, UPDATE) == (Run(0, BUCKETS, B),)


def test_buckets_in_a_rehearsal_go_to_a_router() -> None:
    found = routes(settled_facts(Setting(1, Phase.DUAL_READ, rehearsal=(3,))), RPCS)
    assert runs_of(found, GET) == (Run(0, 3, B), Run(4, BUCKETS, B))


@pytest.mark.parametrize("phase", Phase)
def test_a_share_of_the_calls_keeps_the_routers_evidence_where_a_gate_needs_it(phase: Phase) -> None:
    setting = Setting(1, phase, shadow_permille=250)
    get, update = (rpc.sampled_permille for rpc in routes(settled_facts(setting), RPCS).rpcs[:2])
    assert (get, update) == ((0, 0) if phase in {Phase.OFF, Phase.DEPRECATED} else (250, 10))
    none_shadowed = routes(settled_facts(Setting(1, phase)), RPCS, least_permille=20).rpcs[0].sampled_permille
    assert none_shadowed == (0 if phase in {Phase.OFF, Phase.DEPRECATED} else 20)


def test_before_the_first_setting_every_call_goes_to_a_router() -> None:
    assert routes(settled_facts(Setting()), RPCS) is NO_ROUTES


def test_buckets_of_which_a_cohort_wants_records_elsewhere_go_to_a_router() -> None:
    half = Setting(1, Phase.DUAL_WRITE, 250, cohorts=(Cohort("half", "s/*", permille=500),))
    found = runs_of(routes(settled_facts(half), RPCS), GET)
    assert found == (Run(0, canary_buckets(250), B), Run(canary_buckets(500), BUCKETS, A))
