"""The list of requirements names real tests, and every acceptance test shows something on it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.requirements import PLANNED, REQUIREMENTS, Requirement

ROOT = Path(__file__).parents[2]
ACCEPTANCE = "tests/acceptance"
LIST = ROOT / "tests" / "requirements.py"
_ID = re.compile(r"[a-z]+\.[a-z]+(-[a-z]+)*")
_BUILT = (
    "write.dual-async", "write.no-loss", "write.one-effect", "owner.single", "read.strict", "read.stale-marked",
    "phase.table", "phase.journal", "feed.lag", "feed.parked", "api.identical", "rollback.lossless",
)  # fmt: skip
"""The requirements of the walking skeleton, which must not return to planned unnoticed."""


@cache
def named_in(root: Path, path: str) -> frozenset[str]:
    """Names of the test functions of one file, those of its classes included, as "path::name"."""
    tree = ast.parse((root / path).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(f"{path}::{node.name}" for node in found if node.name.startswith("test_"))


def problems(requirements: Mapping[str, Requirement], root: Path) -> list[str]:
    """Problems of the list, in sentences."""
    found = []
    named: set[str] = set()
    for identifier, requirement in requirements.items():
        if not _ID.fullmatch(identifier):
            found.append(f"{identifier!r}: an id is two words of small letters, as in area.thing")
        if not requirement.sentence.strip():
            found.append(f"{identifier}: has no sentence")
        if requirement.tests is PLANNED:
            continue
        if not requirement.tests:
            found.append(f"{identifier}: has no test and is not planned")
        if len(set(requirement.tests)) < len(requirement.tests):
            found.append(f"{identifier}: names a test twice")
        named.update(requirement.tests)
    for test in sorted(named):
        path = test.partition("::")[0]
        if not (root / path).is_file() or test not in named_in(root, path):
            found.append(f"{test}: there is no such test")
    for file in sorted((root / ACCEPTANCE).glob("test_*.py")):
        shown = named_in(root, file.relative_to(root).as_posix())
        found += [f"{test}: shows no requirement" for test in sorted(shown - named)]
    return found


def repeated_keys(text: str) -> list[str]:
    """Ids that stand twice in the text: of these Python keeps the last one without a word."""
    keys = [
        key.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    return sorted({str(key) for key in keys if keys.count(key) > 1})


@pytest.mark.slow
def test_every_requirement_has_tests_that_exist_or_is_planned() -> None:
    assert not (found := problems(REQUIREMENTS, ROOT)), "\n".join(found)


def test_no_id_stands_twice() -> None:
    assert repeated_keys(LIST.read_text()) == []
    assert repeated_keys('{"a.b": 1, "a.c": 2, "a.b": 3}') == ["a.b"]


@pytest.mark.parametrize("identifier", _BUILT)
def test_what_is_built_names_an_acceptance_test_or_the_proof(identifier: str) -> None:
    tests = REQUIREMENTS[identifier].tests
    assert tests is not PLANNED
    assert any(test.startswith((ACCEPTANCE, "tests/model", "tests/integration")) for test in tests)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project with one acceptance test, and one in a class."""
    (tmp_path / ACCEPTANCE).mkdir(parents=True)
    text = "async def test_one() -> None: ...\n\nclass TestMore:\n    def test_two(self) -> None: ...\n"
    (tmp_path / ACCEPTANCE / "test_it.py").write_text(text)
    return tmp_path


ONE, TWO = f"{ACCEPTANCE}/test_it.py::test_one", f"{ACCEPTANCE}/test_it.py::test_two"
GOOD = {"area.thing": Requirement("It is so", (ONE, TWO)), "area.other-thing": Requirement("It will be so")}


def test_a_right_list_has_no_problems(tree: Path) -> None:
    assert problems(GOOD, tree) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"Area.Thing": Requirement("x")}, "an id is two words"),
        ({"thing": Requirement("x")}, "an id is two words"),
        ({"area.new": Requirement("", (ONE,))}, "has no sentence"),
        ({"area.new": Requirement("x", ())}, "has no test and is not planned"),
        ({"area.new": Requirement("x", (ONE, ONE))}, "names a test twice"),
        ({"area.new": Requirement("x", (f"{ACCEPTANCE}/test_it.py::test_three",))}, "there is no such test"),
        ({"area.new": Requirement("x", ("tests/gone.py::test_one",))}, "there is no such test"),
        ({"area.thing": Requirement("x", (ONE,))}, "test_two: shows no requirement"),
        ({"area.thing": Requirement("x")}, "test_one: shows no requirement"),
    ],
)
def test_a_wrong_list_is_noticed(tree: Path, planted: dict[str, Requirement], said: str) -> None:
    found = problems({**GOOD, **planted}, tree)
    assert any(said in problem for problem in found), found
