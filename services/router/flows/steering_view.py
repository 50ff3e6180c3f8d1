"""The input for planning calls and moves."""

from __future__ import annotations

from typing import Protocol

from services.router.core.phase import Setting
from services.router.core.plan import Flags


class Steering(Protocol):
    """The setting and the flags for the request path, without I/O and without waiting."""

    @property
    def current(self) -> Setting: ...

    @property
    def flags(self) -> Flags: ...
