"""Writes deploy/grafana/dashboards/*.json, the dashboards for Grafana, from the table of metrics.

python deploy/make_dashboards.py [--check]    # --check: exit with 1 if a file is not fresh
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from libs.telemetry.metric import Group, Kind, Metric
from libs.telemetry.table import GROUPS, TABLE

FOLDER = Path(__file__).parent / "grafana" / "dashboards"

_UNITS = {"s": "s", "By": "bytes", "1": "percentunit", "{day}": "d"}
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    metric: str
    """OpenTelemetry's name."""
    title: str = ""
    """Empty: the metric's name."""
    width: int = 8
    kind: str = "timeseries"
    where: str = ""
    """A selector, such as 'state="FAILED"'."""


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


MIGRATION = (
    Row(
        "Now",
        (
            Panel("baton.phase.info", "Phase", 6, "state-timeline"),
            Panel("baton.gate.verdict", "Gates of the next phase", 10, "state-timeline"),
            Panel("baton.hold", "Held at A", 4, "stat"),
            Panel("baton.rollbacks", "Rollbacks", 4),
        ),
    ),
    Row(
        "Where records are",
        (
            Panel("baton.canary.set", "Canary"),
            Panel("baton.buckets.target.share", "Buckets whose target is B"),
            Panel("baton.buckets.actual.share", "Buckets that are at B"),
            Panel("baton.store.owned.records", "Records by owner"),
            Panel("baton.handoffs", "Handoffs"),
            Panel("baton.job.progress", "Jobs"),
        ),
    ),
    Row(
        "Calls of clients",
        (
            Panel("baton.answered.calls", "Answered calls"),
            Panel("rpc.client.call.duration", "Latency of the stores' answers", 16),
            Panel("baton.failed.calls", "Failed by a store"),
            Panel("baton.unavailable.calls", "Unavailable"),
            Panel("baton.stale.reads", "Stale reads"),
        ),
    ),
    Row(
        "Data",
        (
            Panel("baton.feed.lag", "Lag"),
            Panel("baton.outbox.fill.share", "Outbox in use"),
            Panel("baton.outbox.age", "Age of the oldest change"),
            Panel("baton.parked.events", "Parked events"),
            Panel("baton.inconsistency.share", "Compared reads that disagree"),
            Panel("baton.ledger.lost", "Lost writes"),
        ),
    ),
)
"""The overview of a migration."""


def dashboards() -> dict[Path, str]:
    """Each file with its text."""
    stores = [group for group in GROUPS if group.title.startswith("Store")]
    others = [group for group in GROUPS if group not in stores]
    made = {
        "migration": _dashboard("migration", "Baton: migration", MIGRATION),
        "stores": _dashboard("stores", "Baton: stores and log", map(_row, stores)),
        "processes": _dashboard("processes", "Baton: processes", map(_row, others)),
    }
    return {FOLDER / f"{name}.json": json.dumps(one, indent=2) + "\n" for name, one in made.items()}


def _row(group: Group) -> Row:
    return Row(group.title, tuple(Panel(metric.name) for metric in group.metrics))


def queries(metric: Metric, where: str = "") -> Iterator[tuple[str, str]]:
    """Expression and legend of each line. Routers report the same figures, so gauges take the maximum over them."""
    labels = ", ".join(metric.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels)
    chosen = f"{{{where}}}" if where else ""
    if metric.kind is Kind.HISTOGRAM:
        by = ", ".join(("le", *metric.labels))
        for share in (0.5, 0.99):
            rate = f"sum by ({by}) (rate({metric.exported}_bucket{chosen}[$__rate_interval]))"
            yield f"histogram_quantile({share}, {rate})", f"p{100 * share:g} {legend}".strip()
    elif metric.kind is Kind.COUNTER:
        yield f"sum by ({labels}) (rate({metric.exported}{chosen}[$__rate_interval]))", legend or metric.name
    elif metric.labels:
        yield f"max by ({labels}) ({metric.exported}{chosen})", legend
    else:
        yield f"max by (instance) ({metric.exported}{chosen})", "{{instance}}"


def _dashboard(name: str, title: str, rows: Iterable[Row]) -> Mapping[str, Any]:
    panels: list[Mapping[str, Any]] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "type": "row",
                "title": row.title,
                "id": len(panels) + 1,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": y},
            }
        )
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + 8
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += 8
    return {
        "uid": f"baton-{name}",
        "title": title,
        "tags": ["baton"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "enable": True,
                    "iconColor": "red",
                    "datasource": _DATASOURCE,
                    "expr": 'ALERTS{alertname=~"Baton.*",alertstate="firing"}',
                    "titleFormat": "{{alertname}}",
                }
            ]
        },
        "panels": panels,
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> Mapping[str, Any]:
    metric = TABLE[panel.metric]
    unit = "s" if metric.kind is Kind.HISTOGRAM else _UNITS.get(metric.unit, "short")
    if metric.kind is Kind.COUNTER:
        unit = "percentunit" if metric.unit == "s" else "cps"
    targets = [
        {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(queries(metric, panel.where))
    ]
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title or metric.name,
        "description": f"{metric.meaning}.",
        "datasource": _DATASOURCE,
        "gridPos": {"h": 8, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": targets,
    }


def main(arguments: list[str]) -> int:
    made = dashboards()
    if arguments == ["--check"]:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path} is not fresh: run make dashboards", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
