"""Writes the documents that follow from the code: settings, metrics with their alerts, phases with their gates.

    python docs/generate.py [--check]

Exit codes: 0 written, or fresh; 1 with --check if a document is not fresh.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import yaml
from pydantic.fields import FieldInfo

from libs.backend.settings import BackendSettings
from libs.identity.settings import IdentitySettings
from libs.process import ProcessSettings
from libs.settings import Settings
from libs.telemetry.metric import Metric
from libs.telemetry.table import GROUPS as METRICS
from services.router.core.diagram import diagram, guarantees
from services.router.core.evidence import Evidence
from services.router.core.gates import GATES, Limits
from services.router.core.limits import THRESHOLDS
from services.router.core.phase import PHASES
from services.router.core.runbooks import RUNBOOKS
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.simple_mcp.settings import SimpleMcpSettings

DOCS = Path(__file__).parent
ALERTS = DOCS.parent / "deploy" / "alerts.yaml"
TEMPLATES = DOCS / "templates"
NOTE = "<!-- Written by `make docs` from {template} and the code: change those, not this file. -->\n"

Row = tuple[str, ...]


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Settings

UNITS = {
    "burst": "calls",
    "bytes": "bytes",
    "calls": "calls",
    "cores": "cores",
    "days": "days",
    "entries": "events",
    "milliseconds": "ms",
    "percent": "%",
    "permille": "‰",
    "pool": "connections",
    "rate": "calls per second",
    "reads": "reads",
    "records": "records",
    "seconds": "s",
    "watchers": "watches",
    "watches": "watches",
    "writes": "writes",
}
"""Units by the last word of a setting's name."""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: str
    kind: type[Settings]
    prefix: str
    thresholds: bool = False
    """The settings are those of gates and of automatic rollback."""

    @property
    def names(self) -> list[str]:
        """The section's settings, in their order."""
        if self.thresholds:
            return list(THRESHOLDS)
        return [
            name
            for name in inspect.get_annotations(self.kind)
            if name in self.kind.model_fields and not (self.kind is BackendSettings and name in GIVEN_BY_EACH_STORE)
        ]


SECTIONS = (
    Section(
        "Every process",
        "`PREFIX` is `SIMPLE_MCP`, `SERVICE_LAYER` or `BATON_ROUTER`.\n\n",
        ProcessSettings,
        "PREFIX_",
    ),
    Section(
        "Identity",
        "Of every process, for its public listeners. [Security](security.md#identity) explains them.\n\n",
        IdentitySettings,
        "PREFIX_",
    ),
    Section("Both stores", "`PREFIX` is `SIMPLE_MCP` or `SERVICE_LAYER`.\n\n", BackendSettings, "PREFIX_"),
    Section("`simple_mcp` (A)", "", SimpleMcpSettings, "SIMPLE_MCP_"),
    Section("`service_layer` (B)", "", ServiceLayerSettings, "SERVICE_LAYER_"),
    Section("`router`", "", RouterSettings, "BATON_ROUTER_"),
    Section(
        "Gates and automatic rollback",
        "Settings of the router. `baton gates` shows the values in force.\n\n",
        RouterSettings,
        "BATON_ROUTER_",
        thresholds=True,
    ),
)
PROGRAMS = (SimpleMcpSettings, ServiceLayerSettings, RouterSettings)
GIVEN_BY_EACH_STORE = {"public", "internal"}
"""Declared for both stores, with a default of each store's own."""


def settings() -> str:
    parts = []
    for section in SECTIONS:
        rows = [_setting_row(section, name) for name in section.names]
        table = _table(("variable", "default", "unit, range", "meaning"), rows)
        parts.append(f"## {section.title}\n\n{section.text}{table}")
    return "\n\n".join(parts)


def meaning(kind: type[Settings], name: str) -> str:
    """The setting's description, else its docstring in the nearest class that has one; "" if none has."""
    if description := kind.model_fields[name].description:
        return description
    for base in kind.__mro__:
        if (
            issubclass(base, Settings)
            and name in inspect.get_annotations(base)
            and (text := _docstrings_of_fields(base).get(name))
        ):
            return text
    return ""


