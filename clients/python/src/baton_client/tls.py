"""A connection over TLS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

File: TypeAlias = "str | os.PathLike[str]"
"""Path of a PEM file."""


@dataclass(frozen=True)
class Tls:
    """Files for TLS.

    `ca`: the CA to check the service's certificate by; without it, the CAs that gRPC knows. `certificate`, `key`: if
    the service requires a certificate of its clients. They are read once.
    """

    ca: File | None = None
    certificate: File | None = None
    key: File | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ValueError and OSError."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def _read(file: File | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()
