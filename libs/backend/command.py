"""The command line of a service: `python -m services.NAME [--config FILE] [COMMAND]`, without a command it serves."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from libs.backend.settings import BackendSettings
from libs.process import run
from libs.settings import USAGE_EXIT_CODE, WrongSetting, load
from libs.telemetry import logs

log = logging.getLogger(__name__)

S = TypeVar("S", bound=BackendSettings)

SERVE = "serve"


def main(
    program: str,
    kind: type[S],
    commands: Mapping[str, Callable[[S], Coroutine[Any, Any, None]]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read arguments and settings, run the command; returns the exit code: 0, 1 failed, 2 a wrong setting."""
    prefix = kind.model_config.get("env_prefix", "")
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{program}",
        description=f"Settings come from the environment ({prefix}...) and from the file that --config names.",
    )
    parser.add_argument("--config", type=Path, help="a TOML file with settings")
    parser.add_argument("command", nargs="?", choices=list(commands), default=SERVE)
    given = parser.parse_args(arguments)
    logs.configure("info", as_json=False)
    try:
        settings = load(kind, given.config)
    except WrongSetting as error:
        log.error("%s", error)
        return USAGE_EXIT_CODE
    logs.configure(settings.log_level, as_json=settings.log_format == "json")
    return run(commands[given.command](settings))