@cache
def _docstrings_of_fields(kind: type) -> Mapping[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _setting_row(section: Section, name: str) -> Row:
    field = section.kind.model_fields[name]
    unit = UNITS.get(name.rpartition("_")[2], "") if field.annotation in (int, float) else ""
    measure = ", ".join(filter(None, [unit, _range(field)]))
    return f"`{section.prefix}{name.upper()}`", _default(field), measure, meaning(section.kind, name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default_factory is not None:
        return "computed"
    if field.default is None or field.default == "":
        return "empty"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _range(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "`true` or `false`"
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return " or ".join(f"`{choice}`" for choice in choices)
    bound = {
        name: getattr(limit, name) for limit in field.metadata for name in ("ge", "gt", "le") if hasattr(limit, name)
    }
    if "le" not in bound:
        return f"{_number(bound['ge'])} or more" if "ge" in bound else "above 0" if "gt" in bound else ""
    most = _number(bound["le"])
    return f"{_number(bound['ge'])} to {most}" if "ge" in bound else f"above {_number(bound['gt'])}, at most {most}"


def _number(value: float) -> str:
    return f"{value:,}".replace(",", " ").removesuffix(".0") if value >= 0.001 or value == 0 else f"{value:f}"


# Metrics


_METRIC_HEAD = ("metric", "kind", "unit", "labels", "meaning")


def metrics() -> str:
    tables = ((group.title, _table(_METRIC_HEAD, map(_metric_row, group.metrics))) for group in METRICS)
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in tables)


def _metric_row(metric: Metric) -> Row:
    unit = metric.unit.strip("{}").replace("1", "share")
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"`{metric.exported}`", metric.kind.value, unit, labels, metric.meaning


def alerts() -> str:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    rows = [
        (
            f"`{rule['alert']}`",
            rule["labels"]["severity"],
            f"`{rule['expr']}`",
            rule.get("for", "at once"),
            rule["annotations"]["runbook"],
        )
        for rule in rules
    ]
    return _table(("alert", "severity", "condition", "for", "first step"), rows)


# Phases


def gates() -> str:
    limits = Limits()
    asked = {name: [phase.value for phase, rule in PHASES.items() if name in rule.gates] for name in GATES}
    rows = [
        (
            f"`{gate.name}`",
            ", ".join(asked[gate.name]) or "those of `gate_webhook_phases`",
            gate.sentence,
            gate.result(Evidence(), limits).threshold,
            "yes" if gate.overridable else "no",
            gate.runbook,
        )
        for gate in GATES.values()
    ]
    return _table(("gate", "before", "sentence", "threshold by default", "override", "what to do"), rows)


def phase_diagram() -> str:
    return f"```mermaid\n{diagram()}\n```"


# Documents


def decisions() -> str:
    records = [path for path in sorted((DOCS / "decisions").glob("*.md")) if path.name != "index.md"]
    titles = [path.read_text().partition("\n")[0].removeprefix("# ") for path in records]
    return "\n".join(f"- [{title}]({path.name})" for path, title in zip(records, titles, strict=True))


def runbooks() -> str:
    rows = [
        (
            f"[{one.title}]({one.name}.md)",
            ", ".join(f"`{alert}`" for alert in one.alerts),
            ", ".join(f"`{gate}`" for gate in one.gates),
            ", ".join(f"[`{reason}`]({one.name}.md#{reason.lower()})" for reason in one.reasons),
        )
        for one in RUNBOOKS
    ]
    return _table(("page", "alerts", "gates", "reasons of errors"), rows)


PARTS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metrics,
    "alerts": alerts,
    "diagram": phase_diagram,
    "guarantees": guarantees,
    "gates": gates,
    "decisions": decisions,
    "runbooks": runbooks,
}
"""What stands in a template for `<!-- NAME -->`."""


def documents() -> dict[Path, str]:
    """Each generated document with its text."""
    found = {}
    for template in sorted(TEMPLATES.rglob("*.md")):
        name = template.relative_to(TEMPLATES)
        text = template.read_text()
        for part, make in PARTS.items():
            marker = f"<!-- {part} -->"
            text = text.replace(marker, make()) if marker in text else text
        found[DOCS / name] = NOTE.format(template=f"docs/templates/{name}") + text
    return found


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        for path, text in documents().items():
            path.write_text(text)
        return 0
    stale = [path.name for path, text in documents().items() if not path.exists() or path.read_text() != text]
    if stale:
        print(f"docs: {', '.join(stale)} differ from the code: run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
