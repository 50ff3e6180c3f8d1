"""Each limit of the plan is a metric, evidence for a gate, and an alarm: the same value makes all three say no."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from opentelemetry.metrics import Meter
from prometheus_client.parser import text_string_to_metric_families

from libs.clock import ManualClock
from libs.locks.measured import MeasuredLocks
from libs.proving.servers.ports import free_port
from libs.telemetry.latency import bucket_of_seconds
from libs.telemetry.metrics import open_metrics
from libs.telemetry.table import TABLE
from services.router.core.differences import Compared
from services.router.core.evidence import Evidence
from services.router.core.gates import GATES, Verdict
from services.router.core.gates.data import (
    COMPARED_READS,
    LAG,
    LEDGER_WRITES,
    MISMATCHES,
    MISMATCHES_ALERT,
    retention_warning,
)
from services.router.core.gates.service import GOLDEN_CALLS, GOLDEN_ERRORS, LOCK_WAIT, WRITE_DELTA
from services.router.core.measure import Counts, Parity, ShadowCounts
from services.router.core.readings import READERS
from services.router.core.retention import Risk
from services.router.core.thresholds import Limits
from services.router.core.write_ledger import LedgerCounts
from services.router.flows.steering.evidence_metrics import EvidenceMetrics
from tests.unit.test_backend_calls import NoLocks
from tests.unit.test_metrics import page

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
LIMITS = Limits()
SELECTOR = r"(?P<metric>[a-z][a-z0-9_]*)(?:\{(?P<labels>[^}]*)\})?"
TERM = re.compile(rf"max(?: by \((?:operation|store)\))? ?\({SELECTOR}\)")
COMPARISON = re.compile(rf"{TERM.pattern} (?P<sign>>=|>|==) (?P<limit>[0-9.]+)")


def parity(operation: str, a_seconds: float, b_seconds: float) -> Parity:
    a, b = (Counter({bucket_of_seconds(seconds): 1000}) for seconds in (a_seconds, b_seconds))
    return Parity(operation, operation == "get", a, b)


GOOD = Evidence(
    lag_seconds=LIMITS[LAG],
    parked=0,
    unauthenticated=0,
    b_calls=Counts(10_000, 10),
    shadow=ShadowCounts(40_000, 39_997, 0, 3),
    compared=Compared(60.0, 100_000, 9, 0),
    lock_waits=Counter({0: 10_000}),
    latencies=(parity("get", 0.002, 0.002), parity("update", 0.003, 0.003)),
    ledger=LedgerCounts(LIMITS[LEDGER_WRITES], LIMITS[LEDGER_WRITES]),
    risks=(Risk("A", 0, 0), Risk("B", 0, 0)),
)


class Case(NamedTuple):
    """The limit that is exceeded, and the gate that uses it."""

    alert: str
    gate: str
    bad: Evidence
    limits: tuple[float, ...]
    """In the order in which the rule has them."""


CASES = [
    Case(
        "BatonWriteDelta",
        "golden-metrics",
        replace(GOOD, latencies=(parity("update", 0.003, 0.2),)),
        (LIMITS[WRITE_DELTA],),
    ),
    Case("BatonParked", "parked", replace(GOOD, parked=1), (0,)),
    Case("BatonUnauthenticated", "parked", replace(GOOD, parked=1, unauthenticated=1), (0,)),
    Case("BatonLag", "lag", replace(GOOD, lag_seconds=LIMITS[LAG] + 0.1), (LIMITS[LAG],)),
    Case("BatonLag", "golden-metrics", replace(GOOD, lag_seconds=LIMITS[LAG] + 0.1), (LIMITS[LAG],)),
    Case(
        "BatonInconsistent",
        "shadow-consistent",
        replace(GOOD, shadow=ShadowCounts(40_000, 39_996, 0, 3, 1)),
        (LIMITS[MISMATCHES], LIMITS[COMPARED_READS]),
    ),
    Case(
        "BatonDiverged",
        "shadow-consistent",
        replace(GOOD, compared=Compared(60.0, 100_000, 101, 0)),
        (LIMITS[MISMATCHES_ALERT],),
    ),
    Case("BatonDifferencesLeft", "shadow-consistent", replace(GOOD, compared=Compared(60.0, 100_000, 10, 1)), (0,)),
    Case("BatonSlower", "latency-parity", replace(GOOD, latencies=(parity("get", 0.002, 0.004),)), ()),
    Case(
        "BatonErrors",
        "golden-metrics",
        replace(GOOD, b_calls=Counts(10_000, 11)),
        (LIMITS[GOLDEN_ERRORS], LIMITS[GOLDEN_CALLS]),
    ),
    Case(
        "BatonLockWait",
        "golden-metrics",
        replace(GOOD, lock_waits=Counter({0: 10_000, bucket_of_seconds(0.06): 500})),
        (LIMITS[LOCK_WAIT],),
    ),
    Case("BatonWriteLost", "ledger", replace(GOOD, ledger=LedgerCounts(2, 2, lost=1)), (0,)),
]


@pytest.fixture
async def exported() -> AsyncIterator[tuple[Meter, int]]:
    port = free_port()
    async with open_metrics(f"127.0.0.1:{port}") as metrics:
        yield metrics.meter, port


Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


async def samples(exported: tuple[Meter, int], evidence: Evidence) -> Samples:
    meter, port = exported
    clock = ManualClock()
    EvidenceMetrics(meter, lambda: evidence, lambda: LIMITS, clock)
    MeasuredLocks(NoLocks(), clock, meter)
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families("\n".join(await page(port)) + "\n"):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def highest(found: Samples, match: re.Match[str]) -> float:
    wanted = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"] or ""))
    values = [value for labels, value in found.get(match["metric"], []) if wanted.items() <= labels.items()]
    return max(values, default=-1.0)


def fires(rule: str, found: Samples) -> bool:
    """Whether a rule fires. It compares highest values with numbers or with each other; operations are one at a time
    here."""
    expression = " ".join(RULES[rule]["expr"].split())
    parts = expression.split(" and ")
    compared = [match for part in parts if (match := COMPARISON.fullmatch(part))]
    if not compared:
        left, right = TERM.finditer(expression)
        return highest(found, left) > highest(found, right) >= 0
    assert len(compared) == len(parts), f"{rule}: {expression} is not understood"
    signs = {">": float.__gt__, ">=": float.__ge__, "==": float.__eq__}
    return all(signs[match["sign"]](highest(found, match), float(match["limit"])) for match in compared)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.gate}")
async def test_what_is_above_a_limit_fails_the_gate_and_sounds_the_alarm(
    case: Case, exported: tuple[Meter, int]
) -> None:
    assert GATES[case.gate].verdict(case.bad, LIMITS).verdict is Verdict.FAIL
    assert fires(case.alert, await samples(exported, case.bad))
    written = tuple(float(match["limit"]) for match in COMPARISON.finditer(RULES[case.alert]["expr"]))
    assert written == case.limits, "the rule's numbers are the settings' defaults"


async def test_nothing_sounds_at_the_limits_themselves(exported: tuple[Meter, int]) -> None:
    for gate in {case.gate for case in CASES}:
        assert GATES[gate].verdict(GOOD, LIMITS).verdict is Verdict.PASS
    found = await samples(exported, GOOD)
    assert [alert for alert in (*(case.alert for case in CASES), "BatonLogHorizon") if fires(alert, found)] == []


async def test_every_rule_names_metrics_that_are_exported_and_says_what_to_do(exported: tuple[Meter, int]) -> None:
    delta = (parity("update", 0.003, 0.003), parity("get", 0.002, 0.002))
    found = await samples(exported, replace(GOOD, latencies=delta))
    for name in (alert.name for gate in GATES.values() for alert in gate.alerts):
        rule = RULES[name]
        named = set(re.findall(r"baton_[a-z0-9_]+", rule["expr"]))
        assert named and named <= set(found), f"{name}: {named - set(found)}"
        assert rule["annotations"]["summary"] and rule["annotations"]["runbook"]
        assert rule["labels"]["severity"] in ("page", "ticket")


async def test_what_is_not_known_has_no_value(exported: tuple[Meter, int]) -> None:
    found = await samples(exported, Evidence())
    assert {TABLE[name].exported for name in READERS} & set(found) == {"baton_compared_reads"}
    assert not any(fires(case.alert, found) for case in CASES)


async def test_events_that_the_log_may_soon_drop_sound_the_alarm_and_are_told_of(exported: tuple[Meter, int]) -> None:
    bad = replace(GOOD, risks=(Risk("A", 0, 0), Risk("B", 7, 0)))
    assert fires("BatonLogHorizon", await samples(exported, bad))
    assert "may soon drop 7 events that B has not read" in retention_warning(bad, LIMITS)
    assert "has dropped 3 events that A has not read" in retention_warning(
        replace(GOOD, risks=(Risk("A", 7, 3),)), LIMITS
    )
    assert retention_warning(GOOD, LIMITS) == ""


async def test_a_lock_server_that_is_away_sounds_the_alarm(exported: tuple[Meter, int]) -> None:
    assert fires("BatonLockServerAway", await samples(exported, GOOD))


def test_the_rule_file_is_made_from_the_gates() -> None:
    made = subprocess.run(
        [sys.executable, "deploy/make_alerts.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
