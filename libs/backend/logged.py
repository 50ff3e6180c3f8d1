"""Answering a write only when its event is in the log, for callers who ask for that.

Then even the loss of the whole store loses nothing that was answered. A change's outbox entry is removed exactly when
its event is in the log, so an entry that is not there any more, or never was, is what is waited for. Its own entry is
enough: entries of one key go to the log in the order of versions, and each carries the request that it served.

A refusal shows the record too: a create that finds it there, an etag that is not the record's any more. It waits for
the change that it rests on, which mostly is in the log already.

Who finds the request served waits like the first caller. A request that another store has served came here with the
record, so two stores have it, and there is no entry here to wait for.

While the relay says that the log is away, such a write is refused before anything is changed, and does not wait in
vain.

Acknowledgements that this process takes end the wait at once. A store with several processes gets some of them
elsewhere; those are found by looking, for all who wait in one question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from libs.errors import LogAway, NotLogged
from libs.ownership.model import Version
from libs.store.port import Outbox
from libs.tasks import Loop

AWAY_SECONDS = 20.0
"""So long the relay's word counts that the log is away: longer than one of its tries takes. It may have died."""
FIRST_LOOK_SECONDS = 0.005
LAST_LOOK_SECONDS = 0.05

Name = tuple[str, Version]
"""Of a change: key and version."""


class LogWaits:
    """All that wait in one process. Its loop is the owner's to run; how many wait is bounded by the listener."""

    def __init__(self, outbox: Outbox, longest_seconds: float, replaced: Callable[[], str] = lambda: "") -> None:
        """`longest_seconds`: how long a caller waits at most. `replaced`: why the log is another one than it was; ""
        when it is not."""
        self._replaced = replaced
        self.loop = Loop("log waits", self._look, longest_pause_seconds=0.5)
        self._outbox = outbox
        self._longest_seconds = longest_seconds
        self._waiting: dict[Name, list[asyncio.Future[None]]] = {}
        self._some = asyncio.Event()
        self._pause = FIRST_LOOK_SECONDS
        self._trouble = ""
        self._away_until = 0.0

    def __repr__(self) -> str:
        return f"<LogWaits waiting={sorted(key for key, _ in self._waiting)}>"

    def heard(self, trouble: str, now: float) -> None:
        """What the relay says of the log: why it is away, or "". `now`: in seconds that only grow."""
        self._trouble, self._away_until = trouble, now + AWAY_SECONDS

    def check(self, now: float) -> None:
        """Before a change is made that is to be waited for. One that is made already is waited for all the same: so its
        outcome is never told wrong. Raises LogAway."""
        trouble = self._replaced() or (self._trouble if now < self._away_until else "")
        if trouble:
            raise LogAway(f"{LogAway.__doc__}: {trouble}")

    async def wait(self, name: Name, seconds: float, *, fresh: bool) -> None:
        """Until the change is in the log, `seconds` at most. `fresh`: it has just been made, so it hardly is there yet.

        Raises NotLogged; StoreUnavailable.
        """
        if not fresh and not await self._outbox.unlogged([name]):
            return
        logged = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append(logged)
        self._pause = FIRST_LOOK_SECONDS
        self._some.set()
        try:
            async with asyncio.timeout(min(seconds, self._longest_seconds)):
                await logged
        except TimeoutError:
            raise NotLogged from None
        finally:
            self._forget(name, logged)

    async def rests(self, name: Name, seconds: float, now: float) -> None:
        """For a refusal that shows a change: until the change is in the log. A caller who was refused because of a
        change that is lost with its store has been told what never was.

        Raises LogAway, NotLogged; StoreUnavailable.
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
        """These are in the log."""
        for name in names:
            for logged in self._waiting.pop(name, ()):
                if not logged.done():
                    logged.set_result(None)

    def refused(self, names: Iterable[Name]) -> None:
        """The log does not take these: nobody waits for them in vain."""
        for name in names:
            for logged in self._waiting.pop(name, ()):
                if not logged.done():
                    logged.set_exception(NotLogged())

    def _forget(self, name: Name, logged: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(name, [])
        # Who was told is not among them any more; those who are have come since.
        if logged in waiting:
            waiting.remove(logged)
            if not waiting:
                del self._waiting[name]

    async def _look(self, loop: Loop) -> None:
        """Once, for all who wait after a pause: mostly they have been told by then."""
        if not self._waiting:
            self._some.clear()
            await self._some.wait()
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 1.5, LAST_LOOK_SECONDS)
        if names := list(self._waiting):
            self.acknowledged(set(names) - await self._outbox.unlogged(names))
        loop.well()
