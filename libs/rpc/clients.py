"""Clients that call in a way that ends one day: seen, named, warned in each answer's headers, and served all the same.

A name is for people who look for the last such client; nothing is decided by it, so a client may call itself anything.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from libs.contract.schemas import SchemaVersions
from libs.rpc import metadata
from libs.rpc.errors import Context

MOST_CLIENTS = 200
"""That are remembered, the last ones that called."""

_NAME_CHARACTERS = 120


class Time(Protocol):
    def monotonic(self) -> float: ...


@dataclass(slots=True)
class SeenClient:
    name: str
    schema_version: int
    """The oldest that it spoke."""
    calls: int
    last_at: float
    """Monotonic."""


class Clients:
    """Of one listener: those that speak an old schema version; `everybody`, when the listener itself goes away one day.
    `notice`: what the others are told then."""

    def __init__(self, schemas: SchemaVersions, clock: Time, *, everybody: bool = False, notice: str = "") -> None:
        self._schemas = schemas
        self._clock = clock
        self._everybody = everybody
        self._notice = notice
        self._seen: OrderedDict[str, SeenClient] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Clients {len(self._seen)}>"

    async def note(self, context: Context, version: int) -> None:
        """A call of a client that speaks this schema version has come."""
        warnings = [self._notice] if self._notice else []
        if self._schemas.is_old(version):
            newest = self._schemas.newest
            warnings.append(f"schema version {version} is old: say {self._schemas.metadata}: {newest} in the metadata")
        if warnings or self._everybody:
            self._count(name_of(context), version)
        if warnings:
            await context.send_initial_metadata(((metadata.DEPRECATED, "; ".join(warnings)),))

    def seen(self) -> list[SeenClient]:
        """The last to call first."""
        return list(reversed(self._seen.values()))

    def _count(self, name: str, version: int) -> None:
        now = self._clock.monotonic()
        client = self._seen.pop(name, None) or SeenClient(name, version, 0, now)
        client.schema_version = min(client.schema_version, version)
        client.calls += 1
        client.last_at = now
        self._seen[name] = client
        if len(self._seen) > MOST_CLIENTS:
            self._seen.popitem(last=False)


def name_of(context: Context) -> str:
    """What a caller calls itself, else its program and host."""
    found: dict[str, Any] = dict(context.invocation_metadata() or ())
    own = found.get(metadata.CLIENT)
    name = own if isinstance(own, str) and own else f"{found.get('user-agent', '')} at {_host(context.peer())}"
    return name[:_NAME_CHARACTERS].strip()


def _host(peer: str) -> str:
    """Without the port, which is another one for each connection: of "ipv4:10.0.0.1:4711"."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else rest or peer
