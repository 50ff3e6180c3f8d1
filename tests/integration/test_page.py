"""The page at / of the HTTP listeners, in a real Chromium."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing
from tests.goclient import run
from tests.system.http import NAMES, ROOT, endpoint

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page

playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not installed: run make env")

PHONE, DESKTOP = 360, 1280
"""Widths, in CSS pixels."""
HEIGHT = 800
OPERATIONS = {
    operation["operationId"]
    for verbs in json.loads((ROOT / "libs/pb/sandbox/v1/openapi.json").read_text())["paths"].values()
    for operation in verbs.values()
}
CURL_SECONDS = 30.0
KEY = "123e4567-e89b-42d3-a456-426614174000"
TOO_WIDE = """
() => [...document.querySelectorAll("body *")]
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
  .map((element) => element.outerHTML.slice(0, 120))
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Opened:
    """A page, with its errors and the targets of its requests."""

    page: Page
    address: str
    problems: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    @property
    def elsewhere(self) -> list[str]:
        """The requests to other origins. A data: URL is no request."""
        return [url for url in self.requested if not url.startswith((f"http://{self.address}/", "data:"))]

    async def form(self, operation: str) -> Locator:
        """The operation's form, opened."""
        section = self.page.locator(f"#{operation}")
        await section.locator("> summary").click()
        form = section.locator("form")
        await form.wait_for()
        return form

    async def send(self, form: Locator) -> tuple[str, Any]:
        """Click on Send. Returns the status line and the body of the answer."""
        await form.get_by_role("button", name="Send").click()
        status = form.locator(".status")
        await status.wait_for()
        await self.page.wait_for_function("() => !document.querySelector('button.send:disabled')")
        return await status.inner_text(), json.loads(await form.get_by_label("Body of the answer").inner_text())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
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


@asynccontextmanager
async def opened(browser: Browser, address: str, width: int) -> AsyncIterator[Opened]:
    """The page in a new profile, when it has listed its operations."""
    context = await browser.new_context(viewport={"width": width, "height": HEIGHT})
    try:
        found = Opened(await context.new_page(), address)
        found.page.on("console", lambda message: found.problems.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.problems.append(f"exception: {error}"))
        found.page.on("requestfailed", lambda request: found.problems.append(f"failed: {request.url}"))
        found.page.on("request", lambda request: found.requested.append(request.url))
        await found.page.goto(f"http://{address}/")
        await found.page.locator("details.operation").first.wait_for()
        yield found
    finally:
        await context.close()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
async def test_the_page_shows_every_operation_and_loads_nothing_from_elsewhere(browser: Browser, width: int) -> None:
    async with endpoint("router") as place, opened(browser, place.http, width) as page:
        sections = page.page.locator("details.operation")
        assert {await one.get_attribute("id") for one in await sections.all()} == OPERATIONS
        for operation in sorted(OPERATIONS):
            form = await page.form(operation)
            assert await form.get_by_role("button", name="Send").is_enabled()
            for headers in await form.locator("summary").all():
                await headers.click()
        assert await page.page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.page.evaluate(TOO_WIDE) == []
        assert page.problems == []
        assert page.elsewhere == []
        assert {url.rpartition("/")[2] for url in page.requested} >= {"", "try.js", "openapi.json"}


@pytest.mark.parametrize("name", NAMES)
async def test_a_form_sends_what_its_curl_line_sends(browser: Browser, name: str) -> None:
    """At every server, the old one included, which takes another schema version if the page sends none."""
    async with endpoint(name) as place, opened(browser, place.http, PHONE) as page:
        create = await page.form("CreateSandbox")
        await create.locator("summary").click()
        await create.get_by_label("Idempotency-Key").fill(KEY)
        await create.get_by_label("Body, JSON").fill(
            json.dumps({"account": "acme", "spec": {"image": "debian:13"}, "annotations": {"note": "it's blue"}})
        )
        status, created = await page.send(create)
        assert status.startswith("200 "), created
        assert created["annotations"] == {"note": "it's blue"}
        assert await curl(create, place.http) == created, "the same request id: the same answer"

        get = await page.form("GetSandbox")
        await get.get_by_label("sandbox", exact=True).fill(created["name"].partition("/")[2])
        assert await page.send(get) == (await get.locator(".status").inner_text(), created)
        assert await curl(get, place.http) == created

        assert (page.problems, page.elsewhere) == ([], [])


async def test_a_watch_is_shown_while_it_comes_and_can_be_stopped(browser: Browser) -> None:
    async with endpoint("new service") as place, opened(browser, place.http, PHONE) as page:
        watch = await page.form("WatchSandboxes")
        assert await watch.get_by_role("button", name="Stop").is_disabled()
        await watch.get_by_role("button", name="Send").click()
        answer = watch.get_by_label("Body of the answer")
        await answer.filter(has_text="data: {").wait_for()
        await watch.get_by_role("button", name="Stop").click()
        await answer.filter(has_text="Stopped.").wait_for()
        assert await watch.get_by_role("button", name="Send").is_enabled()
        line = await watch.get_by_label("The same request by curl").inner_text()
        assert line.startswith("curl -iN ")


async def curl(form: Locator, address: str) -> Any:
    """Run the form's curl line in a shell. Returns the JSON of its answer."""
    line = await form.get_by_label("The same request by curl").inner_text()
    assert line.startswith("curl -i ")
    assert f"'http://{address}/v1/" in line
    output = await asyncio.to_thread(run, ["bash", "-c", f"{line} -sS"], ROOT, dict(os.environ), CURL_SECONDS)
    head, _, body = output.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 "), output
    return json.loads(body)
