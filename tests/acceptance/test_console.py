"""An operator steers a migration from the page, in a real Chromium, with real processes and a planted fault."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from tests.contracts.identity_adapters import write

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not installed: run make env")

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
BOUND_MILLISECONDS = 60_000
OUTCOME = re.compile(r"^Now [A-Z_]+, generation \d+\.$")
"""A plan may have the word too."""
POSTED = """
async () => (await fetch("/console/do/lift", {method: "POST", body: new URLSearchParams({generation: "1"})})).status
"""
HIDDEN_AND_SHOWN = """
() => {
  for (const hidden of [true, false]) {
    Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden})
    document.dispatchEvent(new Event("visibilitychange"))
  }
}
"""
TOO_WIDE = """
() => [...document.querySelectorAll("body *")]
  .filter((one) => !one.closest(".scroll, dialog") && one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.outerHTML.slice(0, 120))
"""


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    try:
        program = locate.chromium()
    except ServerMissing as error:
        pytest.skip(str(error))
    async with playwright.async_playwright() as driver:
        found = await driver.chromium.launch(executable_path=program)
        try:
            yield found
        finally:
            await found.close()


class Tab:
    """The page in a profile of its own, with its errors."""

    def __init__(self, page: Page, address: str, token: str) -> None:
        self.page = page
        self._address = address
        self._token = token
        self.problems: list[str] = []
        self.elsewhere: list[str] = []
        page.set_default_timeout(BOUND_MILLISECONDS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._note_message)
        page.on("request", lambda request: self._note(request.url))

    @property
    def home(self) -> str:
        return f"http://{self._address}/console/"

    def _note_message(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def _note(self, url: str) -> None:
        if not url.startswith(f"http://{self._address}/"):
            self.elsewhere.append(url)

    async def sign_in(self) -> None:
        await self.page.goto(self.home)
        assert await self.faults() == [], "the sign-in"
        await self.page.get_by_label("Your name").fill("ann")
        await self.page.get_by_label("Token").fill(self._token)
        await self.page.keyboard.press("Enter")
        await self.is_live()

    async def is_live(self) -> None:
        await self.page.locator(".link[data-state=live]").wait_for()

    async def shows(self, text: str, where: str = "main") -> None:
        await self.page.locator(where).get_by_text(text).first.wait_for()

    async def plan(self, verb: str) -> Any:
        """Press the verb's button; the dialog with its plan."""
        return await self._opened(self.page.locator(f'main form.verb[action$="/plan/{verb}"] button').first)

    async def press(self, name: str) -> Any:
        return await self._opened(self.page.get_by_role("button", name=name))

    async def _opened(self, button: Any) -> Any:
        await button.click()
        dialog = self.page.get_by_role("dialog")
        await dialog.wait_for()
        return dialog

    async def agree(self, dialog: Any, button: str, reason: str = "") -> None:
        if reason:
            await dialog.get_by_label("Reason").fill(reason)
        await dialog.get_by_role("button", name=button, exact=True).click()
        await dialog.get_by_text(OUTCOME).wait_for()
        await self.page.keyboard.press("Escape")

    async def faults(self) -> list[str]:
        """Findings of axe-core, and parts that do not fit into the window."""
        from axe_playwright_python.async_playwright import Axe

        found = await Axe().run(self.page)
        access = [f"{one['id']}: {one['nodes'][0]['html'][:150]}" for one in found.response["violations"]]
        return [*access, *await self.page.evaluate(TOO_WIDE)]


@asynccontextmanager
async def opened(browser: Browser, address: str, token: str, size: Any, scheme: Any) -> AsyncIterator[Tab]:
    context = await browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    try:
        tab = Tab(await context.new_page(), address, token)
        await tab.sign_in()
        yield tab
    finally:
        await context.close()


