"""The runbooks are complete: a page for each alert, gate and reason, whose commands exist, named where it helps."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from services.router.cli.app import tree
from services.router.cli.gates import of_limit
from services.router.core.attention import StoreSeen, attention, certificate_warnings, clock_warning
from services.router.core.gates import GATES
from services.router.core.limits import THRESHOLDS
from services.router.core.measure import Counts
from services.router.core.retention import Risk
from services.router.core.runbooks import FOLDER, RUNBOOKS, Runbook, of_gate, of_line, of_reason
from tests.documents import ROOT, blocks

COMMAND = re.compile(r"`(baton [^`]+)`")
SECTIONS = ("## Look", "## Do", "## Over")
NOT_SHOWN = frozenset({"TRIAL_FAILED"})
"""Reasons inside the proofs, which no process answers."""


def alerts() -> set[str]:
    found = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())
    return {rule["alert"] for group in found["groups"] for rule in group["rules"]}


def reasons() -> set[str]:
    """Every reason that a class of errors has."""
    found = set()
    for folder in ("libs", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            if "pb" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found |= set(_reasons_of(node))
    return found - NOT_SHOWN


def _reasons_of(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value: Any = getattr(line, "value", None)
        named = isinstance(target, ast.Name) and target.id == "reason" and isinstance(value, ast.Constant)
        if named and isinstance(value.value, str) and value.value.isupper():
            yield value.value


@pytest.mark.parametrize(
    ("kinds", "known"),
    [
        ([gate for one in RUNBOOKS for gate in one.gates], set(GATES)),
        ([alert for one in RUNBOOKS for alert in one.alerts], alerts()),
        ([reason for one in RUNBOOKS for reason in one.reasons], reasons()),
    ],
    ids=["gates", "alerts", "reasons"],
)
def test_each_kind_has_one_page_and_each_page_only_kinds_that_exist(kinds: list[str], known: set[str]) -> None:
    assert {kind for kind, count in Counter(kinds).items() if count > 1} == set()
    assert set(kinds) == known


def test_each_page_of_the_table_exists_and_no_other() -> None:
    files = {path.stem for path in (ROOT / FOLDER).glob("*.md")} - {"index"}
    assert {one.name for one in RUNBOOKS} == files
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in files)


@pytest.mark.parametrize("one", RUNBOOKS, ids=lambda one: one.name)
def test_a_page_has_its_parts_and_a_heading_for_each_reason(one: Runbook) -> None:
    text = (ROOT / one.path).read_text()
    assert text.startswith(f"# {one.title}\n")
    if one.covers:
        assert f"\n{one.covers[0].upper()}{one.covers[1:]}.\n" in text
    parts = re.split(r"^(?=##? )", text, flags=re.MULTILINE)
    for section in SECTIONS:
        (part,) = [part for part in parts if part.startswith(f"{section}\n")]
        assert len(part.split()) > 3, section
    assert tuple(re.findall(r"^### (.+)$", text, re.MULTILINE)) == one.reasons
    assert any(block.kind == "sh" for block in blocks(one.path)), "nothing to type"


def commands() -> Iterator[tuple[str, str]]:
    for one in RUNBOOKS:
        text = (ROOT / one.path).read_text()
        for found in COMMAND.findall(" ".join(text.split())):
            yield one.name, found


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_in_the_text_has_verbs_and_options_that_exist(page: str, command: str) -> None:
    """The commands in blocks are run by tests/integration/test_runbook_commands.py."""
    node: Any = typer.main.get_command(tree())
    words = re.sub(r'"[^"]*"', "x", command).split()[1:]
    while words and hasattr(node, "commands") and words[0] in node.commands:
        node = node.commands[words.pop(0)]
    known = {option for parameter in node.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    assert not unknown, f"{page}: {command}"
    arguments = [parameter for parameter in node.params if parameter.param_type_name == "argument"]
    assert arguments or not words or words[0].startswith("--"), f"{page}: {command}: no such verb"


SEEN = StoreSeen("A", False, False, "no answer", "stopped", 2, Counts(100, 50), unauthenticated=1)
LINES = [
    *attention([SEEN], "away", ["job audit-1 FAILED: it"], 0.05),
    *attention([StoreSeen("A", True, False, "draining", "stopped", 0, Counts())], "", [], 0.05),
    *attention([StoreSeen("B", True, True, "", "", 0, Counts(), locks_away=True)], "", [], 0.05),
    *attention([StoreSeen("B", True, True, "", "", 0, Counts(), missing=1)], "", [], 0.05),
    *attention([StoreSeen("B", True, False, "it must be recovered (baton recover): x", "", 0, Counts())], "", [], 0.05),
    *clock_warning(9.0),
    *certificate_warnings("store A", 1.0, "not a key"),
    str(Risk("store A", 3, 0)),
    str(Risk("store A", 3, 3)),
    "writes that were published before the feeds were restarted may be at one store only: run baton reconcile",
    "31 of 30000 compared reads disagree, more than 0.1 %: baton shadow",
    "11 of 10000 records differ, 0 are not repaired: baton reconcile",
    "3 acknowledged writes are not in the store that owns them: baton ledger",
    "the log refuses events of store A: 3 events, first x: baton doctor",
    "60 server faults in 100 calls (60.0%) of B's in 30 s, above 5.0% all along; automatic rollback is switched off",
    "ann asks for a second admin: seize: baton approve 7",
    "2 xDS clients refused the newest routes and use the ones before: x",
    "store-a: no process serves clients: not asked yet",
]


@pytest.mark.parametrize("line", LINES)
def test_each_line_under_look_at_this_has_a_page(line: str) -> None:
    assert of_line(line), line


def test_a_line_leads_to_the_page_of_its_own_trouble() -> None:
    found = {line.partition(":")[0]: Path(of_line(line)).stem for line in LINES}
    assert found["store A is unreachable"] == "store-down"
    assert found["store B does not serve"] == "store-lost"
    assert found["store A does not serve"] == "store-down"
    assert found["the certificate of store A expires in 1.0 days"] == "tls-certificate"
    assert found["job audit-1 FAILED"] == "jobs"
    assert of_line("all is well") == ""


def test_a_limit_a_gate_and_a_reason_lead_to_their_pages() -> None:
    assert all(of_limit(name) for name in THRESHOLDS)
    assert of_gate("lag") == "docs/runbooks/lag.md" and of_gate("unknown") == ""
    assert of_reason("OUTBOX_FULL") == "docs/runbooks/event-log-down.md#outbox_full" and of_reason("UNKNOWN") == ""


def test_each_alert_carries_its_page() -> None:
    found = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())
    for group in found["groups"]:
        for rule in group["rules"]:
            assert (ROOT / rule["annotations"]["runbook_url"]).is_file(), rule["alert"]
