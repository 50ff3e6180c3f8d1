"""A process and all its descendants, found through /proc.

PostgreSQL puts every backend into a process group of its own, so a signal to a group does not reach them; the parent
pid does. A pid may be reused after its process has ended, so a process is identified by pid and start time. Standard
library only: the watchdog runs without site-packages.
"""

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine: its pid and the clock tick since boot at which it started."""

    pid: int
    started: int

    def lives(self) -> bool:
        """Whether this process still runs (or is stopped). A zombie does not live."""
        stat = _stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state not in "ZX"

    def send(self, signum: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.lives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    started: int


def find(pid: int) -> Process | None:
    """The process that has this pid now, if it lives."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else Process(pid, stat.started)


def pids() -> set[int]:
    """The pids of all processes of this machine, zombies included."""
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}


def children(pid: int, among: Iterable[int] | None = None) -> list[Process]:
    """The living direct children of a process, started by any of its threads.

    ``among``: pids to look at. To look at every process of a machine takes milliseconds.
    """
    return [process for parent, process in _processes(pids() if among is None else among) if parent == pid]


def descendants(pid: int) -> list[Process]:
    """The living descendants of a process; parents before children."""
    by_parent: dict[int, list[Process]] = {}
    for parent, process in _processes(pids()):
        by_parent.setdefault(parent, []).append(process)
    found: list[Process] = []
    queue = [pid]
    while queue:
        for child in by_parent.get(queue.pop(0), []):
            found.append(child)
            queue.append(child.pid)
    return found


def signal_tree(root: Process, signum: int) -> list[Process]:
    """Send a signal to a process and all its descendants, including those forked meanwhile, and return them.

    For SIGKILL and SIGSTOP the root is stopped first, so that it forks no more. Its children are looked up only then:
    after its death they would have another parent and could not be found.
    """
    if signum in (signal.SIGKILL, signal.SIGSTOP):
        reached = _stop_all(root)
        if signum == signal.SIGKILL:
            for process in reached:
                process.send(signal.SIGKILL)
        return reached
    reached = [root, *descendants(root.pid)]
    # Children first: a parent that wakes up must not find them stopped.
    for process in reversed(reached):
        process.send(signum)
    return reached


def _stop_all(root: Process) -> list[Process]:
    root.send(signal.SIGSTOP)
    reached = [root]
    for _ in range(_ROUNDS):
        new = [process for process in descendants(root.pid) if process not in reached]
        if not new:
            break
        for process in new:
            process.send(signal.SIGSTOP)
        reached += new
    return reached


def _processes(among: Iterable[int]) -> list[tuple[int, Process]]:
    """Each living process with the pid of its parent."""
    found = []
    for pid in among:
        if (stat := _stat(pid)) is not None and stat.state not in "ZX":
            found.append((stat.parent, Process(pid, stat.started)))
    return found


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            line = file.read()
    except OSError:
        return None
    # The command's name is in parentheses and may contain any character; the other fields follow the last ")".
    fields = line[line.rindex(b")") + 2 :].decode().split()
    return _Stat(state=fields[0], parent=int(fields[1]), started=int(fields[19]))
