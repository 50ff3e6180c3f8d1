"""Starts services by a fork of a process that has imported them, which saves most of a start's processor time.

The tests start some hundred services. A fork shares the imports and has all else of its own: arguments, environment,
session, output and exit code; it runs `__main__` from the first line to the end of the interpreter. Tests of the start
itself, of commands and of the demo start real programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from typing import IO

from libs.proving.servers import process
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.process import Command, Started, execute
from tests.forkserver import NUMBER


def use() -> None:
    """Start services so from now on. The fork server starts with the first of them."""
    process.launch = launch


def stop() -> None:
    """End the fork server."""
    process.launch = execute
    _SERVER.stop()


def server_pid() -> int | None:
    """The pid of the fork server, None before the first service was started."""
    return _SERVER.pid


class _Fork:
    """A started service: the part of `subprocess.Popen` that `Started` names."""

    def __init__(self, name: str, status: int) -> None:
        self._name = name
        self._status = status
        self._reading = threading.Lock()
        self._code: int | None = None
        self.pid = self._read()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self._name, timeout or 0.0)
        with self._reading:
            if self._code is None:
                self._code = self._read()
        return self._code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def _read(self) -> int:
        data = os.read(self._status, NUMBER.size)
        if not data:
            raise RuntimeError(f"{self._name}: the fork server has ended")
        return int(NUMBER.unpack(data)[0])

    def __del__(self) -> None:
        os.close(self._status)


class _Server:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    def fork(self, command: Command, module: str, log: IO[bytes]) -> _Fork:
        request = {
            "module": module,
            "arguments": [str(part) for part in command.argv[4:]],
            "environment": dict(os.environ if command.env is None else command.env),
            "folder": str(command.cwd or os.getcwd()),
        }
        status, writing = os.pipe2(os.O_CLOEXEC)
        try:
            socket.send_fds(self._started(), [json.dumps(request).encode()], [log.fileno(), writing])
        finally:
            os.close(writing)
        return _Fork(command.name, status)

    def stop(self) -> None:
        if self._popen is not None and self._requests is not None:
            # It ends when it can get no more requests.
            self._requests.close()
            self._popen.wait()

    def _started(self) -> socket.socket:
        with self._lock:
            if self._requests is None:
                self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._popen = subprocess.Popen(
                        [sys.executable, "-u", "-m", "tests.forkserver", str(theirs.fileno())],
                        cwd=PROJECT_ROOT,
                        stdin=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                    )
            return self._requests


_SERVER = _Server()


def launch(command: Command, log: IO[bytes]) -> Started:
    match [str(part) for part in command.argv]:
        case [sys.executable, "-u", "-m", module, *_] if module.startswith("services.") and command.account is None:
            return _SERVER.fork(command, module, log)
    return execute(command, log)
