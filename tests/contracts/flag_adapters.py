"""Each source of flags, with a way to change its values: for the common suite, and for tests of routers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from openfeature.event import ProviderEventDetails
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from libs.flags.flagd import flagd_source
from libs.flags.memory import MemoryFlags
from libs.flags.openfeature import OpenFeatureSource
from libs.flags.port import FlagSource


class Adapter(Protocol):
    """A source and its other side."""

    @property
    def source(self) -> FlagSource: ...

    def put(self, values: Mapping[str, Any]) -> None:
        """These are the flags from now on."""
        ...


class MemoryAdapter:
    def __init__(self) -> None:
        self.source = MemoryFlags("memory")

    def put(self, values: Mapping[str, Any]) -> None:
        self.source.put(values)


def flagd_text(values: Mapping[str, Any]) -> str:
    """A file of flagd's with these flags, each with a variant for its value."""
    flags = {
        name: {"state": "ENABLED", "variants": {"now": value}, "defaultVariant": "now"}
        for name, value in values.items()
    }
    return json.dumps({"flags": flags})


class FlagdAdapter:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.put({})
        self.source = flagd_source(path)

    def put(self, values: Mapping[str, Any]) -> None:
        """Deploy a file as operators do: write it beside, then move it into place."""
        beside = self.path.with_suffix(".new")
        beside.write_text(flagd_text(values))
        os.replace(beside, self.path)


class ChangingProvider(InMemoryProvider):
    """OpenFeature's own provider in memory, whose flags can be exchanged."""

    def put(self, values: Mapping[str, Any]) -> None:
        self._flags = {name: InMemoryFlag("now", {"now": value}) for name, value in values.items()}
        self.emit_provider_configuration_changed(ProviderEventDetails())


class ProviderAdapter:
    def __init__(self) -> None:
        self.provider = ChangingProvider({})
        self.source = OpenFeatureSource("provider", lambda: self.provider)

    def put(self, values: Mapping[str, Any]) -> None:
        self.provider.put(values)


SHARED = ChangingProvider({})
"""The provider of `make_shared`: the same for all routers of this process, like a flag service."""


def make_shared() -> ChangingProvider:
    return SHARED
