"""The systems that an operator has named: where each answers, and the paths of the operator's credentials.

They are in `contexts.toml` in the folder `baton` of XDG_CONFIG_HOME, which only its user may read. Tokens stay in their
own files.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from services.router.cli.failure import CommandFailed, Exit

DEFAULT_ADDRESS = "127.0.0.1:7700"

FIELDS = ("address", "token_file", "tls_ca", "tls_certificate", "tls_key", "tls_server_name")
"""Options that a context gives."""
_PATHS = frozenset({"token_file", "tls_ca", "tls_certificate", "tls_key"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ONLY_OWNER = 0o600


@dataclass(frozen=True, slots=True)
class Contexts:
    """The named contexts, each with the options that it gives, and the one in use ("" for none)."""

    used: str = ""
    named: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def options(self, name: str) -> dict[str, Any]:
        """The values of the context's options. Raises CommandFailed (usage)."""
        if name not in self.named:
            known = f"one of {', '.join(sorted(self.named))}" if self.named else "baton context add makes one"
            raise CommandFailed(f"context: {name!r} does not exist: {known}", Exit.USAGE)
        return {key: Path(value) if key in _PATHS else value for key, value in self.named[name].items()}

    def use(self, name: str) -> Contexts:
        """Raises CommandFailed (usage)."""
        if name:
            self.options(name)
        return replace(self, used=name)

    def add(self, name: str, options: Mapping[str, str]) -> Contexts:
        """Raises CommandFailed (usage)."""
        if not _NAME.fullmatch(name):
            raise CommandFailed(f"context: {name!r} is not a name: letters, digits, . _ and -", Exit.USAGE)
        return replace(self, named={**self.named, name: dict(options)})

    def remove(self, name: str) -> Contexts:
        """Raises CommandFailed (usage)."""
        self.options(name)
        left = {other: options for other, options in self.named.items() if other != name}
        return Contexts("" if self.used == name else self.used, left)


def path() -> Path:
    """Path of the file of contexts."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "baton" / "contexts.toml"


def read() -> Contexts:
    """Without a file, there is no context. Raises CommandFailed (usage)."""
    file = path()
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o022:
                raise CommandFailed(f"{file}: other users can change it: chmod 600 {file}", Exit.USAGE)
            found = tomllib.load(opened)
        named = {name: _checked(name, options) for name, options in found.get("contexts", {}).items()}
        return Contexts(str(found.get("used", "")), named)
    except FileNotFoundError:
        return Contexts()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError, AttributeError) as error:
        raise CommandFailed(f"{file} cannot be read: {error}; correct or remove it", Exit.USAGE) from None


def _checked(name: str, options: Mapping[str, object]) -> dict[str, str]:
    """Raises ValueError."""
    unknown = set(options) - set(FIELDS)
    if unknown:
        raise ValueError(f"context {name!r} has no option {', '.join(sorted(unknown))}")
    return {key: str(value) for key, value in options.items()}


def write(contexts: Contexts) -> None:
    """Replace the file at once. Raises CommandFailed."""
    file = path()
    lines = [f"used = {json.dumps(contexts.used)}"]
    for name, options in sorted(contexts.named.items()):
        lines += ["", f"[contexts.{json.dumps(name)}]"]
        # A JSON text is a TOML text too.
        lines += [f"{key} = {json.dumps(options[key])}" for key in FIELDS if options.get(key)]
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _ONLY_OWNER), "w", encoding="utf-8") as opened:
            opened.write("\n".join(lines) + "\n")
        new.replace(file)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None


def matching_names(incomplete: str) -> list[str]:
    """The names of contexts that begin so, for the completion of a shell: an error is no completion."""
    try:
        return sorted(name for name in read().named if name.startswith(incomplete))
    except CommandFailed:
        return []


def by_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name != "COMMANDLINE"


def fill_in(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the options of the named context, or of the one in use. Raises CommandFailed (usage).

    An address that is given as an option goes before any context, and so does a variable before the context in use.
    Then no part of a context is used: its token is not for another system.
    """
    before: dict[str, Any] = context.find_root().obj or {}
    by_option = "address" in before or not by_default(context, "address")
    if by_option and values["system"]:
        if before.get("system") or not by_default(context, "system"):
            raise CommandFailed("--context and --address name a system each: leave one out", Exit.USAGE)
        return values | {"system": ""}
    if by_option or (not values["system"] and os.environ.get("BATON_CONTROL")):
        return values
    found = read()
    name = values["system"] or found.used
    if not name:
        return values
    given = {key for key in FIELDS if key in before or not by_default(context, key)}
    own = {key: None if key not in ("address", "tls_server_name") else "" for key in FIELDS}
    own |= {"address": DEFAULT_ADDRESS, **found.options(name)}
    return values | {key: value for key, value in own.items() if key in values and key not in given} | {"system": name}
