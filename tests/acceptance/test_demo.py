"""`baton demo` as a person runs it: real processes on the embedded default, a migration there and back under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from libs.proving.servers import tree
from libs.proving.trial import world
from libs.proving.trial.evidence import Evidence
from libs.proving.trial.verdict import judge
from services.router.cli.demo.report import ZERO, DemoReport, Facts
from services.router.cli.demo.script import MARKED_BY_THE_RUN, OLD_CLIENT_SECONDS, ON_PURPOSE
from tests.waiting import eventually

BATON = [
    sys.executable,
    "-c",
    # As from a terminal: a shell that runs tests in the background has its children ignore Ctrl-C.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from services.router.cli import main; main()",
]
RUN_SECONDS = 400
START_SECONDS = 60
STOP_SECONDS = 2 * world.STOP_SECONDS + 30
"""Routers stop first, then all others; the load ends before and the report is written after."""

KEYS = {
    "requests",
    "acknowledged_writes",
    "lost",
    "duplicated",
    "stale_strict_reads",
    "diverged",
    "linearizable",
    "switches",
    "slowest_request_ms",
    "digests_equal",
    "calls_per_second",
    "stale_reads_marked",
    "unknown_outcomes",
    "kills",
    "automatic_rollbacks",
    "overrides",
    "stack",
    "verdict",
    "certificate",
}
SWITCH_KEYS = {"from", "to", "seconds", "records", "slowest_request_ms", "errors"}


@dataclass
class Finished:
    """A demo that came to its end, with its evidence kept."""

    code: int
    report: dict[str, Any]
    printed: dict[str, Any]
    told: str
    kept: Path


@dataclass
class UnderWay:
    """A demo that was started, with its output in files."""

    process: subprocess.Popen[bytes]
    directory: Path

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture(scope="module")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnderWay]:
    """One short run, which several tests look at. It goes on while other tests start demos of their own.

    It is secure; the others are not.
    """
    directory = tmp_path_factory.mktemp("demo")
    kept = str(directory / "kept")
    arguments = ("demo", "--secure", "--seconds", "20", "--rate", "80", "--keep", kept, "-o", "json")
    with _started(directory, *arguments) as process:
        yield UnderWay(process, directory)


@pytest.fixture(scope="module")
def finished(under_way: UnderWay) -> Finished:
    """The run at its end."""
    code = under_way.process.wait(RUN_SECONDS)
    told = under_way.read("told")
    report = under_way.directory / "build" / "demo" / "report.json"
    assert report.is_file(), told
    printed = json.loads(under_way.read("printed"))
    return Finished(code, json.loads(report.read_text()), printed, told, under_way.directory / "kept")


@pytest.mark.usefixtures("under_way")
async def test_ctrl_c_stops_every_process_and_ends_with_130(tmp_path: Path) -> None:
    with _started(tmp_path, "demo", "--rate", "50") as demo:
        await _under_load(demo, tmp_path)
        family = tree.descendants(demo.pid)
        assert len(family) >= 3
        demo.send_signal(signal.SIGINT)
        assert demo.wait(STOP_SECONDS) == 130
        await eventually(lambda: not any(process.lives() for process in family), 5.0)
    assert "interrupted" in (tmp_path / "told").read_text()


@pytest.mark.usefixtures("under_way")
async def test_a_process_that_dies_unasked_fails_the_demo_and_is_named(tmp_path: Path) -> None:
    with _started(tmp_path, "demo", "--rate", "50") as demo:
        await _under_load(demo, tmp_path)
        old = next(process for process in tree.descendants(demo.pid) if "services.simple_mcp" in _words(process.pid))
        os.kill(old.pid, signal.SIGKILL)
        assert demo.wait(STOP_SECONDS) == 1
    report = json.loads((tmp_path / "build" / "demo" / "report.json").read_text())
    assert report["verdict"].startswith("FAILED: a: ended unexpectedly with code -9")
    assert (tmp_path / report["evidence"] / "evidence" / "client-00.jsonl").is_file()


def test_a_demo_loses_nothing_and_says_so(finished: Finished) -> None:
    assert finished.report["verdict"] == "nothing was lost", finished.told
    assert finished.code == 0
    assert {name: finished.report[name] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert finished.report["linearizable"] is True
    assert finished.report["digests_equal"] is True
    assert finished.report["acknowledged_writes"] > 100


def test_a_demo_ends_with_a_signed_certificate_that_names_its_window(finished: Finished, under_way: UnderWay) -> None:
    found = finished.report["certificate"]
    certificate = found["certificate"]
    assert (certificate["complete"], certificate["open"]) == (True, [])
    assert certificate["clients"]["window_seconds"] == OLD_CLIENT_SECONDS
    assert "window without a direct call: 5 s" in finished.told
    assert found["key"] and len(found["code"]) == 64
    digests = certificate["stores"]["digests"]
    assert digests["A"] == digests["B"]
    assert certificate["history"]["rollbacks"]["total"] == 2
    page = under_way.directory / "build" / "demo" / "certificate.html"
    assert found["digest"] in page.read_text()


def test_no_stranger_was_let_in(finished: Finished) -> None:
    """The verdict counts a stranger that was answered, and one that was never refused for the right reason."""
    assert finished.report["secure"] is True
    assert finished.report["strangers_refused"] > 50
    assert "both stores refused them as UNAUTHENTICATED; 4 dropped" in finished.told


def test_the_report_has_its_keys_and_is_what_was_printed(finished: Finished) -> None:
    assert finished.report.keys() >= KEYS
    assert finished.printed == finished.report
    assert all(switch.keys() == SWITCH_KEYS for switch in finished.report["switches"])


def test_the_demo_goes_there_and_back_and_there_again(finished: Finished) -> None:
    phases = [switch["to"] for switch in finished.report["switches"]]
    canaries = [f"DUAL_WRITE {percent} %" for percent in (0, 5, 10, 50, 100)]
    by_itself = ["DUAL_WRITE 0 %, held at A", "DUAL_WRITE 0 %", "DUAL_WRITE 100 %", "DUAL_READ", "CUTOVER"]
    again = ["SHADOW", "DUAL_WRITE 0 %", "DUAL_WRITE 100 %", "DUAL_READ", "CUTOVER"]
    there = ["SHADOW", *canaries, "DUAL_READ", "CUTOVER"]
    assert phases == [*there, *by_itself, "OFF, held at A", "OFF", *again]
    assert sum(switch["records"] for switch in finished.report["switches"]) > 600
    assert [kill["process"] for kill in finished.report["kills"]] == ["b-1"]


def test_a_hanging_b_is_left_by_the_router_itself_and_its_records_come_home(finished: Finished) -> None:
    (rollback,) = finished.report["automatic_rollbacks"]
    assert "server faults" in rollback["reason"]
    assert 0 < rollback["held_seconds"] <= rollback["reads_seconds"]
    assert "all traffic is held at A" in finished.told
    (home,) = [switch for switch in finished.report["switches"] if switch["to"] == "DUAL_WRITE 0 %, held at A"]
    assert home["records"] > 300


def test_a_gate_blocked_and_its_override_is_in_the_journal(finished: Finished) -> None:
    assert "audit FAIL" in finished.report["gates_blocked"]
    assert "backfill FAIL" in finished.report["gates_blocked"]
    assert "refused, as it should be" in finished.told
    on_purpose = [reason for reason in finished.report["overrides"] if reason.startswith(ON_PURPOSE)]
    assert len(on_purpose) == 1


def test_a_demo_passes_its_gates_on_evidence(finished: Finished) -> None:
    """Beside the override on purpose, only a gate that saw the planted faults or a busy machine may be overridden."""
    others = [reason for reason in finished.report["overrides"] if not reason.startswith(ON_PURPOSE)]
    for reason in others:
        assert set(reason.rpartition(": ")[2].split(", ")) <= set(MARKED_BY_THE_RUN), reason
    assert re.search(r"journaled: .*gate_compared_reads=100, ", finished.told)


def test_a_demo_begins_with_an_audit_whose_dirt_must_be_accepted(finished: Finished) -> None:
    audits = [line for line in finished.told.splitlines() if "records have findings" in line]
    assert [line.split(":")[0].strip() for line in audits[:1]] == ["FINDINGS"]
    assert any(line.strip().startswith("ACCEPTED:") for line in audits)
    assert not any("audit" in reason for reason in finished.report["overrides"])


def test_a_write_that_is_dropped_from_the_kept_exports_is_missed(finished: Finished) -> None:
    """The same evidence, once unchanged and once without the traces of the last acknowledged write."""
    evidence = Evidence.load(finished.kept / "evidence")
    facts = Facts(stack="embedded", clients=1, seconds=1.0)
    assert DemoReport(facts, None, judge(evidence)).exit_code == 0
    last = next(call for call in reversed(evidence.calls) if call.method == "update" and call.revision)
    events = [event for event in evidence.events if (event.name, event.version) != (last.key, last.revision)]
    report = DemoReport(facts, None, judge(replace(evidence, events=tuple(events))))
    assert report.exit_code == 1
    assert report.as_dict()["lost"] == 1
    without = [
        replace(content, records=tuple(held for held in content.records if held.name != last.key))
        for content in evidence.stores
    ]
    report = DemoReport(facts, None, judge(replace(evidence, stores=tuple(without))))
    assert report.exit_code == 1
    assert report.as_dict()["lost"] > 0


def test_a_directory_that_is_in_use_is_refused(finished: Finished, tmp_path: Path) -> None:
    done = subprocess.run(
        [*BATON, "demo", "--keep", str(finished.kept)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--keep" in done.stderr


@contextmanager
def _started(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running `baton`; its output is in the files `printed` and `told`."""
    with (directory / "printed").open("wb") as printed, (directory / "told").open("wb") as told:
        # A shell starts its background processes with SIGINT ignored, and a child inherits that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        demo = subprocess.Popen([*BATON, *arguments], cwd=directory, stdout=printed, stderr=told)
        signal.signal(signal.SIGINT, before)
    try:
        yield demo
    finally:
        family = tree.descendants(demo.pid)
        demo.kill()
        demo.wait()
        for process in family:
            process.send(signal.SIGKILL)


async def _under_load(demo: subprocess.Popen[bytes], directory: Path) -> None:
    def acknowledged() -> bool:
        assert demo.poll() is None, (directory / "told").read_text() + (directory / "printed").read_text()
        history = directory / "build" / "demo" / "work" / "evidence" / "client-00.jsonl"
        return history.is_file() and '"outcome":"ok"' in history.read_text()

    await eventually(acknowledged, START_SECONDS)


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
