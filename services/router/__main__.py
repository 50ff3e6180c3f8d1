"""A router's process: opens everything on one stack, serves, and drains on SIGTERM or SIGINT.

python -m services.router [--config FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from libs.process import run, stop_signal
from libs.settings import USAGE_EXIT_CODE, WrongSetting, load
from libs.telemetry.logs import configure
from services.router.features.router import open_router
from services.router.settings import RouterSettings

log = logging.getLogger(__name__)


async def serve(settings: RouterSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises the error of a loop that failed."""
    stop = stop_signal()
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.router", description="Route calls to the record's owner.")
    parser.add_argument("--config", type=Path, help="TOML file with settings; environment variables override it")
    arguments = parser.parse_args()
    configure("info", as_json=False)
    try:
        settings = load(RouterSettings, arguments.config)
    except WrongSetting as error:
        log.error("%s", error)
        return USAGE_EXIT_CODE
    configure(settings.log_level, as_json=settings.log_format == "json")
    return run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
