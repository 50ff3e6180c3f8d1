"""The operator's command without a router: help, arguments and confirmations."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.proving.servers.ports import free_port
from services.router.cli.app import tree
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_percent, parse_phase
from services.router.cli.jobs import parse_rate
from services.router.cli.options import SETTING_KEYS, Changing, Output, agree
from services.router.cli.views import setting_view, view_of
from services.router.core.phase import Phase, Setting

COMMANDS = [
    ["status"],
    ["journal"],
    ["doctor"],
    ["clients"],
    ["backfill"],
    ["jobs"],
    ["jobs", "show", "backfill-1"],
    ["jobs", "pause", "backfill-1"],
    ["jobs", "resume", "backfill-1"],
    ["jobs", "cancel", "backfill-1"],
    ["jobs", "tune", "backfill-1", "rate=5"],
    ["phase", "plan"],
    ["phase", "advance"],
    ["phase", "rollback"],
    ["canary", "set"],
    ["hold", "lift"],
]
CHANGING = [
    *(command for command in COMMANDS if command[0] == "jobs" and command[1:2] not in ([], ["show"])),
    ["backfill"],
    ["phase", "advance"],
    ["phase", "rollback"],
    ["canary", "set"],
    ["hold", "lift"],
]

runner = CliRunner()
app = tree()


@pytest.fixture(scope="module", autouse=True)
def built_once() -> Iterator[None]:
    """One build of the command for all calls: the runner makes one for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "permille"), [("0", 0), ("5", 50), ("0.1", 1), ("12.5%", 125), ("100", 1000), ("1.0", 10)]
)
def test_a_percentage_is_taken_in_steps_of_a_tenth(text: str, permille: int) -> None:
    assert parse_percent(text) == permille


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ten", "not a number"),
        ("", "not a number"),
        ("nan", "out of range"),
        ("inf", "out of range"),
        ("-5", "out of range"),
        ("100.1", "out of range"),
        ("0.05", "too fine"),
        ("1e-3", "too fine"),
    ],
)
def test_a_wrong_percentage_is_refused_with_what_is_allowed(text: str, problem: str) -> None:
    result = runner.invoke(app, ["canary", "set", text])
    assert result.exit_code == Exit.USAGE
    assert problem in result.stderr
    assert "0 to 100, in steps of 0.1" in result.stderr


@pytest.mark.parametrize("text", ["DUAL_READ", "dual_read", "dual-read", " Dual-Read "])
def test_a_phase_is_found_however_it_is_written(text: str) -> None:
    assert parse_phase(text) is Phase.DUAL_READ


def test_a_phase_that_does_not_exist_is_refused_with_those_that_do() -> None:
    result = runner.invoke(app, ["phase", "rollback", "ON"])
    assert result.exit_code == Exit.USAGE
    assert "'ON' does not exist: one of OFF, SHADOW, DUAL_WRITE, DUAL_READ, CUTOVER, DEPRECATED" in result.stderr


