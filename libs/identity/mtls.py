"""Authentication by the client certificate's names, which TLS has verified.

    [[certificate]]
    name = "spiffe://prod.example/payments"    # a URI, DNS or e-mail name (SAN) of the certificate
    accounts = ["acme"]
    roles = ["operator"]

The principal is "mtls:" and the name. A certificate without a name in the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libs.identity.errors import CertificateMissing, CertificateUnknown
from libs.identity.files import WatchedFile, read_entries
from libs.identity.grants import read_grant
from libs.identity.port import Credentials
from libs.identity.principal import Principal, subject_of

ISSUER = "mtls"
_KINDS = ("peer_uri", "peer_dns", "peer_email")
"""gRPC's keys for the names of a certificate, in the order in which they are looked up."""
_NAMES = frozenset({"name", "accounts", "roles"})

Known = Mapping[bytes, Principal]
"""By name."""


class CertificateNames:
    def __init__(self, path: Path) -> None:
        """Raises UnfitFile."""
        self._known: Known = {}
        self.file = WatchedFile(path, read_names, self._set)

    def __repr__(self) -> str:
        return f"<CertificateNames {self.file.path} names={len(self._known)}>"

    async def authenticate(self, credentials: Credentials) -> Principal:
        found = credentials.auth_context()
        for kind in _KINDS:
            for name in found.get(kind, ()):
                if principal := self._known.get(name):
                    return principal
        raise CertificateUnknown() if any(kind in found for kind in _KINDS) else CertificateMissing()

    def _set(self, known: Known) -> None:
        self._known = known


def read_names(data: bytes) -> Known:
    """Raises ValueError."""
    known: dict[bytes, Principal] = {}
    for number, entry in enumerate(read_entries(data, "certificate", _NAMES), 1):
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"[[certificate]] number {number}: name: give a URI, DNS or e-mail name")
        if name.encode() in known:
            raise ValueError(f"[[certificate]] number {number}: name: {name!r} has another entry")
        try:
            known[name.encode()] = read_grant(subject_of(ISSUER, name), entry)
        except ValueError as error:
            raise ValueError(f"[[certificate]] number {number}: {error}") from None
    return known
