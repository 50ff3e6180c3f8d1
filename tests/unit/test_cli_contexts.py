"""`baton context`: named systems, and the one that a command goes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from services.router.cli import contexts
from services.router.cli.app import tree
from services.router.cli.failure import Exit

runner = CliRunner()
app = tree()
STAGING, PROD = "127.0.0.1:1", "127.0.0.1:2"


@pytest.fixture(scope="module", autouse=True)
def built_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("BATON_CONTROL", "BATON_CONTEXT", "BATON_TOKEN_FILE", "BATON_CONTROL_TOKEN_FILE", "BATON_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def baton(*words: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
    result = runner.invoke(app, list(words), env=env)
    assert result.exit_code == code, result.output
    return result


def asked(*words: str, env: dict[str, str] | None = None) -> str:
    """The address that a command goes to, where no router answers."""
    said = baton(*words, "status", code=Exit.FAILED, env=env).stderr
    return said.partition("no router answers at ")[2].partition(": ")[0]


@pytest.fixture
def two(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 20)
    token.chmod(0o600)
    baton("context", "add", "staging", "--address", STAGING)
    baton("context", "add", "prod", "--address", PROD, "--token-file", str(token))


@pytest.mark.usefixtures("two")
def test_a_command_goes_to_the_context_in_use() -> None:
    assert asked() == STAGING, "the first one is in use at once"
    baton("context", "use", "prod")
    assert asked() == PROD
    baton("context", "remove", "prod")
    assert asked() == "127.0.0.1:7700"


@pytest.mark.usefixtures("two")
def test_an_option_or_a_variable_goes_before_the_context_in_use() -> None:
    assert asked("--context", "prod") == PROD
    assert asked(env={"BATON_CONTEXT": "prod"}) == PROD
    assert asked(env={"BATON_CONTROL": "127.0.0.1:3"}) == "127.0.0.1:3"
    assert asked("--address", "127.0.0.1:4", env={"BATON_CONTEXT": "prod"}) == "127.0.0.1:4"
    # Who names a context means it, whatever the shell's variables say.
    assert asked("--context", "prod", env={"BATON_CONTROL": "127.0.0.1:3"}) == PROD
    said = baton("--context", "prod", "--address", "127.0.0.1:4", "status", code=Exit.USAGE).stderr
    assert "leave one out" in said


@pytest.mark.usefixtures("two")
def test_the_token_of_one_system_is_not_sent_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Path | None]] = []

    def examine(options: Any) -> list[Any]:
        sent.append((options.address, options.token_file))
        return []

    monkeypatch.setattr("services.router.cli.checkup.examine", examine)
    baton("context", "use", "prod")
    baton("doctor")
    baton("doctor", "--address", "127.0.0.1:4")
    baton("doctor", env={"BATON_CONTROL": "127.0.0.1:3"})
    baton("--context", "staging", "doctor", env={"BATON_TOKEN_FILE": "/of/another/system"})
    files = [file for _, file in sent]
    assert files[0] is not None
    assert files[1:] == [None, None, None]


@pytest.mark.usefixtures("two")
def test_a_change_names_the_context_before_it_asks() -> None:
    said = baton("--context", "prod", "probe", "--dry-run").stderr
    assert f"This would happen at prod ({PROD}):" in said


@pytest.mark.usefixtures("two")
def test_contexts_are_listed_without_any_secret(folder: Path) -> None:
    listed = json.loads(baton("context", "-o", "json").stdout)
    assert listed["used"] == "staging"
    assert [(one["name"], one["address"], one["used"]) for one in listed["contexts"]] == [
        ("prod", PROD, False),
        ("staging", STAGING, True),
    ]
    file = folder / "baton" / "contexts.toml"
    assert listed["file"] == str(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "x" * 20 not in file.read_text()
    assert "prod" in baton("context", "list").stdout


def test_a_dry_run_changes_no_file(folder: Path) -> None:
    baton("context", "add", "staging", "--address", STAGING, "--dry-run")
    assert not (folder / "baton").exists()


@pytest.mark.parametrize("words", [("context", "use", "nowhere"), ("--context", "nowhere", "status")])
def test_an_unknown_context_is_refused_with_those_that_exist(words: tuple[str, ...]) -> None:
    assert "baton context add makes one" in baton(*words, code=Exit.USAGE).stderr
    baton("context", "add", "staging", "--address", STAGING)
    assert "one of staging" in baton(*words, code=Exit.USAGE).stderr


@pytest.mark.parametrize("content", ["used = ", "[contexts.a]\ntoken = 'x'\n", "contexts = 3\n"])
def test_a_file_that_cannot_be_used_is_named(folder: Path, content: str) -> None:
    (folder / "baton").mkdir()
    (folder / "baton" / "contexts.toml").write_text(content)
    assert "contexts.toml cannot be read" in baton("status", code=Exit.USAGE).stderr


def test_a_file_that_others_can_change_is_refused(folder: Path) -> None:
    baton("context", "add", "staging", "--address", STAGING)
    (folder / "baton" / "contexts.toml").chmod(0o666)
    assert "other users can change it" in baton("status", code=Exit.USAGE).stderr


def test_a_name_with_special_characters_is_refused() -> None:
    assert "is not a name" in baton("context", "add", "a b", code=Exit.USAGE).stderr


def test_what_is_written_is_read_again() -> None:
    found = contexts.Contexts().add("a.b-c", {"address": 'x"\\y:1', "tls_ca": "/ä/ca.pem"}).use("a.b-c")
    contexts.write(found)
    assert contexts.read() == found
