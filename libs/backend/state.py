"""Whether a backend serves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from libs.errors import StoreNotReady

T = TypeVar("T")


class Serving:
    """Starts as not serving. `reason` says why not, in words; "" when it serves."""

    def __init__(self) -> None:
        self.reason = "starting"
        self.gone = ""
        """Why the store must not serve before it is recovered; "" when it may."""
        self.draining = False
        self.leaving = asyncio.Event()
        """Set when the process ends soon: calls that wait for something to happen end at once."""
        self.admitted = False
        """Whether admission has come to an answer since the start: to serve, or to be fenced."""

    def __repr__(self) -> str:
        return f"<Serving {self.reason or 'yes'}>"

    @property
    def serving(self) -> bool:
        return not self.reason

    def serve(self) -> None:
        self.reason = self.gone = ""
        self.admitted = True

    def fence(self, gone: str) -> None:
        """A gone store serves nothing but its changes and what is copied into it."""
        self.gone = gone
        self.admitted = True
        self.reason = f"it is to be recovered (baton recover): {gone}"

    def stop(self, reason: str) -> None:
        self.reason = reason

    def drain(self) -> None:
        """For good."""
        self.draining = True
        self.reason = "draining"

    def check(self) -> None:
        """Raises StoreNotReady."""
        if self.reason:
            raise StoreNotReady(f"the store does not serve: {self.reason}")

    def check_copies(self) -> None:
        """For what a gone store does too: giving its changes, taking copies, being compared. Raises StoreNotReady."""
        if not self.gone:
            self.check()

    async def unless_leaving(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns. None if the process ends first: a listener that drains would wait for it, and refuse
        connections meanwhile."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self.leaving.wait())
        try:
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            working.cancel()
            leaving.cancel()
