"""A missing, wrong or unknown setting stops the start; the message has its name, its value and the valid form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from libs.process import ProcessSettings
from libs.settings import USAGE_EXIT_CODE, WrongSetting, load
from libs.text import hide_password
from services.router.core.phase import Phase
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.simple_mcp.settings import SimpleMcpSettings
from tests.composed import ROOT, SETTINGS

Kind = type[ProcessSettings]

NEEDED: dict[Kind, dict[str, str]] = {
    RouterSettings: {
        "event_log": "memory:",
        "store_a": "127.0.0.1:50052",
        "store_b": "127.0.0.1:50062",
        "control_store": "memory:",
    },
    SimpleMcpSettings: {"event_log": "memory:", "database": "sandboxes.db"},
    ServiceLayerSettings: {"event_log": "memory:", "database": "sqlite:///b.db"},
}
"""All that has no default, in each program."""

ADDRESS = "host:port"
WRONG: list[tuple[str, str, str]] = [
    ("public", "7600", ADDRESS),
    ("public", "127.0.0.1:70000", ADDRESS),
    ("public", "no space:1", ADDRESS),
    ("event_log", "kafka://host/topic", "kafka://host:port/topic"),
    ("event_log", "", "memory:"),
    ("event_log_partitions", "0", "greater than or equal to 1"),
    ("event_log_partitions", "many", "integer"),
    ("event_log_create", "perhaps", "boolean"),
    ("event_log_replication_factor", "-1", "greater than or equal to 1"),
    ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
    ("log_format", "xml", "'text' or 'json'"),
    ("public_calls", "0", "greater than or equal to 1"),
    ("drain_seconds", "0", "greater than 0"),
    ("drain_seconds", "nan", "less than or equal to 3600"),
    ("default_deadline_seconds", "4000", "less than or equal to 3600"),
]
"""Name and value of a setting that all programs have, and the text of its refusal."""
WRONG_OF_ONE: list[tuple[Kind, str, str, str]] = [
    (RouterSettings, "control", "nowhere", ADDRESS),
    (RouterSettings, "store_a", "10.0.0.1:1,10.0.0.2:1", ADDRESS),
    (RouterSettings, "store_b", "10.0.0.1:1,", ADDRESS),
    (RouterSettings, "control_store", "mysql://host/name", "sqlite:///path or postgresql://"),
    (RouterSettings, "refresh_seconds", "1.5", "less than or equal to 1"),
    (RouterSettings, "ack_logged", "CUTOVER,NEVER", "OFF, SHADOW, DUAL_WRITE, DUAL_READ, CUTOVER, DEPRECATED"),
    (RouterSettings, "flag_provider", "flagd", "package.module:factory"),
    (RouterSettings, "flag_provider", "http://flags.example", "flagd:/path/to/flags.json"),
    (RouterSettings, "flag_prefix", "sandbox routing", "letters, digits"),
    (RouterSettings, "flag_noun", "a..b", "separated by dots"),
    (RouterSettings, "stale_reads", "sometimes", "boolean"),
    (RouterSettings, "jwt_algorithms", "RS256,HS256", "ES256"),
    (RouterSettings, "jwt_algorithms", "none", "ES256"),
    (RouterSettings, "public_auth", "", "'none', 'jwt', 'mtls' or 'tokens'"),
    (RouterSettings, "jwt_leeway_seconds", "301", "less than or equal to 300"),
    (SimpleMcpSettings, "internal", "0.0.0.0", ADDRESS),
    (SimpleMcpSettings, "router", "router", ADDRESS),
    (SimpleMcpSettings, "outbox_entries", "0", "greater than or equal to 1"),
    (SimpleMcpSettings, "outbox_bytes", "1.5", "integer"),
    (ServiceLayerSettings, "database", "b.db", "sqlite:///path"),
    (ServiceLayerSettings, "redis", "localhost:6379", "redis://host:port/number"),
    (ServiceLayerSettings, "request_pool", "0", "greater than or equal to 1"),
    (ServiceLayerSettings, "apply_pool", "1001", "less than or equal to 1000"),
    (ServiceLayerSettings, "control_pool", "none", "integer"),
    (ServiceLayerSettings, "database_cores", "0", "greater than or equal to 1"),
    (ServiceLayerSettings, "migrate_at_start", "2", "boolean"),
]
KINDS = pytest.mark.parametrize("kind", list(NEEDED), ids=lambda kind: kind.__name__)
PROGRAMS = pytest.mark.parametrize("program", list(SETTINGS))


def prefix_of(kind: Kind) -> str:
    return str(kind.model_config["env_prefix"])


def environment(kind: Kind, **given: str) -> dict[str, str]:
    """The required settings, and the given ones."""
    return {f"{prefix_of(kind)}{name}".upper(): value for name, value in (NEEDED[kind] | given).items()}


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(tuple(prefix_of(kind) for kind in NEEDED)):
            monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)


def refusal(kind: Kind, file: Path | None = None) -> str:
    with pytest.raises(WrongSetting) as found:
        load(kind, file)
    return str(found.value)


@KINDS
def test_what_has_no_default_is_enough(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, environment(kind))
    assert load(kind).event_log == "memory:"
    assert {name for name, field in kind.model_fields.items() if field.is_required()} == set(NEEDED[kind])


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, needed in NEEDED.items() for name in needed])
def test_a_missing_setting_is_named_with_where_to_set_it(
    kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, environment(kind))
    variable = f"{prefix_of(kind)}{name}".upper()
    monkeypatch.delenv(variable)
    assert refusal(kind).endswith(f"{name}: it is not set; set {variable}, or {name} in the file that --config names")


@pytest.mark.parametrize(
    ("kind", "name", "value", "right"), [(kind, *row) for kind in NEEDED for row in WRONG] + WRONG_OF_ONE
)
def test_a_wrong_setting_is_named_with_its_value_and_what_would_be_right(
    kind: Kind, name: str, value: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, environment(kind, **{name: value}))
    found = refusal(kind)
    assert f"{name}: {value!r} is not valid: " in found
    assert right in found


@KINDS
def test_an_unknown_name_in_the_environment_is_refused_with_the_nearest_one(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, environment(kind, drain_second="3"))
    found = refusal(kind)
    assert f"{prefix_of(kind)}DRAIN_SECOND: there is no such setting" in found
    assert f"{prefix_of(kind)}DRAIN_SECONDS" in found


@KINDS
def test_an_unknown_name_in_the_file_is_refused(kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, environment(kind))
    file = tmp_path / "settings.toml"
    file.write_text("drain_second = 3\n")
    assert "drain_second: there is no such setting" in refusal(kind, file)


@KINDS
def test_a_wrong_value_in_the_file_is_shown(kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, environment(kind))
    file = tmp_path / "settings.toml"
    file.write_text("drain_seconds = -1\n")
    assert "drain_seconds: -1 is not valid: " in refusal(kind, file)


@KINDS
def test_the_environment_goes_before_the_file(kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('log_level = "debug"\nlog_format = "json"\n')
    put(monkeypatch, environment(kind, log_level="error", config=str(file)))
    settings = load(kind)
    assert (settings.log_level, settings.log_format) == ("error", "json")


@KINDS
@pytest.mark.parametrize(
    ("content", "said"), [(b"a = ", "is not TOML"), (b"\xff", "is not TOML"), (None, "cannot be read")]
)
def test_a_file_that_cannot_be_used_is_named(
    kind: Kind, content: bytes | None, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(monkeypatch, environment(kind))
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    found = refusal(kind, file)
    assert f"--config: {file} " in found
    assert said in found


def test_a_password_in_a_wrong_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, environment(RouterSettings, control_store="mysql://me:secret@host/name"))
    found = refusal(RouterSettings)
    assert "mysql://me:***@host/name" in found
    assert "secret" not in found
    assert hide_password("redis://:secret@host/0") == "redis://:***@host/0"


def test_a_value_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, environment(RouterSettings, store_a="x" * 5000))
    assert len(refusal(RouterSettings)) < 400


def test_a_pool_for_calls_follows_the_cores_of_the_database_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, environment(ServiceLayerSettings))
    assert load(ServiceLayerSettings).request_pool == 2 * (os.cpu_count() or 1) + 1
    put(monkeypatch, environment(ServiceLayerSettings, database_cores="8"))
    assert load(ServiceLayerSettings).request_pool == 17
    put(monkeypatch, environment(ServiceLayerSettings, database_cores="8", request_pool="5"))
    assert load(ServiceLayerSettings).request_pool == 5


@pytest.mark.parametrize(
    ("value", "phases"),
    [("", set()), ("all", set(Phase)), (" dual_read, CUTOVER ", {Phase.DUAL_READ, Phase.CUTOVER})],
)
def test_phases_are_named_with_commas_between_them(
    value: str, phases: set[Phase], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, environment(RouterSettings, ack_logged=value))
    assert load(RouterSettings).logged_phases == phases


@KINDS
def test_settings_do_not_change_after_the_start(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, environment(kind))
    settings = load(kind)
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "debug"


@PROGRAMS
def test_a_process_with_a_wrong_setting_ends_with_2_and_one_line(program: str) -> None:
    found = started(program, environment(SETTINGS[program], drain_seconds="soon"))
    assert found.returncode == USAGE_EXIT_CODE == 2
    assert "drain_seconds: 'soon' is not valid: " in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert found.stdout == ""


@PROGRAMS
def test_a_process_without_settings_ends_with_2_and_says_what_to_set(program: str) -> None:
    found = started(program, {})
    assert found.returncode == USAGE_EXIT_CODE
    assert f"set {prefix_of(SETTINGS[program])}" in found.stderr
    assert "Traceback" not in found.stderr


@PROGRAMS
def test_a_process_with_an_unknown_setting_ends_with_2(program: str) -> None:
    found = started(program, environment(SETTINGS[program], colour="red"))
    assert found.returncode == USAGE_EXIT_CODE
    assert f"{prefix_of(SETTINGS[program])}COLOUR: there is no such setting" in found.stderr


def started(program: str, given: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", program]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, timeout=60, check=False
    )
