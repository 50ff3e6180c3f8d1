"""Docstrings and comments name things: words that stand in for a noun are rare in them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ("what", "who", "nobody", "told")
MOST_PER_THOUSAND = 1.0

DONE = (
    "protos",
    "clients/python",
    "libs/backend",
    "libs/clock.py",
    "libs/contract",
    "libs/errors.py",
    "libs/eventlog",
    "libs/flags",
    "libs/http",
    "libs/locks",
    "libs/ownership",
    "libs/postgres.py",
    "libs/process.py",
    "libs/proving",
    "libs/rpc",
    "libs/sandboxes",
    "libs/settings.py",
    "libs/sqlite.py",
    "libs/store",
    "libs/tasks.py",
    "libs/telemetry",
    "libs/text.py",
    "services/router",
    "services/service_layer",
    "services/simple_mcp",
    "tests/*.py",
    "tests/acceptance",
    "tests/bench",
    "tests/contracts",
    "tests/fixtures",
    "tests/fuzz",
    "tests/integration",
    "tests/model",
    "tests/stress",
    "tests/system",
    "tests/transcripts",
    "tests/unit",
)
"""Folders and files (patterns) whose language is checked; generated code is not."""


def prose(path: Path) -> Iterator[str]:
    """The docstrings and comments of a Python file, or the comments of a .proto file."""
    text = path.read_text()
    if path.suffix == ".proto":
        yield from re.findall(r"^\s*//(.*)$", text, re.MULTILINE)
        return
    # Statements only: a walk of all nodes takes three times as long.
    left: list[ast.AST] = [ast.parse(text)]
    while left:
        node = left.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, name, None)
            left += children if isinstance(children, list) else ()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.removeprefix("#")


def files(place: str) -> Iterator[Path]:
    path = ROOT / place
    found = [*path.rglob("*.py"), *path.rglob("*.proto")] if path.is_dir() else [*ROOT.glob(place)]
    return (one for one in sorted(found) if "pb" not in one.relative_to(ROOT).parts)


def counts(text: str) -> tuple[int, Counter[str]]:
    """The number of words, and how often each of WORDS occurs, code in backquotes left out."""
    words = re.findall(r"[a-z']+", re.sub(r"`[^`]*`", "", text).lower())
    return len(words), Counter(word for word in words if word in WORDS)


@pytest.mark.parametrize("place", DONE)
def test_prose_names_the_thing(place: str) -> None:
    """A package may use each word once, and beyond that at most once per thousand words."""
    lines = [(path, text) for path in files(place) for text in prose(path)]
    assert lines, f"{place} has no docstrings"
    number, found = counts("\n".join(text for _, text in lines))
    often = {word for word, times in found.items() if times > max(1.0, number * MOST_PER_THOUSAND / 1000)}
    shown = [
        f"{path.relative_to(ROOT)}: {' '.join(text.split())}" for path, text in lines if often & set(counts(text)[1])
    ]
    assert not often, "name the thing instead:\n" + "\n".join(shown)


def test_the_count_sees_words_of_prose_and_not_code() -> None:
    assert counts("What it says to whoever asks, `what`, is told once") == (9, Counter(what=1, told=1))
