"""State of a backend: whether it serves, checked by its calls, and the loop that admits, fences or stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from libs.backend.admission import Admission, NotAdmitted, StillReading
from libs.errors import StoreNotReady, StoreUnavailable
from libs.store.port import StorePorts
from libs.store.recovery import DatabaseReplaced, FencedAt
from libs.tasks import Loop

T = TypeVar("T")


class Serving:
    """Initially not serving. `reason`: why it does not serve, in words; "" if it serves."""

    def __init__(self) -> None:
        self.reason = "starting"
        self.fence_reason = ""
        """Why the store is fenced until it is recovered; "" if it may serve."""
        self.draining = False
        self.leaving = asyncio.Event()
        """Set shortly before the process ends: calls that wait for an event end at once."""
        self.admitted = False
        """Whether admission has decided since the start, to serve or to fence."""

    def __repr__(self) -> str:
        return f"<Serving {self.reason or 'yes'}>"

    @property
    def serving(self) -> bool:
        return not self.reason

    def serve(self) -> None:
        self.reason = self.fence_reason = ""
        self.admitted = True

    def fence(self, fence_reason: str) -> None:
        """A fenced store serves only its changes, and accepts copies."""
        self.fence_reason = fence_reason
        self.admitted = True
        self.reason = f"it must be recovered (baton recover): {fence_reason}"

    def stop(self, reason: str) -> None:
        self.reason = reason

    def drain(self) -> None:
        """Stop serving for good."""
        self.draining = True
        self.reason = "draining"

    def check(self) -> None:
        """Raises StoreNotReady."""
        if self.reason:
            raise StoreNotReady(f"the store does not serve: {self.reason}")

    def check_copies(self) -> None:
        """Check for requests that a fenced store answers too: pulling its changes, accepting copies, comparisons.
        Raises StoreNotReady."""
        if not self.fence_reason:
            self.check()

    async def unless_leaving(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None if the process ends first: a draining listener would wait for it, and refuse
        connections meanwhile."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self.leaving.wait())
        try:
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            working.cancel()
            leaving.cancel()


CHECK_SECONDS = 1.0
AGAIN_SECONDS = 60.0
"""How long a recheck that has not read the whole log can be continued."""


@dataclass(slots=True)
class _Recheck:
    """A recheck whose scan of the log continues at the next call."""

    admission: Admission
    fence: tuple[str, FencedAt | None]
    """The fence that it checks."""
    until: float
    """Time on the loop's clock."""


class AdmissionLoop:
    """Call `admit` once at the start; its owner then runs the loop. The loop tries again, and checks every second
    whether another process, or an operator, has fenced or opened the store."""

    def __init__(
        self,
        ports: StorePorts,
        admission: Admission,
        serving: Serving,
    ) -> None:
        self.loop = Loop("admission_loop", self._check, longest_pause_seconds=CHECK_SECONDS)
        self.set_health: Sequence[Callable[[bool], Awaitable[None]]] = ()
        """Called with whether the store serves."""
        self._lost: asyncio.Future[DatabaseReplaced] = asyncio.get_running_loop().create_future()
        """Set if this process cannot go on: the database is not the one that it was started on."""
        self._ports = ports
        self.admission = admission
        self._serving = serving
        self._fences = 0
        self._again: _Recheck | None = None

    async def admit(self) -> None:
        """Serve, or record why not. A concurrent decision to fence or to end the store takes precedence."""
        fences = self._fences
        trouble = fence_reason = ""
        try:
            fence_reason = await self.admission.decide()
        except (NotAdmitted, StoreUnavailable) as error:
            trouble = error.message
        if self._fences != fences or self._serving.draining:
            return
        if trouble:
            self._serving.stop(f"starting: {trouble}")
            return
        if fence_reason:
            await self.fence(fence_reason)
        else:
            self._serving.serve()
            await self._report_health(True)

    async def fence(self, fence_reason: str) -> None:
        """Stop serving."""
        self._fences += 1
        self._serving.fence(fence_reason)
        await self._report_health(False)

    async def recheck(self) -> str:
        """Return why the store stays fenced, or "" if the loop may admit it. Raises the errors of `Admission.recheck`.

        An old recheck, or one of another fence, is not continued: its scan would end where the log ended then.
        """
        standing, clock = await self._ports.recovery.standing(), asyncio.get_running_loop().time
        fence = standing.fence_reason, standing.fenced_at
        again, self._again = self._again, None
        if again is None or again.fence != fence or clock() >= again.until:
            again = _Recheck(self.admission.twin(), fence, 0.0)
        try:
            return await again.admission.recheck()
        except StillReading:
            again.until = clock() + AGAIN_SECONDS
            self._again = again
            raise

    async def lost_before(self, stop: asyncio.Event) -> DatabaseReplaced | None:
        """Wait until this process is stopped or cannot go on, and return why in the second case."""
        stopping = asyncio.create_task(stop.wait())
        self._lost.add_done_callback(lambda _: stopping.cancel())
        await asyncio.wait([stopping])
        return self._lost.result() if self._lost.done() else None

    async def _report_health(self, serving: bool) -> None:
        for set_serving in self.set_health:
            await set_serving(serving)

    async def _check(self, loop: Loop) -> None:
        try:
            fence_reason = (await self._ports.recovery.standing()).fence_reason
        except DatabaseReplaced as error:
            self._serving.stop(error.message)
            await self._report_health(False)
            if not self._lost.done():
                self._lost.set_result(error)
            raise
        if fence_reason and not self._serving.fence_reason:
            was_serving = self._serving.serving
            await self.fence(fence_reason)
            if was_serving:
                # Everything that it reported to the other store while it served, it reported before this read.
                await self._ports.recovery.vouch((await self._ports.recovery.standing()).now.changes)
        elif not fence_reason and not self._serving.serving and not self._serving.draining:
            await self.admit()
        loop.well()
        await asyncio.sleep(CHECK_SECONDS)
