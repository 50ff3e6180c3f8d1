"""The fenced blocks of the documents, as a reader runs them.

A comment before a block tells the tests how to treat it:

    <!-- not run: REASON -->     no test runs the block
    <!-- needs: PROGRAM -->      the block runs where the program is installed
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = ("sh", "bash", "console", "python")
"""Kinds of blocks that a reader runs."""


@dataclass(frozen=True)
class Block:
    document: str
    """Path of the document in the project."""
    kind: str
    code: str
    note: str

    @property
    def runs(self) -> bool:
        needed = self.note.removeprefix("needs: ") if self.note.startswith("needs: ") else ""
        return not self.note.startswith("not run: ") and (not needed or shutil.which(needed) is not None)


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [Block(document, found["kind"], found["code"], found["note"] or "") for found in BLOCK.finditer(text)]


def documents() -> Iterator[str]:
    """Every document of the project, but not the templates of generated ones."""
    for folder in (
        ROOT,
        ROOT / "docs",
        ROOT / "docs" / "decisions",
        ROOT / "docs" / "runbooks",
        ROOT / "clients" / "python",
    ):
        yield from (str(path.relative_to(ROOT)) for path in sorted(folder.glob("*.md")))
