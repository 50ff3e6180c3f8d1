"""The session's servers between two tests."""

import signal

from libs.devstack.kafka import Kafka
from libs.devstack.postgres import Postgres
from libs.devstack.redis import Redis


def make_usable(server: Kafka | Postgres | Redis) -> None:
    """Undo what an earlier test may have left: a dead server is started again, a paused one goes on."""
    if server.process.running:
        server.kill(signal.SIGCONT)
    else:
        server.restart()
