"""A real pgbouncer in front of a PostgreSQL, for clients that use a pooler's address."""

import os
import signal
from pathlib import Path
from typing import Literal

from libs.proving.servers import locate
from libs.proving.servers.ports import free_port, is_open
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.process import Command, ServerProcess

_START_SECONDS = 20.0
Mode = Literal["transaction", "session"]
_FILE_MODE = 0o644
"""PostgreSQL's user reads the file."""


class PgBouncer:
    """One pooler that works in `directory`, in front of every database of a server. Blocking; not thread-safe.

    `drops`: it ignores unknown session settings, as many poolers are configured to. Otherwise it refuses the
    connection.
    """

    def __init__(self, directory: Path, server: Postgres, mode: Mode, *, drops: bool) -> None:
        self.port = free_port()
        self._file = directory.resolve() / "pgbouncer.ini"
        self._server = server
        self._mode = mode
        self._drops = drops
        self.process = ServerProcess(
            Command(
                name="pgbouncer",
                argv=[locate.pgbouncer(), self._file],
                log=self._file.with_suffix(".log"),
                account=server.process.command.account,
            )
        )

    def dsn_of(self, database: str) -> str:
        """Address of a database behind the pooler, in asyncpg's form."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until connections are accepted. Raises ServerFailed with the end of the log."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(
            f"[databases]\n* = host=127.0.0.1 port={self._server.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {self._mode}\ndefault_pool_size = 50\nmax_client_conn = 200\n"
            f"ignore_startup_parameters = extra_float_digits{', lock_timeout' if self._drops else ''}\n"
        )
        os.chmod(self._file, _FILE_MODE)
        self.process.start()
        self.process.wait_until(lambda: is_open(self.port), _START_SECONDS, "it accepts connections")

    def kill(self) -> None:
        """Kill it; it is gone when this returns."""
        self.process.kill(signal.SIGKILL)
