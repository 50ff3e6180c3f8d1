"""Settings of the new service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from libs.backend.settings import BackendSettings
from libs.process import Address
from libs.settings import check_readable
from libs.store.connections import APPLY_POOL, CONTROL_POOL, default_request_pool, local_cores

_SQLITE = "sqlite:///"
PoolSize = Annotated[int, Field(ge=1, le=1000)]
_POSTGRES = re.compile(r"postgresql://\S+/\S+")


def check_database(value: str) -> str:
    """Return `value`. Raises ValueError unless it names a database."""
    if _POSTGRES.fullmatch(value) or (value.startswith(_SQLITE) and len(value) > len(_SQLITE)):
        return check_readable(value)
    raise ValueError("use postgresql://user@host:port/name, or sqlite:///path for a file")


def check_redis(value: str) -> str:
    """Return `value`. Raises ValueError if it is neither empty nor a Redis address."""
    if value and not re.fullmatch(r"rediss?://\S+", value):
        raise ValueError("use redis://host:port/number, or leave it empty for locks in memory")
    return check_readable(value)


class ServiceLayerSettings(BackendSettings):
    """Read from the environment: SERVICE_LAYER_DATABASE and so on."""

    model_config = SettingsConfigDict(env_prefix="SERVICE_LAYER_")

    public: Address = "127.0.0.1:50061"
    internal: Address = "127.0.0.1:50062"
    database: Annotated[str, AfterValidator(check_database)]
    """postgresql://user@host:port/name, or sqlite:///path for a single process without a database server. For TLS, add
    ?sslmode=verify-full&sslrootcert=/path/ca.pem."""
    migrate_at_start: bool = True
    """Migrate an older schema at the start. `false`: `python -m services.service_layer migrate` does it, and a start
    with an older schema fails."""
    database_cores: Annotated[int, Field(ge=1, le=400)] = Field(default_factory=local_cores)
    """Cores of the database's machine. Default: the cores of this machine."""
    request_pool: PoolSize = Field(default_factory=lambda given: default_request_pool(given["database_cores"]))
    """Connections for calls and handoffs. Default: 2 × database_cores + 1."""
    apply_pool: PoolSize = APPLY_POOL
    """Connections for the feed, the outbox and upkeep."""
    control_pool: PoolSize = CONTROL_POOL
    """Connections for status, copies and digests."""
    redis: Annotated[str, AfterValidator(check_redis)] = ""
    """Locks that several processes share: redis://host:port/number, or rediss:// for TLS. Empty: locks in memory, for a
    single process."""

    redis_password_file: Path | None = None
    """File with the password at Redis; the user stands in the address: rediss://user@host:port/number. It is read again
    for each new connection."""
    redis_ca: Path | None = None
    """PEM file with the CA of the certificate of Redis. Empty: the CAs of the system."""
    redis_certificate: Path | None = None
    """PEM file with this process's certificate for Redis, if Redis requires one."""
    redis_key: Path | None = None
    """PEM file with the key of that certificate."""

    @property
    def file(self) -> Path | None:
        """Path of the database's file, or None if a server holds the database."""
        return Path(self.database.removeprefix(_SQLITE)) if self.database.startswith(_SQLITE) else None
