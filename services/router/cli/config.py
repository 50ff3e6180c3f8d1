"""`baton config`: the settings of a program as it would start here, and the source of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Shown, command

if TYPE_CHECKING:
    from libs.settings import Origin, Settings


class Program(StrEnum):
    ROUTER = "router"
    SIMPLE_MCP = "simple_mcp"
    SERVICE_LAYER = "service_layer"


@dataclass(frozen=True)
class Given(Shown):
    """The flags of a program that choose its settings."""

    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The program's flag: a TOML file of settings.")
    ] = None


Which = Annotated[Program, typer.Argument(help="The program whose settings are read.")]

_FILES = ("_file", "_ca", "_certificate", "_key", "event_keys")
"""Ends of the settings that name a file which the program reads at its start."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The settings of a program, before it starts.", no_args_is_help=True)
    command(group, "show", Given)(show_settings)
    command(group, "check", Given)(check)
    app.add_typer(group, name="config")


def show_settings(
    options: Given,
    program: Which,
    every: Annotated[bool, typer.Option("--all", help="Defaults too.")] = False,
) -> None:
    """Show the settings in force in this environment, without passwords, and where each comes from.

    \b
    JSON keys: program file file_source
      settings: all of them, list of name value source place
    source: environment, file or default; place: the variable or the file.
    file_source: flag or environment; a variable goes before the file.
    Exits with 2 if a setting is wrong.
    """
    from services.router.cli import show

    found = _read(program, options.config)
    view = _view(program, options.config, found)
    if options.json:
        show.print_json(view)
        return
    table = show.table_of("setting", "value", "from")
    shown = [one for one in view["settings"] if every or one["source"] != "default"]
    for one in shown:
        table.add_row(one["name"], _text(one["value"]), one["place"] or "default")
    show.show(table)
    if left := len(view["settings"]) - len(shown):
        show.show(f"{left} settings have their defaults: --all shows them")


def check(options: Given, program: Which) -> None:
    """Check the settings of this environment and the files that they name. Starts nothing.

    \b
    JSON keys: program file file_source, problems: list of setting text
    Exits with 2 if a setting is wrong, 1 if a file cannot be read.
    """
    from services.router.cli import show

    found = _read(program, options.config)
    problems = [{"setting": one.name, "text": text} for one in found if (text := _trouble(one))]
    view = _view(program, options.config, found)
    del view["settings"]
    if options.json:
        show.print_json(view | {"problems": problems})
    else:
        for problem in problems:
            show.show(f"{problem['setting']}: {problem['text']}")
    if problems:
        raise CommandFailed(f"{len(problems)} files of {program.value}'s settings cannot be used")
    if not options.json:
        show.show(f"{program.value}: its settings are valid")


def _read(program: Program, file: Path | None) -> list[Origin]:
    """Raises CommandFailed (usage)."""
    from libs.settings import WrongSetting, origins

    try:
        return origins(_kind(program), file)
    except WrongSetting as error:
        raise CommandFailed(error.message, Exit.USAGE) from None


def _kind(program: Program) -> type[Settings]:
    if program is Program.ROUTER:
        from services.router.settings import RouterSettings

        return RouterSettings
    if program is Program.SIMPLE_MCP:
        from services.simple_mcp.settings import SimpleMcpSettings

        return SimpleMcpSettings
    from services.service_layer.settings import ServiceLayerSettings

    return ServiceLayerSettings


def _view(program: Program, file: Path | None, found: list[Origin]) -> dict[str, Any]:
    named = os.environ.get(f"{_kind(program).model_config.get('env_prefix', '')}CONFIG")
    source = "flag" if file is not None else "environment" if named else None
    return {
        "program": program.value,
        "file": str(file or named) if source else None,
        "file_source": source,
        "settings": [
            {"name": one.name, "value": _plain(one.value), "source": one.source, "place": one.place} for one in found
        ],
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _trouble(one: Origin) -> str:
    """Why the file that the setting names cannot be used; "" if it can, or if the setting names none."""
    if not isinstance(one.value, Path) or not one.name.endswith(_FILES):
        return ""
    try:
        with one.value.open("rb"):
            return ""
    except OSError as error:
        return f"{one.value} cannot be read: {error.strerror}"
