"""Views for operators: rollback cost, alerts, time until gates have enough samples, status."""

from io import StringIO

import pytest

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.cli import show
from services.router.cli.views import status_view
from services.router.core.attention import StoreSeen, attention
from services.router.core.gates import GateResult, Verdict
from services.router.core.measure import Counts
from services.router.core.pace import Pace
from services.router.core.phase import Phase, Setting
from services.router.core.rollback_cost import AtB, rollback_cost

CUTOVER = Setting(9, Phase.CUTOVER)


@pytest.mark.parametrize(
    ("setting", "b", "expected"),
    [
        (Setting(9, Phase.DEPRECATED), AtB(True, 201, 200.0), (False, None, None, "not possible: DEPRECATED has no")),
        (CUTOVER, AtB(False, 201, 200.0), (True, 201, None, "B is unreachable: 201 records wait for it")),
        (CUTOVER, AtB(False, None, 0.0), (True, None, None, "B is unreachable: an unknown number of records wait")),
        (CUTOVER, AtB(False, 0, 0.0), (True, 0, 0.0, "no record to move back; B is unreachable")),
        (CUTOVER, AtB(True, 201, 67.0), (True, 201, 3.0, "201 records to move back to A, about 3 s, 0 writes lost")),
        (CUTOVER, AtB(True, 201, 0.0), (True, 201, None, "201 records to move back to A, no rate was measured yet")),
        (CUTOVER, AtB(True, 0, 67.0), (True, 0, 0.0, "no record to move back")),
    ],
)
def test_the_cost_of_going_back_is_what_is_true(
    setting: Setting, b: AtB, expected: tuple[bool, int | None, float | None, str]
) -> None:
    cost = rollback_cost(setting, b)
    assert cost[:3] == expected[:3]
    assert cost.note.startswith(expected[3])


def test_while_b_is_away_the_cost_says_what_waits_and_until_when_reads_are_stale() -> None:
    note = rollback_cost(CUTOVER, AtB(False, 201, 200.0)).note
    assert "move back when it answers again. Until then their writes are UNAVAILABLE" in note
    assert "reads come from A, marked stale" in note


WELL = StoreSeen("B", True, True, "", "", 0, Counts(600, 2))


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (WELL, []),
        (StoreSeen("B", False, False, "no answer in 1 s", "", 0, Counts()), ["store B is unreachable: no answer"]),
        (StoreSeen("B", True, False, "fenced", "", 0, Counts()), ["store B does not serve: fenced"]),
        (StoreSeen("B", True, True, "", "", 0, Counts(), locks_away=True), ["store B cannot reach its lock server"]),
        (
            StoreSeen("B", True, True, "", "", 0, Counts(600, 156)),
            ["26 % of 600 calls to store B failed by its fault in half a minute"],
        ),
        (StoreSeen("B", True, True, "", "", 0, Counts(19, 19)), []),
        (
            StoreSeen("A", True, True, "", "OFFSET_GONE", 3, Counts()),
            ["the feed into store A has stopped", "store A could"],
        ),
    ],
)
def test_what_needs_a_person_is_named(store: StoreSeen, words: list[str]) -> None:
    found = attention([store], "", [], 0.005)
    assert len(found) == len(words)
    assert all(line.startswith(start) for line, start in zip(found, words, strict=True))


def test_outages_come_before_what_follows_from_them() -> None:
    a = StoreSeen("A", True, True, "", "LOG_UNAVAILABLE", 0, Counts(100, 10))
    b = StoreSeen("B", False, False, "refused", "", 0, Counts(100, 100))
    found = [line.partition(":")[0] for line in attention([a, b], "no broker", [], 0.005)]
    assert found == [
        "store B is unreachable",
        "the event log is unreachable, so neither store follows the other",
        "10 % of 100 calls to store A failed by its fault in half a minute",
        "the feed into store A has stopped",
        "100 % of 100 calls to store B failed by its fault in half a minute",
    ]


def test_a_log_that_is_away_and_a_failed_job_need_a_person() -> None:
    log, job = attention([WELL], "no broker", ["job backfill-1 FAILED: disk full"], 0.005)
    assert log == "the event log is unreachable, so neither store follows the other: no broker"
    assert job == "job backfill-1 FAILED: disk full: baton jobs resume or cancel"


def result(samples: int, least: int = 600) -> GateResult:
    return GateResult("error-rate", "", Verdict.INCONCLUSIVE, "", "", samples=samples, least_samples=least)


def left(pace: Pace, samples: int, now: float) -> float | None:
    (noted,) = pace.noted([result(samples)], now)
    return noted.seconds_left


def test_a_gate_says_how_long_until_it_has_seen_enough() -> None:
    pace = Pace()
    assert left(pace, 100, 0.0) is None
    assert left(pace, 100, 1.0) is None
    assert left(pace, 200, 10.0) == pytest.approx(40.0)
    assert left(pace, 600, 50.0) == 0.0


def test_a_gate_that_gains_nothing_or_loses_samples_gives_no_time() -> None:
    pace = Pace()
    left(pace, 100, 0.0)
    assert left(pace, 100, 30.0) is None
    assert left(pace, 90, 40.0) is None


