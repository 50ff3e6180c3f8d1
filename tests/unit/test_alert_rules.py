"""Each alerting rule fires when it should and only then, by promtool; dashboards name metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from deploy.make_dashboards import dashboards
from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing
from libs.telemetry.metric import Kind
from libs.telemetry.table import EXPORTED
from services.router.core import alerts
from services.router.core.runbooks import BY_ALERT

ROOT = Path(__file__).parents[2]
AFTER_MINUTES = 90
"""Longer than any rule's `for`."""

Series = dict[str, str]
"""Values by series, in promtool's notation, one each minute."""


class Case(NamedTuple):
    alert: str
    fires: Series
    quiet: Series


def steady(series: str, bad: float, good: float) -> tuple[Series, Series]:
    return {series: f"{bad:g}x{AFTER_MINUTES}"}, {series: f"{good:g}x{AFTER_MINUTES}"}


def growing(series: str) -> tuple[Series, Series]:
    """A counter that grows at the end, and one that has grown before."""
    return {series: f"0x{AFTER_MINUTES - 2} 1x5"}, {series: f"0 1x{AFTER_MINUTES}"}


def both(*parts: tuple[Series, Series]) -> tuple[Series, Series]:
    fires: Series = {}
    quiet: Series = {}
    for bad, good in parts:
        fires |= bad
        quiet |= good
    return fires, quiet


def bounds(store: str, bound: str) -> str:
    return f'baton_call_p99_seconds{{operation="get",store="{store}",bound="{bound}"}}'


CASES = (
    Case("BatonLag", *steady("baton_lag_seconds", 301, 300)),
    Case("BatonLagUnknown", {"other": f"1x{AFTER_MINUTES}"}, {"baton_lag_seconds": f"0x{AFTER_MINUTES}"}),
    Case("BatonLogHorizon", *steady('baton_log_risk_events{store="B"}', 1, 0)),
    Case("BatonParked", *steady("baton_parked_events", 1, 0)),
    Case("BatonUnauthenticated", *steady("baton_unauthenticated_events", 1, 0)),
    Case(
        "BatonInconsistent",
        *both(
            steady("baton_inconsistency_share", 0.0001, 0.00009),
            steady("baton_compared_reads", 30_000, 30_000),
        ),
    ),
    Case("BatonDiverged", *steady("baton_reconcile_share", 0.0011, 0.001)),
    Case("BatonDifferencesLeft", *steady("baton_reconcile_left", 1, 0)),
    Case("BatonWriteLost", *steady("baton_ledger_lost", 1, 0)),
    Case("BatonSlower", *both(steady(bounds("B", "lower"), 0.3, 0.1), steady(bounds("A", "upper"), 0.2, 0.2))),
    Case("BatonErrors", *both(steady("baton_errors_share", 0.002, 0.001), steady("baton_errors_calls", 3000, 3000))),
    Case("BatonWriteDelta", *steady('baton_write_delta_seconds{operation="update",bound="lower"}', 0.1, 0.09)),
    Case("BatonLockWait", *steady('baton_lock_wait_p99_seconds{bound="lower"}', 0.06, 0.05)),
    Case("BatonLockServerAway", *steady('baton_lock_server_away{backend="redis"}', 1, 0)),
    Case("BatonLocksLost", *growing('baton_lock_lost_total{backend="redis"}')),
    Case("BatonAutomaticRollback", *growing('baton_rollbacks_total{trigger="automatic"}')),
    Case("BatonNoRollback", *steady("baton_rollback_alarm", 1, 0)),
    Case("BatonHold", {"baton_hold": f"1x{AFTER_MINUTES}"}, {"baton_hold": f"0x{AFTER_MINUTES - 50} 1x60"}),
    Case("BatonStoreDown", *steady('baton_store_serving{store="B"}', 0, 1)),
    Case("BatonProcessMissing", *steady('baton_store_processes_missing{store="B"}', 1, 0)),
    Case("BatonLogDown", *steady("baton_log_reachable", 0, 1)),
    Case("BatonControlStoreDown", *steady("baton_setting_age_seconds", 31, 30)),
    Case("BatonOutboxNearFull", *steady('baton_outbox_fill_share{store="A"}', 0.81, 0.8)),
    Case("BatonJobFailed", *steady('baton_job_state{lane="backfill",state="FAILED"}', 1, 0)),
    Case("BatonJobStuck", *steady('baton_job_idle_seconds{lane="backfill"}', 601, 600)),
    Case("BatonConflicts", *steady('baton_conflicts{store="A"}', 1, 0)),
    Case("BatonXdsRefused", *growing("baton_xds_refused_total")),
    Case("BatonCertificateExpires", *steady('baton_tls_certificate_days{instance="a"}', 13, 14)),
    Case("BatonCertificateReload", *steady('baton_tls_reload_failing{instance="a"}', 1, 0)),
)


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return locate.promtool()
    except ServerMissing as error:
        pytest.skip(str(error))


