"""Acknowledgement of a write only once its event is in the log, for callers that ask for it.

Then even the loss of the whole store loses no acknowledged write. A change's outbox entry is removed exactly when its
event is in the log, so the caller waits until the entry is gone. The entry of the write is enough: entries of one key
go to the log in the order of versions, and each carries the request that it served.

A refusal reveals the record too: a create that finds it, an etag that no longer matches. It waits for the change that
it depends on, which is usually in the log already.

A retry of a served request waits like the first call. A request that another store served arrived here with the record,
so two stores have it, and there is no entry to wait for.

While the relay reports that the log is unavailable, such a write is refused before anything changes, instead of waiting
in vain.

Acknowledgements that this process receives end the wait at once. With several processes, some arrive elsewhere; one
query finds them for all waiting calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from libs.errors import LogAway, NotLogged
from libs.ownership.model import Version
from libs.store.outbox import Outbox
from libs.tasks import Loop

AWAY_SECONDS = 20.0
"""Validity of the relay's report that the log is unavailable: longer than one of its attempts, since the relay may have
died."""
FIRST_POLL_SECONDS = 0.005
LAST_POLL_SECONDS = 0.05

Name = tuple[str, Version]
"""A change: key and version."""


class LogWaits:
    """The waits of one process. Their number is limited by the listener. The owner runs the loop."""

    def __init__(self, outbox: Outbox, longest_seconds: float, replaced: Callable[[], str] = lambda: "") -> None:
        """`longest_seconds`: maximum wait of a caller. `replaced`: why the log is another one than before; "" if it is
        not."""
        self._replaced = replaced
        self.loop = Loop("log waits", self._poll, longest_pause_seconds=0.5)
        self._outbox = outbox
        self._longest_seconds = longest_seconds
        self._waiting: dict[Name, list[asyncio.Future[None]]] = {}
        self._some = asyncio.Event()
        self._pause = FIRST_POLL_SECONDS
        self._trouble = ""
        self._away_until = 0.0

    def __repr__(self) -> str:
        return f"<LogWaits waiting={sorted(key for key, _ in self._waiting)}>"

    def report_trouble(self, trouble: str, now: float) -> None:
        """Record the relay's report: why the log is unavailable, or "". `now`: monotonic seconds."""
        self._trouble, self._away_until = trouble, now + AWAY_SECONDS

    def check(self, now: float) -> None:
        """Check before a change that will be waited for. A change that exists already is waited for in any case, so
        that its outcome is reported correctly. Raises LogAway."""
        trouble = self._replaced() or (self._trouble if now < self._away_until else "")
        if trouble:
            raise LogAway(f"{LogAway.__doc__}: {trouble}")

    async def wait(self, name: Name, seconds: float, *, fresh: bool) -> None:
        """Wait until the change is in the log, at most `seconds`. `fresh`: the change was just made, so it is hardly
        there yet.

        Raises NotLogged, StoreUnavailable.
        """
        if not fresh and not await self._outbox.unlogged([name]):
            return
        logged = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append(logged)
        self._pause = FIRST_POLL_SECONDS
        self._some.set()
        try:
            async with asyncio.timeout(min(seconds, self._longest_seconds)):
                await logged
        except TimeoutError:
            raise NotLogged from None
        finally:
            self._forget(name, logged)

    async def wait_for_refusal(self, name: Name, seconds: float, now: float) -> None:
        """Wait for the change that a refusal reveals. Otherwise, if the change were lost with its store, the caller
        would have been refused because of a change that never happened.

        Raises LogAway, NotLogged, StoreUnavailable.
        """
        if not await self._outbox.unlogged([name]):
            return
        self.check(now)
        try:
            await self.wait(name, seconds, fresh=False)
        except NotLogged:
            raise NotLogged(
                "the write was refused for a change of the record that is not in the event log yet: retry with the same"
                " request_id"
            ) from None

    def acknowledged(self, names: Iterable[Name]) -> None:
        """End the waits for changes that are in the log."""
        for name in names:
            for logged in self._waiting.pop(name, ()):
                if not logged.done():
                    logged.set_result(None)

    def refused(self, names: Iterable[Name]) -> None:
        """Fail the waits for changes that the log refuses."""
        for name in names:
            for logged in self._waiting.pop(name, ()):
                if not logged.done():
                    logged.set_exception(NotLogged())

    def _forget(self, name: Name, logged: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(name, [])
        # Finished waits are already removed; the remaining ones began later.
        if logged in waiting:
            waiting.remove(logged)
            if not waiting:
                del self._waiting[name]

    async def _poll(self, loop: Loop) -> None:
        """Query once for all that still wait after a pause; most have been acknowledged by then."""
        if not self._waiting:
            self._some.clear()
            await self._some.wait()
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 1.5, LAST_POLL_SECONDS)
        if names := list(self._waiting):
            self.acknowledged(set(names) - await self._outbox.unlogged(names))
        loop.well()
