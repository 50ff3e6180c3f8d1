"""The Go client, built and run against every server of the contract, in this process and as processes of their own."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
import yaml

from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing
from libs.proving.trial.world import World
from tests.goclient import EXAMPLE, generate, go_client, run
from tests.system.http import NAMES, ROOT, endpoint

RUN_SECONDS = 60.0


@pytest.fixture(scope="module")
def program() -> Path:
    return go_client()


@pytest.mark.parametrize("name", NAMES)
async def test_the_go_client_writes_reads_retries_and_watches(program: Path, name: str) -> None:
    async with endpoint(name) as place:
        await check_client(program, place.grpc, listed=1)


async def test_the_go_client_works_at_the_three_real_processes(program: Path, tmp_path: Path) -> None:
    """All three serve the same records, so each run lists one sandbox more."""
    world = World.embedded(tmp_path / "world")
    async with world.running():
        for listed, name in enumerate(("a", "b-1", "router-1"), start=1):
            await check_client(program, world.nodes[name].public, listed)


async def check_client(program: Path, address: str, listed: int) -> None:
    output = await asyncio.to_thread(run, [str(program), address], ROOT, dict(os.environ), RUN_SECONDS)
    lines = dict(line.split(" ", 1) for line in output.splitlines())
    sandbox = lines["created"]
    assert re.fullmatch(r"sandboxes/[a-z0-9-]+", sandbox)
    assert lines == {
        "created": sandbox,
        "again": f"{sandbox} true",
        "got": f"{sandbox} debian:13",
        "listed": str(listed),
        "updated": f"{sandbox} blue",
        "refused": "NotFound SANDBOX_NOT_FOUND",
        "watched": f"{sandbox} blue",
    }


def test_code_for_python_is_generated_by_the_same_file(tmp_path: Path) -> None:
    generate({"python": tmp_path, "pyi": tmp_path})
    assert (tmp_path / "sandbox" / "v1" / "sandbox_service_pb2.py").exists()
    assert (tmp_path / "sandbox" / "v1" / "sandbox_service_pb2.pyi").exists()


def test_code_is_generated_by_plugins_of_this_machine_alone() -> None:
    template = yaml.safe_load((ROOT / "buf.gen.yaml").read_text())
    assert all({"local", "protoc_builtin"} & plugin.keys() for plugin in template["plugins"])
    assert [list(one) for one in template["inputs"]] == [["binary_image", "paths"]]


def test_modules_come_from_where_go_gets_them_by_itself() -> None:
    text = (EXAMPLE / "go.mod").read_text()
    assert "replace" not in text
    assert not [name for name in ("go.mod", "go.sum") if "proxy" in (EXAMPLE / name).read_text()]


def test_a_go_that_is_too_old_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go1.19.8\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        ServerMissing, match=r"go is go1\.19\.8, and 1\.24 or later is needed\. Debian 13 or later: apt"
    ):
        locate.go()
