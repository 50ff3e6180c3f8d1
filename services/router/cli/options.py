"""Options shared by commands, exit codes, and the conversion of errors to exit codes.

The options in `GLOBAL` may also stand before the verb (`baton --address X status`); one after the verb wins.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, get_type_hints

import typer

from libs.pb.fields import FIELDS
from libs.text import plain, visible
from services.router.cli.contexts import DEFAULT_ADDRESS, by_default, fill_in, matching_names
from services.router.cli.failure import CommandFailed, Exit


class Patience:
    """The time that a command waits for something it has started. It goes on when the wait ends."""

    def __init__(self, name: str, seconds: float) -> None:
        """`seconds`: 0 for no end."""
        self._name = name
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Sleep before the next look. Raises CommandFailed at the end of the wait."""
        left = self._end - time.monotonic()
        if self._seconds and left <= 0:
            what = f"{self._name} has not ended within {plain(self._seconds)} s; it goes on"
            raise CommandFailed(what, Exit.STILL_RUNNING)
        time.sleep(min(seconds, left) if self._seconds else seconds)


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the effects and change nothing.")]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask for confirmation. Needed when stdin is not a terminal.")
]


class Asks(Protocol):
    """Options of a command that prints its effects and asks before it acts."""

    @property
    def dry_run(self) -> bool: ...

    @property
    def yes(self) -> bool: ...

    @property
    def json(self) -> bool: ...


class Agreed(NamedTuple):
    """The effects that were announced, and whether to go ahead (also its truth value)."""

    done: bool
    effects: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.done

    @property
    def view(self) -> dict[str, Any]:
        """The plan in JSON output."""
        return {"dry_run": not self.done, "effects": list(self.effects)}


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
class Tls(Shown):
    """Options of a command that calls another process, over TLS if it is given a CA."""

    tls_ca: Annotated[
        Path | None, typer.Option(envvar="BATON_TLS_CA", help="PEM file with the CA of the address. With it, TLS only.")
    ] = None
    tls_certificate: Annotated[
        Path | None, typer.Option(envvar="BATON_TLS_CERTIFICATE", help="PEM file with your certificate.")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(envvar="BATON_TLS_KEY", help="PEM file with its key.")] = None
    tls_server_name: Annotated[
        str, typer.Option(envvar="BATON_TLS_SERVER_NAME", help="Name in the listener's certificate, if not its host.")
    ] = ""


@dataclass(frozen=True)
class Common(Tls):
    """Options of a command that talks to a router."""

    address: Annotated[str, typer.Option(envvar="BATON_CONTROL", help="Control address of a router, host:port.")] = (
        DEFAULT_ADDRESS
    )
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar=["BATON_TOKEN_FILE", "BATON_CONTROL_TOKEN_FILE"],
            help="File with your token, or with the token that all operators share.",
        ),
    ] = None
    system: Annotated[
        str,
        typer.Option(
            "--context",
            envvar="BATON_CONTEXT",
            metavar="NAME",
            help="A system from `baton context`.",
            autocompletion=matching_names,
        ),
    ] = ""

    @property
    def place(self) -> str:
        """The system that the command goes to."""
        return f"{self.system} ({self.address})" if self.system else self.address


@dataclass(frozen=True)
class Acting(Common):
    """Options of a command that the journal keeps."""

    reason: Annotated[str, typer.Option(help="Reason, kept in the journal.")] = ""
    actor: Annotated[str, typer.Option(envvar="BATON_ACTOR", help="Your name; by default user@host.")] = ""

    @property
    def who(self) -> str:
        if self.actor:
            return self.actor
        import getpass
        import socket

        try:
            return f"{getpass.getuser()}@{socket.gethostname()}"
        except (OSError, KeyError):
            raise CommandFailed("this user has no name: give yours with --actor", Exit.USAGE) from None


@dataclass(frozen=True)
class Changing(Acting):
    """Options of a command that changes something through a router."""

    dry_run: DryRun = False
    yes: Yes = False


@dataclass(frozen=True)
class Starting(Changing):
    """Options of a command that starts something which takes time, and can wait for its end."""

    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="With --wait: wait at most this long, then exit with 7.")
    ] = 0.0

    def patience(self, name: str) -> Patience:
        return Patience(name, self.timeout)


@dataclass(frozen=True)
class Moving(Starting):
    """Options of a command after which records move."""

    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all buckets are where they should be, and show progress.")
    ] = False


@dataclass(frozen=True)
class Revealing(Acting):
    """Options of a command that shows contents of records."""

    reveal: Annotated[bool, typer.Option("--reveal", help="Show secrets too. Needs --reason.")] = False

    @property
    def question(self) -> dict[str, Any]:
        """Fields of a request that asks for secrets; {} without --reveal."""
        if not self.reveal:
            return {}
        if not self.reason.strip():
            raise CommandFailed("--reason is required with --reveal; the journal keeps it", Exit.USAGE)
        return {"reveal": True, "actor": self.who, "reason": self.reason}


