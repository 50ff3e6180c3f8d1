"""Limits of each caller at a listener, so that one caller cannot exhaust it for others.

A caller is the subject of a principal. Anonymous callers are distinguished by the host of their connection; in IPv6 by
its network of 64 bits, since one host may use every address of its network.

Each listener of each process counts for itself. The number of callers without a call that are remembered is limited, so
a stranger with many names or addresses cannot fill the memory.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from libs.clock import Clock
from libs.errors import BatonError
from libs.identity.principal import ANONYMOUS_SUBJECT, Principal

SHARE = 0.5
"""Share of a listener that one caller may use, by default."""

MOST_REMEMBERED = 4096
"""Number of callers above which those without a call are forgotten."""

UNTAKEN_OF_CALLS = 2
"""Answers that a caller may leave untaken, as a multiple of its calls."""

_PEERS = 4096
"""Number of connections whose host is remembered."""

_NETWORK_BITS = 64

_CLOCK_SECONDS = 1e-6
"""Inaccuracy of a clock's figures."""


class CallerLimitReached(BatonError):
    """The caller has reached one of its own limits. Other callers are served."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, setting: str, most: float, has: str) -> None:
        """`setting`: name of the limit. `most`: its value. `has`: the caller's excess, in words."""
        shown = f"{most:g}"
        super().__init__(f"this caller has {has}: its limit {setting} is {shown}", limit=setting, most=shown)


class TooManyCalls(CallerLimitReached):
    reason = "LIMIT_CALLS"
    retry_seconds = 0.2


class TooManyStreams(CallerLimitReached):
    reason = "LIMIT_STREAMS"
    retry_seconds = 1.0


class TooManyAnswers(CallerLimitReached):
    reason = "LIMIT_ANSWERS"
    retry_seconds = 1.0


class TooManyBytes(CallerLimitReached):
    reason = "LIMIT_REQUEST_BYTES"
    retry_seconds = 0.2


class TooFast(CallerLimitReached):
    reason = "LIMIT_RATE"

    def __init__(self, rate: float, wait_seconds: float) -> None:
        """`wait_seconds`: time until the next call is accepted."""
        super().__init__("caller_rate", rate, "sent its calls too fast")
        # Rounded up to RetryInfo's milliseconds: a client that waits exactly this long is not refused again.
        self.retry_seconds = math.ceil(wait_seconds * 1000) / 1000


REASONS = tuple(kind.reason for kind in (TooManyCalls, TooManyStreams, TooManyAnswers, TooManyBytes, TooFast))


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits of one caller at one listener. The defaults are none."""

    share: float = 1.0
    """Share of the listener's calls, streams and readings of bodies; 1: all."""
    calls: int = 0
    """Maximum number of concurrent calls; 0: the share."""
    streams: int = 0
    """Maximum number of concurrent streams; 0: the share."""
    request_bytes: int = 0
    """Maximum size of the requests of calls and streams in progress; 0: no limit."""
    rate: float = 0.0
    """Calls and streams per second, on average; 0: no limit."""
    burst: int = 1
    """Calls and streams that may come at once, before `rate` applies."""


class Caller:
    """The state of one caller."""

    __slots__ = ("calls", "due", "reading", "request_bytes", "streams", "untaken", "untaken_bytes", "waiting")

    def __init__(self) -> None:
        self.calls = 0
        self.streams = 0
        self.waiting = 0
        """Calls in a queue with a limit of its own. They do not count towards the caller's calls."""
        self.reading = 0
        """Request bodies that are being read."""
        self.request_bytes = 0
        self.untaken = 0
        """Calls and streams that have ended, but whose end the caller has not taken."""
        self.untaken_bytes = 0
        """Size of the answers among them."""
        self.due = 0.0
        """Monotonic time at which the bucket of tokens is full again."""

    def __repr__(self) -> str:
        return f"<Caller calls={self.calls} streams={self.streams}>"

    @property
    def idle(self) -> bool:
        return not (self.calls or self.streams or self.reading or self.untaken)


current: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
"""The caller of the running call; None outside a call. The gate sets it."""


