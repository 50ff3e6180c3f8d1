"""Docstrings and comments name things: few words stand in for a noun, and no docstring hangs on the line above it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ("what", "who", "nobody", "told")
MOST_PER_THOUSAND = 1.0
FRAGMENT = re.compile(r"(Of|By|As|On|Its|Their|Those)\b")
"""The beginning of a docstring that makes sense only with the line above it: "Of a batch.", "By store."."""

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
    "libs/identity",
    "libs/locks",
    "libs/ownership",
    "libs/postgres.py",
    "libs/process.py",
    "libs/proving",
    "libs/rpc",
    "libs/sandboxes",
    "libs/secret_file.py",
    "libs/settings.py",
    "libs/sqlite.py",
    "libs/sqlite_inline.py",
    "libs/store",
    "libs/tasks.py",
    "libs/telemetry",
    "libs/text.py",
    "libs/tls",
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


@cache
def docstrings(path: Path) -> list[str]:
    # Statements only: a walk of all nodes takes three times as long.
    left: list[ast.AST] = [ast.parse(path.read_text())]
    found = []
    while left:
        node = left.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, name, None)
            left += children if isinstance(children, list) else ()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.append(str(node.value.value))
    return found


def prose(path: Path) -> Iterator[str]:
    """The docstrings and comments of a Python file, or the comments of a .proto file."""
    text = path.read_text()
    if path.suffix == ".proto":
        yield from re.findall(r"^\s*//(.*)$", text, re.MULTILINE)
        return
    yield from docstrings(path)
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


@pytest.mark.parametrize("place", ["libs", "services", "clients/python", "tests/model"])
def test_a_docstring_makes_sense_without_the_line_above_it(place: str) -> None:
    paths = [path for path in files(place) if path.suffix == ".py"]
    hanging = [f"{path.relative_to(ROOT)}: {text}" for path in paths for text in docstrings(path) if is_fragment(text)]
    assert not hanging, "begin with the thing, or with a verb:\n" + "\n".join(hanging)


def is_fragment(text: str) -> bool:
    return FRAGMENT.match(text) is not None


def test_a_fragment_is_seen() -> None:
    assert all(map(is_fragment, ("Of a batch.", "By store.", "Its reason.")))
    assert not any(map(is_fragment, ("Offsets by partition.", "Reason of a batch.")))


def test_the_count_sees_words_of_prose_and_not_code() -> None:
    assert counts("What it says to whoever asks, `what`, is told once") == (9, Counter(what=1, told=1))
