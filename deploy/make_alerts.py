"""Writes deploy/alerts.yaml, the alerting rules for Prometheus, from the gates and the alerts of the system.

python deploy/make_alerts.py [--check]           # --check: exit with 1 if the file is not fresh
python deploy/make_alerts.py --runbooks BASE     # print the rules, with this beginning of each runbook_url
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from services.router.core.alerts import RUNBOOKS, rules

FILE = Path(__file__).parent / "alerts.yaml"

HEAD = """\
# Alerting rules on Baton's metrics, for Prometheus (rule_files). Made by `make alerts` from services/router/core/gates
# and services/router/core/alerts.py. With runbooks at another place than this repository:
# python deploy/make_alerts.py --runbooks https://wiki/baton/
#
# Each process serves its metrics under the path /metrics of its setting `metrics` (BATON_ROUTER_METRICS=127.0.0.1:9464,
# SERVICE_LAYER_METRICS, SIMPLE_MCP_METRICS). The head of docker-compose.yml lists the addresses there.
#
# The numbers are the defaults of the gates' settings (BATON_ROUTER_GATE_...). If you change such a setting or limit,
# change the rule too. Every router reports for all routers, hence max. Bounds have 95 % confidence: a lower bound above
# the limit is not noise.
"""


def text(runbooks: str = RUNBOOKS) -> str:
    groups = {"groups": [{"name": "baton", "rules": rules(runbooks)}]}
    return HEAD + yaml.safe_dump(groups, sort_keys=False, width=120, allow_unicode=True)


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if FILE.read_text() == text():
            return 0
        print(f"{FILE} is not fresh: run make alerts", file=sys.stderr)
        return 1
    if arguments[:1] == ["--runbooks"] and len(arguments) == 2:
        print(text(arguments[1]), end="")
        return 0
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
