"""The list of statements that may change a record's row (`libs.ownership.rules`) matches the stores' code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from libs.ownership import rules

ROOT = Path(__file__).parents[2]
PACKAGES = ("libs/store", "services/simple_mcp/store", "services/service_layer/store")
OFFLINE = {"takeover", "leave", "fitness"}
"""Modules that work on a file that no store serves: they take over the old program's file or give it back."""

_TABLE = r"(?:record|sandboxes\w*|\{[^}]*(?:table|_old\.name)[^}]*\})"
_VERB = r"(?:(?:INSERT|REPLACE|MERGE)(?:\s+OR\s+\w+)?\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?)"
_STATEMENT = re.compile(rf"\b{_VERB}\s+{_TABLE}(?![\w.])", re.IGNORECASE)
_ROWS_IN_MEMORY = re.compile(r"^(?:\w+\.)*state\.rows(?:\[.*\])?$")


def test_the_rules_list_every_statement_that_may_change_a_row() -> None:
    found = {
        (path.stem, name)
        for package in PACKAGES
        for path in sorted((ROOT / package).glob("*.py"))
        if path.stem not in OFFLINE
        for name in statements(path)
    }
    assert found == set(listed())


def listed() -> list[tuple[str, str]]:
    """Lines of the docstring like "    postgres_sql     UPDATE_ROWS, INSERT_ROWS   text"."""
    block = (rules.__doc__ or "").split("Statements that change a row.")[1]
    lines = re.findall(r"^ {4}(\w+) +((?:\w+, )*\w+)(?: {2,}.*)?$", block, re.MULTILINE)
    return [(module, name) for module, names in lines for name in names.split(", ")]


def statements(path: Path) -> Iterator[str]:
    """The names that hold them: the constant or attribute of a text, the function of a change in memory."""
    tree = ast.parse(path.read_text())
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if node not in docstrings and changes_a_row(node):
            yield name_of(node, parents)


def changes_a_row(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant | ast.JoinedStr):
        return _STATEMENT.search(text_of(node)) is not None
    if isinstance(node, ast.Assign | ast.Delete | ast.AugAssign):
        targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
        return any(_ROWS_IN_MEMORY.match(ast.unparse(target)) for target in targets)
    return False


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def name_of(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    while True:
        node = parents[node]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = ast.unparse(target).removeprefix("self.")
            if name.isidentifier() and (name.isupper() or "self." in ast.unparse(target)):
                return name.lstrip("_")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
            return node.name.lstrip("_")
