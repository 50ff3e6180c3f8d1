"""The commands and programs of docs/clients.md, run in their order as a reader runs them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.documents import Block, blocks
from tests.goclient import run
from tests.system.http import ROOT, Endpoint, endpoint

BIN = Path(sys.executable).parent
SECONDS = 60.0

BLOCKS = blocks("docs/clients.md")
PROGRAMS = [block for block in blocks("clients/python/README.md") if block.kind == "python"]


def command(block: Block, place: Endpoint) -> list[str]:
    code = block.code.replace("127.0.0.1:7600", place.grpc).replace("127.0.0.1:7680", place.http)
    return [sys.executable, "-c", code] if block.kind == "python" else ["bash", "-euo", "pipefail", "-c", code]


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
                said.append(await asyncio.to_thread(run, command(block, place), folder, environment, SECONDS))
    assert "StatusCode.NOT_FOUND SANDBOX_NOT_FOUND" in said[0]
    assert "'sandboxes/" in said[1]
    assert any('"team":"blue"' in one.replace(" ", "") for one in said)
    assert any("data: {" in one for one in said)
    assert "StatusCode.NOT_FOUND SANDBOX_NOT_FOUND" in said[-1]


def test_the_document_has_blocks_of_known_kinds_only() -> None:
    assert {block.kind for block in BLOCKS} == {"sh", "python", "ts", "json"}
    assert [block.note for block in BLOCKS if block.note.startswith("needs: ")] == ["needs: grpcurl"]


def test_the_configuration_of_an_mcp_client_is_json() -> None:
    (block,) = (block for block in BLOCKS if block.kind == "json")
    (server,) = json.loads(block.code)["mcpServers"].values()
    assert server["args"][:2] == ["mcp", "--target"]
