"""TLS and authentication of the connections to Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.tls.context import LiveContext
from libs.tls.files import NamedFile, TlsFiles, TlsUnfit
from libs.tls.hosts import is_loopback
from libs.tls.secrets import read_secret

PLAINTEXT, SSL, SASL_SSL, SASL_PLAINTEXT = "PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"
OAUTHBEARER = "OAUTHBEARER"


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """The settings that begin with `event_log_`: see `libs.process.ProcessSettings`."""

    protocol: str = PLAINTEXT
    mechanism: str = ""
    user: str = ""
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class KafkaAccess:
    """Arguments for aiokafka's clients. Certificates and secrets are read again when they have changed."""

    def __init__(self, security: KafkaSecurity | None = None, bootstrap: str = "127.0.0.1:1") -> None:
        """Raises TlsUnfit if the settings do not fit each other or a file cannot be used."""
        self._security = security = security or KafkaSecurity()
        _check(security, bootstrap)
        self._password = _named("event_log_password_file", security.password_file)
        self._context: LiveContext | None = None
        if security.protocol in (SSL, SASL_SSL):
            files = TlsFiles(
                _named("event_log_certificate", security.certificate),
                _named("event_log_key", security.key),
                _named("event_log_ca", security.ca),
            )
            self._context = LiveContext(files, server=False)
        if self._password is not None:
            read_secret(self._password)

    def __repr__(self) -> str:
        return f"<KafkaAccess {self._security.protocol} {self._security.mechanism} {self._security.user}>"

    def options(self) -> dict[str, Any]:
        """Raises TlsUnfit if the password cannot be read any more."""
        security = self._security
        if security.protocol == PLAINTEXT:
            return {}
        found: dict[str, Any] = {"security_protocol": security.protocol, "ssl_context": self._context}
        if self._password is None:
            return found
        found["sasl_mechanism"] = security.mechanism
        if security.mechanism == OAUTHBEARER:
            return found | {"sasl_oauth_token_provider": _token_provider(self._password)}
        return found | {"sasl_plain_username": security.user, "sasl_plain_password": read_secret(self._password)}


def _check(security: KafkaSecurity, bootstrap: str) -> None:
    sasl = security.protocol in (SASL_SSL, SASL_PLAINTEXT)
    if sasl and not (security.mechanism and security.password_file):
        raise TlsUnfit(
            f"event_log_security: {security.protocol} needs event_log_sasl_mechanism and event_log_password_file"
        )
    if sasl and security.mechanism != OAUTHBEARER and not security.user:
        raise TlsUnfit(f"event_log_user: it is not set; {security.mechanism} needs it")
    if not sasl and (security.mechanism or security.user or security.password_file):
        raise TlsUnfit(
            f"event_log_security: {security.protocol} is without a user: set SASL_SSL, or leave"
            " event_log_sasl_mechanism, event_log_user and event_log_password_file empty"
        )
    if security.protocol not in (SSL, SASL_SSL) and (security.ca or security.certificate or security.key):
        raise TlsUnfit(
            f"event_log_security: {security.protocol} is without TLS: set SSL or SASL_SSL, or leave event_log_ca,"
            " event_log_certificate and event_log_key empty"
        )
    if security.protocol == SASL_PLAINTEXT and not all(is_loopback(one) for one in bootstrap.split(",")):
        raise TlsUnfit(
            f"event_log_security: SASL_PLAINTEXT would send the password to {bootstrap} for everybody to read: set"
            " SASL_SSL"
        )


def _named(setting: str, path: Path | None) -> NamedFile | None:
    return None if path is None else NamedFile(setting, path)


def _token_provider(file: NamedFile) -> Any:
    # Only a process that uses Kafka loads it.
    from aiokafka.abc import AbstractTokenProvider

    class FileToken(AbstractTokenProvider):  # type: ignore[misc]
        """Reads the token for each connection."""

        async def token(self) -> str:
            return read_secret(file)

    return FileToken()
