"""The session's servers between two tests."""

import signal

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis


def make_usable(server: Kafka | Postgres | Redis) -> None:
    """Undo what an earlier test may have left: a dead server is started again, a paused one goes on."""
    if server.process.running:
        server.kill(signal.SIGCONT)
    else:
        server.restart()
