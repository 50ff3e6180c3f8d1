"""Certificates, keys and CA certificates in PEM files, checked when they are read and read again when they change.

At the start, a bad file is an error. Later the last good files stay in force, and `trouble` describes the fault of the
new ones. Files are replaced one after the other, so a certificate may not fit its key for a moment.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from libs.errors import BatonError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

DAY_SECONDS = 86_400
WARN_DAYS = 14.0
"""Days before a certificate expires from which on log, status and doctor warn."""

_Stamp: TypeAlias = tuple[int, int, int]
"""Time of change, size and inode of a file."""


class TlsUnfit(BatonError):
    """A file for TLS cannot be used."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file and the setting that names it."""

    setting: str
    path: Path

    def __str__(self) -> str:
        return f"{self.setting}: {self.path}"


@dataclass(frozen=True, slots=True)
class Material:
    """Contents of the files at one time."""

    certificate: bytes | None
    """The certificate and its chain."""
    key: bytes | None = field(repr=False)
    ca: bytes | None
    """Certificates of the authorities that the peer's certificate must come from."""
    expires_at: float | None
    """Time at which the certificate expires, in seconds since 1970."""
    name: str = ""
    """The first of the certificate's names that are DNS names or IP addresses."""


class TlsFiles:
    """A certificate with its key, and the CA for the peer's certificate. Either part may be missing."""

    def __init__(
        self,
        certificate: NamedFile | None,
        key: NamedFile | None,
        ca: NamedFile | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises TlsUnfit."""
        if (certificate is None) != (key is None):
            given = certificate or key
            raise TlsUnfit(f"{given}: a certificate and its key belong together: set both settings")
        self._certificate, self._key, self._ca = certificate, key, ca
        self._now = now
        self._stamps = self._look()
        self.material = self._read()
        """The last good contents."""
        self.generation = 0
        """Number of times that the contents were replaced."""
        self.trouble = ""
        """Why the files that are there now are not in force; "" while they are."""

    def __repr__(self) -> str:
        names = [str(one) for one in (self._certificate, self._key, self._ca) if one is not None]
        return f"<TlsFiles {', '.join(names)} generation={self.generation}>"

    @property
    def certificate(self) -> NamedFile | None:
        return self._certificate

    @property
    def days_left(self) -> float | None:
        """Days until the certificate in force expires; None without a certificate."""
        expires_at = self.material.expires_at
        return None if expires_at is None else (expires_at - self._now()) / DAY_SECONDS

    def refresh(self) -> bool:
        """Read the files again if they have changed. Returns whether new contents are in force."""
        stamps = self._look()
        if stamps == self._stamps and not self.trouble:
            return False
        try:
            material = self._read()
        except TlsUnfit as error:
            self.trouble = str(error)
            return False
        # A file that was replaced after the look has another stamp at the next one.
        self._stamps, self.trouble = stamps, ""
        if material == self.material:
            return False
        self.material = material
        self.generation += 1
        return True

    def _look(self) -> tuple[_Stamp | None, ...]:
        return tuple(_stamp(one.path) for one in (self._certificate, self._key, self._ca) if one is not None)

    def _read(self) -> Material:
        certificate = key = ca = expires_at = None
        name = ""
        if self._certificate is not None and self._key is not None:
            certificate, key = _contents(self._certificate), _read_key(self._key)
            leaf = _certificates(self._certificate, certificate)[0]
            _check_key(self._certificate, leaf, self._key, key)
            expires_at, name = _check_time(self._certificate, leaf, self._now()), _first_name(leaf)
        if self._ca is not None:
            ca = _contents(self._ca)
            _certificates(self._ca, ca)
        return Material(certificate, key, ca, expires_at, name)


def is_open_to_all(path: Path) -> bool:
    """Whether every user of this machine can reach the file and read or change it. Raises OSError.

    The mode is ignored on a read-only file system: containers mount secrets that way, often with mode 0444, and have no
    other users.
    """
    if not path.stat().st_mode & 0o006 or os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def context_of(material: Material, *, server: bool) -> ssl.SSLContext:
    """TLS 1.2 or later, with OpenSSL's default ciphers, which have forward secrecy from TLS 1.3 on and a list that
    Python restricts before.

    A client verifies the name and the certificate of its server, by the CA or, without one, by the system's. A server
    with a CA requires a certificate of its clients.
    """
    if server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if material.ca is not None:
            context.load_verify_locations(cadata=material.ca.decode())
            context.verify_mode = ssl.CERT_REQUIRED
    else:
        context = ssl.create_default_context(cadata=None if material.ca is None else material.ca.decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    if material.certificate is not None and material.key is not None:
        _load_pair(context, material.certificate, material.key)
    return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Python loads a certificate only from a file. This one is in memory, so it holds the checked content, and
    the key is on no disk."""
    handle = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(handle, key + b"\n" + certificate)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _contents(file: NamedFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise TlsUnfit(f"{file} cannot be read: {error.strerror}; give the path of a PEM file") from None


def _read_key(file: NamedFile) -> bytes:
    contents = _contents(file)
    if is_open_to_all(file.path):
        raise TlsUnfit(f"{file}: every user of this machine can read or change the key: chmod 600 {file.path}")
    return contents


def _certificates(file: NamedFile, contents: bytes) -> list[Certificate]:
    # Only a process that uses TLS loads it.
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(contents)
    except ValueError:
        raise TlsUnfit(f"{file} has no valid certificate: give a PEM file with -----BEGIN CERTIFICATE-----") from None


def _check_key(certificate: NamedFile, leaf: Certificate, key: NamedFile, private: bytes) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        public = load_pem_private_key(private, None).public_key()
    except TypeError:
        raise TlsUnfit(f"{key} is encrypted: store the key without a passphrase, for its owner only") from None
    except ValueError:
        raise TlsUnfit(f"{key} has no valid private key: give a PEM file with -----BEGIN PRIVATE KEY-----") from None
    if public != leaf.public_key():
        raise TlsUnfit(
            f"{key} is not the key of the certificate in {certificate.path}: give the two that belong together"
        )


def _check_time(certificate: NamedFile, leaf: Certificate, now: float) -> float:
    """Check that the certificate is valid now. Returns the time at which it expires."""
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if begins.timestamp() > now:
        raise TlsUnfit(f"{certificate} is not valid before {begins:%Y-%m-%d %H:%M} UTC: check the clock")
    if ends.timestamp() <= now:
        raise TlsUnfit(f"{certificate} expired at {ends:%Y-%m-%d %H:%M} UTC: renew it")
    return ends.timestamp()


def _first_name(leaf: Certificate) -> str:
    from cryptography import x509

    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    names = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    return names[0] if names else ""
