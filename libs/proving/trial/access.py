"""How clients and operators of a trial reach the processes: over TLS or not, with a token or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2

from libs.identity.port import AUTHORIZATION
from libs.proving.trial.doors import Way
from libs.tls.files import context_of
from libs.tls.process import ClientTls


@dataclass(frozen=True, slots=True)
class Access:
    """Access of one client."""

    tls: ClientTls | None = None
    token: str = ""
    """Token of the authorization metadata; "" for none."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((AUTHORIZATION, f"Bearer {self.token}"),) if self.token else ()

    def http_client(self) -> httpx2.AsyncClient:
        if self.tls is None:
            return httpx2.AsyncClient()
        return httpx2.AsyncClient(verify=context_of(self.tls.files.material, server=False))


@dataclass(frozen=True, slots=True)
class Bearing:
    """A connection whose calls carry a token."""

    way: Way
    metadata: tuple[tuple[str, str], ...]

    def multi_callable(self, method: str) -> Any:
        plain, own = self.way.multi_callable(method), self.metadata

        def call(data: bytes, timeout: float | None = None, metadata: Iterable[tuple[str, Any]] | None = None) -> Any:
            return plain(data, timeout=timeout, metadata=grpc.aio.Metadata(*own, *(metadata or ())))

        return call


OPEN = Access()
"""Access to a system without TLS and tokens."""
