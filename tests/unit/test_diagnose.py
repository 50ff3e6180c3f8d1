"""Findings of `baton doctor`, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event
from libs.ownership.model import Store
from libs.pb.baton.record.v1.record_pb2 import STORE_A, STORE_B
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from services.router.control.info import ControlInfo
from services.router.control.memory import MemoryControlStore
from services.router.flows.steering.diagnose import NO_CREDENTIALS, Credentials, Doctor, Finding, Level, file_system_of
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.steering.processes import MISSED_SECONDS
from services.router.flows.stores import StoreView


class Known(Observer):
    """An observer with given views of the stores, which queries only the log."""

    def __init__(self, log: MemoryEventLog, clock: ManualClock, statuses: dict[Store, pb.GetStatusResponse]) -> None:
        super().__init__({}, log, clock, addresses={Store.B: 2})
        self.statuses = statuses
        self.seen: dict[Store, StoreView] = {}

    def view(self, store: Store) -> StoreView:
        return self.seen.get(store) or StoreView(store, self.statuses[store], self._clock.monotonic(), "")


class Somewhere(MemoryControlStore):
    """A control store that says that it is another kind."""

    def __init__(self, info: ControlInfo) -> None:
        super().__init__()
        self._info = info

    async def info(self) -> ControlInfo:
        return self._info


class Ward:
    """A healthy system to begin with; tests spoil it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = MemoryEventLog(2)
        self.a = pb.GetStatusResponse(store=STORE_A, serving=True, backend="sqlite 3")
        self.b = pb.GetStatusResponse(store=STORE_B, serving=True, backend="postgresql 15", server_id="7")
        for status in (self.a, self.b):
            status.now_time.FromNanoseconds(int(self.clock.now() * 1e9))
        self.control = ControlInfo("postgresql", "db:5432/control", "8")
        self.credentials = NO_CREDENTIALS
        self.control_auth = "jwt"
        self.serves_subjects = False
        self.two_person = False
        self.certificate: telemetry_pb2.Certificate | None = None
        self.seen: dict[Store, StoreView] = {}
        self.polled_seconds = 0.0
        self.all: list[Finding] = []

    async def findings(self) -> dict[str, Finding]:
        control = Somewhere(self.control)
        cache = SettingCache(control, self.clock)
        before = await cache.refresh()
        changed = replace(before, serves_subjects=self.serves_subjects, two_person=self.two_person)
        if changed != before:
            await cache.take(replace(changed, generation=before.generation + 1))
        observer = Known(self.log, self.clock, {Store.A: self.a, Store.B: self.b})
        observer.seen = self.seen
        self.clock.advance(self.polled_seconds)
        for store, status in observer.statuses.items():
            observer.processes.note(store, status)
        found = await Doctor(
            observer,
            cache,
            control,
            2,
            {"stores": True},
            self.clock,
            self.credentials,
            self.control_auth,
            event_keys=lambda: ["one"],
            certificate=lambda: self.certificate,
        ).diagnose()
        self.all = found
        return {finding.subject: finding for finding in found}

    async def spoiled(self) -> tuple[str, Level, str]:
        """The one finding that does not pass."""
        (finding,) = [finding for finding in (await self.findings()).values() if finding.level is not Level.PASS]
        assert finding.remedy
        return finding.subject, finding.level, finding.text


@pytest.fixture
def ward() -> Ward:
    return Ward()


async def test_a_healthy_system_passes(ward: Ward) -> None:
    assert {finding.level for finding in (await ward.findings()).values()} == {Level.PASS}


@pytest.mark.parametrize(
    ("kind", "level", "text"),
    [
        ("", Level.WARN, "are not authenticated: anyone who can connect has all roles"),
        ("none", Level.WARN, "are not authenticated: anyone who can connect has all roles"),
        ("token", Level.PASS, "share one token: each has all roles, and names in the journal are claims"),
        ("tokens", Level.PASS, "are authenticated: control_auth is tokens"),
    ],
)
async def test_the_authentication_of_operators_is_shown(ward: Ward, kind: str, level: Level, text: str) -> None:
    ward.control_auth = kind
    found = (await ward.findings())["operators"]
    assert (found.level, found.text, bool(found.remedy)) == (level, text, level is Level.WARN)


@pytest.mark.parametrize("kind", ["", "none", "token"])
async def test_operators_without_names_fail_while_the_two_person_rule_is_on(ward: Ward, kind: str) -> None:
    ward.control_auth, ward.two_person = kind, True
    assert await ward.spoiled() == (
        "operators",
        Level.FAIL,
        "have no names here, but the two-person rule is on: this router refuses the steps that need it",
    )


@pytest.mark.parametrize(
    ("days", "trouble", "level", "text"),
    [
        (30.2, "", Level.PASS, "expires in 30 days"),
        (13.94, "", Level.WARN, "expires in 13.9 days: renew it, the process reads it again by itself"),
        (-0.5, "", Level.FAIL, "has expired: renew it, the process reads it again by itself"),
        (30.2, "tls_key: x", Level.WARN, "stays in force: tls_key: x"),
    ],
)
async def test_the_days_of_each_certificate_and_a_failed_reload_are_shown(
    ward: Ward, days: float, trouble: str, level: Level, text: str
) -> None:
    found = telemetry_pb2.Certificate(days=days, reload_trouble=trouble)
    ward.certificate = found
    ward.b.certificate.CopyFrom(found)
    findings = await ward.findings()
    assert "certificate of store A" not in findings
    for owner in ("this router", "store B"):
        shown = findings[f"certificate of {owner}"]
        assert (shown.level, shown.text.endswith(text)) == (level, True), shown
        assert bool(shown.remedy) == (level is not Level.PASS)


async def test_stores_with_different_quotas_are_warned_about(ward: Ward) -> None:
    assert "quotas" not in await ward.findings()
    ward.a.account_records = ward.b.account_records = 100
    shown = (await ward.findings())["quotas"]
    assert (shown.level, shown.text) == (Level.PASS, "an account may have 100 records")
    ward.b.account_records = 0
    assert await ward.spoiled() == ("quotas", Level.WARN, "account_records is 100 at store A and 0 at store B")


async def test_a_control_store_on_the_server_of_b_is_warned_about(ward: Ward) -> None:
    ward.control = ControlInfo("postgresql", "db:5432/control", "7")
    subject, level, text = await ward.spoiled()
    assert (subject, level) == ("control store", Level.WARN)
    assert "B's own server" in text


@pytest.mark.parametrize(("seconds", "where"), [(30, "ahead of"), (-30, "behind")])
async def test_a_clock_that_is_set_wrong_is_warned_about(ward: Ward, seconds: int, where: str) -> None:
    ward.b.now_time.FromNanoseconds(int((ward.clock.now() + seconds) * 1e9))
    subject, level, text = await ward.spoiled()
    assert (subject, level) == ("clock of store B", Level.WARN)
    assert f"30.0 s {where}" in text


async def test_a_store_that_does_not_serve_fails_with_its_reason(ward: Ward) -> None:
    ward.a.serving = False
    ward.a.reason = "it migrates"
    assert await ward.spoiled() == ("store A", Level.FAIL, "does not serve: it migrates")


@pytest.mark.parametrize(
    ("database_away", "text", "remedy"),
    [
        (True, "answers, but its database does not: no answer", "bring its database back"),
        (False, "out of reach: no answer", "start store B"),
    ],
)
async def test_a_database_that_is_away_is_told_from_a_process_that_is_away(
    ward: Ward, database_away: bool, text: str, remedy: str
) -> None:
    ward.seen[Store.B] = StoreView(Store.B, ward.b, 0.0, "no answer", database_away=database_away)
    found = (await ward.findings())["store B"]
    assert (found.level, found.text) == (Level.FAIL, text)
    assert found.remedy.startswith(remedy)


async def test_a_missing_process_and_one_without_its_lock_server_are_named(ward: Ward) -> None:
    ward.b.process, ward.b.locks.breaker = "one", "open"
    ward.polled_seconds = MISSED_SECONDS
    found = [one.text for one in ward.all if one.subject == "store B"] if await ward.findings() else []
    assert found[1:] == ["its lock server does not answer", "1 of its processes did not answer within a minute"]


@pytest.mark.parametrize(("trouble", "words"), [("LOG_UNAVAILABLE: x", "event log"), ("LOCK_TIMEOUT: x", "database")])
async def test_a_feed_that_stands_still_leads_to_its_cause(ward: Ward, trouble: str, words: str) -> None:
    ward.b.feed.trouble = trouble
    assert words in (await ward.findings())["store B"].remedy


async def test_exchanged_addresses_are_noticed(ward: Ward) -> None:
    ward.a.store, ward.b.store = STORE_B, STORE_A
    found = await ward.findings()
    assert {found["store A"].level, found["store B"].level} == {Level.FAIL}
    assert "other store" in found["store A"].text