class Callers:
    """The callers of one listener."""

    def __init__(self, limits: CallerLimits, calls: int, streams: int, clock: Clock, refused: Counter[str]) -> None:
        """`calls`, `streams`: the listener's limits. `refused`: number of refusals by reason."""
        self._clock = clock
        self._refused = refused
        self._most_calls = _most(limits.calls, calls, limits.share)
        self._most_streams = _most(limits.streams, streams, limits.share)
        # Twice: answers on their way are among them. Callers without limits are processes that take their answers.
        limited = self._most_calls < math.inf
        self._most_untaken = UNTAKEN_OF_CALLS * min(self._most_calls, calls) if limited else math.inf
        self._most_bytes = limits.request_bytes or math.inf
        self._rate = limits.rate
        self._seconds_per_call = 1 / limits.rate if limits.rate else 0.0
        self._burst_seconds = limits.burst * self._seconds_per_call
        self._known: dict[str, Caller] = {}
        self._room = MOST_REMEMBERED

    def __repr__(self) -> str:
        return f"<Callers {len(self._known)}>"

    def __len__(self) -> int:
        return len(self._known)

    def of(self, principal: Principal, peer: str) -> Caller:
        """`peer`: address of the connection, in gRPC's form."""
        key = principal.subject
        if key == ANONYMOUS_SUBJECT:
            key = host_of(peer)
        found = self._known.get(key)
        return self._add(key) if found is None else found

    def admit_call(self, caller: Caller) -> None:
        """Raises CallerLimitReached."""
        if caller.calls - caller.waiting >= self._most_calls:
            raise self._refusal(TooManyCalls("caller_calls", self._most_calls, f"{caller.calls} calls in progress"))
        self._check_untaken(caller)
        if self._rate:
            self._take_token(caller)

    def admit_stream(self, caller: Caller) -> None:
        """Raises CallerLimitReached."""
        self._check_untaken(caller)
        if caller.streams >= self._most_streams:
            found = f"{caller.streams} watches in progress"
            raise self._refusal(TooManyStreams("caller_watches", self._most_streams, found))
        if self._rate:
            self._take_token(caller)

    def _check_untaken(self, caller: Caller) -> None:
        if caller.untaken >= self._most_untaken:
            found = f"{caller.untaken} answers that it has not taken"
            raise self._refusal(TooManyAnswers("caller_calls", self._most_untaken, found))
        if caller.untaken_bytes > self._most_bytes:
            found = f"{caller.untaken_bytes} bytes of answers that it has not taken"
            raise self._refusal(TooManyAnswers("caller_request_bytes", self._most_bytes, found))

    def hold(self, caller: Caller, size_bytes: int) -> None:
        """Count the bytes of a request, until `request_bytes` of the caller is lowered again. Raises
        CallerLimitReached."""
        held = caller.request_bytes + size_bytes
        if held > self._most_bytes:
            raise self._refusal(TooManyBytes("caller_request_bytes", self._most_bytes, f"{held} bytes of requests"))
        caller.request_bytes = held

    def _take_token(self, caller: Caller) -> None:
        """A bucket of tokens as a single time: it is full at `due`, and each call moves that time by one token."""
        now = self._clock.monotonic()
        due = max(caller.due, now) + self._seconds_per_call
        excess = due - now - self._burst_seconds
        if excess > _CLOCK_SECONDS:
            raise self._refusal(TooFast(self._rate, excess))
        caller.due = due

    def _refusal(self, error: CallerLimitReached) -> CallerLimitReached:
        self._refused[error.reason] += 1
        return error

    def _add(self, key: str) -> Caller:
        if len(self._known) >= self._room:
            self._forget()
        made = self._known[key] = Caller()
        return made

    def _forget(self) -> None:
        """Forget callers without a call: those whose bucket is full, and the first half of the others. These get a
        full bucket if they come again."""
        now = self._clock.monotonic()
        idle = [key for key, caller in self._known.items() if caller.idle]
        owing = [key for key in idle if self._known[key].due > now]
        busy = len(self._known) - len(idle)
        for key in {*idle} - {*owing[len(owing) // 2 :]}:
            del self._known[key]
        self._room = MOST_REMEMBERED + busy


@lru_cache(_PEERS)
def host_of(peer: str) -> str:
    """The host of a connection, from its address in gRPC's form: "ipv4:10.0.0.1:4711", "ipv6:%5B2001:db8::1%5D:4711".
    For IPv6 the network."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0]
    if kind != "ipv6":
        return f"{kind}:{host}"
    bare = host.replace("%5B", "").replace("%5D", "").strip("[]").partition("%")[0]
    try:
        address = ipaddress.IPv6Address(bare)
    except ValueError:
        return f"{kind}:{bare}"
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    return f"{kind}:{ipaddress.ip_network((address, _NETWORK_BITS), strict=False).network_address}"


def _most(own: int, of_listener: int, share: float) -> float:
    shared = of_listener * share if share < 1 else math.inf
    return min(own or math.inf, shared)
