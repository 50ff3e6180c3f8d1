"""Encrypted listeners of the servers for tests, in addition to their plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from libs.proving.servers.ports import free_port

_HANDLERS = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: the server's certificate with its chain, its key (PKCS 8), and the CA of clients."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Secrets:
    """Certificate of the servers, and the one user at each of them."""

    certificate: Certificate
    user: str
    password: str = field(repr=False)


class MoreListeners(Protocol):
    """Listeners of a Kafka broker beside its plain one."""

    @property
    def listeners(self) -> str:
        """Listeners to append to the setting `listeners`."""
        ...

    @property
    def format_arguments(self) -> list[str]:
        """Arguments of the storage tool that create the users of SCRAM."""
        ...

    def properties(self, directory: Path) -> str:
        """More lines of the server's properties. Writes the files that they name into the directory."""
        ...


class SecureListeners:
    """Listeners of a Kafka broker: SASL_SSL with PLAIN, SCRAM and OAUTHBEARER (unsigned tokens), and SSL, which
    requires a client's certificate."""

    def __init__(self, certificate: Certificate, users: Mapping[str, str]) -> None:
        """`users`: passwords by name."""
        self._certificate = certificate
        self._users = users
        self.sasl_port, self.ssl_port = free_port(), free_port()

    @property
    def listeners(self) -> str:
        return f",SASL_SSL://127.0.0.1:{self.sasl_port},SSL://127.0.0.1:{self.ssl_port}"

    @property
    def format_arguments(self) -> list[str]:
        return [
            word
            for name, password in self._users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]

    def properties(self, directory: Path) -> str:
        store, trust = directory / "keystore.pem", directory / "truststore.pem"
        store.touch(mode=0o600)
        store.write_bytes(self._certificate.key.read_bytes() + self._certificate.certificate.read_bytes())
        trust.write_bytes(self._certificate.ca.read_bytes())
        plain = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        lines = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(trust),
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{_HANDLERS}.plain.PlainLoginModule required {plain};",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{_HANDLERS}.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": f"{_HANDLERS}.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": f"{_HANDLERS}.oauthbearer.OAuthBearerLoginModule"
            ' required unsecuredLoginStringClaim_sub="broker";',
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())
