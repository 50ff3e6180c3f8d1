"""The values and the HTML of the operators' page, for states of the migration and for hostile text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.identity.principal import ANONYMOUS, Principal, Role
from libs.pb.baton.control.v1 import conflicts_pb2, events_pb2, records_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.web.render import for_operator, render, sections
from services.router.web.session import Session
from services.router.web.view import buckets, differences, gates, journal, phases, record, stores, words, work
from services.router.web.view.page import MOST_OF_A_STORE, SECTIONS, Answers, context

A, B = record_pb2.STORE_A, record_pb2.STORE_B
NOW = 1_900_000_000.0
HOSTILE = '<script>alert(1)</script>" onload="x\u202etxt.exe\x1b[2J'
SESSION = Session("ann", "the-form-value")
ALL = pb.Setting(generation=7, phase=pb.PHASE_DUAL_WRITE, canary_permille=100)


def status(setting: pb.Setting = ALL, **fields: Any) -> pb.GetStatusResponse:
    both = [pb.StoreStatus(store=one, reachable=True, serving=True, backend="sqlite") for one in (A, B)]
    return pb.GetStatusResponse(setting=setting, stores=both, buckets=1024, **fields)


def shown(found: pb.GetStatusResponse, answers: Answers | None = None, who: Principal = ANONYMOUS) -> dict[str, str]:
    """HTML by section."""
    return dict(sections({**for_operator(SESSION, who), **context(found, answers or Answers(), NOW)}))


def test_every_section_is_shown_for_a_router_that_knows_nothing_yet() -> None:
    empty = shown(pb.GetStatusResponse(setting=pb.Setting(phase=pb.PHASE_OFF)))
    assert tuple(empty) == SECTIONS
    for name, html in empty.items():
        assert f'<section id="{name}"' in html, name
    assert "The stores have not reported their buckets yet." in empty["buckets"]
    unknown = next(row for row in stores.stores(status(), {}).rows if row.label == "records")
    assert {cell.text for cell in unknown.cells} == {words.NOT_KNOWN}, "an unknown number is not a zero"


def test_an_alert_names_its_runbook() -> None:
    line = "8.1 % of 99 calls to store B failed by its fault in half a minute"
    found = status(alerts=[line, "nothing that a page is about"])
    assert phases.head(found, NOW).alerts == [
        (line, "docs/runbooks/b-fails.md"),
        ("nothing that a page is about", ""),
    ]


def test_hostile_text_is_escaped_wherever_it_stands() -> None:
    gate = pb.Gate(name=HOSTILE, verdict=pb.VERDICT_FAIL, evidence=HOSTILE, threshold=HOSTILE, runbook=HOSTILE)
    job = pb.Job(id=HOSTILE, kind=HOSTILE, state=pb.Job.STATE_FAILED, note=HOSTILE, waits=HOSTILE, reason=HOSTILE)
    found = status(
        alerts=[HOSTILE],
        blocked=HOSTILE,
        next=pb.PHASE_DUAL_READ,
        gates=[gate],
        flags=[pb.Flag(name=f"a.{HOSTILE}", source=HOSTILE, trouble=HOSTILE)],
        rollback_cost=pb.RollbackCost(note=HOSTILE),
        phase_time=Timestamp(seconds=int(NOW)),
        phase_actor=HOSTILE,
        phase_reason=HOSTILE,
        routers=[pb.RouterStatus(name=HOSTILE)],
        canary_auto=pb.Progress(total=2, note=HOSTILE),
        handover=pb.Progress(note=HOSTILE),
    )
    found.stores[0].note = found.stores[0].feed_trouble = found.stores[0].backend = HOSTILE
    found.clients.add().client.name = HOSTILE
    entry = pb.JournalEntry(actor=HOSTILE, action=HOSTILE, reason=HOSTILE, before=ALL, after=ALL)
    parked = events_pb2.ParkedEvent(store=A, key=HOSTILE, reason=HOSTILE)
    difference = pb.ShadowDifference(key=HOSTILE, operation=HOSTILE, fields=[HOSTILE])
    answers = Answers(
        {
            "ListJobs": pb.ListJobsResponse(jobs=[job]),
            "ListJournal": pb.ListJournalResponse(entries=[entry]),
            "ListParked": events_pb2.ListParkedResponse(events=[parked], troubles=[HOSTILE]),
            "GetShadow": pb.GetShadowResponse(differences=[difference]),
        },
        {"ListConflicts": HOSTILE},
    )
    html = shown(found, answers)
    for name, text in html.items():
        assert "<script" not in text, name
        assert '" onload' not in text, name
        read = re.sub(r'<input type="hidden"[^>]*>', "", text)
        assert "\u202e" not in read and "\x1b" not in read, name
    assert r"\u202e" in html["head"], "it is visible instead"


def test_a_viewer_sees_everything_and_has_no_verbs() -> None:
    found = status(next=pb.PHASE_DUAL_READ, flags=[pb.Flag(name="a.use_service_layer")])
    job = pb.Job(id="backfill-1", state=pb.Job.STATE_RUNNING)
    answers = Answers({"ListJobs": pb.ListJobsResponse(jobs=[job])})
    viewer = Principal("tokens:eve", roles=frozenset({Role.VIEWER}))
    assert "<form" not in "".join(shown(found, answers, viewer).values())
    operator = shown(found, answers, Principal("tokens:bob", roles=frozenset({Role.OPERATOR})))
    for verb in ("advance", "rollback", "canary", "flag", "job"):
        assert f"/plan/{verb}" in "".join(operator.values()), verb


def test_seizing_is_offered_to_an_admin_and_only_for_a_store_that_is_unreachable() -> None:
    found = status()
    assert "/plan/seize" not in shown(found)["rollback"]
    found.stores[1].reachable = False
    assert 'value="service_layer"' in shown(found)["rollback"]
    operator = Principal("tokens:bob", roles=frozenset({Role.OPERATOR}))
    assert "/plan/seize" not in shown(found, who=operator)["rollback"]


def test_the_rail_shows_where_the_migration_is() -> None:
    rail = phases.head(status(), NOW).steps
    assert [(step.name, step.state) for step in rail] == [
        ("OFF", "done"),
        ("SHADOW", "done"),
        ("DUAL_WRITE", "now"),
        ("DUAL_READ", "next"),
        ("CUTOVER", "ahead"),
        ("DEPRECATED", "ahead"),
    ]
    held = phases.head(status(pb.Setting(phase=pb.PHASE_DUAL_WRITE, hold=True)), NOW)
    assert held.steps[3].state == "ahead", "there is no next step before the hold is lifted"
    assert held.sentence == "All traffic is held at A since a rollback."


def test_a_rollback_offers_the_phase_of_automatic_rollback_first_and_none_from_the_last() -> None:
    def back(phase: pb.Phase.ValueType) -> list[str]:
        return list(phases.head(status(pb.Setting(phase=phase)), NOW).back_to)

    assert back(pb.PHASE_CUTOVER) == ["DUAL_WRITE", "DUAL_READ", "SHADOW", "OFF"]
    assert back(pb.PHASE_DUAL_WRITE) == ["DUAL_WRITE", "SHADOW", "OFF"]
    assert back(pb.PHASE_OFF) == []
    assert back(pb.PHASE_DEPRECATED) == []


def test_the_state_of_the_control_store_and_of_each_router_is_shown() -> None:
    routers = [pb.RouterStatus(name="r1", generation=7), pb.RouterStatus(name="r2", generation=6, age_seconds=1)]
    html = shown(status(setting_stale=True, routers=routers))["head"]
    assert "The control store is away." in html
    assert "docs/runbooks/control-store-down.md" in html
    assert html.count('class="router behind"') == 1, "r2 uses another generation"


def test_the_latency_of_b_stands_against_the_limit_of_a() -> None:
    a = pb.MeasuredCalls(store=A, p99_seconds=0.010)
    for p99, tone in ((0.0109, ""), (0.0111, "warn")):
        found = status(measured=[a, pb.MeasuredCalls(store=B, p99_seconds=p99)])
        row = next(
            one for one in stores.stores(found, {"gate_latency_margin_percent": 10.0}).rows if one.label == "p99"
        )
        assert (row.cells[1].tone, row.cells[1].note) == (tone, "limit 11 ms")
    unknown = next(one for one in stores.stores(found, None).rows if one.label == "p99")
    assert (unknown.cells[1].tone, unknown.cells[1].note) == ("", ""), (
        "a limit that was not read is not the default one"
    )
    meter = stores.stores(found, {}).meter
    assert meter is not None and meter.is_over and meter.value > meter.limit


def test_rates_are_shown_by_operation_with_the_busiest_first() -> None:
    def rates(**by_name: float) -> list[pb.OperationRate]:
        return [pb.OperationRate(operation=name, calls_per_second=value) for name, value in by_name.items()]

    measured = [
        pb.MeasuredCalls(store=A, operations=rates(get=5, list=1)),
        pb.MeasuredCalls(store=B, operations=rates(update=30)),
    ]
    rows = [row for row in stores.stores(status(measured=measured), {}).rows if row.is_part]
    assert [(row.label, [cell.text for cell in row.cells]) for row in rows] == [
        ("update", ["0", "30"]),
        ("get", ["5.0", "0"]),
        ("list", ["1.0", "0"]),
    ]


def test_connections_that_are_waited_for_are_shown() -> None:
    found = status()
    found.stores[1].pool_in_use, found.stores[1].pool_size, found.stores[1].pool_waiting = 20, 20, 3
    pool = next(row for row in stores.stores(found, {}).rows if row.label == "pool")
    assert [(cell.text, cell.note, cell.tone) for cell in pool.cells] == [
        (words.NOT_KNOWN, "", ""),
        ("20", "of 20, 3 wait", "warn"),
    ]


def test_the_sparkline_ends_at_the_right_and_marks_faults() -> None:
    line = stores.spark([10, 20, 0], [0, 5, 0])
    assert line.points == "87,12.0 88,0.0 89,24.0"
    assert line.faults == [(88, 18.0, 6.0)]
    assert "now 0; 5 faults" in line.label
    assert stores.spark([], []).label == "no measurements yet"


def test_the_strip_has_every_bucket_once_in_rows_and_counts_them() -> None:
    runs = [
        pb.BucketRun(first=0, count=100, owner=B, target=B),
        pb.BucketRun(first=100, count=3, target=B, on_the_way=True),
        pb.BucketRun(first=103, count=900, owner=A, target=A),
        pb.BucketRun(first=1003, count=21, owner=A, target=A, seized=True),
    ]
    strip = buckets.strip(status(bucket_runs=runs))
    assert [sum(one.width for one in row.segments) for row in strip.rows] == [256] * 4
    assert {mark: number for mark, _, number in strip.totals} == {"a": 921, "b": 100, "none": 3, "way": 3, "seized": 21}
    assert strip.age == ""
    assert buckets.strip(status(bucket_runs=runs, buckets_age_seconds=90)).age == "as of 90 s ago"


def test_differences_that_the_contract_allows_and_the_noise_floor_are_counted_apart() -> None:
    total = pb.ShadowTally(compared=4, match=1, allowed=2, mismatch=1)
    noisy = pb.GetShadowResponse(noise_different=3, noise_compared=40_000)
    assert (
        f"Noise floor: 3 of {words.count(40_000)} reads, 0.0075 %"
        in shown(status(), Answers({"GetShadow": noisy}))["differences"]
    )
    counts = {label: number for label, number, _ in differences.compared(pb.GetShadowResponse(total=total)).counts}
    assert {label: number for label, number in counts.items() if number != "0"} == {
        "match": "1",
        "allowed": "2",
        "mismatch": "1",
    }


def test_gates_that_do_not_pass_come_first_with_what_to_do_and_time_to_go() -> None:
    found = [
        pb.Gate(name="lag", verdict=pb.VERDICT_PASS, runbook="look at the relay"),
        pb.Gate(name="ledger", verdict=pb.VERDICT_INCONCLUSIVE, samples=10, least_samples=300, seconds_left=95),
        pb.Gate(name="parked", verdict=pb.VERDICT_FAIL, runbook="baton events parked", runbook_page="parked.md"),
    ]
    views = gates.gates(found)
    assert [(one.name, one.verdict) for one in views] == [
        ("parked", "fail"),
        ("ledger", "no evidence yet"),
        ("lag", "pass"),
    ]
    assert views[1].samples == "10 of 300 samples, about 95 s to go"
    assert (views[0].remedy, views[2].remedy) == ("baton events parked", "")
    assert (views[0].page, views[1].page) == ("parked.md", "")
    found[1].ClearField("seconds_left")
    assert gates.gates(found)[1].samples == "10 of 300 samples, never enough at this rate"


@pytest.mark.parametrize(
    ("state", "actions"),
    [
        (pb.Job.STATE_RUNNING, ["pause", "tune", "cancel"]),
        (pb.Job.STATE_PAUSED, ["resume", "cancel"]),
        (pb.Job.STATE_FAILED, ["resume", "cancel"]),
        (pb.Job.STATE_FINISHED, []),
    ],
)
def test_a_job_offers_what_its_state_allows(state: pb.Job.State.ValueType, actions: list[str]) -> None:
    view = work.job(pb.Job(id="backfill-1", state=state, done=250, total=1000, rate=50, eta_seconds=15))
    assert (view.actions, view.share) == (actions, 25.0)
    assert (view.rate, view.eta) == (("50", "15 s") if state == pb.Job.STATE_RUNNING else ("", ""))


def test_jobs_under_way_come_first() -> None:
    states = (pb.Job.STATE_FINISHED, pb.Job.STATE_RUNNING, pb.Job.STATE_CANCELLED, pb.Job.STATE_FAILED)
    found = work.jobs([pb.Job(id=str(number), state=state) for number, state in enumerate(states)])
    assert [one.id for one in found] == ["1", "3", "0", "2"]


def test_the_owner_of_a_row_is_not_known_while_its_store_is_unreachable() -> None:
    one, other = record.rows(
        [records_pb2.RecordAt(store=A, trouble="away"), records_pb2.RecordAt(store=B, exists=True)]
    )
    assert (one.owner, other.owner) == (words.NOT_KNOWN, "on its way")
    row = pb.ExplainResponse.Row(store=A, trouble="away")
    assert [one.owner for one in record.explained(pb.ExplainResponse(rows=[row]))] == [words.NOT_KNOWN]


def test_the_name_in_a_form_is_the_name_of_the_record() -> None:
    name = 'x\u202e"y'
    conflict = conflicts_pb2.Conflict(store=A, key=name)
    answers = Answers({"ListConflicts": conflicts_pb2.ListConflictsResponse(conflicts=[conflict])})
    assert 'name="key" value="x\u202e&#34;y"' in shown(status(), answers)["events"]


def test_writes_that_were_never_checked_and_events_without_proof_are_shown() -> None:
    event = events_pb2.ParkedEvent(store=A, key="r", unauthenticated=True)
    answers = Answers({"ListParked": events_pb2.ListParkedResponse(events=[event])})
    html = shown(status(ledger=pb.LedgerCounts(checked=9, dropped=3)), answers)["events"]
    assert '<span class="num">3</span> never checked' in html and "not authenticated" in html
    event.unauthenticated = False
    html = shown(status(ledger=pb.LedgerCounts(checked=9)), answers)["events"]
    answers = Answers({"ListParked": events_pb2.ListParkedResponse(events=[event])})
    assert "never checked" not in html and "not authenticated" not in shown(status(), answers)["events"]


def test_a_list_that_is_cut_says_so() -> None:
    def html(number: int) -> str:
        events = [events_pb2.ParkedEvent(store=A, key="r", offset=one) for one in range(number)]
        return shown(status(), Answers({"ListParked": events_pb2.ListParkedResponse(events=events)}))["events"]

    assert "lists more" in html(MOST_OF_A_STORE) and "lists more" not in html(MOST_OF_A_STORE - 1)


def test_calls_that_wait_and_lost_writes_that_could_not_be_read_are_not_none() -> None:
    html = shown(status(), Answers(troubles={"ListPendingCalls": "no answer 1", "GetLedger": "no answer 2"}))["events"]
    assert "no answer 1" in html and "no answer 2" in html


def test_an_example_of_a_difference_shows_values_request_and_answers_and_escapes_them() -> None:
    difference = pb.ShadowDifference(operation="get", key=HOSTILE, fields=["spec.image"])
    difference.one.store, difference.other.store = A, B
    found = pb.DifferenceExample(id="7", difference=difference, router="r2", request=HOSTILE, one=HOSTILE, other="{}")
    found.values.add(path="spec.image", one=HOSTILE, other='"debian:13"')
    html = render("difference.html", {"title": "Difference", "example": differences.example(found)})
    assert "<script" not in html and "\u202e" not in html
    for text in ("spec.image", "found by r2", "Request", "Answer of A", "Answer of B", "debian:13"):
        assert text in html, text
    answers = Answers(
        {"GetShadow": pb.GetShadowResponse(), "ListDifferences": pb.ListDifferencesResponse(examples=[found])}
    )
    assert "/console/difference/7" in shown(status(), answers)["differences"]


def test_an_entry_of_the_journal_shows_before_and_after() -> None:
    before = pb.Setting(generation=3, phase=pb.PHASE_SHADOW)
    after = pb.Setting(generation=4, phase=pb.PHASE_DUAL_WRITE, flags={"x.use_service_layer": True})
    after.cohorts.add(name="staging", names="sandboxes/stg-*", permille=50)
    view = journal.entry(pb.JournalEntry(generation=4, actor="ann", before=before, after=after))
    differing = {name: (old, new) for name, old, new, differs in view.fields if differs}
    assert differing == {
        "generation": ("3", "4"),
        "phase": ("SHADOW", "DUAL_WRITE"),
        "cohort staging": ("unset", "5 %, names sandboxes/stg-*"),
        "flag x.use_service_layer": ("unset", "B"),
    }


def test_a_length_of_time_is_short() -> None:
    lengths = [4.25, 61, 600, 9000, 260_000, None]
    assert [words.duration(one) for one in lengths] == ["4.2 s", "61 s", "10 min", "2 h 30 min", "3 days", "—"]
