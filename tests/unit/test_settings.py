"""A wrong setting stops the start; the message has its name, its value and the valid form."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from libs.process import check_addresses
from libs.settings import WrongSetting, load
from libs.telemetry.logs import JsonLines, TextLines
from libs.text import hide_password
from services.router.core.limits import THRESHOLDS
from services.router.core.thresholds import Limits
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings

PREFIX = "SERVICE_LAYER_"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Only the required settings are set."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv(f"{PREFIX}DATABASE", "sqlite:///b.db")
    monkeypatch.setenv(f"{PREFIX}EVENT_LOG", "memory:")
    return monkeypatch


def test_the_environment_goes_before_the_file(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('writes = 7\npublic = "127.0.0.1:7"\n')
    environment.setenv(f"{PREFIX}WRITES", "8")
    environment.setenv(f"{PREFIX}CONFIG", str(file))
    settings = load(ServiceLayerSettings)
    assert (settings.writes, settings.public) == (8, "127.0.0.1:7")
    with pytest.raises(ValidationError):
        settings.writes = 9


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PUBLIC", "here", "public: 'here' is not valid: give host:port"),
        ("PUBLIC", "127.0.0.1:70000", "public: '127.0.0.1:70000' is not valid"),
        ("ROUTER", "x", "router: 'x' is not valid: give host:port"),
        ("DATABASE", "b.db", "database: 'b.db' is not valid: use postgresql://"),
        ("DATABASE", "mysql://me:secret@x/y", r"database: 'mysql://me:\*\*\*@x/y' is not valid"),
        ("EVENT_LOG", "kafka://x", "event_log: 'kafka://x' is not valid: an event log is at"),
        ("REDIS", "localhost", "redis: 'localhost' is not valid: use redis://"),
        ("WRITES", "0", "writes: '0' is not valid: .* greater than or equal to 1"),
        ("DRAIN_SECONDS", "-1", "drain_seconds: '-1' is not valid: .* greater than 0"),
        ("LOG_LEVEL", "loud", "log_level: 'loud' is not valid: .*'debug', 'info'"),
        ("WRTIES", "1", "SERVICE_LAYER_WRTIES: there is no such setting"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, message: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(WrongSetting, match=message):
        load(ServiceLayerSettings)


def test_a_missing_setting_is_named_with_both_places(environment: pytest.MonkeyPatch) -> None:
    environment.delenv(f"{PREFIX}EVENT_LOG")
    with pytest.raises(WrongSetting, match=r"event_log: it is not set; set SERVICE_LAYER_EVENT_LOG, or event_log in"):
        load(ServiceLayerSettings)


@pytest.mark.parametrize(
    ("content", "message"),
    [('colour = "red"', "colour: there is no such setting"), ("writes = [", "is not TOML"), (None, "cannot be read")],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WrongSetting, match=message):
        load(ServiceLayerSettings, file)


def test_passwords_are_hidden() -> None:
    assert hide_password("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    assert hide_password("redis://:secret@host/0") == "redis://:***@host/0"


def test_a_log_record_is_one_line_of_text_or_json() -> None:
    record = logging.LogRecord("libs.x", logging.INFO, "f", 1, "served %d", (3,), None)
    record.created = 0.5
    assert TextLines().format(record) == "1970-01-01T00:00:00.500Z INFO    libs.x: served 3"
    expected = {"time": "1970-01-01T00:00:00.500Z", "level": "info", "logger": "libs.x", "message": "served 3"}
    assert json.loads(JsonLines().format(record)) == expected


def test_a_callers_text_begins_no_log_line_and_steers_no_terminal() -> None:
    text = "x\r\n2026-01-01T00:00:00.000Z ERROR forged\x1b[2J\u202e\u2028 ü"
    record = logging.LogRecord("libs.x", logging.INFO, "f", 1, "asked for by %s", (text,), None)
    shown = r"asked for by x\x0d\x0a2026-01-01T00:00:00.000Z ERROR forged\x1b[2J\u202e\u2028 ü"
    assert TextLines().format(record).endswith(shown)
    assert json.loads(JsonLines().format(record))["message"] == "asked for by " + text
    assert "\n" not in JsonLines().format(record)


def test_the_thresholds_of_the_settings_are_those_of_the_rules() -> None:
    settings = RouterSettings(
        store_a="127.0.0.1:1", store_b="127.0.0.1:2", control_store="memory:", event_log="memory:"
    )
    assert all(settings.limits[threshold] == Limits()[threshold] for threshold in THRESHOLDS.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "tcp://10.0.0.7:50061"),
        ("SERVICE_HOST", "10.0.0.7"),
        ("SERVICE_PORT", "50061"),
        ("SERVICE_PORT_GRPC", "50061"),
        ("PORT_50061_TCP", "tcp://10.0.0.7:50061"),
        ("PORT_50061_TCP_PROTO", "tcp"),
        ("PORT_50061_TCP_PORT", "50061"),
        ("PORT_50061_TCP_ADDR", "10.0.0.7"),
        ("INTERNAL_PORT", "tcp://10.0.0.8:50062"),
        ("INTERNAL_SERVICE_HOST", "fd00::7"),
    ],
)
def test_a_service_link_of_kubernetes_is_ignored(name: str, value: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv(f"{PREFIX}{name}", value)
    assert load(ServiceLayerSettings).public


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("PORT", "50061", "there are|did you mean"),
        ("WRITE", "8", "did you mean SERVICE_LAYER_WRITES"),
        ("DATABSE", "x", "did you mean SERVICE_LAYER_DATABASE"),
        ("SERVICE_HOST", "a name", "there is no such setting"),
    ],
)
def test_another_unknown_name_is_refused_with_the_nearest_one(
    name: str, value: str, meant: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(WrongSetting, match=meant):
        load(ServiceLayerSettings)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbfwrites = 7\n")
    assert load(ServiceLayerSettings, file).writes == 7


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ("localhost:1,localhost:2", "'localhost' is a name"),
        ("10.0.0.1:1,b-2.example:1", "'b-2.example' is a name"),
        ("10.0.0.1:1,[::1]:2", "not both"),
    ],
)
def test_several_addresses_that_grpc_cannot_use_are_refused(addresses: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_addresses(addresses)


@pytest.mark.parametrize("addresses", ["localhost:1", "[::1]:1,[::1]:2", "127.0.0.1:1,127.0.0.1:2", "b.example:1"])
def test_addresses_of_one_kind_are_taken(addresses: str) -> None:
    assert check_addresses(addresses) == addresses
