"""A real Redis on loopback, without persistence: it holds nothing that must survive."""

import signal
import socket
from pathlib import Path

from libs.proving.servers import locate
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess

_START_SECONDS = 20.0
_PING_SECONDS = 1.0


class Redis:
    """One Redis server that works in `directory`. Blocking; not thread-safe. It is empty after every start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.port = free_port()
        self.process = ServerProcess(
            Command(
                name="redis",
                argv=[
                    locate.redis_server(),
                    *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.directory),
                    *("--save", "", "--appendonly", "no", "--daemonize", "no"),
                    *("--maxmemory", "64mb", "--maxmemory-policy", "noeviction"),
                ],
                log=self.directory / "redis.log",
            )
        )

    def __repr__(self) -> str:
        return f"<Redis {self.url} {self.process!r}>"

    @property
    def url(self) -> str:
        """Address in redis-py's form."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start and wait until it answers PING. Raises ServerFailed with the end of the log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process.start()
        self.process.wait_until(self._answers, _START_SECONDS, "it answers PING")

    def stop(self) -> None:
        """Shut down gracefully."""
        self.process.stop(signal.SIGTERM)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the server; after SIGKILL it is gone when this returns."""
        self.process.kill(signum)

    def restart(self) -> None:
        """Start again on the same port, empty; a running server is stopped first."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), _PING_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
