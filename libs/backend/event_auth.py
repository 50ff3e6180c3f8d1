"""Authentication of events at one store: which events of the log it may apply, and from which relays it gives events.

`off`: events need no code. `sign`: the store gives its changes only to relays that sign them; it checks no event.
`require`: in addition, an event without a right code (`libs.eventlog.codes`) is parked as UNAUTHENTICATED. The check
comes before anything else is read from the event, so a heartbeat, a terms event or an event of the store's own needs a
code too. It is made again at each retry, and by a router for each replay.

`require` starts where the log ended when it was switched on. These offsets are recorded in the store; events before
them are older than the rule. A process that starts with `off` or `sign` forgets them. An event that was parked as
UNAUTHENTICATED needs a right code for ever, whatever the mode is later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from libs.errors import BatonError
from libs.eventlog.codes import Codes
from libs.eventlog.headers import unpack
from libs.eventlog.key_ring import KeyRing, KeyRingUnfit
from libs.eventlog.port import Event, EventLog, Stored
from libs.store.port import Feed, Parked

Mode = Literal["off", "sign", "require"]

UNAUTHENTICATED = "UNAUTHENTICATED"
"""First word of the reason of such a parked event."""


class RelayUnsigned(BatonError):
    """This store gives its changes only to relays that sign them. Set event_keys at all routers."""

    code = "FAILED_PRECONDITION"
    reason = "RELAY_UNSIGNED"


class ReplayUnchecked(BatonError):
    """This store accepts replayed events only from routers that check their codes. Set event_keys at all routers."""

    code = "FAILED_PRECONDITION"
    reason = "REPLAY_UNCHECKED"


class Keys(Protocol):
    """The part of `libs.secret_file.SecretFile` that is used."""

    @property
    def content(self) -> KeyRing: ...

    @property
    def trouble(self) -> str:
        """Why the changed file of keys is not used; "" if it is."""
        ...


class EventAuth:
    """The rule of one process."""

    def __init__(self, mode: Mode, topic: str, feed: Feed, keys: Keys | None = None) -> None:
        """Raises KeyRingUnfit if the mode needs keys and there are none."""
        if mode != "off" and keys is None:
            raise KeyRingUnfit(f"event_auth is {mode}, which needs a file of keys: set event_keys")
        self.mode = mode
        self._topic = topic
        self._feed = feed
        self._keys = keys
        self._codes = None if keys is None else Codes(_ring(keys), topic)
        self._from: Mapping[int, int] | None = None if mode == "require" else {}
        """Offsets from which on events need a code; None until they are known."""
        self._forgotten = mode == "require"

    def __repr__(self) -> str:
        return f"<EventAuth {self.mode} from {self._from}>"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The key that signs, then the others; empty without keys."""
        return () if self._codes is None else self._codes.key_ids

    @property
    def trouble(self) -> str:
        """Why the changed file of keys is not used; "" if it is."""
        return "" if self._keys is None else self._keys.trouble

    async def learn(self) -> None:
        """Learn from which offsets on events need a code, if that is recorded. Raises the store's errors."""
        if self.mode == "require":
            self._from = (await self._feed.state()).checked_from

    async def begin(self, log: EventLog) -> None:
        """Run `learn`, and record the log's end unless an offset is recorded; in another mode, remove the offsets.

        It may be called repeatedly. Raises the errors of the log and the store.
        """
        if not self._forgotten:
            await self._feed.stop_checking()
            self._forgotten = True
        await self.learn()
        if self.mode == "require" and not self._from:
            ends = {partition: end for partition, (_, end) in (await log.ends()).items()}
            self._from = await self._feed.start_checking(ends)

    def why_refused(self, stored: Stored) -> str:
        """Why an event of the log must not be applied; "" if it may be."""
        if self.mode != "require" or self._is_older(stored.partition, stored.offset):
            return ""
        return self._why_wrong(stored.event, self._topic)

    def why_parked(self, parked: Parked) -> str:
        """Like `why_refused`, for a parked event."""
        if not parked.unauthenticated:
            in_this_log = parked.topic in ("", self._topic)
            if self.mode != "require" or (in_this_log and self._is_older(parked.partition, parked.offset)):
                return ""
        event = Event(parked.key, parked.event, unpack(parked.headers))
        return self._why_wrong(event, parked.topic or self._topic)

    def check_relay(self, code: bytes) -> None:
        """`code`: `Codes.proof` of the relay that asks for changes. Raises RelayUnsigned."""
        if self.mode == "off" or self._codes is None:
            return
        if why := self._codes.why_wrong_proof(code):
            raise RelayUnsigned(f"{RelayUnsigned.__doc__} The relay's proof: {why}")

    def check_replay(self, *, checked: bool) -> None:
        """`checked`: whether the router has checked the events' codes. Raises ReplayUnchecked."""
        if self.mode == "require" and not checked:
            raise ReplayUnchecked

    def _is_older(self, partition: int, offset: int) -> bool:
        """Whether the event was in the log when the check was switched on, or the check is not recorded yet."""
        return self._from is not None and (not self._from or offset < self._from.get(partition, 0))

    def _why_wrong(self, event: Event, topic: str) -> str:
        if self._keys is None or self._codes is None:
            return f"{UNAUTHENTICATED}: this process has no keys to check it (event_keys)"
        codes = self._codes if topic == self._topic else Codes(_ring(self._keys), topic)
        why = codes.why_wrong(event)
        return f"{UNAUTHENTICATED}: {why}" if why else ""


def _ring(keys: Keys) -> Callable[[], KeyRing]:
    return lambda: keys.content
