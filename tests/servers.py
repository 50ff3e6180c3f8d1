"""Restoring the session's servers between two tests."""

import signal

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis


def make_usable(server: Kafka | Postgres | Redis) -> None:
    """Undo damage of an earlier test: restart a dead server, continue a paused one."""
    if server.process.running:
        server.kill(signal.SIGCONT)
    else:
        server.restart()
