"""Parses docker-compose.yml."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from libs.process import ProcessSettings
from services.router.settings import RouterSettings
from services.service_layer.settings import ServiceLayerSettings
from services.simple_mcp.settings import SimpleMcpSettings

ROOT = Path(__file__).parents[1]

SETTINGS: dict[str, type[ProcessSettings]] = {
    "services.router": RouterSettings,
    "services.simple_mcp": SimpleMcpSettings,
    "services.service_layer": ServiceLayerSettings,
}
"""Names of the project's own programs."""

_SECONDS = re.compile(r"(\d+)s")


@dataclass(frozen=True)
class Composed:
    """One service of the file."""

    name: str
    said: dict[str, Any]

    @property
    def ours(self) -> bool:
        return "build" in self.said

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = self.said.get("environment", {})
        return found

    @property
    def settings(self) -> dict[str, str]:
        """The part of the environment that its program reads."""
        return {name: value for name, value in self.environment.items() if name.startswith(self.prefix)}

    @property
    def mounted(self) -> dict[str, str]:
        """Path of each secret in the container, by name."""
        found = [one if isinstance(one, dict) else {"source": one} for one in self.said.get("secrets", [])]
        return {one["source"]: one.get("target", f"/run/secrets/{one['source']}") for one in found}

    @property
    def command(self) -> list[str]:
        """Command of a job; for a job in a shell, the command that the shell finally runs."""
        words: list[str] = self.said.get("command", [])
        return shlex.split(words[2].rpartition("exec ")[2]) if words[:2] == ["sh", "-c"] else words

    @property
    def program(self) -> str:
        """Module that the service starts."""
        return self.command[2]

    @property
    def kind(self) -> type[ProcessSettings]:
        return SETTINGS[self.program]

    @property
    def prefix(self) -> str:
        return str(self.kind.model_config["env_prefix"])

    @property
    def health(self) -> list[str]:
        found: list[str] = self.said.get("healthcheck", {}).get("test", [])
        return found

    @property
    def waits_for(self) -> dict[str, str]:
        return {name: how["condition"] for name, how in self.said.get("depends_on", {}).items()}

    def seconds(self, name: str) -> int:
        found = _SECONDS.fullmatch(self.said[name])
        assert found, f"{self.name}.{name}: give whole seconds"
        return int(found[1])


@cache
def read() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def services() -> dict[str, Composed]:
    return {name: Composed(name, said) for name, said in read()["services"].items()}


def jobs() -> Iterator[str]:
    """Names of the services that other services wait for to complete."""
    for service in services().values():
        yield from (name for name, how in service.waits_for.items() if how == "service_completed_successfully")