@pytest.mark.parametrize("text", ["fast", "-1", "0.5", "nan", "inf", "1000001"])
def test_a_wrong_rate_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(CommandFailed, match="1 to 1000000 per second") as caught:
        parse_rate(text)
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize(("text", "rate"), [("0", 0.0), ("1", 1.0), ("2.5", 2.5), ("1e3", 1000.0)])
def test_a_rate_is_records_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "arguments",
    [
        ["phase", "advance", "SHADOW", "--override", " "],
        ["phase", "advance"],
        ["phase", "advance", "ON"],
        ["status", "-o", "xml"],
        ["journal", "--limit", "0"],
        ["backfill", "--to", "C"],
        ["jobs", "tune", "backfill-1", "5"],
        ["jobs", "tune", "backfill-1", "rate=fast"],
        ["jobs", "pause"],
        ["canary", "set"],
        ["phase", "no-such-command"],
        ["status", "--token-file", "/nonexistent/token"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == Exit.USAGE


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_the_common_options_and_names_its_json_keys(command: list[str]) -> None:
    text = runner.invoke(app, [*command, "--help"]).stdout
    for option in ("--address", "--token-file", "-o", "BATON_CONTROL", "127.0.0.1:7700", "JSON"):
        assert option in text, option
    for option in ("--dry-run", "--yes", "--reason", "--actor"):
        assert (option in text) is (command in CHANGING), option


@pytest.mark.parametrize("arguments", [["--help"], ["phase", "advance", "--help"], ["canary", "set", "200"]])
def test_help_and_refusals_load_no_heavy_library(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom services.router.cli.app import tree\n"
        f"try:\n    tree({arguments!r})({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'asyncpg', 'aiokafka', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr


def test_a_router_that_is_not_there_is_named_with_what_to_do() -> None:
    address = f"127.0.0.1:{free_port()}"
    result = runner.invoke(app, ["status", "--address", address])
    assert result.exit_code == Exit.FAILED
    assert f"no router answers at {address}: start one, or name its control address with --address" in result.stderr
    assert result.stdout == ""


def test_the_address_can_come_from_the_environment() -> None:
    address = f"127.0.0.1:{free_port()}"
    result = runner.invoke(app, ["status"], env={"BATON_CONTROL": address})
    assert address in result.stderr


@pytest.mark.parametrize(("backend", "records"), [("", None), ("sqlite", 7)])
def test_of_a_store_that_never_answered_nothing_is_said_to_be_known(backend: str, records: int | None) -> None:
    status = pb.StoreStatus(backend=backend, records=7 if backend else None)
    shown = view_of(status)
    assert not shown["reachable"] and shown["records"] == records
    if not backend:
        unknown = {"owned_records", "owned_buckets", "outbox_entries", "outbox_oldest_seconds", "parked", "lag_events"}
        assert all(shown[key] is None for key in unknown)


def test_the_doctor_fails_without_a_router_and_says_what_it_could_not_check() -> None:
    result = runner.invoke(app, ["doctor", "-o", "json", "--address", f"127.0.0.1:{free_port()}"])
    assert result.exit_code == Exit.FAILED
    found = {finding["subject"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert found["router"]["level"] == "FAIL"
    assert found["router"]["remedy"]


@pytest.mark.parametrize(("mode", "level"), [(0o600, "PASS"), (0o644, "WARN")])
def test_the_doctor_looks_at_who_can_read_the_token(tmp_path: Path, mode: int, level: str) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 20)
    path.chmod(mode)
    arguments = ["doctor", "-o", "json", "--token-file", str(path), "--address", f"127.0.0.1:{free_port()}"]
    found = {finding["subject"]: finding for finding in json.loads(runner.invoke(app, arguments).stdout)["findings"]}
    assert found["token of this command"]["level"] == level


def test_a_dry_run_says_what_would_happen_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not agree(Changing(dry_run=True, yes=True), ["OFF -> SHADOW"])
    said = capsys.readouterr()
    assert "would happen" in said.err
    assert "OFF -> SHADOW" in said.err
    assert said.out == "", "stdout is for the result alone"


def test_without_a_terminal_nothing_is_done_without_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CommandFailed, match="add --yes") as caught:
        agree(Changing(), ["OFF -> SHADOW"])
    assert caught.value.code is Exit.USAGE
    assert agree(Changing(yes=True), ["OFF -> SHADOW"])


def test_at_a_terminal_it_asks_and_a_no_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert agree(Changing(), ["OFF -> SHADOW"])
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(CommandFailed, match="nothing was changed"):
        agree(Changing(), ["OFF -> SHADOW"])
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    with pytest.raises(typer.Abort):
        agree(Changing(), ["OFF -> SHADOW"])


def test_the_version_is_printed() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (Exit.OK, f"baton {version('baton')}\n")


def test_a_shell_completes_commands() -> None:
    environment = {**os.environ, "_BATON_COMPLETE": "complete_bash", "COMP_WORDS": "baton jou", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['baton']; from services.router.cli import main; main()"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert found.stdout.split() == ["journal"], found.stderr


def test_options_before_the_verb_hold_unless_they_are_given_behind_it_too() -> None:
    result = runner.invoke(app, ["--address", "127.0.0.1:1", "-o", "json", "status"], env={"BATON_CONTROL": "x:2"})
    assert "no router answers at 127.0.0.1:1" in json.loads(result.stderr)["error"]["message"]
    result = runner.invoke(app, ["--address", "127.0.0.1:1", "jobs", "--address", "127.0.0.1:3"])
    assert "no router answers at 127.0.0.1:3" in result.stderr
    result = runner.invoke(app, ["--token-file", "/nonexistent/token", "phase", "plan"])
    assert (result.exit_code, "/nonexistent/token" in result.stderr) == (Exit.USAGE, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "-o", "json", "--address", "127.0.0.1:1"], Exit.FAILED),
        (["canary", "set", "200", "-o", "json"], Exit.USAGE),
        (["canary", "sett", "5", "--output=json"], Exit.USAGE),
        (["-o", "json", "journal", "--limit", "0"], Exit.USAGE),
        (["demo", "--stack", "none", "-ojson"], Exit.USAGE),
    ],
)
def test_with_json_an_error_is_one_json_object(arguments: list[str], code: Exit) -> None:
    result = runner.invoke(app, arguments)
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, error["exit_code"], error["exit"]) == (code, code, code.name)
    assert error["message"] and result.stdout == ""


def test_with_json_a_dry_run_says_its_plan_in_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    agreed = agree(Changing(output=Output.JSON, dry_run=True), ["OFF -> SHADOW"])
    assert agreed.view == {"dry_run": True, "effects": ["OFF -> SHADOW"]}
    assert capsys.readouterr() == ("", "")


def test_help_names_the_fields_of_a_message_within_80_columns() -> None:
    text = runner.invoke(app, ["status", "--help"]).stdout
    assert max(map(len, text.splitlines())) <= 80
    words = set(re.findall(r"[a-z0-9_]+", text))
    for message in (pb.StoreStatus, pb.RollbackCost, pb.MeasuredCalls, pb.Flag):
        assert {field.name for field in message.DESCRIPTOR.fields} <= words
    assert "{" not in text


def test_the_keys_of_a_setting_are_those_of_its_view() -> None:
    assert SETTING_KEYS.split() == list(setting_view(Setting()))
