"""Several routers on the same ports of one machine: a supervisor that starts them, starts them again, and ends them.

Each worker is an ordinary router in a process of its own, with its own name, metrics, and connections to the stores and
the control store. All listen on the same addresses, and the kernel gives each new connection to one of them
(SO_REUSEPORT). A worker that ends takes nothing with it but its calls in flight, as any router does.

The supervisor serves nothing and opens no database. If a worker cannot start the first time, all of them end. Later, a
worker that ends is started again after a pause, which doubles. If the supervisor dies, its workers drain and end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from libs.errors import BatonError
from libs.settings import USAGE_EXIT_CODE, WrongSetting
from services.router.settings import RouterSettings

log = logging.getLogger(__name__)

MOST_WORKERS = 64
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
"""Pause before a worker is started again. It doubles with each start, until a worker has run for STEADY_SECONDS."""
STEADY_SECONDS = 10.0
_MARGIN_SECONDS = 5.0
"""Time beyond `drain_seconds` after which a worker is killed."""
_PREFIX = "BATON_ROUTER_"
_LISTENERS = ("public", "control", "internal", "http", "console", "xds")


class WorkerFailed(BatonError):
    """A worker could not start. Its own log line gives the reason."""


class Ports:
    """The workers' ports. The supervisor binds them without listening, so that no other program takes one while no
    worker listens, and a port 0 is the same for all workers."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def reserve(self, setting: str, address: str) -> str:
        """The address with the port that workers share. Raises WrongSetting."""
        host, _, port = address.rpartition(":")
        try:
            family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            if int(port):
                # Without SO_REUSEPORT: another program, or another supervisor, may not share the port in silence.
                with socket.socket(family, socket.SOCK_STREAM) as alone:
                    alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    alone.bind(place)
            held = self._held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                held.setsockopt(socket.SOL_SOCKET, option, 1)
            held.bind(place)
        except OSError as error:
            raise WrongSetting(
                f"{setting}: cannot listen on {address}: {error.strerror}; stop the process that uses it or set another"
                " address"
            ) from None
        return f"{host}:{held.getsockname()[1]}"


def environments(settings: RouterSettings, workers: int, ports: Ports) -> list[dict[str, str]]:
    """The environment of each worker. Raises WrongSetting."""
    for name in ("control_store", "event_log"):
        if getattr(settings, name).startswith("memory:"):
            raise WrongSetting(f"{name}: memory: is of one process alone; --workers needs one that processes share")
    if settings.console and settings.console_secret_file is None:
        raise WrongSetting("console_secret_file: it is not set: workers need it to accept each other's sessions")
    shared = {"share_ports": "true"}
    for name in _LISTENERS:
        if address := getattr(settings, name):
            shared[name] = ports.reserve(name, address)
    return [_environment(shared | _own(settings, number)) for number in range(1, workers + 1)]


def _own(settings: RouterSettings, number: int) -> dict[str, str]:
    """The settings that differ between workers."""
    own = {"name": f"{settings.name}-{number}"} if settings.name else {}
    host, _, port = settings.metrics.rpartition(":")
    if port not in ("", "0"):
        own["metrics"] = f"{host}:{int(port) + number - 1}"
    return own


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    own = {f"{_PREFIX}{name}".upper(): value for name, value in given.items()}
    return {name: value for name, value in os.environ.items() if name.upper() not in own} | own


class Supervisor:
    """Keeps one process for each environment."""

    def __init__(
        self, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], drain_seconds: float
    ) -> None:
        """`arguments`: of the workers' program."""
        self._arguments = arguments
        self._environments = environments
        self._drain_seconds = drain_seconds
        self._ready: list[asyncio.Future[str]] = []

    def __repr__(self) -> str:
        return f"<Supervisor workers={len(self._environments)}>"

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the workers until `stop`, then let them drain. Raises WorkerFailed and WrongSetting, in a group."""
        loop = asyncio.get_running_loop()
        self._ready = [loop.create_future() for _ in self._environments]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep(number)) for number in range(len(self._environments))]
            announcing = group.create_task(self._announce())
            await stop.wait()
            log.info("draining")
            for task in (*tasks, announcing):
                task.cancel()
        log.info("stopped")

    async def _announce(self) -> None:
        """Report the first time that all workers are ready."""
        addresses, *_ = await asyncio.gather(*self._ready)
        log.info("ready %s workers=%d", addresses, len(self._ready))
        print(f"ready {addresses} workers={len(self._ready)}", flush=True)

    async def _keep(self, number: int) -> None:
        pause = FIRST_PAUSE_SECONDS
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            code = await self._serve(number)
            if not self._ready[number].done():
                if code == USAGE_EXIT_CODE:
                    raise WrongSetting(f"worker {number + 1} refused its settings")
                raise WorkerFailed(f"worker {number + 1} ended with code {code} before it was ready")
            if clock() - began >= STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            log.warning("worker %d ended with code %d, it starts again in %g s", number + 1, code, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _serve(self, number: int) -> int:
        """Run a worker until it ends, and return its exit code. If cancelled, let it drain first."""
        process = await asyncio.create_subprocess_exec(
            *self._arguments,
            env=self._environments[number],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None, "it is a pipe"
            async for line in process.stdout:
                text = line.decode(errors="replace").strip()
                if text.startswith("ready ") and not self._ready[number].done():
                    self._ready[number].set_result(text.removeprefix("ready "))
            return await process.wait()
        finally:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._drain_seconds + _MARGIN_SECONDS):
                await process.wait()
        except TimeoutError:
            log.error("a worker has not ended in time, it is killed")
            process.kill()
            await process.wait()


async def supervise(settings: RouterSettings, workers: int, arguments: Sequence[str], stop: asyncio.Event) -> None:
    """Run this many workers until `stop`. `arguments`: those of the program. Raises WrongSetting, WorkerFailed."""
    with Ports() as ports:
        program = [sys.executable, "-u", "-m", "services.router", "--worker", *arguments]
        own = environments(settings, workers, ports)
        await Supervisor(program, own, settings.drain_seconds).run(stop)


def stop_with_supervisor(stop: asyncio.Event) -> None:
    """Set `stop` when the supervisor has ended, in whatever way: its end of the worker's stdin is closed then."""
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def look() -> None:
        if not os.read(stdin, 1024):
            loop.remove_reader(stdin)
            stop.set()

    loop.add_reader(stdin, look)
