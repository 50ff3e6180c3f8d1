"""Notices reach a real receiver over HTTP: one that fails, hangs, refuses, redirects, and comes back."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from libs.clock import SystemClock
from libs.secret_file import SecretFile
from services.router.control.memory import MemoryControlStore
from services.router.control.port import JournalEntry
from services.router.core.phase import Phase
from services.router.features.notices import notices
from services.router.flows.steering import notify
from services.router.flows.steering.notify import NotDelivered, Notifications, Watched, Webhook, parse_secret
from tests.system.control import running_controlled_system, running_loops
from tests.waiting import eventually

SECRET = b"0123456789abcdef01234567"
HANG = 0
"""Instead of a status: no answer."""


@dataclass
class Receiver:
    port: int = 0
    status: int = 200
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [json.loads(body)["id"] for _, body in self.received]

    over: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._answer(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        self.received.append((headers, await reader.readexactly(int(headers["content-length"]))))
        self.paths.append(first.split(" ")[1])
        if self.status == HANG:
            await self.over.wait()
        # A body without an end: it is not read.
        moved = f"location: {self.url}/moved\r\n" if self.status == 302 else ""
        writer.write(f"HTTP/1.1 {self.status} x\r\n{moved}content-length: 1000000\r\n\r\n".encode())
        await writer.drain()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    made.over.set()
    server.close()
    await asyncio.gather(*made.tasks)


@dataclass
class Site:
    control: MemoryControlStore
    receiver: Receiver
    secret: SecretFile[bytes]

    def router(self, name: str) -> Notifications:
        watched = Watched(tuple, tuple, dict)
        webhook = Webhook(self.receiver.url, "/baton/toy.Shelf", self.secret, SystemClock())
        return Notifications(self.control, watched, webhook, SystemClock(), name)

    async def change(self, **fields: Any) -> None:
        before = await self.control.load()
        after = replace(before, generation=before.generation + 1, **fields)
        assert await self.control.change(JournalEntry(1.0, "ann", "advance", "", before, after))


@pytest.fixture
def site(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(notify, "POST_SECONDS", 0.3)
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_bytes(SECRET + b"\n")
    secret = SecretFile(file, parse_secret, SystemClock())
    return Site(MemoryControlStore(), receiver, secret)


async def test_a_receiver_that_fails_hangs_and_comes_back_gets_each_notice_in_order(site: Site) -> None:
    router, receiver = site.router("router-1"), site.receiver
    await site.change(hold=True)
    await router.look()
    assert receiver.received == [], "what has been before is no news"
    await site.change(phase=Phase.SHADOW)
    await site.change(phase=Phase.DUAL_WRITE)
    for status in (500, 429, HANG, 302):
        receiver.status = status
        with pytest.raises(NotDelivered):
            await router.look()
    assert receiver.ids == ["change-3"] * 4
    assert set(receiver.paths) == {"/hook"}, "a redirect is not followed"
    receiver.status = 200
    await site.router("router-1").look()
    assert receiver.ids[4:] == ["change-3", "change-4"], "a router that starts goes on"
    await router.look()
    assert len(receiver.received) == 6


async def test_a_notice_is_signed(site: Site) -> None:
    router = site.router("router-1")
    await router.look()
    await site.change(phase=Phase.SHADOW)
    await router.look()
    ((headers, body),) = site.receiver.received
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = b64encode(hmac.digest(SECRET, text, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert headers["webhook-id"] == json.loads(body)["id"] == "change-2"
    assert headers["content-type"] == "application/cloudevents+json"


async def test_one_router_sends(site: Site) -> None:
    first, second = site.router("router-1"), site.router("router-2")
    await first.look()
    await site.change(phase=Phase.SHADOW)
    await second.look()
    assert site.receiver.received == []
    await first.look()
    assert site.receiver.ids == ["change-2"]


async def test_a_notice_that_the_receiver_refuses_is_given_up_and_the_next_one_follows(site: Site) -> None:
    router, receiver = site.router("router-1"), site.receiver
    await router.look()
    await site.change(phase=Phase.SHADOW)
    receiver.status = 400
    for _ in range(notify.REFUSALS - 1):
        with pytest.raises(NotDelivered):
            await router.look()
    await router.look()
    assert router.given_up == 1
    assert "refused by the receiver" in router.alerts[0]
    receiver.status = 200
    await site.change(phase=Phase.DUAL_WRITE)
    await router.look()
    assert receiver.ids == ["change-2"] * notify.REFUSALS + ["change-3"]


async def test_a_router_reports_a_rollback(receiver: Receiver) -> None:
    async with running_controlled_system() as controlled:
        flows = controlled.flows
        flows.settings = flows.settings.model_copy(update={"notify_url": receiver.url})
        feature = notices(flows)
        async with running_loops(*feature.loops):
            await eventually(lambda: _remembered(controlled.store))
            before = await controlled.store.load()
            after = replace(before, generation=before.generation + 1, phase=Phase.SHADOW)
            await controlled.store.change(JournalEntry(1.0, "ann", "advance", "", before, after))
            back = replace(after, generation=after.generation + 1, phase=Phase.OFF)
            await controlled.store.change(JournalEntry(2.0, "ann", "rollback", "it is slow", after, back))
            await eventually(lambda: _has(receiver, "ann rolled back from SHADOW to OFF: it is slow"))


async def _remembered(control: MemoryControlStore) -> bool:
    return await control.remembered(notify.SENT) is not None


async def _has(receiver: Receiver, text: str) -> bool:
    return any(json.loads(body)["text"] == text for _, body in receiver.received)
