"""Sending clients of a listener elsewhere while it still serves every call that arrives.

gRPC's core can send GOAWAY only in a way that also kills calls that it has received and not yet given to a handler:
their clients see a bare CANCELLED. So a drain begins below the core. It shuts the listening socket, and sends each
connection the first GOAWAY of RFC 9113, 6.8, which still allows every stream. A client then opens its next connection
elsewhere, and closes this one after its last answer.

The frame is written only to a connection whose send queue is empty, so that it does not split a frame of the core's.
The sockets are found in /proc. On a system without it there are none, and only the core ends the connections.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress

_FDS = "/proc/self/fd"
_ALL_STREAMS = 2**31 - 1
_GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + struct.pack(">II", _ALL_STREAMS, 0)
"""Length 8, type 7, no flags, stream 0; last stream that is served; NO_ERROR."""

Peer = tuple[object, ...]
"""Remote address of a connection."""


def refuse_connections(port: int) -> None:
    """Shut this process's listening sockets at a port. The core logs that its acceptor has closed."""
    for one in _sockets(port):
        with suppress(OSError):
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                one.shutdown(socket.SHUT_RDWR)


def send_away(port: int, sent: set[Peer], encrypted: bool) -> int:
    """Send GOAWAY on this process's connections to a port, except to the peers in `sent`, and add the peers to it.
    Returns the number of connections. A connection with unsent data is left for the next call.

    On an encrypted connection nothing is sent: a frame that the core did not encrypt would break it.
    """
    number = 0
    for one in _sockets(port):
        with suppress(OSError):
            # Raises for a socket that is not connected.
            peer: Peer = one.getpeername()
            number += 1
            if not encrypted and peer not in sent and not _unsent_bytes(one):
                one.send(_GOAWAY, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                sent.add(peer)
    return number


def _sockets(port: int) -> Iterator[socket.socket]:
    """This process's sockets with this local port, as duplicates. Each is open until the next one is requested."""
    for name in os.listdir(_FDS) if os.path.isdir(_FDS) else ():
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                        yield one


def _unsent_bytes(one: socket.socket) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(one, termios.TIOCOUTQ, b"\0" * 4))
    return int(size)