SETTING_KEYS = (
    "phase generation canary_percent cohorts hold shadow_percent shadow_same set_flags limits serves_subjects"
    " two_person"
)
"""Keys of a setting in JSON (`views.setting_view`)."""

_HELP_COLUMNS = 76
_MESSAGE = re.compile(r"\{([A-Z][A-Za-z.]*)\}")


def help_text(text: str) -> str:
    """The docstring of a command as its help: `{Gate}` becomes the names of that message's fields, as JSON has them."""
    return "\n".join(_with_keys(line) for line in inspect.cleandoc(text).splitlines())


def _with_keys(line: str) -> str:
    if not _MESSAGE.search(line):
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    filled = _MESSAGE.sub(lambda match: _keys(match[1]), line.strip())
    return textwrap.fill(filled, _HELP_COLUMNS, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _keys(message: str) -> str:
    return SETTING_KEYS if message == "Setting" else FIELDS[f"baton.control.v1.{message}"]


GLOBAL = ("output", "address", "token_file", "system")
"""Options of `Common` that may stand before the verb."""

C = TypeVar("C", bound=Shown)
P = ParamSpec("P")


def with_globals(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the options that were given before the verb and not after it."""
    given: dict[str, Any] = context.find_root().obj or {}
    return {name: given.get(name, value) if by_default(context, name) else value for name, value in values.items()}


def fail(error: CommandFailed, *, as_json: bool) -> typer.Exit:
    """Print the error on stderr, as one line or one JSON object, and return the exception to raise."""
    if as_json:
        shown = {"message": str(error), "exit": error.code.name, "exit_code": int(error.code)}
        shown |= {"runbook": error.page} if error.page else {}
        typer.echo(json.dumps({"error": shown}), err=True)
    else:
        see = f"\nsee {error.page}" if error.page else ""
        typer.echo(f"baton: {visible(str(error))}{see}", err=True)
    return typer.Exit(error.code)


def command(
    app: typer.Typer, name: str, options: type[C], **settings: Any
) -> Callable[[Callable[Concatenate[C, P], None]], None]:
    """Register a function whose first parameter is an `options`: each of its fields becomes an option."""

    def register(function: Callable[Concatenate[C, P], None]) -> None:
        app.command(name, **settings)(_expanded(function, options))

    return register


def without_command(app: typer.Typer, options: type[C]) -> Callable[[Callable[Concatenate[C, P], None]], None]:
    """Register the default of a group of commands. Its options follow the group's name."""

    def register(function: Callable[Concatenate[C, P], None]) -> None:
        expanded = _expanded(function, options)

        def run(context: typer.Context, **values: Any) -> None:
            if context.invoked_subcommand is None:
                expanded(context, **values)

        run.__signature__ = inspect.signature(expanded)  # type: ignore[attr-defined]
        run.__annotations__ = expanded.__annotations__
        run.__doc__ = expanded.__doc__
        app.callback(invoke_without_command=True)(run)

    return register


def _expanded(function: Callable[..., None], options: type[C]) -> Callable[..., None]:
    """Give the function the fields of `options` as parameters, and turn its errors into exit codes."""
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
    def run(context: typer.Context, **values: Any) -> None:
        values = with_globals(context, values)
        as_json = values.get("output") is Output.JSON
        try:
            if "system" in values:
                values = fill_in(context, values)
            common = options(**{name: values.pop(name) for name in names})
            function(common, **values)
        except CommandFailed as error:
            raise fail(error, as_json=as_json) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    own_hints = get_type_hints(function, include_extras=True)
    keywords = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[parameter.name])
        for parameter in own
    ]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *keywords, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = help_text(function.__doc__ or "")
    return run


def agree(options: Asks, effects: Sequence[str]) -> Agreed:
    """Print the effects on stderr and ask for confirmation. Returns a false value after a dry run.

    JSON output has the effects in its answer instead (`Agreed.view`). Raises CommandFailed without a confirmation.
    """
    asks = not options.dry_run and not options.yes
    if not options.json or (asks and sys.stdin.isatty()):
        head = "would happen" if options.dry_run else "will happen"
        where = f" at {options.place}" if isinstance(options, Common) and options.system else ""
        typer.echo("\n".join([f"This {head}{where}:", *(f"  {visible(effect)}" for effect in effects)]), err=True)
    if options.dry_run:
        if not options.json:
            typer.echo("Dry run: nothing was changed.", err=True)
        return Agreed(False, tuple(effects))
    if not asks:
        return Agreed(True, tuple(effects))
    if not sys.stdin.isatty():
        raise CommandFailed("stdin is not a terminal: nothing was changed; add --yes to do it", Exit.USAGE)
    if not typer.confirm("Do it?", err=True):
        raise CommandFailed("nothing was changed")
    return Agreed(True, tuple(effects))
