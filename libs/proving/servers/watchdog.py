"""Ends the servers after the process that started them has ended, however it ended.

The starter holds the writing end of this process's standard input. It writes `+PID` for each server that it starts and
`-PID` for each that it has stopped. When the starter dies, even by SIGKILL, the pipe closes, and every server still on
the list is killed with all its descendants. PR_SET_PDEATHSIG would not do: it fires when the *thread* that forked ends,
is cleared by a change of user, and misses PostgreSQL's children.
"""

import signal
import sys

from libs.proving.servers import tree


def main() -> None:
    """Keep the list until standard input ends, then kill its processes."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watched: dict[int, tree.Process] = {}
    for line in sys.stdin:
        pid = int(line[1:])
        process = tree.find(pid)
        if line[0] == "+" and process is not None:
            watched[pid] = process
        elif line[0] == "-":
            watched.pop(pid, None)
    for process in watched.values():
        tree.signal_tree(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
