"""Which notices are due, and their form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event

from libs.settings import WrongSetting
from services.router.control.port import AUTOMATIC, JournalEntry
from services.router.core.gates import GateResult, Verdict
from services.router.core.jobs import Job, JobState
from services.router.core.phase import Phase, Setting
from services.router.features.shared import Feature
from services.router.features.webhooks import check_url, gate_webhook, notices
from services.router.flows.steering.notices import CONTENT_TYPE, Notice, Sent, State, due
from services.router.settings import RouterSettings

OFF, SHADOW = Setting(1, Phase.OFF), Setting(2, Phase.SHADOW)
JOB = Job("backfill", "backfill to B", "ann", id="backfill-7", state=JobState.FINISHED, note="done", ended_seconds=9.0)


def state(setting: Setting = OFF, *entries: JournalEntry, **more: Any) -> State:
    found: dict[str, Any] = {"jobs": (), "gates": (), "conflicts": {}, "seconds": 100.0} | more
    return State(setting, entries[::-1], **found)


def change(action: str, before: Setting, after: Setting, **more: Any) -> JournalEntry:
    return JournalEntry(50.0, "ann", action, "why", before, after, **more)


def told(sent: Sent, now: State) -> tuple[list[Notice], Sent]:
    """The notices that are due, and what has been sent after them."""
    notices = []
    for notice, after in due(sent, now):
        sent = after
        notices += [notice] if notice is not None else []
    return notices, sent


def texts(sent: Sent, now: State) -> list[tuple[str, str]]:
    return [(one.type, one.text) for one in told(sent, now)[0]]


def gate(name: str, verdict: Verdict) -> GateResult:
    return GateResult(name, "what it means", verdict, "seen", "wanted", "what to do")


def test_each_change_of_phase_and_hold_is_told_once_and_in_order() -> None:
    held = Setting(4, Phase.OFF, hold=True)
    canary = Setting(3, Phase.SHADOW)
    entries = (
        change("start", replace(OFF, generation=0), OFF),
        change("advance", OFF, SHADOW, overridden=True),
        change("canary", SHADOW, canary),
        change(AUTOMATIC, canary, held),
        change("hold lifted", held, replace(held, generation=5, hold=False)),
    )
    now = state(replace(held, generation=5, hold=False), *entries)
    assert texts(Sent(1), now) == [
        ("baton.phase.changed", "ann moved from OFF to SHADOW, gates overridden: why"),
        ("baton.rolled.back", "Baton rolled back by itself from SHADOW to OFF: why"),
        ("baton.phase.changed", "ann lifted the hold at A: why"),
    ]
    notices, sent = told(Sent(1), now)
    assert [one.id for one in notices] == ["change-2", "change-4", "change-5"]
    assert sent.generation == 5
    assert told(sent, now) == ([], sent)


def test_what_was_before_the_first_look_is_no_news() -> None:
    now = state(
        SHADOW,
        change("advance", OFF, SHADOW),
        jobs=(JOB,),
        gates=(gate("lag", Verdict.FAIL),),
        conflicts={"B": 2},
    )
    assert told(Sent.of(now), now) == ([], Sent.of(now))


def test_a_setting_from_a_backup_is_followed_from_where_it_is() -> None:
    _, sent = told(Sent(9), state(SHADOW, change("advance", OFF, SHADOW)))
    assert sent.generation == 2
    again = Setting(3, Phase.OFF)
    assert texts(sent, state(again, change("rollback", SHADOW, again))) == [
        ("baton.rolled.back", "ann rolled back from SHADOW to OFF: why")
    ]


def test_each_end_of_a_job_is_told_once() -> None:
    running, failed = replace(JOB, state=JobState.RUNNING, ended_seconds=0.0), replace(JOB, state=JobState.FAILED)
    seen, sent = [], Sent(1)
    for job in (
        running,
        failed,
        failed,
        running,
        replace(failed, ended_seconds=20.0),
        replace(JOB, ended_seconds=30.0),
    ):
        notices, sent = told(sent, state(jobs=(job,)))
        seen += [one.id for one in notices]
    assert seen == ["job-backfill-7-FAILED-9000", "job-backfill-7-FAILED-20000", "job-backfill-7-FINISHED-30000"]
    assert told(sent, state())[1].jobs == frozenset(), "jobs that are no longer kept are forgotten"


def test_a_gate_is_told_when_it_begins_to_fail() -> None:
    seen, sent = [], Sent(1)
    for verdict in (
        Verdict.INCONCLUSIVE,
        Verdict.FAIL,
        Verdict.INCONCLUSIVE,
        Verdict.FAIL,
        Verdict.PASS,
        Verdict.FAIL,
    ):
        notices, sent = told(sent, state(gates=(gate("lag", verdict), gate("audit", Verdict.PASS))))
        seen += [one.text for one in notices]
    assert seen == ["gate lag blocks the next step: seen"] * 2


def test_a_gate_that_fails_when_its_phase_begins_is_no_news() -> None:
    failing = (gate("canary-complete", Verdict.FAIL),)
    advanced = state(SHADOW, change("advance", OFF, SHADOW), gates=failing)
    notices, sent = told(Sent(1), advanced)
    assert [one.type for one in notices] == ["baton.phase.changed"]
    assert told(sent, advanced)[0] == []
    canary = replace(SHADOW, generation=3)
    for verdict in (Verdict.PASS, Verdict.FAIL):
        later = state(canary, change("canary", SHADOW, canary), gates=(gate("canary-complete", verdict),))
        notices, sent = told(sent, later)
    assert [one.type for one in notices] == ["baton.gate.failed"]


def test_conflicts_are_told_when_there_are_more() -> None:
    seen, sent = [], Sent(1)
    for conflicts in ({"B": 0}, {"B": 1}, {}, {"B": 1}, {"B": 3}, {"B": 2}, {"B": 3}):
        notices, sent = told(sent, state(conflicts=conflicts))
        seen += [one.data["conflicts"] for one in notices]
    assert seen == [1, 3, 3]


def test_a_repeated_attempt_has_the_id_of_the_first_one_and_a_new_occasion_another() -> None:
    def failing(seconds: float) -> State:
        return state(gates=(gate("lag", Verdict.FAIL),), conflicts={"B": 1}, seconds=seconds)

    first, sent = told(Sent(1), failing(100.0))
    again, _ = told(Sent(1), failing(200.0))
    assert [one.id for one in first] == [one.id for one in again] == ["gate-lag-1", "conflicts-B-2"]
    _, sent = told(sent, state(gates=(gate("lag", Verdict.PASS),), conflicts={"B": 0}))
    assert [one.id for one in told(sent, failing(100.0))[0]] == ["gate-lag-3", "conflicts-B-4"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"generation": "x"}', "null"])
def test_a_mark_that_another_release_wrote_begins_anew(text: str) -> None:
    assert Sent.from_json(text) is None


def test_a_mark_is_read_back() -> None:
    sent = Sent(7, frozenset({"a FAILED 1.000"}), frozenset({"lag"}), {"A": 2}, 5, "away", 2, 9.5)
    assert Sent.from_json(sent.to_json()) == sent


def every_kind() -> Sequence[Notice]:
    work = state(SHADOW, jobs=(JOB,), gates=(gate("lag", Verdict.FAIL),), conflicts={"B": 1})
    return [*told(Sent(1), state(SHADOW, change("advance", OFF, SHADOW)))[0], *told(Sent(2), work)[0]]


@pytest.mark.parametrize("notice", every_kind(), ids=lambda one: one.type)
def test_a_notice_is_a_cloud_event(notice: Notice) -> None:
    body = notice.to_json("/baton/toy.Shelf")
    event = from_structured_event(HTTPMessage({"content-type": CONTENT_TYPE}, body))
    assert (event.get_id(), event.get_type(), event.get_source()) == (notice.id, notice.type, "/baton/toy.Shelf")
    assert event.get_data() == json.loads(json.dumps(notice.data))
    assert event.get_extension("text") == notice.text


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("ftp://x/", "https"),
        ("http://example.com/hook", "https"),
        ("https:///hook", "https"),
        ("https://user:word@example.com/", "user or a password"),
        ("https://example.com:port/", "not valid"),
        ("hook", "https"),
        ("https://example.com/a\u0007b", "https"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, fault: str) -> None:
    with pytest.raises(WrongSetting, match=fault):
        check_url("notify_url", url, "notify_secret_file")


NEEDED: dict[str, Any] = {
    "store_a": "127.0.0.1:1",
    "store_b": "127.0.0.1:2",
    "control_store": "memory:",
    "event_log": "memory:",
}


def test_the_webhook_decides_about_all_phases_or_about_those_that_the_setting_names() -> None:
    assert RouterSettings(**NEEDED).decided_phases == frozenset(Phase)
    some = RouterSettings(**NEEDED, gate_webhook_phases="dual_read, CUTOVER")
    assert some.decided_phases == {Phase.DUAL_READ, Phase.CUTOVER}


@pytest.mark.parametrize(
    ("feature", "setting", "fault"),
    [
        (notices, {"notify_secret_file": Path("s")}, "notify_secret_file: it is set, but notify_url is not"),
        (gate_webhook, {"gate_webhook_secret_file": Path("s")}, "but gate_webhook_url is not"),
        (gate_webhook, {"gate_webhook_url": "http://example.com"}, "gate_webhook_url: .* https://host/path"),
    ],
)
def test_a_feature_refuses_settings_that_do_not_fit(
    feature: Callable[[Any], Feature], setting: dict[str, Any], fault: str
) -> None:
    flows = SimpleNamespace(settings=RouterSettings(**NEEDED, **setting), clock=None)
    with pytest.raises(WrongSetting, match=fault):
        feature(flows)


@pytest.mark.parametrize(
    "url", ["https://example.com/hook", "http://127.0.0.1:9/x", "http://[::1]:9/", "http://localhost/"]
)
def test_an_address_that_can_be_used_is_accepted(url: str) -> None:
    check_url("notify_url", url, "notify_secret_file")
