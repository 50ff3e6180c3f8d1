"""A real PostgreSQL, durable (fsync on), on loopback."""

import os
import pwd
import signal
import stat
import subprocess
from pathlib import Path

from libs.proving.servers import locate
from libs.proving.servers.errors import ServerFailed, ServersError
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Account, Command, ServerProcess, running_as_root
from libs.proving.servers.secure import Certificate

_START_SECONDS = 60.0
_COMMAND_SECONDS = 60.0
_ACCOUNT = "postgres"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "64MB",
    # Shared memory in files of the data directory: a killed server leaves nothing else behind.
    "dynamic_shared_memory_type": "mmap",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
}


class Postgres:
    """One PostgreSQL server with its data in `directory`/data. Blocking; not thread-safe.

    PostgreSQL refuses to run as root, so root starts it as the user `postgres`, who must be able to reach `directory`.
    `kill` and `restart` keep data and port.
    """

    def __init__(self, directory: Path, *, max_connections: int = 200, certificate: Certificate | None = None) -> None:
        """`certificate`: allow TLS."""
        self._certificate = certificate
        self.directory = directory.resolve()
        self.port = free_port()
        self._bin = locate.postgres_bin()
        self._account = _account() if running_as_root() else None
        self._data = self.directory / "data"
        settings = {**_SETTINGS, "max_connections": str(max_connections)}
        if certificate is not None:
            settings |= {"ssl": "on", "ssl_cert_file": "server.pem", "ssl_key_file": "server-key.pem"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = ServerProcess(
            Command(
                name="postgres",
                argv=[self._bin / "postgres", "-D", self._data, "-p", str(self.port), *options],
                log=self.directory / "postgres.log",
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                account=self._account,
            )
        )

    def __repr__(self) -> str:
        return f"<Postgres {self.dsn} {self.process!r}>"

    @property
    def dsn(self) -> str:
        """Address of the maintenance database, in asyncpg's form."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """Address of a database, in asyncpg's form."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Create the data directory if it is missing, start, and wait until connections are accepted.

        Raises ServerFailed with the end of the log.
        """
        if not self._data.exists():
            self._make_data()
        self.process.start()
        self.process.wait_until(self._is_ready, _START_SECONDS, "it accepts connections")

    def stop(self) -> None:
        """Shut down gracefully (running transactions are rolled back)."""
        self.process.stop(signal.SIGINT)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the server and all its backends; after SIGKILL none of them lives when this returns."""
        self.process.kill(signum)

    def restart(self) -> None:
        """Start again on the same data and port; a running server is stopped first."""
        self.stop()
        self.start()

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, as a copy of `template` if given, and return its dsn. Raises ServerFailed."""
        source = "" if template is None else f" TEMPLATE {_quoted(template)}"
        self.execute(f"CREATE DATABASE {_quoted(name)}{source}")
        return self.dsn_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, if it exists, and end the sessions that still use it."""
        self.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    def execute(self, statement: str, *, database: str = "postgres") -> str:
        """Run one SQL statement as the superuser; returns its rows as text, fields separated by `|`."""
        return self._client("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement)

    def dump_rows(self, database: str) -> str:
        """SQL statements that insert the rows of a database and set its sequences."""
        dumped = self._client("pg_dump", "--data-only", "--inserts", "-d", database)
        return "\n".join(
            line for line in dumped.splitlines() if line.startswith(("INSERT ", "SELECT pg_catalog.setval("))
        )

    def require_tls(self, user: str, password: str) -> None:
        """Create a user, and refuse all other users except the superuser from now on, and connections without TLS."""
        self.execute(f"CREATE USER {_quoted(user)} SUPERUSER PASSWORD '{password}'")
        rules = "host all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
        (self._data / "pg_hba.conf").write_text(rules)
        self.execute("SELECT pg_reload_conf()")

    def _is_ready(self) -> bool:
        try:
            self._client("pg_isready", "-q", "-d", "postgres")
        except ServerFailed:
            return False
        return True

    def _client(self, program: str, *arguments: str) -> str:
        result = subprocess.run(
            [self._bin / program, "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"},
        )
        if result.returncode != 0:
            raise self.process.failure(f"{program} {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout.strip()

    def _make_data(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        account = self._account
        if account is not None:
            _check_reachable(self.directory, account)
            self._data.mkdir(mode=0o700)
            os.chown(self._data, account.uid, account.gid)
        initdb = ServerProcess(
            Command(
                name="initdb",
                argv=[
                    self._bin / "initdb",
                    *("-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"),
                ],
                log=self.directory / "initdb.log",
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                account=account,
            )
        )
        initdb.start()
        initdb.wait_for_exit(_COMMAND_SECONDS)
        if self._certificate is not None:
            self._copy(self._certificate.certificate, "server.pem")
            self._copy(self._certificate.key, "server-key.pem")

    def _copy(self, source: Path, name: str) -> None:
        """Copy a file into the data directory, for the server's own user only."""
        target = self._data / name
        target.touch(mode=0o600)
        target.write_bytes(source.read_bytes())
        if self._account is not None:
            os.chown(target, self._account.uid, self._account.gid)


def _account() -> Account:
    try:
        entry = pwd.getpwnam(_ACCOUNT)
    except KeyError:
        raise ServersError(
            f"this process runs as root, PostgreSQL refuses to, and there is no user {_ACCOUNT!r} to run it as. "
            f"Debian: apt-get install {locate.POSTGRES_PACKAGE}"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def _check_reachable(directory: Path, account: Account) -> None:
    for folder in [directory, *directory.parents]:
        status = folder.stat()
        allowed = (
            status.st_mode & stat.S_IXUSR
            if status.st_uid == account.uid
            else status.st_mode & stat.S_IXGRP
            if status.st_gid == account.gid
            else status.st_mode & stat.S_IXOTH
        )
        if not allowed:
            raise ServersError(
                f"PostgreSQL runs as user {_ACCOUNT!r} here, who may not enter {folder} (mode "
                f"{stat.S_IMODE(status.st_mode):o}): give a directory whose parents have mode 711 or wider"
            )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
