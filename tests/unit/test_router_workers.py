"""The supervisor of several routers: it starts them, starts them again, and ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from libs.settings import WrongSetting
from services.router import workers
from services.router.__main__ import main
from services.router.settings import RouterSettings
from services.router.workers import Ports, Supervisor, WorkerFailed, environments
from tests.waiting import eventually

BOUND_SECONDS = 20.0
WORKER = """
import os, pathlib, signal, sys, time
number, folder = os.environ["NUMBER"], pathlib.Path(os.environ["FOLDER"])
refused = folder / f"refused-{number}"
if refused.exists():
    sys.exit(int(refused.read_text()))
def drain(*_):
    (folder / f"drained-{number}").touch()
    if not (folder / "stuck").exists():
        sys.exit(0)
signal.signal(signal.SIGTERM, drain)
(folder / f"pid-{number}").write_text(str(os.getpid()))
print(f"ready public=here number={number}", flush=True)
for _ in range(3000):
    time.sleep(0.01)
"""


class Kept:
    """A supervisor of two workers that write files into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop = asyncio.Event()
        own = [{**os.environ, "NUMBER": str(number), "FOLDER": str(folder)} for number in (1, 2)]
        self.supervisor = Supervisor([sys.executable, "-c", WORKER], own, drain_seconds=0.1)

    def pid(self, number: int) -> int:
        """0 before it is ready."""
        try:
            return int((self.folder / f"pid-{number}").read_text() or 0)
        except FileNotFoundError:
            return 0

    def refuse(self, number: int, code: int) -> None:
        (self.folder / f"refused-{number}").write_text(str(code))


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def kept(folder: Path) -> AsyncIterator[Kept]:
    one = Kept(folder)
    running = asyncio.create_task(one.supervisor.run(one.stop))
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            await eventually(lambda: one.pid(1) and one.pid(2), BOUND_SECONDS)
            yield one
    finally:
        one.stop.set()
        async with asyncio.timeout(BOUND_SECONDS):
            await running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(workers, "LONGEST_PAUSE_SECONDS", 0.03)
    monkeypatch.setattr(workers, "_MARGIN_SECONDS", 1.0)


async def test_workers_are_announced_once_all_are_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with kept(tmp_path):
        shown: list[str] = []

        def announced() -> bool:
            shown.append(capsys.readouterr().out)
            return "ready" in "".join(shown)

        await eventually(announced)
        assert "".join(shown) == "ready public=here number=1 workers=2\n"


async def test_a_worker_that_is_killed_is_started_again_alone(tmp_path: Path) -> None:
    async with kept(tmp_path) as one:
        first, second = one.pid(1), one.pid(2)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: one.pid(1) not in (0, first), BOUND_SECONDS)
        assert one.pid(2) == second and lives(second)


async def test_the_pause_before_a_start_doubles_up_to_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, workers.__name__)

    def pauses() -> list[str]:
        return [found[1] for found in map(re.compile("again in (.+) s").search, caplog.messages) if found]

    async with kept(tmp_path) as one:
        one.refuse(1, 1)
        os.kill(one.pid(1), signal.SIGKILL)
        await eventually(lambda: len(pauses()) >= 4, BOUND_SECONDS)
        assert pauses()[:4] == ["0.01", "0.02", "0.03", "0.03"]


async def test_all_workers_drain_when_the_supervisor_is_stopped(tmp_path: Path) -> None:
    async with kept(tmp_path) as one:
        pids = [one.pid(1), one.pid(2)]
    assert {name for name in os.listdir(tmp_path) if name.startswith("drained")} == {"drained-1", "drained-2"}
    assert not any(map(lives, pids))


async def test_a_worker_that_does_not_end_in_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MARGIN_SECONDS", 0.1)
    (tmp_path / "stuck").touch()
    async with kept(tmp_path) as one:
        pids = [one.pid(1), one.pid(2)]
    assert not any(map(lives, pids))


@pytest.mark.parametrize(("code", "kind"), [(1, WorkerFailed), (2, WrongSetting)])
async def test_a_worker_that_cannot_start_ends_all(tmp_path: Path, code: int, kind: type[Exception]) -> None:
    one = Kept(tmp_path)
    one.refuse(2, code)
    with pytest.raises(ExceptionGroup) as found:
        async with asyncio.timeout(BOUND_SECONDS):
            await one.supervisor.run(one.stop)
    assert found.group_contains(kind)
    assert not one.pid(1) or not lives(one.pid(1))


def settings(**given: str) -> RouterSettings:
    needed = {
        "store_a": "127.0.0.1:1",
        "store_b": "127.0.0.1:2",
        "control_store": "sqlite:///control.db",
        "event_log": "sqlite:///log.db",
        "public": "127.0.0.1:0",
        "control": "127.0.0.1:0",
    }
    return RouterSettings(**{**needed, **given})  # type: ignore[arg-type]


def test_workers_share_their_addresses_and_have_names_and_metrics_of_their_own() -> None:
    with Ports() as ports:
        first, second = environments(settings(name="router", metrics="127.0.0.1:9100"), 2, ports)
        assert first["BATON_ROUTER_PUBLIC"] == second["BATON_ROUTER_PUBLIC"] != "127.0.0.1:0"
        assert first["BATON_ROUTER_CONTROL"] == second["BATON_ROUTER_CONTROL"] != first["BATON_ROUTER_PUBLIC"]
        assert first["BATON_ROUTER_SHARE_PORTS"] == second["BATON_ROUTER_SHARE_PORTS"] == "true"
        assert [one["BATON_ROUTER_NAME"] for one in (first, second)] == ["router-1", "router-2"]
        assert [one["BATON_ROUTER_METRICS"] for one in (first, second)] == ["127.0.0.1:9100", "127.0.0.1:9101"]


def test_a_port_of_another_program_is_not_shared() -> None:
    with socket.socket() as other, Ports() as ports:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(WrongSetting, match=f"public: cannot listen on {address}: Address already in use"):
            environments(settings(public=address), 2, ports)


@pytest.mark.parametrize("name", ["control_store", "event_log"])
def test_workers_need_databases_that_processes_share(name: str) -> None:
    with Ports() as ports, pytest.raises(WrongSetting, match=f"{name}: memory: is of one process alone"):
        environments(settings(**{name: "memory:"}), 2, ports)


@pytest.mark.parametrize("value", ["0", "65", "x", "-1"])
def test_a_wrong_number_of_workers_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["router", f"--workers={value}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{value!r} is not valid: 1 to 64" in capsys.readouterr().err
