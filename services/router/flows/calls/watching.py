"""A client's watch, passed through from one store, and gone on with when that store ends it.

Every store sees every change, by write or by apply, so a watch stays at the store where it began, whatever is handed
over meanwhile and whatever phase it is. When the store is lost, the watch is attached to it again from the place of the
last answer: nothing is missed and nothing shown anew. Only if the store stays away, or must not be asked any more, the
watch goes on at the other one. That knows nothing of the place and begins the view anew, marked `reset`; what it shows
then may lack the newest writes of the store that is away, until it has them.
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
"""A store that says nothing for so long is lost."""

FIRST_PAUSE_SECONDS = 0.05
"""Before the store is asked again; then twice as long each time, at most LONGEST_PAUSE_SECONDS."""
LONGEST_PAUSE_SECONDS = 0.5


class StoreLost(BatonError):
    """The store has ended a watch, or says nothing any more."""

    code = "UNAVAILABLE"
    reason = "OWNER_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class WatchCall:
    """A watch as it came in."""

    method: Method
    request: Message
    extra: Metadata
    """For the stores."""


@dataclass(slots=True)
class _Search:
    """For a store to go on at."""

    store: Store
    patience_seconds: float
    lost_at: float | None = None
    pause_seconds: float = FIRST_PAUSE_SECONDS
    turned: bool = False
    """The other store is tried, too."""
    too_old: set[Store] = field(default_factory=set)
    """Stores that have met a record of a schema version that they do not understand."""

    def found(self, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self.lost_at, self.pause_seconds, self.turned = None, FIRST_PAUSE_SECONDS, False

    def turn(self) -> None:
        self.store, self.turned = self.store.other, True


class Watching:
    """Raises InvalidField, Refused with a store's own error, and OwnerUnavailable when no store can be watched."""

    def __init__(self, stores: Stores, steering: Steering, clock: Clock, patience_seconds: float) -> None:
        """`patience_seconds`: how long a watch waits for its store before it goes on at the other one."""
        self._stores = stores
        self._steering = steering
        self._clock = clock
        self._patience_seconds = patience_seconds

    async def answers(self, call: WatchCall, to: Store) -> AsyncGenerator[bytes, None]:
        """Has no end. `to`: where a watch begins that has no place yet."""
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
                    log.warning("a watch goes on at store %s, anew: %s", search.store.other, error)
                    search.turn()
                else:
                    raise

    def _may_ask(self, store: Store) -> bool:
        """Without a way back A is not told of B's changes any more."""
        return store is Store.B or self._steering.current.rule.way_back

    def _other_may_show(self, search: _Search) -> bool:
        """What this store does not understand."""
        search.too_old.add(search.store)
        return search.store.other not in search.too_old and self._may_ask(search.store.other)

    async def _after(self, search: _Search, error: BatonError) -> None:
        """The store was lost. Raises OwnerUnavailable when the other one does not answer either."""
        now = self._clock.monotonic()
        if search.lost_at is None:
            search.lost_at = now
            log.info("a watch has lost store %s: %s", search.store, error)
        if now - search.lost_at < search.patience_seconds:
            await asyncio.sleep(search.pause_seconds)
            search.pause_seconds = min(search.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        elif not search.turned and self._may_ask(search.store.other):
            log.warning("a watch goes on at store %s, anew: %s", search.store.other, error)
            search.turn()
        else:
            raise OwnerUnavailable("no store can be watched now: call again with the newest resume_token") from error

    async def _attached(self, store: Store, call: WatchCall, request: Message) -> AsyncGenerator[bytes, None]:
        """What the store answers. Raises StoreLost, Refused."""
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
            raise StoreLost(f"store {store} has said nothing for {STILL_SECONDS:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise client.error(error) from None
        finally:
            stream.cancel()
