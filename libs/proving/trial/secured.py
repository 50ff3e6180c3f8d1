"""A whole system under lock: TLS on every leg, tokens of an issuer, and signed events, with keys of its own.

Everything is made for one run and lies in one directory, as an operator would lay it out: certificates for each
process, the issuer's public keys (JWKS), the keys of events, and the password of the servers' user.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from libs.clock import SystemClock
from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import open_key_ring
from libs.eventlog.security import KafkaSecurity
from libs.proving.servers.secure import Certificate, Secrets
from libs.proving.trial.access import Access
from libs.tls.files import NamedFile, TlsFiles
from libs.tls.making import OWNER_ONLY, Authority, write
from libs.tls.process import ClientTls

ISSUER, AUDIENCE, KEY_ID, ALGORITHM = "https://issuer.example", "sandboxes", "trial", "ES256"
OPERATORS = "baton-control"
"""Audience of operators' tokens."""
HOSTS = ("127.0.0.1", "localhost")
USER = "baton"
"""The user at Kafka, PostgreSQL and Redis."""
_TOKEN_SECONDS = 4 * 3600
_EVENT_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secured:
    """Made by `make`."""

    directory: Path
    authority: Authority
    issuer: ec.EllipticCurvePrivateKey = field(repr=False)
    password: str = field(repr=False)

    @classmethod
    def make(cls, directory: Path) -> Self:
        """Write the files into a new directory."""
        directory.mkdir(mode=0o700, parents=True)
        made = cls(directory, Authority(directory), ec.generate_private_key(ec.SECP256R1()), secrets.token_urlsafe(24))
        public = ECAlgorithm.to_jwk(made.issuer.public_key(), as_dict=True)
        keys = {"keys": [{**public, "kid": KEY_ID, "alg": ALGORITHM, "use": "sig"}]}
        write(made.jwks, json.dumps(keys).encode(), OWNER_ONLY)
        key = base64.b64encode(secrets.token_bytes(_EVENT_KEY_BYTES)).decode()
        write(made.event_keys, f'sign = "trial"\n[keys]\ntrial = "{key}"\n'.encode(), OWNER_ONLY)
        write(made.password_file, f"{made.password}\n".encode(), OWNER_ONLY)
        return made

    @property
    def jwks(self) -> Path:
        return self.directory / "jwks.json"

    @property
    def event_keys(self) -> Path:
        return self.directory / "event-keys.toml"

    @property
    def password_file(self) -> Path:
        return self.directory / "password"

    @property
    def servers(self) -> Secrets:
        """Secrets of Kafka, PostgreSQL and Redis."""
        pair = self.authority.issue("server", HOSTS)
        return Secrets(Certificate(pair.certificate, pair.key, self.authority.file), USER, self.password)

    def settings(self, name: str) -> dict[str, str]:
        """Settings of the process `name`: "a", "b-1", "router-1"..."""
        pair = self.authority.issue(name, HOSTS)
        ca = str(self.authority.file)
        found = {
            "tls_certificate": str(pair.certificate),
            "tls_key": str(pair.key),
            "tls_ca": ca,
            "tls_client_ca": ca,
            "public_auth": "jwt",
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            "jwt_keys": str(self.jwks),
            "event_keys": str(self.event_keys),
        }
        if name.startswith("router"):
            return {**found, "control_auth": "jwt", "control_jwt_audience": OPERATORS}
        return {**found, "event_auth": "require"}

    def codes(self, topic: str) -> Codes:
        """Codes of the system's own events."""
        ring = open_key_ring(self.event_keys, SystemClock()).content
        return Codes(lambda: ring, topic)

    def kafka(self) -> KafkaSecurity:
        return KafkaSecurity("SASL_SSL", "SCRAM-SHA-512", USER, self.password_file, self.authority.file)

    def token(self, subject: str, accounts: Sequence[str] = (), roles: Sequence[str] = ()) -> str:
        """A token of the issuer."""
        return self.token_of(self.issuer, subject, accounts, roles)

    def operator_token(self) -> str:
        """An admin's token."""
        return self.token_of(self.issuer, "operator", (), ("admin",), OPERATORS)

    @staticmethod
    def token_of(
        key: ec.EllipticCurvePrivateKey,
        subject: str,
        accounts: Sequence[str] = (),
        roles: Sequence[str] = (),
        audience: str = AUDIENCE,
    ) -> str:
        """A token under any key."""
        now = int(time.time())
        claims: Mapping[str, Any] = {
            "iss": ISSUER,
            "aud": audience,
            "sub": subject,
            "iat": now,
            "exp": now + _TOKEN_SECONDS,
            "accounts": list(accounts),
            "roles": list(roles),
        }
        return jwt.encode(dict(claims), key, ALGORITHM, {"kid": KEY_ID})

    def client(self, subject: str, accounts: Sequence[str]) -> Access:
        """A client of the public listeners. It shows a token and no certificate."""
        files = TlsFiles(None, None, NamedFile("tls_ca", self.authority.file))
        return Access(ClientTls(files), self.token(subject, accounts))

    def operator(self) -> ClientTls:
        """TLS of a caller of the internal and control listeners, which ask for a certificate."""
        pair = self.authority.issue("operator", HOSTS)
        files = TlsFiles(
            NamedFile("tls_certificate", pair.certificate),
            NamedFile("tls_key", pair.key),
            NamedFile("tls_ca", self.authority.file),
        )
        return ClientTls(files)
