"""The subscriptions of one xDS client, by the protocol's state-of-the-world form. Pure: messages are names and bytes.

A client subscribes to resources of a type by name, and gets all of them again whenever one has changed. It answers each
response with that response's nonce: it accepts the response, or refuses it and keeps the resources that it had. A
refused response is not repeated. Only the newest state is ever sent: nothing is queued for a client that is slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

CLUSTERS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENERS = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

TYPES = (CLUSTERS, ENDPOINTS, LISTENERS, ROUTES)
"""Types in the order in which changes are sent: a route never names a cluster that its client does not have."""

_WHOLE_TYPES = frozenset({CLUSTERS, LISTENERS})
"""Types whose resources a client may subscribe to all at once, by naming none."""
_EVERYTHING = "*"

MOST_NAMES = 64
"""Maximum number of names in a request. A client of one service needs at most three of a type."""


class Resource(NamedTuple):
    data: bytes
    """The serialized message."""
    named_only: bool = False
    """Only clients that name the resource get it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources of one moment, by type and name, and the version of each type."""

    resources: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class Request(NamedTuple):
    type_url: str
    names: Sequence[str] = ()
    nonce: str = ""
    error: str = ""
    """Why the client refuses the response with that nonce; "" if it accepts it."""


class Response(NamedTuple):
    type_url: str
    version: str
    nonce: str
    resources: tuple[bytes, ...]


@dataclass(slots=True)
class _Subscription:
    names: frozenset[str] = frozenset()
    everything: bool = True
    """The client has never named a resource of the type: it wants all of them, if the type allows that."""
    nonce: str = ""
    """Nonce of the last response."""
    sent: Mapping[str, bytes] | None = None
    """Resources of the last response; None before it."""
    refused: str = ""
    """Why the client refused the last response; "" if it did not."""


class TooManyNames(Exception):
    """The client subscribes to more resources than there are."""


class Subscriptions:
    """The state of one client."""

    def __init__(self) -> None:
        self._of: dict[str, _Subscription] = {}
        self._responses = 0

    @property
    def refusals(self) -> Sequence[str]:
        """Why the client refused the newest response of a type, for each type that it refused."""
        return [one.refused for one in self._of.values() if one.refused]

    def note(self, request: Request) -> str:
        """Take a request. Returns why the client refuses the last response, or "". Raises TooManyNames."""
        if request.type_url not in TYPES:
            return ""
        if len(request.names) > MOST_NAMES:
            raise TooManyNames()
        one = self._of.setdefault(request.type_url, _Subscription())
        if request.nonce != one.nonce:
            # It crossed a newer response, which the client will answer with all the names that it wants.
            return ""
        one.names = frozenset(request.names) - {_EVERYTHING}
        one.everything = _EVERYTHING in request.names or (one.everything and not one.names)
        if one.sent is not None and not one.everything:
            # The client has forgotten the others: if it names one again, it gets it again.
            one.sent = {name: data for name, data in one.sent.items() if name in one.names}
        one.refused = request.error
        return request.error

    def next_response(self, snapshot: Snapshot) -> Response | None:
        """The next response that is due; None if the client has the newest state."""
        for type_url in TYPES:
            one = self._of.get(type_url)
            if one is None:
                continue
            wanted = _wanted(type_url, one, snapshot)
            due = wanted != one.sent if one.sent is not None else bool(wanted) or type_url in _WHOLE_TYPES
            if due:
                return self._respond(type_url, one, wanted, snapshot.versions.get(type_url, ""))
        return None

    def _respond(self, type_url: str, one: _Subscription, wanted: Mapping[str, bytes], version: str) -> Response:
        self._responses += 1
        one.nonce, one.sent, one.refused = str(self._responses), wanted, ""
        return Response(type_url, version, one.nonce, tuple(wanted.values()))


def _wanted(type_url: str, one: _Subscription, snapshot: Snapshot) -> Mapping[str, bytes]:
    known = snapshot.resources.get(type_url, {})
    everything = one.everything and type_url in _WHOLE_TYPES
    return {
        name: resource.data
        for name, resource in known.items()
        if name in one.names or (everything and not resource.named_only)
    }
