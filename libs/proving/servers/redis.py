"""A real Redis on loopback, without persistence: it holds nothing that must survive."""

import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from libs.proving.servers import locate
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.secure import Certificate

_START_SECONDS = 20.0
_PING_SECONDS = 1.0


class Redis:
    """One Redis server that works in `directory`. Blocking; not thread-safe. It is empty after every start."""

    def __init__(
        self, directory: Path, *, certificate: Certificate | None = None, users: Mapping[str, str] | None = None
    ) -> None:
        """`certificate`: serve TLS on `tls_port` too. `users`: passwords by name; then no other client is served."""
        self.directory = directory.resolve()
        self.port = free_port()
        self.tls_port = free_port() if certificate is not None else 0
        self._users = users
        secure: list[str | Path] = []
        if certificate is not None:
            secure += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            secure += ["--tls-cert-file", certificate.certificate, "--tls-key-file", certificate.key]
            secure += ["--tls-ca-cert-file", certificate.ca]
        if users is not None:
            secure += ["--aclfile", self.directory / "users.acl"]
        self.process = ServerProcess(
            Command(
                name="redis",
                argv=[
                    locate.redis_server(),
                    *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.directory),
                    *("--save", "", "--appendonly", "no", "--daemonize", "no"),
                    *("--maxmemory", "64mb", "--maxmemory-policy", "noeviction"),
                    *secure,
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
        if self._users is not None:
            rules = [f"user {name} on >{password} ~* +@all" for name, password in self._users.items()]
            acl = self.directory / "users.acl"
            acl.touch(mode=0o600)
            acl.write_text("\n".join(["user default off", *rules]) + "\n")
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
                # With users, a client without a password is refused, by a server that works.
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
