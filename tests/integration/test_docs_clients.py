"""The commands and programs of docs/clients.md, run in their order as a reader runs them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.endpoints import ROOT, Endpoint, endpoint
from tests.goclient import run

TEXT = (ROOT / "docs" / "clients.md").read_text()
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL)
BIN = Path(sys.executable).parent
SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    note: str

    @property
    def runs(self) -> bool:
        needed = self.note.removeprefix("needs: ") if self.note.startswith("needs: ") else ""
        return not self.note.startswith("not run: ") and (not needed or shutil.which(needed) is not None)

    def command(self, place: Endpoint) -> list[str]:
        code = self.code.replace("127.0.0.1:7600", place.grpc).replace("127.0.0.1:7680", place.http)
        return [sys.executable, "-c", code] if self.kind == "python" else ["bash", "-euo", "pipefail", "-c", code]


BLOCKS = [Block(found["kind"], found["code"], found["note"] or "") for found in BLOCK.finditer(TEXT)]
README = (ROOT / "clients" / "python" / "README.md").read_text()
PROGRAMS = [Block(found["kind"], found["code"], "") for found in BLOCK.finditer(README) if found["kind"] == "python"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place with the project's protos, where the blocks may write."""
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    return tmp_path


@pytest.mark.parametrize("name", ["new service", "router"])
async def test_commands_and_programs_do_what_the_document_says(name: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "clients" / "python" / "src"),
    }
    said = []
    async with endpoint(name) as place:
        for block in [*BLOCKS, *PROGRAMS]:
            if block.kind in ("sh", "python") and block.runs:
                said.append(await asyncio.to_thread(run, block.command(place), folder, environment, SECONDS))
    assert "StatusCode.NOT_FOUND SANDBOX_NOT_FOUND" in said[0]
    assert "'sandboxes/" in said[1]
    assert any('"team":"blue"' in one.replace(" ", "") for one in said)
    assert any("data: {" in one for one in said)
    assert "StatusCode.NOT_FOUND SANDBOX_NOT_FOUND" in said[-1]


def test_what_is_not_run_says_why() -> None:
    assert [block.note for block in BLOCKS if block.note] == [
        "not run: the tests use the package where it is",
        "not run: test_client_go.py does the same, in a folder of its own",
        "not run: needs packages of npm",
        "needs: grpcurl",
    ]
    assert {block.kind for block in BLOCKS} == {"sh", "python", "ts", "json"}


def test_the_configuration_of_an_mcp_client_is_json() -> None:
    (block,) = (block for block in BLOCKS if block.kind == "json")
    (server,) = json.loads(block.code)["mcpServers"].values()
    assert server["args"][:2] == ["mcp", "--target"]
