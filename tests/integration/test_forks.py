"""A service that tests start by a fork behaves as the program `python -m services.NAME`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest

from libs.proving.servers.process import Command, Started, execute
from libs.proving.trial.stores import open_readers
from libs.proving.trial.world import World
from tests import forks

END_SECONDS = 60.0

Launch = Callable[[Command, IO[bytes]], Started]


def ended(launch: Launch, folder: Path, environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of A with these arguments and nothing but this environment."""
    folder.mkdir()
    argv = [sys.executable, "-u", "-m", "services.simple_mcp", *arguments]
    path = folder / "log"
    with path.open("wb") as log:
        code = launch(Command("a", argv, path, folder, environment), log).wait(END_SECONDS)
    return code, path.read_text()


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (("--help",), {}, 0, "usage: python -m services.simple_mcp"),
        ((), {"SIMPLE_MCP_DATABASE": "a.db", "SIMPLE_MCP_PUBLIC": "nowhere"}, 2, "SIMPLE_MCP_EVENT_LOG"),
        (("init",), {"SIMPLE_MCP_DATABASE": "missing/a.db", "SIMPLE_MCP_EVENT_LOG": "memory:"}, 1, "missing"),
    ],
)
def test_a_fork_ends_with_the_exit_code_and_the_output_of_the_program(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], code: int, words: str
) -> None:
    forked = ended(forks.launch, tmp_path / "forked", environment, *arguments)
    real = ended(execute, tmp_path / "real", environment, *arguments)
    assert forked[0] == real[0] == code, (forked, real)
    assert words in forked[1] and words in real[1], (forked, real)


async def test_forks_are_processes_of_their_own(tmp_path: Path) -> None:
    """Each has a session and an identity of its own, and a signal ends only one."""
    # The fork server is older than any of its forks.
    assert ended(forks.launch, tmp_path / "help", {}, "--help")[0] == 0
    began = time.monotonic()
    world = World.embedded(tmp_path / "world")
    async with world.running():
        processes = {name: node.process for name, node in world.nodes.items()}
        pids = {name: process.pid for name, process in processes.items()}
        assert {os.getsid(pid or 0) for pid in pids.values()} == set(pids.values())
        async with open_readers(world.stores) as readers:
            first, second = [(await reader.status()).vitals for reader in readers]
        assert first.start_id != second.start_id
        assert first.uptime_seconds < time.monotonic() - began
        await world.kill("a")
        assert processes["a"].exit_code == -signal.SIGKILL
        await world.stop("b-1")
        assert processes["b-1"].exit_code == 0
        assert processes["router-1"].running
        await world.start("a")
        assert processes["a"].pid not in pids.values()
