"""Clients that use a deprecated interface: counted by name, warned in each answer's metadata, and served all the same.

A gate waits until the last such client has stopped, so one caller must not push another out of the list. A seen name
stays; a host has a limited number of names, and calls under further names count for the host.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from libs.contract.schemas import SchemaVersions
from libs.rpc import metadata
from libs.rpc.errors import Context, Pairs

MOST_CLIENTS = 200
"""Maximum number of names of one listener, without the names for several clients."""

MOST_OF_A_HOST = 10
"""Maximum number of names that clients of one host choose, and of names made for them."""

MOST_HOSTS = 100
"""Maximum number of hosts whose further names are counted separately."""

OTHERS = "other clients"
"""Name for calls of clients without an entry."""

_NAME_CHARACTERS = 120


class Time(Protocol):
    def monotonic(self) -> float: ...


@dataclass(slots=True)
class SeenClient:
    name: str
    schema_version: int
    """The oldest schema version of its calls."""
    calls: int
    last_at: float
    """Monotonic time of its last call."""


class Clients:
    """Clients of one listener that use an old schema version; all clients, if the listener itself is deprecated
    (`everybody`).

    `notice`: warning to every client of a deprecated listener.
    """

    def __init__(self, schemas: SchemaVersions, clock: Time, *, everybody: bool = False, notice: str = "") -> None:
        self._schemas = schemas
        self._clock = clock
        self._everybody = everybody
        self._notice = notice
        self._warnings: dict[tuple[int, bool], Pairs] = {}
        """Warnings by schema version."""
        self._seen: OrderedDict[str, SeenClient] = OrderedDict()
        self._names_of: Counter[tuple[str, bool]] = Counter()
        """Number of names per host, separately for names that clients chose (True) and names made for them (False)."""

    def __repr__(self) -> str:
        return f"<Clients {len(self._seen)}>"

    def note(self, context: Context, version: int, *, led_here: bool = False) -> Pairs:
        """Record a call of a client with this schema version. Returns the warning for the client, as metadata.

        A call with one answer sends it in the trailers: initial metadata would cost an operation of their own, an
        eighth of a read. A stream, which may have no end, sends it first. `led_here`: a router leads the client to this
        listener, and will lead it elsewhere.
        """
        warning = self._warnings.get((version, led_here))
        if warning is None:
            warning = self._warnings[version, led_here] = self._warning(version, led_here=led_here)
        if warning or (self._everybody and not led_here):
            self._count(self._entry(name_of(context), context), version)
        return warning

    def _warning(self, version: int, *, led_here: bool) -> Pairs:
        warnings = [self._notice] if self._notice and not led_here else []
        if self._schemas.is_old(version):
            newest = self._schemas.newest
            warnings.append(f"schema version {version} is old: say {self._schemas.metadata}: {newest} in the metadata")
        return ((metadata.DEPRECATED, "; ".join(warnings)),) if warnings else ()

    def seen(self) -> list[SeenClient]:
        """Clients, latest caller first."""
        return list(reversed(self._seen.values()))

    def _entry(self, name: str, context: Context) -> str:
        """Name that counts this call."""
        if name in self._seen:
            return name
        host = _host(context.peer())
        share = (host, bool(_own_name(context)))
        if self._names_of[share] < MOST_OF_A_HOST and self._names_of.total() < MOST_CLIENTS:
            self._names_of[share] += 1
            return name
        others = f"{OTHERS} at {host}"
        return others if others in self._seen or len(self._seen) < MOST_CLIENTS + MOST_HOSTS else OTHERS

    def _count(self, name: str, version: int) -> None:
        now = self._clock.monotonic()
        client = self._seen.pop(name, None) or SeenClient(name, version, 0, now)
        client.schema_version = min(client.schema_version, version)
        client.calls += 1
        client.last_at = now
        self._seen[name] = client


def name_of(context: Context) -> str:
    """Name that the caller gives itself, else its program and host."""
    found: dict[str, Any] = dict(context.invocation_metadata() or ())
    name = _own_name(context) or f"{found.get('user-agent', '')} at {_host(context.peer())}"
    return name[:_NAME_CHARACTERS].strip()


def _own_name(context: Context) -> str:
    found: dict[str, Any] = dict(context.invocation_metadata() or ())
    own = found.get(metadata.CLIENT)
    return own if isinstance(own, str) else ""


def _host(peer: str) -> str:
    """Host of a peer such as "ipv4:10.0.0.1:4711". The port differs with each connection."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else rest or peer
