"""The operators' page over HTTP: sign-in, sessions, forms, permalinks and the stream."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.rpc.channel import open_channel
from libs.rpc.server import CannotListen
from services.router.features.router import Router, open_router
from services.router.web.session import COOKIE
from tests.contracts.identity_adapters import write
from tests.http_client import Answer, ask, connected
from tests.integration.test_operators import operators_file, router_settings, token_of
from tests.system.control import running_loops
from tests.waiting import eventually

FORM = "application/x-www-form-urlencoded"
REMOTE = "0.0.0.0:0"


@dataclass
class Browser:
    """A browser with one cookie."""

    address: str
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str = "/console/", **headers: str) -> Answer:
        return await ask(self.address, "GET", path, None, {**self._own(), **headers})

    async def post(self, path: str, form: Mapping[str, Any], **headers: str) -> Answer:
        sent = {**self._own(), "content-type": FORM, "origin": f"http://{self.address}", **headers}
        return await ask(self.address, "POST", path, urlencode(form).encode(), sent)

    async def sign_in(self, role: str = "", **form: str) -> Answer:
        answer = await self.post("/console/sign-in", {**({"token": token_of(role)} if role else {}), **form})
        if found := re.match(rf"{COOKIE}=([^;]*)", answer.headers.get("set-cookie", "")):
            self.cookie = found[1]
        return answer

    async def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', (await self.get()).body.decode())
        assert found is not None
        return found[1]

    def _own(self) -> dict[str, str]:
        return {"host": self.address} | ({"cookie": f"{COOKIE}={self.cookie}"} if self.cookie else {})


@asynccontextmanager
async def console(**settings: Any) -> AsyncIterator[tuple[Browser, Router]]:
    """The page of a router whose stores are out of reach."""
    given = router_settings(**{"console": "127.0.0.1:0", **settings})
    async with open_router(given) as router, running_loops(*router.loops):
        assert router.console is not None
        yield Browser(router.console.address), router


def tokens(folder: Path) -> dict[str, Any]:
    return {"control_auth": "tokens", "control_auth_file": operators_file(folder)}


async def test_without_authentication_the_page_needs_a_name_and_is_for_this_machine_only() -> None:
    async with console() as (browser, _):
        assert "Your name" in (await browser.get()).body.decode()
        assert (await browser.sign_in(actor=" ")).status == 400
        assert (await browser.sign_in(actor="ann")).status == 303
        page = await browser.get()
        assert page.status == 200 and "A answers every call." in page.body.decode()
    for kind in (None, "none"):
        with pytest.raises(CannotListen, match=r"console: .* can be reached from other machines: set control_auth"):
            async with console(control_auth=kind, console=REMOTE):
                pass


async def test_beyond_loopback_the_page_asks_for_the_operators_token(tmp_path: Path) -> None:
    async with console(console=REMOTE, **tokens(tmp_path)) as (browser, _):
        browser.address = f"127.0.0.1:{browser.address.rpartition(':')[2]}"
        refused = await browser.post("/console/sign-in", {"token": "x" * 20})
        assert (refused.status, "set-cookie" in refused.headers) == (401, False)
        assert (await browser.sign_in("viewer")).status == 303
        assert (await browser.get()).status == 200


async def test_a_shared_token_opens_the_page_with_a_name(tmp_path: Path) -> None:
    async with console(control_token_file=write(tmp_path / "shared", token_of("admin"))) as (browser, _):
        assert (await browser.sign_in("admin")).status == 400, "a shared token names nobody"
        assert (await browser.sign_in("viewer", actor="ann")).status == 401
        assert (await browser.sign_in("admin", actor="ann")).status == 303
        assert "ann" in (await browser.get()).body.decode()


async def test_every_response_keeps_foreign_scripts_frames_and_caches_out(tmp_path: Path) -> None:
    async with console(**tokens(tmp_path)) as (browser, _):
        await browser.sign_in("viewer")
        for path in ("/console/", "/console/sign-in", "/console/assets/console.js", "/console/journal/99", "/nothing"):
            answer = await browser.get(path)
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["cache-control"] == ("no-cache" if "assets" in path else "no-store"), path
            assert answer.headers["x-content-type-options"] == "nosniff"
        page = (await browser.get()).body.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style| style=| on[a-z]+=", page), "the policy would block it"
        assert not re.search(r'(?:src|href|action)="(?!/console/|#)', page), "nothing comes from elsewhere"


async def test_nothing_is_shown_without_a_session(tmp_path: Path) -> None:
    async with console(**tokens(tmp_path)) as (browser, router):
        for path in ("/console/", "/console/record?name=sandboxes/one", "/console/journal/1"):
            answer = await browser.get(path)
            assert "Sign in" in answer.body.decode() and "OFF" not in answer.body.decode(), path
        assert (await browser.get("/console/events")).status == 401
        await browser.sign_in("")
        assert (await browser.post("/console/sign-out", {})).status in (401, 403)
        assert router.control.gate.in_flight == 0


async def test_a_session_ends_with_a_token_that_is_revoked_and_with_the_sign_out(tmp_path: Path) -> None:
    async with console(**tokens(tmp_path)) as (browser, _):
        await browser.sign_in("operator")
        csrf = await browser.csrf()
        assert (await browser.post("/console/sign-out", {"csrf": "guessed"})).status == 403
        out = await browser.post("/console/sign-out", {"csrf": csrf})
        assert (out.status, "Max-Age=0" in out.headers["set-cookie"]) == (303, True)
        assert (await browser.get()).status == 200, "the browser still has the cookie here"
        write(tmp_path / "operators.toml", "")

        async def is_out() -> bool:
            page = await browser.get()
            return page.status == 401 and "Sign in" in page.body.decode()

        await eventually(is_out)


async def test_a_page_whose_name_a_stranger_owns_is_refused() -> None:
    async with console() as (browser, _):
        await browser.sign_in(actor="ann")
        assert (await browser.get(host="rebound.example")).status == 403
        rebound = {"host": "rebound.example", "origin": "http://rebound.example"}
        assert (await browser.post("/console/sign-in", {"actor": "eve"}, **rebound)).status == 403


async def test_with_a_token_the_page_may_have_a_name_and_a_proxy_that_ends_tls(tmp_path: Path) -> None:
    async with console(**tokens(tmp_path)) as (browser, _):
        for origin, status in (("https://baton.example", 303), ("https://evil.example", 403)):
            named = {"host": "baton.example", "origin": origin}
            answer = await browser.post("/console/sign-in", {"token": token_of("viewer")}, **named)
            assert answer.status == status, origin
            assert ("; Secure" in answer.headers.get("set-cookie", "")) is (status == 303)
        assert (await browser.get(host="baton.example")).status == 200


async def test_the_stream_sends_sections_and_ends_with_the_router() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        async with connected(browser.address) as stream:
            cookie = {"host": browser.address, "cookie": f"{COOKIE}={browser.cookie}"}
            await stream.request("GET", "/console/events", None, cookie)
            status, headers = await stream.head()
            assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
            text = ""
            while "event: tick" not in text:
                text += (await stream.data() or b"").decode()
            assert 'event: section\ndata: {"id": "head"' in text
            await router.control.drain(0.1)
            while (part := await stream.data()) is not None:
                text += part.decode()
            assert "event: ended" in text


async def test_a_look_at_the_stream_has_an_end() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        async with connected(browser.address) as stream:
            cookie = {"host": browser.address, "cookie": f"{COOKIE}={browser.cookie}"}
            await stream.request("HEAD", "/console/events", None, cookie)
            assert (await stream.answer()).headers["content-type"].startswith("text/event-stream")
            await stream.request("GET", "/console/sign-in", None, cookie)
            assert (await stream.answer()).status == 200, "the connection serves the next request"
            assert router.control.gate.streams == 0


async def test_the_journal_has_permalinks() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        generation = (await router_status(router)).setting.generation
        assert "Before and after" in (await browser.get(f"/console/journal/{generation}")).body.decode()
        assert (await browser.get("/console/journal/999")).status == 404


async def router_status(router: Router) -> pb.GetStatusResponse:

    async with open_channel(router.control.address) as channel:
        found: pb.GetStatusResponse = await ControlServiceStub(channel.grpc).GetStatus(pb.GetStatusRequest(), timeout=5)
        return found
