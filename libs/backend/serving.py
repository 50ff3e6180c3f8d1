"""Whether a backend serves: the state that its calls check, and the loop that lets it serve or stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from libs.backend.admission import Admission, NotAdmitted, StillReading
from libs.errors import StoreNotReady, StoreUnavailable
from libs.store.port import StorePorts
from libs.store.recovery import FencedAt, WentBack
from libs.tasks import Loop

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


LOOK_SECONDS = 1.0
AGAIN_SECONDS = 60.0
"""For which a recheck that has not read the whole log can be gone on with."""


@dataclass(slots=True)
class _Recheck:
    """A look whose reading of the log goes on at the next call."""

    admission: Admission
    fence: tuple[str, FencedAt | None]
    """What it looks at."""
    until: float
    """On the loop's clock."""


class Doorkeeper:
    """`admit` once at the start; then the loop, which is the owner's to run: it tries again, and looks every second
    whether another process, or an operator, has fenced or opened the store."""

    def __init__(
        self,
        ports: StorePorts,
        admission: Admission,
        serving: Serving,
    ) -> None:
        self.loop = Loop("doorkeeper", self._look, longest_pause_seconds=LOOK_SECONDS)
        self.tell: Sequence[Callable[[bool], Awaitable[None]]] = ()
        """Who is told whether the store serves."""
        self._lost: asyncio.Future[WentBack] = asyncio.get_running_loop().create_future()
        """Set when this process cannot go on: the database is not the one that it was started on."""
        self._ports = ports
        self.admission = admission
        self._serving = serving
        self._fences = 0
        self._again: _Recheck | None = None

    async def admit(self) -> None:
        """Serves, or says why not. What was decided meanwhile, to fence it or to end, stands."""
        fences = self._fences
        trouble = gone = ""
        try:
            gone = await self.admission.decide()
        except (NotAdmitted, StoreUnavailable) as error:
            trouble = error.message
        if self._fences != fences or self._serving.draining:
            return
        if trouble:
            self._serving.stop(f"starting: {trouble}")
            return
        if gone:
            await self.fence(gone)
        else:
            self._serving.serve()
            await self._tell_health(True)

    async def fence(self, gone: str) -> None:
        """Serves no more."""
        self._fences += 1
        self._serving.fence(gone)
        await self._tell_health(False)

    async def recheck(self) -> str:
        """Why the store stays fenced, or "": the loop admits it then. Raises what `Admission.recheck` raises.

        A recheck that was left for long, or of another fence, is not gone on with: it ends where the log ended then.
        """
        standing, clock = await self._ports.recovery.standing(), asyncio.get_running_loop().time
        fence = standing.gone, standing.fenced_at
        again, self._again = self._again, None
        if again is None or again.fence != fence or clock() >= again.until:
            again = _Recheck(self.admission.twin(), fence, 0.0)
        try:
            return await again.admission.recheck()
        except StillReading:
            again.until = clock() + AGAIN_SECONDS
            self._again = again
            raise

    async def lost_before(self, stop: asyncio.Event) -> WentBack | None:
        """Waits until this process is told to stop, or cannot go on; then returns why."""
        stopping = asyncio.create_task(stop.wait())
        self._lost.add_done_callback(lambda _: stopping.cancel())
        await asyncio.wait([stopping])
        return self._lost.result() if self._lost.done() else None

    async def _tell_health(self, serving: bool) -> None:
        for tell in self.tell:
            await tell(serving)

    async def _look(self, loop: Loop) -> None:
        try:
            gone = (await self._ports.recovery.standing()).gone
        except WentBack as error:
            self._serving.stop(error.message)
            await self._tell_health(False)
            if not self._lost.done():
                self._lost.set_result(error)
            raise
        if gone and not self._serving.gone:
            was_serving = self._serving.serving
            await self.fence(gone)
            if was_serving:
                # What it told the other store as a serving one, it told before this read.
                await self._ports.recovery.vouch((await self._ports.recovery.standing()).now.changes)
        elif not gone and not self._serving.serving and not self._serving.draining:
            await self.admit()
        loop.well()
        await asyncio.sleep(LOOK_SECONDS)
