"""Certificates for tests, in files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from libs.tls.files import NamedFile, TlsFiles

LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A CA that writes into a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.file = directory / f"{name}.pem"
        replace(self.file, self.pem)

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def issue(self, name: str, *names: str, days: float = 30.0, key_mode: int = 0o600) -> Pair:
        """Write `name`.pem and `name`-key.pem, with these names in the certificate. An earlier pair is replaced.

        `days`: until it expires; negative if it has expired.
        """
        now = datetime.now(UTC)
        made = self._ca.issue_cert(
            *(names or LOCAL), not_before=now - timedelta(days=60), not_after=now + timedelta(days=days)
        )
        found = Pair(self._directory / f"{name}.pem", self._directory / f"{name}-key.pem")
        replace(found.key, made.private_key_pem.bytes(), key_mode)
        replace(found.certificate, b"".join(pem.bytes() for pem in made.cert_chain_pems))
        return found


def replace(path: Path, contents: bytes, mode: int = 0o600) -> None:
    """Write a file that appears as a whole, as a secret's mount or a careful program does it."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(contents)
    new.chmod(mode)
    os.replace(new, path)


def files(pair: Pair | None, ca: Path | None = None) -> TlsFiles:
    """The files under the names of a process's settings."""
    return TlsFiles(
        NamedFile("tls_certificate", pair.certificate) if pair else None,
        NamedFile("tls_key", pair.key) if pair else None,
        NamedFile("tls_client_ca", ca) if ca else None,
    )
