"""The event loop of a process: libuv's where it is installed, else asyncio's own. A program serves on either."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from libs.process import event_loop
from libs.proving.servers.ports import free_port
from tests.certificates import Authority
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
HANDSHAKES = 20


def test_without_the_package_a_process_has_pythons_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert event_loop() is None


@pytest.mark.parametrize("uv", [True, False])
async def test_a_program_serves_and_stops_on_either_loop(tmp_path: Path, *, uv: bool) -> None:
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "uvloop.py").write_text("raise ImportError('not installed')\n")
    http = f"127.0.0.1:{free_port()}"
    authority = Authority(tmp_path)
    pair = authority.issue("own", "127.0.0.1")
    settings = {
        "SIMPLE_MCP_DATABASE": str(tmp_path / "a.db"),
        "SIMPLE_MCP_EVENT_LOG": f"sqlite:///{tmp_path / 'log.db'}",
        "SIMPLE_MCP_PUBLIC": "127.0.0.1:0",
        "SIMPLE_MCP_INTERNAL": "127.0.0.1:0",
        "SIMPLE_MCP_HTTP": http,
        "SIMPLE_MCP_TLS_CERTIFICATE": str(pair.certificate),
        "SIMPLE_MCP_TLS_KEY": str(pair.key),
    }
    environment = {**os.environ, **settings, "PYTHONPATH": "" if uv else str(missing)}
    command = [sys.executable, "-m", "services.simple_mcp"]
    made = await asyncio.to_thread(
        subprocess.run, [*command, "init"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).startswith(b"ready ")
        assert _has_loaded(process.pid, "uvloop") is uv
        codes = await asyncio.to_thread(_codes, f"https://{http}/v1/sandboxes", authority.file)
        assert codes == [200] * HANDSHAKES
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.returncode is not None, 30.0)
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _codes(url: str, ca: Path) -> list[int]:
    """One connection for each request. A client sends its first bytes as soon as it is connected."""
    trust = ssl.create_default_context(cafile=str(ca))
    found = []
    for _ in range(HANDSHAKES):
        with urllib.request.urlopen(url, timeout=30, context=trust) as answer:
            found.append(answer.status)
    return found


def _has_loaded(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()
