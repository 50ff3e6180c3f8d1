"""Settings of a process: one frozen object, read once from environment and TOML file, every value checked.

The environment overrides the file. Unknown names are refused in both, so that a misspelt name cannot pass for a
default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from libs.errors import BatonError
from libs.text import hide_password, parse_toml

USAGE_EXIT_CODE = 2
"""Exit code of a process that a wrong setting keeps from starting."""

_SHOWN_CHARACTERS = 120

_SERVICE_LINKS = tuple(
    (re.compile(rf"(\w+_)?{shape}"), re.compile(content))
    for shape, content in (
        ("SERVICE_HOST", r"[0-9A-Fa-f.:]+"),
        (r"SERVICE_PORT(_\w+)?", r"\d+"),
        (r"PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://.+"),
        (r"PORT_\d+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
        (r"PORT_\d+_(TCP|UDP|SCTP)_PORT", r"\d+"),
        (r"PORT_\d+_(TCP|UDP|SCTP)_ADDR", r"[0-9A-Fa-f.:]+"),
    )
)
"""Names after a service's own, and the values that Kubernetes gives them."""

S = TypeVar("S", bound="Settings")


class WrongSetting(BatonError):
    """A setting is missing or wrong: the process does not start."""

    code = "INVALID_ARGUMENT"
    reason = "WRONG_SETTING"


class Settings(BaseSettings):
    """Base of a process's settings. A subclass gives `env_prefix` in its `model_config`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Settings without the passwords in them."""
        for name, value in super().__repr_args__():
            yield name, hide_password(value, one_address=True) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The arguments come from the file.
        return env_settings, init_settings


@dataclass(frozen=True, slots=True)
class Origin:
    """A setting in force, without its secrets, and the place that it comes from."""

    name: str
    value: Any
    source: Literal["default", "file", "environment"]
    place: str
    """The variable or the file; "" for a default."""


def origins(kind: type[Settings], file: Path | None = None) -> list[Origin]:
    """The settings as `load` loads them, in the order of their definition. Raises WrongSetting."""
    settings = load(kind, file)
    prefix = kind.model_config.get("env_prefix", "")
    file = _file_of(prefix, file)
    in_file = _read_file(file) if file is not None else {}
    variables = {name.upper(): name for name in os.environ}
    found = []
    for name in kind.model_fields:
        value = getattr(settings, name)
        shown = hide_password(value, one_address=True) if isinstance(value, str) else value
        variable = variables.get(f"{prefix}{name}".upper())
        if variable is not None:
            found.append(Origin(name, shown, "environment", variable))
        elif name in in_file:
            found.append(Origin(name, shown, "file", str(file)))
        else:
            found.append(Origin(name, shown, "default", ""))
    return found


def _file_of(prefix: str, file: Path | None) -> Path | None:
    named = os.environ.get(f"{prefix}CONFIG")
    return Path(named) if file is None and named is not None else file


def load(kind: type[S], file: Path | None = None) -> S:
    """Load the settings from the environment and from `file`, or from the file that `<PREFIX>CONFIG` names.

    Raises WrongSetting with the setting, its value, and the expected form.
    """
    prefix = kind.model_config.get("env_prefix", "")
    file = _file_of(prefix, file)
    _check_environment(kind, prefix)
    values = _read_file(file) if file is not None else {}
    try:
        return kind(**values)
    except ValidationError as error:
        raise WrongSetting(_first_of(error, values, prefix)) from None


def check_readable(url: str) -> str:
    """Return the address of a server. Raises ValueError, with no part of the URL in it, if the URL cannot be parsed."""
    parts = urlsplit(url)
    try:
        if "," not in parts.netloc:
            _ = parts.port
    except ValueError:
        raise ValueError("its host and port cannot be read: write special characters of a password as %XX") from None
    return url


def _check_environment(kind: type[Settings], prefix: str) -> None:
    known = {f"{prefix}{name}".upper() for name in kind.model_fields} | {f"{prefix}CONFIG".upper()}
    for name, value in sorted(os.environ.items()):
        if not prefix or not name.upper().startswith(prefix.upper()) or name.upper() in known:
            continue
        if _is_service_link(name[len(prefix) :], value):
            continue
        near = get_close_matches(name.upper(), sorted(known), n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise WrongSetting(f"{name}: there is no such setting; {meant}")


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable for a service whose name begins with a prefix of ours.

    For a service `service-layer`, every pod of the namespace gets SERVICE_LAYER_SERVICE_HOST=10.0.0.7,
    SERVICE_LAYER_PORT=tcp://10.0.0.7:50061 and more (https://kubernetes.io/docs/concepts/services-networking/service,
    "Environment variables"). They are not settings.
    """
    return any(shape.fullmatch(name) and content.fullmatch(value) for shape, content in _SERVICE_LINKS)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            # With or without a byte order mark, which some editors write.
            return parse_toml(opened.read().decode("utf-8-sig"))
    except OSError as error:
        raise WrongSetting(f"--config: {file} cannot be read: {error.strerror}; give the path of a TOML file") from None
    except ValueError as error:
        raise WrongSetting(f"--config: {file} is not TOML: {error}") from None


def _first_of(error: ValidationError, values: Mapping[str, Any], prefix: str) -> str:
    found = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in found["loc"]) or "settings"
    variable = f"{prefix}{name}".upper()
    if found["type"] == "missing":
        return f"{name}: it is not set; set {variable}, or {name} in the file that --config names"
    if found["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    value = os.environ.get(variable, values.get(name, ""))
    shown = hide_password(repr(value), one_address=True)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[: _SHOWN_CHARACTERS - 3] + "..."
    return f"{name}: {shown} is not valid: {found['msg'].removeprefix('Value error, ')}"
