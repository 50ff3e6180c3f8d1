"""Flags in a file of flagd's format (https://flagd.dev/reference/flag-definitions), evaluated by flagd's own library.

The file is read at each check and accepted as a whole or not at all: if it is unreadable or invalid, the earlier
content stays in force and the check fails. The file's time would not do: two writes within one tick of the file
system's clock look alike.

A rule (`targeting`) is evaluated for the router as a whole. Flags do not divide traffic: flagd would draw separately
for each flag, and so send the operations of one record to different stores.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import OpenFeatureError
from openfeature.flag_evaluation import FlagResolutionDetails
from openfeature.provider import FeatureProvider

from libs.flags.memory import BooleanProvider
from libs.flags.openfeature import OpenFeatureSource
from libs.flags.port import FlagsUnavailable

MAX_FILE_BYTES = 1 << 20


class FlagdFileProvider(BooleanProvider):
    """Has no flags before the first `reload`."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"flagd file {path}")
        self._path = path
        self._text: bytes | None = None
        self._core = FlagdCore()

    def reload(self) -> None:
        """Read the file and adopt its content if it changed. Raises FlagsUnavailable, with nothing changed."""
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise FlagsUnavailable(f"{self._path} cannot be read: {error.strerror or error}") from error
        if text == self._text:
            return
        try:
            self._core = _parsed(text)
        except ValueError as error:
            raise FlagsUnavailable(f"{self._path} is not a file of flagd's flags: {error}") from error
        self._text = text
        self.emit_provider_configuration_changed(ProviderEventDetails())

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._core.resolve_boolean_value(flag_key, default_value, evaluation_context)


def flagd_source(path: Path) -> OpenFeatureSource:
    return OpenFeatureSource(f"flagd file {path}", lambda: FlagdFileProvider(path), prepare=_reload)


def _reload(provider: FeatureProvider) -> None:
    if isinstance(provider, FlagdFileProvider):
        provider.reload()


def _parsed(text: bytes) -> FlagdCore:
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    # The library fails on such content with arbitrary errors.
    flags = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(flags, dict):
        raise ValueError('an object with the key "flags" is expected, which is an object')
    for name, flag in flags.items():
        if not isinstance(flag, dict):
            raise ValueError(f"flags: {name}: an object is expected")
    core = FlagdCore()
    try:
        core.set_flags(content)
    except (OpenFeatureError, re.error, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(getattr(error, "error_message", None) or f"{type(error).__name__}: {error}") from error
    return core