async def test_an_operator_steers_a_migration_from_the_page(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "a secret that seals the sessions")
    settings = {"console_secret_file": str(secret)}
    world = World.embedded(tmp_path / "world", size=Size(console=True, router_settings=(settings,)))
    address = world.consoles[0]
    async with (
        world.running(),
        Walk.open(world.controls, "bob", world.operator_token) as walk,
        running_browser() as browser,
        opened(browser, address, world.operator_token, DESKTOP, "light") as tab,
        opened(browser, address, world.operator_token, PHONE, "dark") as phone,
    ):
        await walk.settled()
        page = tab.page
        # The gates block the first step; the dialog says so, and offers an override with a reason.
        for to in ("SHADOW", "DUAL_WRITE"):
            dialog = await tab.plan("advance")
            if await dialog.get_by_text("These gates do not pass").count():
                await dialog.get_by_role("button", name="Override").click()
                await dialog.get_by_text("overridden: ").first.wait_for()
            await tab.agree(dialog, f"Advance to {to}", "a drill")
            for one in (tab, phone):
                await one.page.locator("[aria-current=step]").get_by_text(to, exact=True).wait_for()
        # The page was opened in OFF, and offers the way back of the phase that it is in now.
        offered = page.locator("#rollback select[name=to] option")
        await playwright.expect(offered).to_have_text(["DUAL_WRITE", "SHADOW", "OFF"], timeout=BOUND_MILLISECONDS)
        async with page.expect_request("**/console/events"):
            await page.evaluate(HIDDEN_AND_SHOWN)
        await page.get_by_label("Share of B").fill("10")
        await tab.agree(await tab.plan("canary"), "Set 10 %")
        await phone.shows("102 owned by B", "#buckets")
        assert (await walk.status()).setting.canary_permille == 100
        await tab.shows("a drill", "#journal")

        await page.get_by_label("Compare reads").fill("100")
        await tab.agree(await tab.plan("shadow"), "Compare 100 %")
        await phone.shows("100 % of the reads are compared.", "#differences")
        await page.get_by_label("get sandbox", exact=True).select_option("A")
        await tab.agree(await tab.press("Set get sandbox"), "Set it")
        await _has_no_faults(tab, phone, (await walk.status()).setting.generation)
        assert await page.evaluate(POSTED) == 403, "a form without the value of the session"
        tab.problems.clear()

        # The planted fault is on the page before anybody asks for it.
        await world.kill("b-1")
        await tab.shows("unreachable", "#stores")
        await tab.shows("store B is unreachable", "#head .alerts")
        await page.locator("#rollback select[name=to]").select_option("OFF")
        dialog = await tab.plan("rollback")
        await dialog.get_by_text("all traffic is held at A until").wait_for()
        await tab.agree(dialog, "Roll back to OFF", "B is dead")
        for one in (tab, phone):
            await one.shows("Held at A.", "#head")
        assert (await walk.status()).setting.hold

        # Without its router the page keeps the last state and says since when.
        await world.kill("router-1")
        await tab.shows("Stale since", ".top")
        await tab.shows("All traffic is held at A since a rollback.", "#head")
        await world.start("router-1")
        await tab.is_live()

        await phone.page.get_by_role("button", name="Sign out").click()
        await phone.page.get_by_label("Token").wait_for()
        assert (tab.elsewhere, phone.elsewhere) == ([], [])
        assert [one for one in tab.problems if "Failed to load" not in one and "ERR_" not in one] == []


async def _has_no_faults(tab: Tab, phone: Tab, generation: int) -> None:
    """Every page and each kind of dialog, on a phone, on a desk and on a wall."""
    page, narrow = tab.page, phone.page
    for one in (tab, phone):
        for summary in ("Walk by a plan", "Start a job"):
            await one.page.get_by_text(summary, exact=True).click()
        assert await one.faults() == []
    tops = await page.evaluate("() => ['gates', 'canary'].map((id) => document.getElementById(id).offsetTop)")
    assert tops[0] == tops[1], "they stand side by side"
    for verb, words in (("walk", "the canary walks 10 % -> "), ("rehearse", "4 buckets go to the other store")):
        dialog = await phone.plan(verb)
        await dialog.get_by_text(words).first.wait_for()
        assert await phone.faults() == [], verb
        await narrow.keyboard.press("Escape")
    dialog = await tab.plan("canary")
    await dialog.get_by_role("button", name="Set 10 %").click()
    await dialog.get_by_text(OUTCOME).wait_for()
    assert await tab.faults() == [], "the outcome"
    await page.keyboard.press("Escape")
    for link in (f"journal/{generation}", "record?name=sandboxes/none", "record", "difference/none", "journal/999"):
        await narrow.goto(f"{phone.home}{link}")
        assert await phone.faults() == [], link
    await narrow.goto(phone.home)
    await phone.is_live()
    await page.set_viewport_size({"width": 3840, "height": 2160})
    assert await tab.faults() == [], "on a wall"
    await page.set_viewport_size({"width": 1280, "height": 900})
