"""One server process: started with a log of its own, signalled with all its children, and killed when its starter
ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from libs.proving.servers import tree
from libs.proving.servers.errors import ServerFailed, ServersError

_POLL_SECONDS = 0.02
_DEATH_SECONDS = 20.0
_LOG_LINES = 30
_SOURCE_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Account:
    """User and group ids for a server that must not run as root."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start: name for messages, argument list, and environment.

    `env` replaces the whole environment, None inherits it. `account` needs root.
    """

    name: str
    argv: Sequence[str | Path]
    log: Path
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    account: Account | None = None


def _as_account(account: Account | None) -> list[str]:
    """Prefix of a command that changes the user. An external program does it: with Popen's `user`, Python would fork a
    child that runs the starter's fork handlers first, and those of gRPC, with calls in progress, may crash it."""
    if account is None:
        return []
    return ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", "--"]


class Started(Protocol):
    """A started program: the part of `subprocess.Popen` that a server needs."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None: ...


def execute(command: Command, log: IO[bytes]) -> Started:
    """Start a program in a session of its own. Raises OSError."""
    return subprocess.Popen(
        [*_as_account(command.account), *(str(part) for part in command.argv)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=command.cwd,
        env=command.env,
        start_new_session=True,
    )


launch: Callable[[Command, IO[bytes]], Started] = execute
"""How servers are started. Tests have a faster way for services."""


@dataclass(slots=True)
class ServerProcess:
    """A started (or not yet started) server. Not thread-safe; blocking, every wait has a limit.

    Output is appended to `command.log`. The server gets a session of its own, so that Ctrl-C in a terminal reaches only
    the starter, which then decides the order in which things stop.
    """

    command: Command
    _popen: Started | None = field(default=None, init=False)
    _root: tree.Process | None = field(default=None, init=False)

    def __repr__(self) -> str:
        return f"<{self.command.name} pid={self._popen.pid if self._popen else None} running={self.running}>"

    @property
    def pid(self) -> int | None:
        """The pid of the server while it runs, else None."""
        return self._popen.pid if self._popen is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the server has been started and has not ended. A stopped (SIGSTOP) server runs."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last run (negative: the signal), None while it runs or before the first start."""
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Start the process. Raises ServersError if it is already running, ServerFailed if it cannot be executed."""
        if self.running:
            raise ServersError(f"{self.command.name} runs already with pid {self.pid}")
        command = self.command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            try:
                self._popen = launch(command, log)
            except OSError as error:
                raise ServerFailed(f"{command.name}: cannot execute {command.argv[0]}: {error}") from error
        self._root = tree.find(self._popen.pid)
        _WATCHDOG.watch(self._popen.pid)

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
        """Wait until the condition holds. Raises ServerFailed with the end of the log if the server ends or the time is
        up."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if not self.running:
                raise self.failure(f"ended with code {self.exit_code} before {what}")
            if time.monotonic() > deadline:
                raise self.failure(f"not so after {timeout_seconds:g} s: {what}")
            time.sleep(_POLL_SECONDS)

    def wait_for_exit(self, timeout_seconds: float) -> None:
        """Wait until a program has ended by itself with code 0. Raises ServerFailed with the end of the log
        otherwise."""
        assert self._popen is not None
        try:
            code = self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.failure(f"has not ended after {timeout_seconds:g} s") from None
        _WATCHDOG.forget(self._popen.pid)
        if code != 0:
            raise self.failure(f"ended with code {code}")

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the server and to all its descendants.

        After SIGKILL this returns when none of them lives, so that the data and the port are free again. Raises
        ServerFailed if one survives.
        """
        if self._root is None:
            return
        reached = tree.signal_tree(self._root, signum)
        if signum == signal.SIGKILL:
            self._await_death(reached)

    def stop(self, signum: int = signal.SIGTERM, timeout_seconds: float = 20.0) -> None:
        """Ask the server to end, and kill it with all its descendants after `timeout_seconds`.

        A paused server is continued, so that it can end.
        """
        if self._popen is None or self._root is None:
            return
        if self.running:
            family = [self._root, *tree.descendants(self._root.pid)]
            self._popen.send_signal(signum)
            for process in family:
                process.send(signal.SIGCONT)
            try:
                self._popen.wait(timeout_seconds)
                self._await_death(family)
                return
            except (subprocess.TimeoutExpired, ServerFailed):
                for process in family:
                    process.send(signal.SIGKILL)
        self.kill()

    def log_tail(self, lines: int = _LOG_LINES) -> str:
        """The last lines of the server's log."""
        try:
            text = self.command.log.read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"

    def failure(self, problem: str) -> ServerFailed:
        """An error with this server's name, the problem, and the end of the log."""
        return ServerFailed(
            f"{self.command.name}: {problem}\n--- end of {self.command.log} ---\n{self.log_tail()}\n--- "
        )

    def _await_death(self, family: Sequence[tree.Process]) -> None:
        assert self._popen is not None
        deadline = time.monotonic() + _DEATH_SECONDS
        while self._popen.poll() is None or any(process.lives() for process in family):
            if time.monotonic() > deadline:
                living = [process.pid for process in family if process.lives()]
                raise self.failure(f"processes {living} live {_DEATH_SECONDS:g} s after they were signalled to end")
            time.sleep(_POLL_SECONDS)
        _WATCHDOG.forget(self._popen.pid)


class _Watchdog:
    """This process's connection to the watchdog, which starts with the first server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    def watch(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._popen is None or self._popen.poll() is not None:
                self._popen = subprocess.Popen(
                    [sys.executable, "-E", "-S", "-m", "libs.proving.servers.watchdog"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=_SOURCE_ROOT,
                    text=True,
                    start_new_session=True,
                )
            pipe: IO[str] | None = self._popen.stdin
            assert pipe is not None
            pipe.write(line)
            pipe.flush()


_WATCHDOG = _Watchdog()


def watchdog_pid() -> int | None:
    """The pid of this process's watchdog, None before the first server was started."""
    return _WATCHDOG.pid


def running_as_root() -> bool:
    """Whether this process may change users."""
    return os.geteuid() == 0
