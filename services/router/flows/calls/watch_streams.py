"""Watches of clients: pass a store's watch through, and continue it when the store ends it.

Every store sees every change, by write or by apply. So a watch stays at the store where it began, in every phase and
during handoffs. If the stream breaks, the router attaches it to the same store again, from the position of the last
answer: no change is missed or repeated. Only if the store stays unreachable, or may no longer be called, the watch
continues at the other store. That store does not have the position, so it begins a new view, marked `reset`, which may
lack the newest writes of the unreachable store until they arrive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message

from libs.clock import Clock
from libs.contract.descriptors import Method
from libs.contract.schemas import SchemaUnknown
from libs.contract.watches import HEARTBEAT_SECONDS, position_of, shape_of
from libs.errors import BatonError, OwnerUnavailable
from libs.ownership.model import Store
from services.router.flows.steering_view import Steering
from services.router.flows.stores import Metadata, Refused, Stores

log = logging.getLogger(__name__)

STILL_SECONDS = 3 * HEARTBEAT_SECONDS
"""A store that is silent for this long counts as lost."""

FIRST_PAUSE_SECONDS = 0.05
"""Pause before the store is called again. It doubles each time, up to LONGEST_PAUSE_SECONDS."""
LONGEST_PAUSE_SECONDS = 0.5


class StoreLost(BatonError):
    """The store has ended a watch, or is silent."""

    code = "UNAVAILABLE"
    reason = "OWNER_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class WatchCall:
    """A watch call from a client."""

    method: Method
    request: Message
    extra: Metadata
    """Metadata for the stores."""


@dataclass(slots=True)
class _Search:
    """The search for a store to continue at."""

    store: Store
    patience_seconds: float
    lost_at: float | None = None
    pause_seconds: float = FIRST_PAUSE_SECONDS
    turned: bool = False
    """Whether the other store is tried too."""
    too_old: set[Store] = field(default_factory=set)
    """Stores that have met a record of a schema version that they do not support."""

    def found(self, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self.lost_at, self.pause_seconds, self.turned = None, FIRST_PAUSE_SECONDS, False

    def turn(self) -> None:
        self.store, self.turned = self.store.other, True


class WatchStreams:
    """Raises InvalidField, Refused with a store's own error, and OwnerUnavailable if no store can be watched."""

    def __init__(self, stores: Stores, steering: Steering, clock: Clock, patience_seconds: float) -> None:
        """`patience_seconds`: how long a watch waits for its store before it moves to the other one."""
        self._stores = stores
        self._steering = steering
        self._clock = clock
        self._patience_seconds = patience_seconds

    async def answers(self, call: WatchCall, to: Store) -> AsyncGenerator[bytes, None]:
        """Yield answers without end. `to`: the store for a watch without a position."""
        shape = shape_of(call.method)
        request = call.method.request_class()
        request.CopyFrom(call.request)
        place = position_of(call.method, request)
        search = _Search(to, 0.0) if place is None else _Search(place.store, self._patience_seconds)
        while True:
            if not self._may_ask(search.store):
                search.turn()
            try:
                async with aclosing(self._attached(search.store, call, request)) as answers:
                    async for data in answers:
                        search.found(self._patience_seconds)
                        token = getattr(call.method.reply_class.FromString(data), shape.resume_token)
                        setattr(request, shape.resume_token, token)
                        yield data
                        if not self._may_ask(search.store):
                            break
            except (StoreLost, Refused) as error:
                if not isinstance(error, Refused) or error.is_fault:
                    await self._after(search, error)
                elif error.reason == SchemaUnknown.reason and self._other_may_show(search):
                    log.warning("a watch restarts at store %s: %s", search.store.other, error)
                    search.turn()
                else:
                    raise

    def _may_ask(self, store: Store) -> bool:
        """Whether the store gets all changes. In a phase without rollback A no longer gets B's."""
        return store is Store.B or self._steering.current.rule.way_back

    def _other_may_show(self, search: _Search) -> bool:
        """Whether the other store may support the schema version that this one does not."""
        search.too_old.add(search.store)
        return search.store.other not in search.too_old and self._may_ask(search.store.other)

    async def _after(self, search: _Search, error: BatonError) -> None:
        """Handle the loss of the store. Raises OwnerUnavailable if the other one does not answer either."""
        now = self._clock.monotonic()
        if search.lost_at is None:
            search.lost_at = now
            log.info("a watch has lost store %s: %s", search.store, error)
        if now - search.lost_at < search.patience_seconds:
            await asyncio.sleep(search.pause_seconds)
            search.pause_seconds = min(search.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        elif not search.turned and self._may_ask(search.store.other):
            log.warning("a watch restarts at store %s: %s", search.store.other, error)
            search.turn()
        else:
            raise OwnerUnavailable("no store can be watched now: call again with the newest resume_token") from error

    async def _attached(self, store: Store, call: WatchCall, request: Message) -> AsyncGenerator[bytes, None]:
        """Yield the store's answers. Raises StoreLost, Refused."""
        client = self._stores[store]
        metadata = grpc.aio.Metadata(*client.token, *call.extra)
        stream = client.channel.stream_callable(call.method.path)(request.SerializeToString(), metadata=metadata)
        try:
            while True:
                async with asyncio.timeout(STILL_SECONDS):
                    answer = await stream.read()
                if not isinstance(answer, bytes):
                    raise StoreLost(f"store {store} has ended the watch")
                yield answer
        except TimeoutError:
            raise StoreLost(f"store {store} has been silent for {STILL_SECONDS:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise client.error(error) from None
        finally:
            stream.cancel()
