"""Free loopback ports that stay free while a server is down.

A port from the ephemeral range is a bad home for a server that is killed and restarted: an outgoing connection may be
given that port meanwhile, and a client that keeps trying to reach it can even connect to itself. So ports are taken
below that range.
"""

import random
import socket
import threading
from pathlib import Path

from libs.devstack.errors import DevStackError

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10240
_ATTEMPTS = 500

_lock = threading.Lock()
_taken: set[int] = set()


def free_port() -> int:
    """A TCP port on 127.0.0.1 on which nobody listens and which this process has not handed out before.

    Raises DevStackError if none is found.
    """
    last = _first_ephemeral_port() - 1
    with _lock:
        for _ in range(_ATTEMPTS):
            port = random.randint(_FIRST, last)
            if port not in _taken and _can_bind(port):
                _taken.add(port)
                return port
    raise DevStackError(f"no free TCP port on 127.0.0.1 between {_FIRST} and {last} after {_ATTEMPTS} tries")


def is_open(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1:port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _first_ephemeral_port() -> int:
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    # A machine that gives nearly all ports to clients leaves nothing below; then any port must do.
    return first if first > _FIRST + _ATTEMPTS else 32768


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
