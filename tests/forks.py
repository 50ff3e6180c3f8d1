"""Starts services by a fork of a process that has imported them, which saves most of a start's processor time.

The tests start some hundred services. A fork shares the imports and has all else of its own: arguments, environment,
session, output and exit code; it runs `__main__` from the first line to the end of the interpreter. Tests of the start
itself, of commands and of the demo start real programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

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


class Fork:
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


class _Pipe(asyncio.StreamReaderProtocol):
    """The reading end of a pipe."""

    def __init__(self) -> None:
        self.stream = asyncio.StreamReader()
        self.at_end = asyncio.Event()
        super().__init__(self.stream)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.at_end.set()

    @classmethod
    async def open(cls) -> tuple[_Pipe, IO[bytes]]:
        """The reading end, and the writing end."""
        reading, writing = os.pipe()
        _, pipe = await asyncio.get_running_loop().connect_read_pipe(cls, os.fdopen(reading, "rb"))
        return pipe, os.fdopen(writing, "wb")


class Piped:
    """A started service with its output in pipes: the part of `asyncio.subprocess.Process` that the tests need."""

    def __init__(self, fork: Fork, out: _Pipe, err: _Pipe) -> None:
        self._fork = fork
        self._pipes = out, err
        self.stdout, self.stderr = out.stream, err.stream

    @property
    def pid(self) -> int:
        return self._fork.pid

    @property
    def returncode(self) -> int | None:
        return self._fork.poll()

    async def wait(self) -> int:
        code = await asyncio.to_thread(self._fork.wait)
        for pipe in self._pipes:
            await pipe.at_end.wait()
        return code

    async def communicate(self) -> tuple[bytes, bytes]:
        """All output, once the service has ended."""
        output = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return output[0], output[1]

    def send_signal(self, sig: int) -> None:
        self._fork.send_signal(sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Output(NamedTuple):
    """Descriptors that a service writes to."""

    stdout: int
    stderr: int


class _Server:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    def fork(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, output: Output
    ) -> Fork:
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
        }
        status, writing = os.pipe2(os.O_CLOEXEC)
        try:
            socket.send_fds(self._started(), [json.dumps(request).encode()], [*output, writing])
        finally:
            os.close(writing)
        return Fork(module, status)

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


async def start(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Piped:
    """Start a service in the project's folder, as `asyncio.create_subprocess_exec` does with pipes."""
    (stdout, out), (stderr, err) = await _Pipe.open(), await _Pipe.open()
    with out, err:
        fork = await asyncio.to_thread(
            _SERVER.fork, module, arguments, environment, PROJECT_ROOT, Output(out.fileno(), err.fileno())
        )
    return Piped(fork, stdout, stderr)


def launch(command: Command, log: IO[bytes]) -> Started:
    match [str(part) for part in command.argv]:
        case [sys.executable, "-u", "-m", module, *_] if module.startswith("services.") and command.account is None:
            environment = os.environ if command.env is None else command.env
            arguments = [str(part) for part in command.argv[4:]]
            output = Output(log.fileno(), log.fileno())
            return _SERVER.fork(module, arguments, environment, command.cwd or Path.cwd(), output)
    return execute(command, log)