def cases() -> Iterator[dict[str, Any]]:
    """Each rule's two tests for promtool. No other rule may fire either, but for the absence of the lag."""
    for case in CASES:
        for series, expected in ((case.fires, [case.alert]), (case.quiet, [])):
            given = series if case.alert == "BatonLagUnknown" else {"baton_lag_seconds": f"0x{AFTER_MINUTES}"} | series
            yield {
                "name": f"{case.alert} {'fires' if expected else 'is quiet'}",
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in given.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{AFTER_MINUTES}m",
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected],
                    }
                ],
            }


def test_every_rule_fires_at_its_condition_and_only_then(promtool: Path, tmp_path: Path) -> None:
    assert [case.alert for case in CASES] == [rule["alert"] for rule in alerts.rules()], "a case for each rule"
    rules, file = tmp_path / "alerts.yaml", tmp_path / "tests.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "baton", "rules": alerts.rules()}]}))
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": list(cases())}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    for command in (["check", "rules", str(rules)], ["test", "rules", str(file)]):
        found = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_runbook_and_reads_exported_metrics() -> None:
    for rule in alerts.rules("https://wiki/baton/"):
        assert rule["annotations"]["runbook_url"] == f"https://wiki/baton/{BY_ALERT[rule['alert']].name}.md"
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["runbook"]
        named = set(re.findall(r"baton_[a-z0-9_]+", rule["expr"]))
        assert named and named <= set(EXPORTED), rule["alert"]


SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum"), Kind.GAUGE: ("",), Kind.COUNTER: ("",)}


def test_every_query_of_a_dashboard_names_an_exported_metric() -> None:
    known = {f"{name}{suffix}" for name, metric in EXPORTED.items() for suffix in SUFFIXES[metric.kind]}
    shown = set()
    for path, text in dashboards().items():
        page = json.loads(text)
        numbers = [panel["id"] for panel in page["panels"]]
        assert len(numbers) == len(set(numbers)), path.name
        for panel in page["panels"]:
            for target in panel.get("targets", ()):
                bare = re.sub(r"by \([^)]*\)", "", target["expr"])
                (name,) = re.findall(r"\b[a-z]+_[a-z0-9_]+\b(?=[{\[)])", bare)
                assert name in known, f"{path.name}: {panel['title']}"
                labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                metric = EXPORTED[name.removesuffix("_bucket") if name not in EXPORTED else name]
                assert labels <= {*metric.labels, "instance"}, f"{path.name}: {panel['title']}"
                shown.add(metric.exported)
    assert shown == set(EXPORTED), "each metric is on a dashboard"


def test_the_dashboards_are_fresh_and_lint_notices_if_they_are_not() -> None:
    assert "deploy/make_dashboards.py --check" in (ROOT / "Makefile").read_text()
    found = subprocess.run(
        [sys.executable, "deploy/make_dashboards.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
