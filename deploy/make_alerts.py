"""Writes deploy/alerts.yaml, the alerting rules for Prometheus, from the gates.

python deploy/make_alerts.py [--check]    # --check: exit with 1 if the file is not fresh
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from services.router.core.gates import alert_rules

FILE = Path(__file__).parent / "alerts.yaml"

HEAD = """\
# Alerting rules on Baton's metrics, for Prometheus (rule_files). Made by `make alerts` from services/router/core/gates.
#
# Each process serves its metrics under the path /metrics of its setting `metrics` (BATON_ROUTER_METRICS=127.0.0.1:9464,
# SERVICE_LAYER_METRICS, SIMPLE_MCP_METRICS). The head of docker-compose.yml lists the addresses there.
#
# The numbers are the defaults of the gates' settings (BATON_ROUTER_GATE_...). If you change such a setting or limit,
# change the rule too. Every router reports for all routers, hence max. Bounds have 95 % confidence: a lower bound above
# the limit is not noise.
"""


def text() -> str:
    groups = {"groups": [{"name": "baton", "rules": alert_rules()}]}
    return HEAD + yaml.safe_dump(groups, sort_keys=False, width=120, allow_unicode=True)


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if FILE.read_text() == text():
            return 0
        print(f"{FILE} is not fresh: run make alerts", file=sys.stderr)
        return 1
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
