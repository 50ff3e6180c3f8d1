"""The commands of README.md, docs/migration.md and docs/operations.md, run in an order in which an operator could.

The system is the one that docs/migration.md starts, by the document's own commands. Only ports are exchanged, and gates
are overridden: an empty system has no traffic that they could judge.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.proving.servers.ports import free_port
from services.router.core.runbooks import RUNBOOKS
from tests.documents import COMMANDS, Block, blocks, documents
from tests.waiting import eventually

BIN = Path(sys.executable).parent
PORTS = (7600, 7680, 7681, 7682, 7700, 50051, 50052, 50061, 50062)
"""All that the documents name, and the defaults of the three processes."""
START_SECONDS = 240.0
BLOCK_SECONDS = 120.0

OVERRIDE = """
baton() {
  if [ "${1-} ${2-}" = "phase advance" ]; then set -- "$@" --override "the documents are tried"; fi
  local code=0
  command baton "$@" || code=$?
  case $code in 0|3|4) ;; *) echo "baton $*: exit code $code" >&2; return $code ;; esac
}
"""
"""A gate may say no, with or without evidence; nothing else may fail."""

RUN = ("README.md", "docs/operations.md", "docs/migration.md", "docs/retirement.md")
ELSEWHERE = {
    "docs/clients.md": "test_docs_clients.py",
    "clients/python/README.md": "test_docs_clients.py",
    **{one.path: "test_runbook_commands.py" for one in RUNBOOKS},
}

NOT_RUN = {
    "README.md": ["not run: CI runs make test itself; tests/acceptance/test_demo.py runs the demo"],
    "docs/adapters.md": ["not run: make test runs the whole folder"],
    "docs/benchmarks.md": ["not run: minutes each; tests/integration/test_bench_pool.py runs a short one"],
    "docs/clients.md": [
        "not run: the tests use the package where it is",
        "not run: test_client_go.py does the same, in a folder of its own",
        "not run: needs packages of npm",
    ],
    "docs/kubernetes.md": [
        "not run: needs a cluster; tests/integration/test_kubernetes_start.py starts what the manifests start"
    ],
    "docs/console.md": ["not run: a part of a start"],
    "docs/operations.md": [
        "not run: needs a lost store; tests/acceptance/test_recovery.py runs it",
        "not run: the addresses are examples",
        "not run: settings of a system of its own",
        "not run: settings of a system of its own",
        "not run: it needs stores; tests/integration/test_router_workers.py runs two workers",
    ],
    "docs/schema-changes.md": ["not run: needs a PostgreSQL server; tests/integration/test_postgres_store.py has one"],
    "docs/zero-hop.md": [
        "not run: settings of a system of its own",
        "not run: needs a system with these addresses",
    ],
}
"""The blocks that no test runs, each with the reason."""


class Site:
    """The system of docs/migration.md, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "system.log"
        self._ports = {port: free_port() for port in PORTS}
        address = {port: f"127.0.0.1:{self._ports[port]}" for port in PORTS}
        self._environment = {
            **{name: value for name, value in os.environ.items() if "BATON_" not in name},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "BATON_CONTROL": address[7700],
            "BATON_ACTOR": "ann@host",
            "BATON_ROUTER_PUBLIC": address[7600],
            "BATON_ROUTER_CONTROL": address[7700],
            "SIMPLE_MCP_PUBLIC": address[50051],
            "SIMPLE_MCP_INTERNAL": address[50052],
            "SERVICE_LAYER_PUBLIC": address[50061],
            "SERVICE_LAYER_INTERNAL": address[50062],
        }

    def processes_ready(self) -> bool:
        """Whether all three processes have reported it."""
        return self._log.read_text().count("\nready ") == 3

    def script(self, block: Block) -> str:
        code = block.code
        for port, mine in self._ports.items():
            code = code.replace(f"127.0.0.1:{port}", f"127.0.0.1:{mine}")
        return code

    def start(self, block: Block) -> subprocess.Popen[bytes]:
        """The processes that the block starts, in a group of their own."""
        with self._log.open("wb") as log:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.script(block) + "\nwait"],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, block: Block, seconds: float = BLOCK_SECONDS) -> str:
        """The output of the block. Raises AssertionError with the output if a command fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", OVERRIDE + self.script(block)],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{block.document}:\n{block.code}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The site of the first block of docs/migration.md; its processes end with the test."""
    site = Site(tmp_path)
    first, *_ = blocks("docs/migration.md")
    system = site.start(first)
    try:
        yield site
    finally:
        os.killpg(system.pid, signal.SIGTERM)
        try:
            system.wait(30)
        finally:
            if system.poll() is None:
                os.killpg(system.pid, signal.SIGKILL)


async def ready(site: Site) -> None:
    status = Block("docs/migration.md", "sh", "command baton doctor >/dev/null && command baton status", "")
    # Before that, each command would only take processor time from the processes.
    await eventually(site.processes_ready, START_SECONDS)
    await eventually(lambda: asyncio.to_thread(site.run, status), START_SECONDS)


async def test_the_commands_of_the_documents_work_on_one_system(site: Site) -> None:
    await ready(site)
    for document in RUN:
        for number, block in enumerate(blocks(document)):
            if block.kind in COMMANDS and block.runs and (document, number) != ("docs/migration.md", 0):
                await asyncio.to_thread(site.run, block)


def test_every_block_that_a_reader_could_run_is_run_or_says_why_not() -> None:
    notes: dict[str, list[str]] = {}
    for document in documents():
        for block in blocks(document):
            if block.kind not in COMMANDS:
                continue
            if block.note.startswith("not run: "):
                notes.setdefault(document, []).append(block.note)
            else:
                assert document in RUN or document in ELSEWHERE, f"no test runs {document}:\n{block.code}"
    assert notes == NOT_RUN
