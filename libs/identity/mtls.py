"""Authentication by the client certificate's names, which TLS has verified.

    [[certificate]]
    name = "spiffe://prod.example/payments"    # a URI, DNS or e-mail name (SAN) of the certificate
    accounts = ["acme"]
    roles = ["operator"]
    revoked = ["3F:0A:..."]                    # SHA-256 fingerprints of certificates that are refused

The principal is "mtls:" and the name. A certificate without a name in the file is refused, and so is a revoked one,
whichever entry names it. gRPC for Python offers no revocation lists of a CA; the fingerprints take their place.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from libs.clock import Clock
from libs.identity.errors import CertificateMissing, CertificateRevoked, CertificateUnknown
from libs.identity.files import read_entries
from libs.identity.grants import read_grant, texts
from libs.identity.port import Credentials
from libs.identity.principal import Principal, subject_of
from libs.secret_file import SecretFile

ISSUER = "mtls"
_KINDS = ("peer_uri", "peer_dns", "peer_email")
"""gRPC's keys for the names of a certificate, in the order in which they are looked up."""
CERTIFICATE = "x509_pem_cert"
"""gRPC's key for the certificate itself, in PEM."""
_FIELDS = frozenset({"name", "accounts", "roles", "revoked"})
_FINGERPRINT = re.compile(r"[0-9A-F]{64}")
_REMEMBERED = 4096
"""Number of certificates whose fingerprint is kept."""


class Known(NamedTuple):
    """The content of the file."""

    principals: Mapping[bytes, Principal]
    revoked: frozenset[str]
    """Fingerprints in upper-case hexadecimal digits, without colons."""


class CertificateNames:
    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises UnfitFile."""
        self._file = SecretFile(path, read_names, clock)

    def __repr__(self) -> str:
        return f"<CertificateNames {self._file.path}>"

    async def authenticate(self, credentials: Credentials) -> Principal:
        found, known = credentials.auth_context(), self._file.content
        for kind in _KINDS:
            for name in found.get(kind, ()):
                if principal := known.principals.get(name):
                    if known.revoked and _is_revoked(found.get(CERTIFICATE, ()), known.revoked):
                        raise CertificateRevoked()
                    return principal
        raise CertificateUnknown() if any(kind in found for kind in _KINDS) else CertificateMissing()


def _is_revoked(certificates: Iterable[bytes], revoked: frozenset[str]) -> bool:
    """A connection that does not show its certificate counts as revoked."""
    shown = [_fingerprint(one) for one in certificates]
    return not shown or not revoked.isdisjoint(shown)


@lru_cache(_REMEMBERED)
def _fingerprint(pem: bytes) -> str:
    return sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest().upper()


def read_names(data: bytes) -> Known:
    """Raises ValueError."""
    principals: dict[bytes, Principal] = {}
    revoked: set[str] = set()
    for number, entry in enumerate(read_entries(data, "certificate", _FIELDS), 1):
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"[[certificate]] number {number}: name: give a URI, DNS or e-mail name")
        if name.encode() in principals:
            raise ValueError(f"[[certificate]] number {number}: name: {name!r} has another entry")
        try:
            principals[name.encode()] = read_grant(subject_of(ISSUER, name), entry)
            revoked |= {_read_fingerprint(one) for one in texts(entry, "revoked")}
        except ValueError as error:
            raise ValueError(f"[[certificate]] number {number}: {error}") from None
    return Known(principals, frozenset(revoked))


def _read_fingerprint(text: str) -> str:
    """Raises ValueError."""
    digits = text.replace(":", "").upper()
    if not _FINGERPRINT.fullmatch(digits):
        raise ValueError(
            f"revoked: {text!r} is not a SHA-256 fingerprint:"
            " openssl x509 -in FILE -noout -fingerprint -sha256 prints it"
        )
    return digits
