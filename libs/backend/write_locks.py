"""Use of record locks by a backend.

The row's version decides every write, with or without a lock: a writer that lost the lock or the record commits
nothing. A lock only serializes writers of one record, so that they do not conflict. It is always the lock of the store
that was asked and owns the record, whatever flags say.

* An ordinary write is one read and one conditional statement. It needs no lock, unless other writers keep winning; and
  then it continues without one while locks are unavailable.
* State transitions and undeletes need no lock either: the check reads the same row version that the UPDATE is
  conditional on, and a lock would only add its own failures.
* Acquire, renew and release of a lease run under the lock: many callers want a lease at the same moment. While locks
  are unavailable, they fail at once. A call that changes nothing needs no lock: a served request, a refusal, a record
  of the other store.
* A release of one record, for a client that waits for it elsewhere, lets the holder finish: it waits a moment for the
  lock and continues without it, since a late holder's commit fails by its version. A release of many records does not
  wait: a lock for each would cost more than the few retries that it saves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from libs.errors import BatonError, LockTimeout, Overloaded
from libs.locks.port import LockManager, LocksUnavailable, hold_if_available
from libs.ownership.model import Answered, Call, Changed, Decide, Found
from libs.store.port import StorePorts

LOCK_WAIT_SECONDS = 1.0
"""How long a write to a busy record waits for the lock."""
RELEASE_WAIT_SECONDS = 0.3


class _NeedsLock(BatonError):
    """The write would change the record. It is a BatonError because stores log every other exception as a defect."""


class WriteLocks:
    """Lock waits of one store. `locks` is None without a lock manager. `no_lock_needed` is called for each write that
    succeeded without waiting for a lock."""

    def __init__(
        self, ports: StorePorts, locks: LockManager | None, no_lock_needed: Callable[[], None] = lambda: None
    ) -> None:
        self._ports = ports
        self._locks = locks
        self._no_lock_needed = no_lock_needed

    async def write(self, call: Call, decide: Decide, *, under_lock: bool = False) -> Changed | Answered:
        """Raises the errors of `decide` and of the store, LockTimeout, Overloaded; LocksUnavailable with
        `under_lock`."""
        if self._locks is None:
            return await self._ports.records.write(call, decide)
        if under_lock:
            return await self._write_under_lock(self._locks, call, decide)
        try:
            outcome = await self._ports.records.write(call, decide)
        except LockTimeout:
            # While locks are unavailable, this is just a second attempt.
            async with hold_if_available(self._locks, call.key, LOCK_WAIT_SECONDS):
                return await self._ports.records.write(call, decide)
        self._no_lock_needed()
        return outcome

    async def _write_under_lock(self, locks: LockManager, call: Call, decide: Decide) -> Changed | Answered:
        with suppress(_NeedsLock):
            return await self._ports.records.write(call, lambda found: _unchanged(decide, found))
        async with locks.hold(call.key, LOCK_WAIT_SECONDS):
            return await self._ports.records.write(call, decide)

    @asynccontextmanager
    async def before_release(self, keys: Sequence[str]) -> AsyncIterator[None]:
        """Hold the lock during a release, if possible. Never fails."""
        async with AsyncExitStack() as stack:
            if self._locks is not None and len(keys) == 1:
                with suppress(LockTimeout, Overloaded, LocksUnavailable):
                    await stack.enter_async_context(self._locks.hold(keys[0], RELEASE_WAIT_SECONDS))
            yield


def _unchanged(decide: Decide, found: Found) -> Answered:
    """Raises _NeedsLock for a change."""
    decided = decide(found)
    if isinstance(decided, Changed):
        raise _NeedsLock
    return decided
