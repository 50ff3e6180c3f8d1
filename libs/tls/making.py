"""A certificate authority of one system, in PEM files: for the demo, and for containers on one host.

An organisation has an authority of its own; then nothing here is needed. Keys are on the curve P-256.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
RENEW_DAYS = 60
"""A certificate that expires within this time is made again."""
_CLOCK_HOURS = 1
"""Certificates are valid from an hour ago: clocks differ."""

OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate, followed by that of its authority, and of its key in PKCS 8."""

    certificate: Path
    key: Path


class Authority:
    """An authority whose files `ca.pem` and `ca-key.pem` are in a directory; they are made if they are missing."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError, and ValueError for files that are not PEM."""
        self._directory = directory
        self.file = directory / "ca.pem"
        key_file = directory / "ca-key.pem"
        if not (self.file.exists() and key_file.exists()):
            key = ec.generate_private_key(ec.SECP256R1())
            write(key_file, _key_pem(key), OWNER_ONLY)
            write(self.file, _pem(_authority(key)), 0o644)
        self._certificate = x509.load_pem_x509_certificate(self.file.read_bytes())
        found = serialization.load_pem_private_key(key_file.read_bytes(), None)
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_file}: it is not a key of this authority: remove it and {self.file}")
        self._key = found

    def __repr__(self) -> str:
        return f"<Authority {self.file}>"

    def issue(self, name: str, hosts: Sequence[str], key_mode: int = OWNER_ONLY) -> Pair:
        """The pair `name`.pem and `name`-key.pem, for these DNS names and IP addresses. It is made unless it is there,
        has these names, comes from this authority and does not expire soon."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}-key.pem")
        if not self._is_good(pair, hosts):
            key = ec.generate_private_key(ec.SECP256R1())
            write(pair.key, _key_pem(key), key_mode)
            write(pair.certificate, _pem(self._sign(key, name, hosts)) + self.file.read_bytes(), 0o644)
        return pair

    def _is_good(self, pair: Pair, hosts: Sequence[str]) -> bool:
        if not (pair.certificate.exists() and pair.key.exists()):
            return False
        found = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return (
            found.issuer == self._certificate.subject
            and list(names) == _names(hosts)
            and found.not_valid_after_utc - datetime.now(UTC) > timedelta(days=RENEW_DAYS)
        )

    def _sign(self, key: ec.EllipticCurvePrivateKey, name: str, hosts: Sequence[str]) -> x509.Certificate:
        builder = _builder(name, self._certificate.subject, key, CERTIFICATE_DAYS)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that appears as a whole, with this mode from the first moment."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
    new.replace(path)


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # Another name for each authority: a certificate of a former one is told by its issuer.
    name = f"Baton {x509.random_serial_number() & 0xFFFFFFFF:08x}"
    own_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        _builder(name, _subject(name), key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own_key, critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=_CLOCK_HOURS))
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    return [_name(host) for host in hosts]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
