"""TLS and authentication of the connections to Redis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio.connection import SSLConnection, parse_url
from redis.credentials import CredentialProvider

from libs.tls.context import LiveContext
from libs.tls.files import NamedFile, TlsFiles, TlsUnfit
from libs.tls.secrets import read_secret


@dataclass(frozen=True, slots=True)
class RedisSecurity:
    """The settings that begin with `redis_`. The user stands in the address: rediss://user@host:port/number."""

    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class LiveConnection(SSLConnection):
    """A connection whose certificates are read again when they change. It always verifies the server and its name."""

    def __init__(self, live_context: LiveContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = live_context


class FilePassword(CredentialProvider):
    """Reads the password for each connection."""

    def __init__(self, user: str | None, file: NamedFile) -> None:
        self._user = user
        self._file = file

    async def get_credentials_async(self) -> tuple[str, str] | tuple[str]:
        return self.get_credentials()

    def get_credentials(self) -> tuple[str, str] | tuple[str]:
        password = read_secret(self._file)
        return (self._user, password) if self._user else (password,)


def connection_options(url: str, security: RedisSecurity) -> dict[str, Any]:
    """Arguments of a pool of connections to `url`. Raises TlsUnfit."""
    options: dict[str, Any] = dict(parse_url(url))
    if options.get("connection_class") is SSLConnection:
        files = TlsFiles(
            _named("redis_certificate", security.certificate),
            _named("redis_key", security.key),
            _named("redis_ca", security.ca),
        )
        options["connection_class"] = LiveConnection
        options["live_context"] = LiveContext(files, server=False)
    elif security.ca or security.certificate or security.key:
        raise TlsUnfit(
            "redis: it begins with redis://, which is without TLS: write rediss://, or leave redis_ca,"
            " redis_certificate and redis_key empty"
        )
    file = _named("redis_password_file", security.password_file)
    if file is not None:
        if options.pop("password", None):
            raise TlsUnfit(f"{file}: the address in redis has a password too: leave out one of them")
        provider = FilePassword(options.pop("username", None), file)
        provider.get_credentials()
        options["credential_provider"] = provider
    return options


def _named(setting: str, path: Path | None) -> NamedFile | None:
    return None if path is None else NamedFile(setting, path)
