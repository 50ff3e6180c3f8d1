"""Every command of `baton` has the options that its kind needs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from libs.pb.baton.control.v1 import approvals_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.cli import contexts
from services.router.cli.app import MODULES, tree
from services.router.cli.client import Control
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Patience

STARTED_BY = {
    "StartJob": ["audit", "backfill", "reconcile", "recover", "replay", "seize", "validate"],
    "StartCanaryAuto": ["canary auto"],
    "StartRehearsal": ["rehearse"],
    "RestartEvents": ["events restart"],
    "AdvancePhase": ["phase advance"],
    "RollbackPhase": ["phase rollback", "rollback"],
    "SetCanary": ["canary set"],
    "SetFlag": ["flags set", "rollback"],
    "AddCohort": ["canary cohort add"],
    "SetCohort": ["canary cohort set"],
    "RemoveCohort": ["canary cohort remove"],
    "LiftHold": ["hold lift"],
    "ChangeJob": ["jobs resume"],
    "ApproveCall": ["approve"],
}
"""Commands that start something which takes time, by the method of the control API."""
CHANGES_NOTHING_OF_A_SYSTEM = {"bench", "demo", "mcp"}
"""They act on this machine alone, or serve until they are ended."""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield name, command
    for word, child in children.items():
        yield from leaves(child, f"{name} {word}".strip())


app = tree()
COMMANDS = dict(leaves(get_command(app)))


@pytest.mark.parametrize("module", MODULES)
def test_a_command_line_builds_the_module_of_its_command_alone(module: str) -> None:
    for word in MODULES[module]:
        alone: Any = get_command(tree([word, "--help"]))
        assert sorted(alone.commands) == sorted(MODULES[module])


def test_a_command_line_that_begins_otherwise_builds_every_command() -> None:
    words = [word for verbs in MODULES.values() for word in verbs]
    for line in ([], ["--address", "127.0.0.1:1", "status"], ["statsu"], ["--help"]):
        found: Any = get_command(tree(line))
        assert sorted(found.commands) == sorted(words)


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json(name: str) -> None:
    assert {"-o", "--output"} <= options(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_changes_something_has_a_dry_run(name: str) -> None:
    found = options(COMMANDS[name])
    changes = bool({"--yes", "--actor"} & found) and "--reveal" not in found
    assert ("--dry-run" in found) is changes or name in CHANGES_NOTHING_OF_A_SYSTEM
    # A command that asks can be told not to.
    assert ("--yes" in found) is ("--dry-run" in found)


def test_every_command_that_starts_something_can_wait_for_its_end() -> None:
    waiting = {name for name, command in COMMANDS.items() if "--wait" in options(command)}
    assert waiting == {name for names in STARTED_BY.values() for name in names}
    assert waiting == {name for name, command in COMMANDS.items() if "--timeout" in options(command)}


def test_every_method_that_starts_something_is_listed() -> None:
    methods = [method.name for method in pb.DESCRIPTOR.services_by_name["ControlService"].methods]
    starting = {name for name in methods if name.startswith(("Start", "Restart", "Resume", "Advance", "Rollback"))}
    assert starting <= set(STARTED_BY) <= set(methods)


def test_a_wait_ends_in_time_and_says_that_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    patience = Patience("backfill-7", 1.0)
    for _ in range(3):
        patience.pause(0.4)
    with pytest.raises(CommandFailed, match="backfill-7 has not ended within 1 s; it goes on") as caught:
        patience.pause(0.4)
    assert caught.value.code is Exit.STILL_RUNNING
    assert slept == pytest.approx([0.4, 0.4, 0.2])
    endless = Patience("backfill-7", 0)
    for _ in range(100):
        endless.pause(1000)


ANSWERS = {
    "ListJobs": pb.ListJobsResponse(jobs=[pb.Job(id="backfill-7"), pb.Job(id="audit-2")]),
    "ListFlags": pb.ListFlagsResponse(
        flags=[
            pb.Flag(name=f"sandbox.routing.{name}") for name in ("use_service_layer", "create_sandbox", "get_sandbox")
        ]
    ),
    "ListPendingCalls": approvals_pb2.ListPendingCallsResponse(calls=[approvals_pb2.PendingCall(id="call-1")]),
    "ListLimits": pb.ListLimitsResponse(limits=[pb.Limit(name="gate_error_calls")]),
    "PlanPhase": pb.PlanPhaseResponse(setting=pb.Setting(phase=pb.PHASE_DUAL_WRITE)),
}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("jobs pause ", ["backfill-7", "audit-2"]),
        ("jobs show b", ["backfill-7"]),
        ("flags set sandbox.routing.c", ["sandbox.routing.create_sandbox"]),
        ("rollback --op ", ["create", "get"]),
        ("explain --op g", ["get"]),
        ("approve ", ["call-1"]),
        ("gates unset ", ["gate_error_calls"]),
        ("phase advance ", ["DUAL_READ"]),
        ("phase rollback ", ["SHADOW", "OFF"]),
        ("rollback O", ["OFF"]),
        ("context use ", ["prod", "staging"]),
        ("--context p", ["prod"]),
    ],
)
def test_a_shell_offers_names_of_the_running_system(
    line: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds: list[float] = []

    def call(self: Control, method: str, request: object, limit: float) -> object:
        seconds.append(limit)
        return ANSWERS[method]

    monkeypatch.setattr(Control, "call", call)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("staging", "prod"):
        contexts.write(contexts.read().add(name, {"address": "127.0.0.1:1"}))
    environment = {
        "_BATON_COMPLETE": "complete_bash",
        "COMP_WORDS": f"baton {line}",
        "COMP_CWORD": str(len(line.split(" "))),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="baton")
    assert result.stdout.split() == words
    assert all(limit <= 1 for limit in seconds)


def completed(line: str, address: str) -> tuple[list[str], str, float]:
    """Words that a shell offers, errors, and the time in seconds."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_BATON_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "BATON_CONTROL": address,
    }
    command = [sys.executable, "-c", "import sys; sys.argv = ['baton']; from services.router.cli import main; main()"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    return done.stdout.split(), done.stderr, time.monotonic() - began


def test_a_router_that_does_not_answer_is_no_completion_and_no_error() -> None:
    """It accepts the connection and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    accepted.append(listener.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            words, errors, _ = completed("baton jobs pause ", f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for one in accepted:
                one.close()
            thread.join()
    assert (words, errors) == ([], "")
