"""Kafka, PostgreSQL and Redis together, for as long as a block runs."""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.secure import Secrets, SecureListeners


@dataclass(frozen=True, slots=True)
class Stack:
    """Three running servers."""

    kafka: Kafka
    postgres: Postgres
    redis: Redis
    encrypted: SecureListeners | None = None
    """Kafka's listeners with TLS and users; None if the servers were started without secrets."""


@contextmanager
def server_directory() -> Iterator[Path]:
    """A new temporary directory that PostgreSQL's user may enter, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="baton-stack-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_stack(secure: Secrets | None = None) -> Iterator[Stack]:
    """Start all three at once, each in a folder of one temporary directory; kill them and remove it at the end.

    `secure`: serve over TLS too, for this user.

    Blocks for some three seconds. Raises ServerMissing before anything is started, ServerFailed with the end of the
    log.
    """
    with server_directory() as directory:
        stack = _stack(directory, secure)
        servers = (stack.kafka, stack.postgres, stack.redis)
        try:
            with ThreadPoolExecutor(len(servers)) as executor:
                for started in [executor.submit(server.start) for server in servers]:
                    started.result()
            if secure is not None:
                stack.postgres.require_tls(secure.user, secure.password)
            yield stack
        finally:
            for server in servers:
                server.kill()


def _stack(directory: Path, secure: Secrets | None) -> Stack:
    kafka, postgres, redis = directory / "kafka", directory / "postgres", directory / "redis"
    if secure is None:
        return Stack(Kafka(kafka), Postgres(postgres), Redis(redis))
    users = {secure.user: secure.password}
    listeners = SecureListeners(secure.certificate, users)
    return Stack(
        Kafka(kafka, listeners),
        Postgres(postgres, certificate=secure.certificate),
        Redis(redis, certificate=secure.certificate, users=users),
        listeners,
    )
