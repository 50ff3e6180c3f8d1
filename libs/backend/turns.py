"""When a store takes a record's lock: every use of locks by a backend is here.

The row's version decides every write, with a lock or without: who has lost the lock, or the record, commits nothing.
What a lock gives is turns, so that those who want one record do not run against each other. It is always the lock of
the store that is asked and owns the record, whatever flags say.

* An ordinary write is one read and one conditional statement. It takes no lock, unless others keep getting ahead of it;
  and then it goes on without one while locks cannot be had.
* So are the writes with a check: a move between states, an undelete. What they check is in the row whose version is the
  statement's condition, so nothing comes between check and change, and a lock would add nothing but its own failures.
* A lease is taken, renewed and given back under the lock, in turn: many want it at once and wait for the same moment.
  While locks cannot be had, that fails at once. What changes nothing needs no lock: a request that was served before, a
  refusal, a record that belongs elsewhere.
* A release of one record, for a client who waits for it elsewhere, lets the holder finish: it waits a moment for the
  lock and goes on without it, since the late holder's commit fails by its version. A release of many records does not
  wait: a lock for each would cost more than the few retries that it spares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from libs.errors import BatonError, LockTimeout, Overloaded
from libs.locks.port import LockManager, LocksUnavailable, hold_if_available
from libs.ownership.model import Call, Found
from libs.ownership.rules import Answered, Changed, Decide
from libs.store.port import StorePorts

TURN_WAIT_SECONDS = 1.0
"""How long a write to a busy record waits for its turn."""
RELEASE_WAIT_SECONDS = 0.3


class _NeedsLock(BatonError):
    """The write would change the record. A BatonError, because stores log every other exception as a defect."""


class Turns:
    """Lock waits of one store. `locks` is None without a lock manager. `no_lock_needed` is called for each write that
    succeeded without waiting for a lock."""

    def __init__(
        self, ports: StorePorts, locks: LockManager | None, no_lock_needed: Callable[[], None] = lambda: None
    ) -> None:
        self._ports = ports
        self._locks = locks
        self._no_lock_needed = no_lock_needed

    async def write(self, call: Call, decide: Decide, *, under_lock: bool = False) -> Changed | Answered:
        """Raises what `decide` and the store raise, LockTimeout, Overloaded; LocksUnavailable with `under_lock`."""
        if self._locks is None:
            return await self._ports.records.write(call, decide)
        if under_lock:
            return await self._write_under_lock(self._locks, call, decide)
        try:
            outcome = await self._ports.records.write(call, decide)
        except LockTimeout:
            # When there are no locks either, this is one more try like the first.
            async with hold_if_available(self._locks, call.key, TURN_WAIT_SECONDS):
                return await self._ports.records.write(call, decide)
        self._no_lock_needed()
        return outcome

    async def _write_under_lock(self, locks: LockManager, call: Call, decide: Decide) -> Changed | Answered:
        with suppress(_NeedsLock):
            return await self._ports.records.write(call, lambda found: _unchanged(decide, found))
        async with locks.hold(call.key, TURN_WAIT_SECONDS):
            return await self._ports.records.write(call, decide)

    @asynccontextmanager
    async def before_release(self, keys: Sequence[str]) -> AsyncIterator[None]:
        """Around a release. Never fails."""
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
