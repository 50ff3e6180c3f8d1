"""Files that a hosting site, an editor or a package index reads: they follow from the project, not beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _workflow() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"])


def test_the_workflow_runs_lint_and_test_on_each_python_version_of_the_metadata() -> None:
    versions = [
        name.rpartition(" ")[2] for name in PROJECT["project"]["classifiers"] if name.startswith("Programming Language")
    ]
    job = _workflow()
    assert job["strategy"]["matrix"]["python"] == [version for version in versions if "." in version]
    assert [step["run"] for step in job["steps"] if "make" in step.get("run", "")] == ["make lint test"]


def test_pre_commit_runs_make_lint_and_nothing_else() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repo["hooks"]
    assert (repo["repo"], hook["entry"], hook["pass_filenames"]) == ("local", "make lint", False)


@pytest.mark.parametrize("package", ["libs", "services"])
def test_a_package_ships_its_types(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]


def test_every_issue_template_is_a_form() -> None:
    templates = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    for path in templates:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form), path.name
    assert templates