def test_the_time_that_is_left_is_of_the_last_minute() -> None:
    pace = Pace()
    for second in range(0, 61, 10):
        left(pace, 10 * second, float(second))
    assert left(pace, 500, 100.0) == pytest.approx(60.0), "100 more, at 100 in the last minute"


def status(columns: int, *, stale: bool = False) -> str:
    """A full status, on a screen of so many columns."""
    answer = pb.GetStatusResponse(
        setting=pb.Setting(generation=7, phase=pb.PHASE_DUAL_WRITE, canary_permille=500),
        setting_stale=stale,
        buckets=1024,
        buckets_at_b=512,
        permille_at_b=500,
        rollback_cost=pb.RollbackCost(note="201 records to move back to A, about 3 s, 0 writes lost"),
        alerts=["26 % of 600 calls to store B failed by its fault in half a minute"],
        next=pb.PHASE_DUAL_READ,
        gates=[pb.Gate(name="error-rate", verdict=pb.VERDICT_INCONCLUSIVE, samples=100, least_samples=600)],
        phase_actor="ann@host",
        phase_reason="canary",
        public_auth="none",
    )
    answer.phase_time.GetCurrentTime()
    answer.gates[0].seconds_left = 50
    for store, name in ((record_pb2.STORE_A, "sqlite 3.40.1"), (record_pb2.STORE_B, "postgresql 15.6")):
        answer.stores.add(
            store=store,
            reachable=True,
            serving=True,
            backend=name,
            records=1_000_000,
            owned_records=0,
            reads=123_456,
            public_auth="jwt" if store == record_pb2.STORE_A else "none",
        )
        answer.measured.add(store=store, recent_calls=600, recent_faults=156, calls_per_second=20.0, p99_seconds=0.0123)
    screen = StringIO()
    console = show.console()
    console.file, console.width = screen, columns
    console.print(show.status_screen(status_view(answer)))
    return screen.getvalue()


@pytest.mark.parametrize("columns", [80, 160])
def test_the_status_is_readable_at_80_columns(columns: int) -> None:
    text = status(columns)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns
    for words in ("sqlite 3.40.1", "postgresql 15.6", "1000000, owns 0", "20.0/s", "12.3 ms", "look at this"):
        assert words in text, text
    whole = " ".join(text.split())
    for words in (
        "156 faults of 600 calls (26 %)",
        "by ann@host: canary",
        "error-rate has 100 of 600, about 50 s to go",
        "not authenticated at store B, this router (public_auth = none)",
    ):
        assert words in whole, text


def test_the_status_leads_from_a_control_store_that_is_away_to_its_runbook() -> None:
    page = "see docs/runbooks/control-store-down.md"
    assert page in status(160, stale=True)
    assert page not in status(160)


def test_the_status_fits_on_one_line_too() -> None:
    answer = pb.GetStatusResponse(setting=pb.Setting(generation=7, phase=pb.PHASE_OFF), alerts=["B is away"])
    answer.buckets_at_b = 0
    answer.stores.add(store=record_pb2.STORE_A, reachable=False)
    answer.stores.add(store=record_pb2.STORE_B, reachable=True, serving=True)
    line = show.status_line(status_view(answer))
    assert "\n" not in line
    assert line.startswith("OFF (generation 7) | 0 of 0 buckets at B | A out of reach") and "B is away" in line


@pytest.mark.parametrize(
    ("unfilled", "at_b", "buckets_at_b", "leaving", "old_rows"),
    [
        (250_000, 0, 0, "possible until the first record or bucket moves to B", "250000 of 1000000 are left"),
        (0, 1, 0, "not possible while B owns records or buckets: baton rollback first", ""),
        (0, 0, 3, "not possible while B owns records or buckets: baton rollback first", ""),
    ],
)
def test_the_status_says_whether_the_old_program_can_have_its_file_back(
    unfilled: int, at_b: int, buckets_at_b: int, leaving: str, old_rows: str
) -> None:
    answer = pb.GetStatusResponse(setting=pb.Setting(phase=pb.PHASE_OFF), buckets=1024)
    answer.stores.add(
        store=record_pb2.STORE_A,
        reachable=True,
        records=1_000_000,
        owned_records=1_000_000 - at_b,
        owned_buckets=1024 - buckets_at_b,
        unfilled_records=unfilled,
    )
    answer.stores.add(
        store=record_pb2.STORE_B, reachable=True, records=at_b, owned_records=at_b, owned_buckets=buckets_at_b
    )
    view = status_view(answer)
    assert leaving in show.leaving_line(view)
    assert show.old_rows_line(view["stores"]["A"]).startswith(old_rows)
    assert bool(show.old_rows_line(view["stores"]["A"])) == bool(old_rows)


def test_a_gate_that_never_has_enough_says_what_helps() -> None:
    gate = {"name": "error-rate", "samples": 3, "least_samples": 600, "seconds_left": None}
    assert "baton probe" in show.wait_line(gate) and "baton gates set" in show.wait_line(gate)
    assert show.wait_line({**gate, "samples": 600, "seconds_left": 0.0}) == ""
    assert show.wait_line({**gate, "seconds_left": 300.0}).endswith("about 5 min to go")
