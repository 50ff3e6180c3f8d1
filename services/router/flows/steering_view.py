"""What calls and moves are planned by."""

from __future__ import annotations

from typing import Protocol

from services.router.core.phase import Setting
from services.router.core.plan import Flags


class Steering(Protocol):
    """The setting and the flags, as the request path reads them: no I/O, no waiting."""

    @property
    def current(self) -> Setting: ...

    @property
    def flags(self) -> Flags: ...
