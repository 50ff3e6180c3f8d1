"""Open connections of an HTTP listener, in total and by host, so that one host cannot take the connections of all.

A connection is *accepted*, or refused with a response, or closed at once. Refused connections stay for a moment, and
there are at most as many of them as accepted ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from libs.http.errors import TooManyConnections
from libs.rpc.callers import host_of
from libs.rpc.slots import release_slot


def host_at(transport: asyncio.BaseTransport) -> str:
    """Host of the peer: for IPv6 its network."""
    address = transport.get_extra_info("peername")
    # A peer that has left already has no address.
    host = str(address[0]) if address else "unknown"
    return host_of(f"ipv6:[{host}]:0" if ":" in host else f"ipv4:{host}:0")


class Hosts:
    """The connections of one listener."""

    def __init__(self, most: int, share: float) -> None:
        """`most`: number of accepted connections. `share`: share of them that one host may have."""
        self._most = most
        self._most_of_one = most * share
        self._open: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self.refused = Counter({TooManyConnections.reason: 0})
        """Number of connections that a limit refused since the start, by reason."""

    def __repr__(self) -> str:
        return f"<Hosts open={self._open.total()} accepted={self._accepted.total()}>"

    def open(self, host: str) -> bool:
        """Count a new connection until `close`. False: close it without a response."""
        self._open[host] += 1
        if self._open.total() <= 2 * self._most and self._open[host] <= max(2 * self._most_of_one, 1):
            return True
        self.refused[TooManyConnections.reason] += 1
        return False

    def close(self, host: str) -> None:
        release_slot(self._open, host)

    def accept(self, host: str) -> bool:
        """Count an accepted connection until `leave`. False: refuse it with a response."""
        if self._accepted.total() >= self._most or self._accepted[host] >= self._most_of_one:
            self.refused[TooManyConnections.reason] += 1
            return False
        self._accepted[host] += 1
        return True

    def open_of(self, host: str) -> int:
        """Open connections of the host."""
        return self._open[host]

    def accepted_of(self, host: str) -> int:
        """Accepted connections of the host."""
        return self._accepted[host]

    def leave(self, host: str) -> None:
        release_slot(self._accepted, host)
