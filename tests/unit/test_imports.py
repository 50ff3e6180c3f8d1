"""No circle of imports, between files or between folders that stand side by side.

The import contracts in `pyproject.toml` say which folder may import which; this test needs no list.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = Path("libs/pb")

Imports = dict[str, set[str]]


def modules() -> dict[str, Path]:
    found = {}
    for top in ("libs", "services"):
        for path in (ROOT / top).rglob("*.py"):
            place = path.relative_to(ROOT)
            if not place.is_relative_to(GENERATED):
                found[".".join(place.with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(source: str, known: Collection[str]) -> Iterator[str]:
    """Known modules, wherever the statement stands: below TYPE_CHECKING and in a function too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def between_files(sources: Mapping[str, str]) -> Imports:
    return {name: set(imported(source, sources)) - {name} for name, source in sources.items()}


def between_folders(files: Imports) -> Imports:
    """Imports between entries of one folder, whether they are files or folders."""
    found: Imports = defaultdict(set)
    for name, others in files.items():
        for other in others:
            mine, theirs = name.split("."), other.split(".")
            for depth, (one, another) in enumerate(zip(mine, theirs, strict=False), 1):
                if one != another:
                    found[".".join(mine[:depth])].add(".".join(theirs[:depth]))
                    break
    return found


def circle(graph: Imports) -> list[str]:
    """Return one circle, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def files() -> Imports:
    return between_files({name: path.read_text() for name, path in modules().items()})


def test_no_files_import_each_other_in_a_circle(files: Imports) -> None:
    assert len(files) > 200, "the code is found"
    assert circle(files) == []


def test_no_folders_import_each_other_in_a_circle(files: Imports) -> None:
    assert circle(between_folders(files)) == []


def test_a_circle_that_a_type_closes_is_found() -> None:
    files = between_files(
        {
            "libs.one": "from libs.two import Two",
            "libs.two": "if TYPE_CHECKING:\n    from libs.one import One",
            "libs.three": "import libs.one",
        }
    )
    assert set(circle(files)) == {"libs.one", "libs.two"}


def test_a_circle_of_folders_is_found_where_no_files_make_one() -> None:
    files = between_files(
        {
            "libs.one": "",
            "libs.one.a": "from libs.two import b",
            "libs.one.c": "",
            "libs.two": "",
            "libs.two.b": "def late() -> None:\n    from libs.one.c import thing",
        }
    )
    assert circle(files) == []
    assert set(circle(between_folders(files))) == {"libs.one", "libs.two"}
