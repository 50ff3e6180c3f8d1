"""A router's process: opens everything on one stack, serves, and drains on SIGTERM or SIGINT.

python -m services.router [--config FILE] [--workers N]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from libs.process import run, stop_signal
from libs.settings import USAGE_EXIT_CODE, WrongSetting, load
from libs.telemetry.logs import configure
from services.router.features.router import open_router
from services.router.settings import RouterSettings
from services.router.workers import MOST_WORKERS, stop_with_supervisor, supervise

log = logging.getLogger(__name__)


async def serve(settings: RouterSettings, *, is_worker: bool) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises the error of a loop that failed."""
    stop = stop_signal()
    if is_worker:
        stop_with_supervisor(stop)
    async with asyncio.TaskGroup() as owned, open_router(settings) as router:
        tasks = [owned.create_task(loop.run()) for loop in router.loops]
        log.info("ready %s", router)
        print(f"ready {router}", flush=True)
        await stop.wait()
        log.info("draining")
        await router.drain(settings.drain_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    log.info("stopped")


async def keep(settings: RouterSettings, workers: int, arguments: Sequence[str]) -> None:
    """Keep several routers on the same ports until SIGTERM or SIGINT. Raises WrongSetting, WorkerFailed."""
    await supervise(settings, workers, arguments, stop_signal())


def _count(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{value!r} is not valid: 1 to {MOST_WORKERS}")
    return int(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.router", description="Route calls to the record's owner.")
    parser.add_argument("--config", type=Path, help="TOML file with settings; environment variables override it")
    parser.add_argument("--workers", type=_count, default=1, help="router processes on the same ports; default 1")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    configure("info", as_json=False)
    try:
        settings = load(RouterSettings, arguments.config)
    except WrongSetting as error:
        log.error("%s", error)
        return USAGE_EXIT_CODE
    configure(settings.log_level, as_json=settings.log_format == "json")
    if arguments.workers > 1:
        config = [] if arguments.config is None else ["--config", str(arguments.config)]
        return run(keep(settings, arguments.workers, config))
    return run(serve(settings, is_worker=arguments.worker))


if __name__ == "__main__":
    sys.exit(main())
