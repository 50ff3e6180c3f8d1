"""The port of authentication: from a call's metadata and peer to a principal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from libs.identity.principal import Principal

AUTHORIZATION = "authorization"
"""Name of the metadata, and of the HTTP header, that carries a token: "Bearer TOKEN"."""


class Credentials(Protocol):
    """The credentials of a call. A gRPC context is one; doors over HTTP offer the same."""

    def invocation_metadata(self) -> Any:
        """Pairs of name and value, names in lower case; None if there are none."""
        ...

    def peer(self) -> str:
        """Address of the connection, such as "ipv4:10.0.0.1:4711"."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """The peer's verified certificate and its names, by gRPC's keys: x509_pem_cert, peer_uri, peer_dns, peer_email.
        Empty without a certificate."""
        ...


class Authenticator(Protocol):
    """Finds the principal of each call of a listener, in any number of calls at once.

    A refusal raises Unauthenticated. It has a reason and shows nothing else. If it cannot decide, it raises another
    BatonError: a call without a principal is never served. It may wait, for example for new keys, but not for long:
    the call occupies no slot of the listener meanwhile. A repeated credential should cost no more than a lookup.
    """

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Raises Unauthenticated, BatonError."""
        ...
