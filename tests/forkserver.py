"""The process that services are forked from: `python -u -m tests.forkserver DESCRIPTOR`.

It imports the services once. Then each message on the socket with this descriptor asks for one fork: tests/forks.py
sends them.
Standard library only, so that a service finds no module loaded that it does not load itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any

NUMBER = struct.Struct("q")
"""The pid at the start of a service, and its exit code at the end."""
MOST_BYTES = 150_000
"""Maximum size of a message: a socket takes no larger one."""

_SERVICES = ("services.simple_mcp", "services.service_layer", "services.router")
_ON_DEMAND = (
    "libs.eventlog.kafka",
    "libs.http.opening",
    "libs.locks.redis",
    "libs.locks.redis_security",
    "libs.telemetry.metrics",
    "services.router.api.tools",
    "services.service_layer.server",
    "services.service_layer.store.postgres",
    "services.service_layer.store.postgres_scratch",
)
"""Modules that a service imports if a setting asks for them."""
_STARTED_WITH_THE_PROCESS = ("libs.telemetry.vitals",)
"""Modules that note the start of the process when they are imported."""


def _import_services() -> None:
    for name in _ON_DEMAND:
        importlib.import_module(name)
    for name in _SERVICES:
        importlib.import_module(f"{name}.__main__")
        # A service runs it again, under the name "__main__".
        del sys.modules[f"{name}.__main__"]
    gc.collect()
    gc.freeze()


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    _import_services()
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    while True:
        ready = select.select([requests.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            _report_ends(running)
        if requests.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
            if not message:
                return
            out, err, status = descriptors
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (requests.detach(), woken, wake, status, *running.values()):
                    os.close(one)
                _run(json.loads(message), out, err)
                return
            os.write(status, NUMBER.pack(pid))
            os.close(out)
            os.close(err)
            running[pid] = status


def _report_ends(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = running.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                # The starter may be gone.
                os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(how)))
            os.close(status)


def _run(request: Mapping[str, Any], out: int, err: int) -> None:
    """Be the service, from its first line on."""
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    for name in _STARTED_WITH_THE_PROCESS:
        importlib.reload(sys.modules[name])
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
