"""Pictures of the operators' page in every state, from a real system under load in a real Chromium.

python docs/screenshots.py    # a few minutes; writes build/screenshots and the pictures in docs/pictures

All pictures go to build/screenshots, whole pages in light and dark, on a desktop and on a phone. Those that the
documents show are cut to the window.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

from libs.proving.servers.locate import chromium
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from services.router.cli.demo.run import OLD_DATABASE
from services.router.cli.demo.script import EVIDENCE_SECONDS, LIMITS, MARKED_BY_THE_RUN
from services.router.core.audit import AuditReport

ROOT = Path(__file__).parents[1]
ALL = ROOT / "build" / "screenshots"
KEPT = ROOT / "docs" / "pictures"
WORK = ROOT / "build" / "screenshots-work"
VIEWS = (("desktop", 1280, 900), ("phone", 360, 740))
SCHEMES = ("light", "dark")
IN_DOCS = {
    ("off", "desktop", "light"): "console-off.png",
    ("canary", "desktop", "dark"): "console-canary.png",
    ("failing", "desktop", "light"): "console-failing.png",
    ("held", "phone", "dark"): "console-held.png",
    ("cutover", "desktop", "light"): "console-cutover.png",
    ("seized", "desktop", "light"): "console-seized.png",
    ("control-away", "phone", "light"): "console-control-away.png",
}
MOST_BYTES = 150_000
FAILING_SECONDS = 8.0
AWAY_SECONDS = 8.0
SETTLED_MILLISECONDS = 1200
READY_MILLISECONDS = 60_000
ACTOR = "ann"
SHM_LOCKS = range(120, 128)
"""Bytes that SQLite locks in the shared memory of a write-ahead log: https://www.sqlite.org/walformat.html."""


@dataclass(frozen=True, slots=True)
class Camera:
    """Takes the pictures of one state."""

    browser: Browser
    address: str
    token: str

    async def shoot(self, state: str) -> None:
        print(state, flush=True)
        for view, width, height in VIEWS:
            for scheme in SCHEMES:
                async with self._page(width, height, scheme) as page:
                    await page.screenshot(path=ALL / f"{state}-{view}-{scheme}.png", full_page=True)
                    if (kept := IN_DOCS.get((state, view, scheme))) is not None:
                        data = await page.screenshot()
                        if len(data) > MOST_BYTES:
                            raise SystemExit(f"{kept} has {len(data)} bytes, at most {MOST_BYTES} are wanted")
                        (KEPT / kept).write_bytes(data)

    @asynccontextmanager
    async def _page(self, width: int, height: int, scheme: Any) -> AsyncIterator[Page]:
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        try:
            page = await context.new_page()
            page.set_default_timeout(READY_MILLISECONDS)
            await page.goto(f"http://{self.address}/console/")
            await page.get_by_label("Your name").fill(ACTOR)
            await page.get_by_label("Token").fill(self.token)
            await page.get_by_role("button", name="Sign in").click()
            await page.locator(".link[data-state=live]").wait_for()
            await page.wait_for_timeout(SETTLED_MILLISECONDS)
            yield page
        finally:
            await context.close()


async def play(world: World, walk: Walk, camera: Camera) -> None:
    """Bring the system into each state, one after the other."""
    await walk.set_limits({**LIMITS, "rollback_seconds": 20, "rollback_calls": 50}, "limits for a short run")
    found = await walk.job("audit", {})
    await walk.job("audit", {"accept": ",".join(AuditReport.from_json(found.report).found)})
    await walk.job("backfill", {"to": "B"})
    await walk.gates_awaited(MARKED_BY_THE_RUN, EVIDENCE_SECONDS)
    await camera.shoot("off")
    await forward(walk)
    await walk.shadow(100)
    await walk.job("reconcile", {"repair": "yes", "deep": "no"})
    await forward(walk)
    await walk.canary(10)
    await asyncio.sleep(AWAY_SECONDS)
    await camera.shoot("canary")
    await walk.canary(50)
    await asyncio.sleep(AWAY_SECONDS)
    await world.pause("b-1")
    try:
        await asyncio.sleep(FAILING_SECONDS)
        await camera.shoot("failing")
        await walk.taken_back()
        await camera.shoot("held")
    finally:
        await world.resume("b-1")
    await walk.settled()
    await walk.lift_hold("B is well again")
    await walk.canary(100)
    await forward(walk)
    await walk.rehearse(4)
    await forward(walk)
    await asyncio.sleep(AWAY_SECONDS)
    await camera.shoot("cutover")
    await world.kill("b-1")
    await walk.job("seize", {"store": "B", "confirm": "service_layer"})
    await asyncio.sleep(AWAY_SECONDS)
    await camera.shoot("seized")
    with blocked(world.directory / "control.db-shm"):
        await asyncio.sleep(AWAY_SECONDS)
        await camera.shoot("control-away")


async def forward(walk: Walk) -> None:
    unpassed = await walk.gates_awaited(MARKED_BY_THE_RUN, EVIDENCE_SECONDS)
    await walk.advance(f"a short run: {', '.join(unpassed)}" if unpassed else "")


@contextmanager
def blocked(shared_memory: Path) -> Iterator[None]:
    """Keep every other process from reading the SQLite database: to them it does not answer."""
    descriptor = os.open(shared_memory, os.O_RDWR)
    try:
        for byte in SHM_LOCKS:
            while True:
                try:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                    break
                except OSError:
                    time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


async def run() -> None:
    for folder in (ALL, WORK):
        shutil.rmtree(folder, ignore_errors=True)
    ALL.mkdir(parents=True)
    settings = {"rollback_pause_seconds": "0", "owner_patience_seconds": "0.5"}
    world = World.embedded(WORK, OLD_DATABASE, Size(http=True, console=True, router_settings=(settings,)))
    load = Load(LoadPlan(clients=6, calls_per_second=60, retry_seconds=3.0), world.routers, WORK / "evidence")
    async with (
        world.running(),
        Walk.open(world.controls, ACTOR, world.operator_token, None) as walk,
        load.running(),
        async_playwright() as driver,
    ):
        browser = await driver.chromium.launch(executable_path=chromium())
        await play(world, walk, Camera(browser, world.consoles[0], world.operator_token))
        await browser.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(run()))