@pytest.mark.parametrize(
    ("feed", "level"),
    [
        (pb.Feed(trouble="LOG_UNAVAILABLE"), Level.FAIL),
        (pb.Feed(parked_now=3), Level.WARN),
        (pb.Feed(parked_now=3, unauthenticated_now=3), Level.FAIL),
        (pb.Feed(event_keys_trouble="the event keys /keys are not TOML"), Level.WARN),
        (pb.Feed(event_auth="sign", event_keys=["two"]), Level.FAIL),
    ],
)
async def test_a_feed_in_trouble_is_told(ward: Ward, feed: pb.Feed, level: Level) -> None:
    ward.a.feed.CopyFrom(feed)
    assert (await ward.spoiled())[:2] == ("store A", level)


async def test_more_processes_than_the_database_has_connections_for_are_warned_about(ward: Ward) -> None:
    ward.b.connections.CopyFrom(pb.Connections(per_process=25, processes=3, allowed=75))
    assert (await ward.findings())["connections of store B"].level is Level.PASS
    ward.b.connections.processes = 4
    subject, level, text = await ward.spoiled()
    assert (subject, level) == ("connections of store B", Level.WARN)
    assert text == "4 processes × 25 connections = 100, the server allows 75"


async def test_a_full_outbox_fails(ward: Ward) -> None:
    ward.b.outbox.full = True
    assert (await ward.spoiled())[:2] == ("store B", Level.FAIL)


@pytest.mark.parametrize("positions", [{0: 5}, {7: 0}])
async def test_a_store_that_reads_another_log_fails(ward: Ward, positions: dict[int, int]) -> None:
    ward.a.feed.next_offsets.update(positions)
    subject, level, text = await ward.spoiled()
    assert (subject, level) == ("event log", Level.FAIL)
    assert text.startswith("store A")


async def test_a_store_whose_events_are_gone_from_the_log_fails(ward: Ward) -> None:
    await ward.log.append([Event("k", b"1"), Event("k", b"2")], partition=0)
    await ward.log.trim(0, 2)
    ward.b.feed.next_offsets.update({0: 1, 1: 0})
    assert "offset 1 of partition 0, the log has 2 to 2" in (await ward.spoiled())[2]


async def test_a_log_with_other_partitions_fails(ward: Ward) -> None:
    ward.log = MemoryEventLog(3)
    assert "3 partitions answer, 2 are expected" in (await ward.spoiled())[2]


async def test_an_sqlite_file_on_a_local_disk_passes_with_what_it_is_good_for(ward: Ward, tmp_path: Path) -> None:
    ward.control = ControlInfo("sqlite", str(tmp_path / "control.db"))
    assert "routers on this host only" in (await ward.findings())["control store"].text


def test_the_file_system_of_a_path_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    assert file_system_of(tmp_path / "control.db", mounts) == "nfs4"
    assert file_system_of(Path("/usr/control.db"), mounts) == "ext4"
    assert file_system_of(tmp_path, tmp_path / "none") == ""


@pytest.mark.parametrize(("breaker", "warned"), [("open", True), ("probing", True), ("closed", False), ("", False)])
async def test_a_lock_server_that_does_not_answer_is_warned_about(ward: Ward, breaker: str, warned: bool) -> None:
    ward.b.locks.breaker = breaker
    text = "its lock server does not answer"
    assert (text in (await ward.findings())["store B"].text) is warned


async def test_a_process_that_does_not_authenticate_its_clients_is_shown(ward: Ward) -> None:
    ward.b.public_auth, ward.credentials = "jwt", Credentials("none")
    subject, level, text = await ward.spoiled()
    assert (subject, level) == ("clients of this router", Level.WARN)
    assert "each may read and change everything" in text
    ward.a.public_auth = "none"
    found = await ward.findings()
    assert [found[f"clients of {name}"].level for name in ("store A", "store B", "this router")] == [
        Level.WARN,
        Level.PASS,
        Level.WARN,
    ]


async def test_a_process_that_lets_clients_leave_out_credentials_is_shown(ward: Ward) -> None:
    ward.a.public_auth, ward.a.public_auth_optional = "jwt", True
    subject, level, text = await ward.spoiled()
    assert (subject, level) == ("clients of store A", Level.WARN)
    assert "public_auth_optional" in text


async def test_callers_with_subjects_that_share_their_request_ids_are_shown(ward: Ward) -> None:
    ward.credentials = Credentials("jwt")
    assert (await ward.spoiled())[:2] == ("served requests", Level.WARN)
    ward.serves_subjects = True
    assert (await ward.findings())["served requests"].level is Level.PASS
    ward.serves_subjects, ward.credentials = False, Credentials("jwt", optional=True)
    assert "served requests" not in await ward.findings()
