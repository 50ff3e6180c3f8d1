"""Free loopback ports that stay free while a server is down.

A port from the ephemeral range is unsuitable for a server that is killed and restarted: an outgoing connection may get
that port meanwhile, and a client that keeps trying to reach it can even connect to itself. So ports are taken below
that range.

A free port must also stay free until its server binds it. Each process that takes a port holds an exclusive lock on a
file named after it, so two test processes (or two checkouts) on one machine never take the same port. The kernel drops
the lock when the process ends, however it ends.
"""

import fcntl
import os
import random
import socket
import tempfile
import threading
from pathlib import Path

from libs.proving.servers.errors import ServersError

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10240
_ATTEMPTS = 500

_lock = threading.Lock()
_taken: dict[int, int] = {}
"""This process's ports, each with the descriptor that holds its lock. Kept until the process ends."""


def free_port() -> int:
    """Take a TCP port on 127.0.0.1 on which no process listens, for as long as this process lives.

    No other process that takes its ports here gets the same one. Raises ServersError if none is found.
    """
    last = _first_ephemeral_port() - 1
    with _lock:
        for _ in range(_ATTEMPTS):
            port = random.randint(_FIRST, last)
            if port in _taken:
                continue
            descriptor = _lock_port(port)
            if descriptor is None:
                continue
            if _can_bind(port):
                _taken[port] = descriptor
                return port
            os.close(descriptor)
    raise ServersError(f"no free TCP port on 127.0.0.1 between {_FIRST} and {last} after {_ATTEMPTS} tries")


def is_open(port: int) -> bool:
    """Whether connections to 127.0.0.1:port are accepted."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _first_ephemeral_port() -> int:
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    # A machine that gives nearly all ports to clients leaves none below; then any port must do.
    return first if first > _FIRST + _ATTEMPTS else 32768


def _lock_port(port: int) -> int | None:
    """The descriptor of the port's lock file, or None if another process holds the lock."""
    folder = Path(tempfile.gettempdir()) / f"baton-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Lock files are never removed: a process that locked a removed file would hold a lock that no other process sees.
    descriptor = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
