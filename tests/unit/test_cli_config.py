"""`baton config`: the settings in force and where each comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.router.cli.app import tree
from services.router.cli.failure import Exit
from tests.composed import SETTINGS

runner = CliRunner()
app = tree()
NEEDED = {
    "router": {"EVENT_LOG": "memory:", "STORE_A": "a:1", "STORE_B": "b:1", "CONTROL_STORE": "memory:"},
    "simple_mcp": {"EVENT_LOG": "memory:", "DATABASE": "a.db"},
    "service_layer": {"EVENT_LOG": "memory:", "DATABASE": "postgresql://me:secret@host:5432/b"},
}
PREFIXES = {program.rpartition(".")[2]: str(kind.model_config["env_prefix"]) for program, kind in SETTINGS.items()}


def config(verb: str, program: str, *words: str, code: int = 0, **variables: str) -> Result:
    environment = {f"{PREFIXES[program]}{name}": value for name, value in {**NEEDED[program], **variables}.items()}
    result = runner.invoke(app, ["config", verb, program, *words], env=environment)
    assert result.exit_code == code, result.output
    return result


def shown(program: str, *words: str, **variables: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config("show", program, "-o", "json", *words, code=0, **variables).stdout)
    return found


@pytest.mark.parametrize("program", NEEDED)
def test_every_setting_is_shown_with_its_source(program: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('log_format = "json"\nlog_level = "debug"\n')
    found = shown(program, "--config", str(file), LOG_LEVEL="error")
    settings = {one["name"]: one for one in found["settings"]}
    assert set(settings) == set(SETTINGS[f"services.{program}"].model_fields)
    assert (found["file"], found["file_source"]) == (str(file), "flag")
    assert settings["log_format"] == {"name": "log_format", "value": "json", "source": "file", "place": str(file)}
    level = {"name": "log_level", "value": "error", "source": "environment", "place": f"{PREFIXES[program]}LOG_LEVEL"}
    assert settings["log_level"] == level
    assert settings["drain_seconds"] == {"name": "drain_seconds", "value": 10.0, "source": "default", "place": ""}


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('redis = "redis://me:hidden@host:1/0"\n')
    for words in (("-o", "json"), ("--all",)):
        said = config("show", "service_layer", *words, CONFIG=str(file)).stdout
        assert "secret" not in said
        assert "hidden" not in said
        assert "me:***@host" in said


def test_a_variable_can_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("")
    found = shown("router", CONFIG=str(file))
    assert (found["file"], found["file_source"]) == (str(file), "environment")
    assert shown("router")["file"] is None


def test_defaults_are_shown_on_request() -> None:
    assert "drain_seconds" not in config("show", "router").stdout
    assert "drain_seconds" in config("show", "router", "--all").stdout


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_wrong_setting_is_named(verb: str) -> None:
    assert "drain_seconds: 'soon' is not valid" in config(verb, "router", code=Exit.USAGE, DRAIN_SECONDS="soon").stderr


def test_a_file_that_a_setting_names_is_checked(tmp_path: Path) -> None:
    assert "its settings are valid" in config("check", "simple_mcp").stdout
    gone = str(tmp_path / "gone")
    result = config("check", "simple_mcp", "-o", "json", code=Exit.FAILED, TOKEN_FILE=gone, EVENT_KEYS=gone)
    problems = json.loads(result.stdout)["problems"]
    assert [one["setting"] for one in problems] == ["event_keys", "token_file"]
    assert "cannot be read: No such file" in problems[0]["text"]
