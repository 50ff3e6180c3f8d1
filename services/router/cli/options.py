"""What every command has: options, exit codes, and the one place where errors become them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, TypeVar, get_type_hints

import typer

DEFAULT_ADDRESS = "127.0.0.1:7700"


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    BLOCKED = 3
    """By a gate that fails."""
    INCONCLUSIVE = 4
    """By a gate without evidence."""


class CommandFailed(Exception):
    """The command ends with this message and exit code."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Needed when stdin is not a terminal.")]


class Asks(Protocol):
    """Options of a command that says what it will do before it does it."""

    @property
    def dry_run(self) -> bool: ...

    @property
    def yes(self) -> bool: ...


@dataclass(frozen=True)
class Shown:
    """Options of a command that needs no router."""

    output: Annotated[Output, typer.Option("--output", "-o", help="A table for people or JSON for programs.")] = (
        Output.TABLE
    )

    @property
    def json(self) -> bool:
        return self.output is Output.JSON


@dataclass(frozen=True)
class Common(Shown):
    """Options of a command that talks to a router."""

    address: Annotated[str, typer.Option(envvar="BATON_CONTROL", help="Control address of a router, host:port.")] = (
        DEFAULT_ADDRESS
    )
    token_file: Annotated[
        Path | None, typer.Option(envvar="BATON_CONTROL_TOKEN_FILE", help="File with the control listener's token.")
    ] = None


@dataclass(frozen=True)
class Changing(Common):
    """Options of every command that changes something through a router."""

    reason: Annotated[str, typer.Option(help="Why; kept in the journal.")] = ""
    actor: Annotated[str, typer.Option(envvar="BATON_ACTOR", help="Who; by default user@host.")] = ""
    dry_run: DryRun = False
    yes: Yes = False

    @property
    def who(self) -> str:
        if self.actor:
            return self.actor
        import getpass
        import socket

        try:
            return f"{getpass.getuser()}@{socket.gethostname()}"
        except (OSError, KeyError):
            raise CommandFailed("this user has no name: say who you are with --actor", Exit.USAGE) from None


C = TypeVar("C", bound=Shown)
P = ParamSpec("P")


def command(
    app: typer.Typer, name: str, options: type[C], **settings: Any
) -> Callable[[Callable[Concatenate[C, P], None]], None]:
    """Registers a function whose first parameter is `options`: its fields become options of the command."""

    def register(function: Callable[Concatenate[C, P], None]) -> None:
        app.command(name, **settings)(_expanded(function, options))

    return register


def without_command(app: typer.Typer, options: type[C]) -> Callable[[Callable[Concatenate[C, P], None]], None]:
    """Registers what a group of commands does when none of them is named. Its options then come after the group."""

    def register(function: Callable[Concatenate[C, P], None]) -> None:
        expanded = _expanded(function, options)

        def run(context: typer.Context, **values: Any) -> None:
            if context.invoked_subcommand is None:
                expanded(**values)

        shown = inspect.signature(expanded)
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        run.__signature__ = shown.replace(parameters=[context, *shown.parameters.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {**expanded.__annotations__, "context": typer.Context}
        run.__doc__ = function.__doc__
        app.callback(invoke_without_command=True)(run)

    return register


def _expanded(function: Callable[..., None], options: type[C]) -> Callable[..., None]:
    """The function with the fields of `options` as parameters, errors turned into exit codes."""
    own = list(inspect.signature(function).parameters.values())[1:]
    hints = get_type_hints(options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(options)
    ]
    names = {parameter.name for parameter in shared}

    @functools.wraps(function)
    def run(**values: Any) -> None:
        common = options(**{name: values.pop(name) for name in names})
        try:
            function(common, **values)
        except CommandFailed as error:
            typer.echo(f"baton: {error}", err=True)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    own_hints = get_type_hints(function, include_extras=True)
    keywords = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[parameter.name])
        for parameter in own
    ]
    parameters = [*keywords, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def agree(options: Asks, effects: list[str]) -> bool:
    """Says what will happen, on stderr. True: do it. False: a dry run. Raises CommandFailed when it must not happen."""
    head = "would happen" if options.dry_run else "will happen"
    typer.echo("\n".join([f"This {head}:", *(f"  {effect}" for effect in effects)]), err=True)
    if options.dry_run:
        typer.echo("Dry run: nothing was changed.", err=True)
        return False
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise CommandFailed("stdin is not a terminal: nothing was changed; add --yes to do it", Exit.USAGE)
    if not typer.confirm("Do it?", err=True):
        raise CommandFailed("nothing was changed")
    return True
