"""The documents are true of the code: the generated ones are fresh, and names of files and tests exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import DOCS, PROGRAMS, SECTIONS, Section, documents, meaning
from docs.outside_links import LINK
from libs.telemetry.metric import Kind
from libs.telemetry.table import EXPORTED, GROUPS, TABLE

ROOT = DOCS.parent
PROTOCOL = (DOCS / "protocol.md").read_text()
README_BYTES = 8 * 1024


def test_generated_documents_are_fresh() -> None:
    for path, text in documents().items():
        assert path.read_text() == text, f"run `make docs`: {path.name} differs from the code"


def test_make_lint_notices_a_document_that_is_not_fresh(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "docs/generate.py --check" in makefile
    found = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], cwd=tmp_path, check=False)
    assert found.returncode == 0


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_every_setting_has_a_meaning(section: Section) -> None:
    assert section.names
    missing = [name for name in section.names if not meaning(section.kind, name)]
    assert not missing, f"no docstring: {missing}"


def test_every_setting_is_in_a_section() -> None:
    shown = {name for section in SECTIONS for name in section.names}
    for program in PROGRAMS:
        assert set(program.model_fields) <= shown


def test_every_instrument_is_made_from_the_table_of_metrics() -> None:
    made = {path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py") if _makes(path)}
    assert made == {ROOT / "libs/telemetry/instruments.py"}
    assert len(EXPORTED) == len(TABLE) == sum(len(group.metrics) for group in GROUPS), "no name twice"
    for metric in TABLE.values():
        assert metric.meaning and not metric.meaning.endswith("."), metric.name
        assert bool(metric.edges) == (metric.kind is Kind.HISTOGRAM), metric.name


def _makes(path: Path) -> bool:
    return bool(re.search(r"meter\.create_\w+", path.read_text())) and "pb" not in path.parts


def test_every_invariant_has_a_place_and_a_test_that_exist() -> None:
    rows = re.findall(r"^\| (I\d+) \|[^|]+\|([^|]+)\|([^|]+)\|$", PROTOCOL, re.MULTILINE)
    assert [number for number, _, _ in rows] == [f"I{number}" for number in range(1, 17)]
    for number, places, tests in rows:
        for place in re.findall(r"`([^`]+)`", places):
            assert (ROOT / place).exists(), f"{number}: {place}"
        _check_tests(number, tests)


def test_every_risk_of_owasp_has_an_answer_and_tests_that_exist() -> None:
    rows = re.findall(r"^\| (API\d+) [^|]+\| ([^|]+) \| ([^|]+) \|$", (DOCS / "security.md").read_text(), re.MULTILINE)
    assert [number for number, _, _ in rows] == [f"API{number}" for number in range(1, 11)]
    for number, _, tests in rows:
        _check_tests(number, tests)


def _check_tests(number: str, tests: str) -> None:
    named = re.findall(r"`(tests/[^`:]+)::(test_\w+)`", tests)
    assert named, number
    for file, test in named:
        assert re.search(rf"\bdef {test}\(", (ROOT / file).read_text()), f"{number}: {file}::{test}"


def test_links_to_files_lead_somewhere() -> None:
    for document in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for found in LINK.finditer(document.read_text()):
            if "templates" not in document.parts:
                assert (document.parent / found["target"]).exists(), f"{document.name}: {found['target']}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES
