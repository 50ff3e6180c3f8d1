"""Notices reach a real receiver over HTTP: one that fails, hangs, refuses, redirects, and comes back."""

from __future__ import annotations

import hmac
import json
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from libs.clock import Clock, ManualClock, SystemClock
from libs.secret_file import SecretFile
from libs.telemetry.logs import configure
from services.router.control.memory import MemoryControlStore
from services.router.control.port import JournalEntry
from services.router.core.gates import GateResult, Verdict
from services.router.core.jobs import Job, JobState
from services.router.core.phase import Phase
from services.router.features.webhooks import notices
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering import notify, webhook
from services.router.flows.steering.notices import Sent
from services.router.flows.steering.notify import NotDelivered, Notifications, Watched
from services.router.flows.steering.webhook import Reply, Webhook, parse_secret
from tests.system.control import running_controlled_system, running_loops
from tests.system.receiver import HANG, HANGING_SECONDS, USUAL_SECONDS, Receiver, running_receiver
from tests.waiting import eventually

SECRET = b"0123456789abcdef01234567"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as made:
        yield made


@dataclass
class Site:
    control: MemoryControlStore
    receiver: Receiver
    secret: SecretFile[bytes]
    gates: tuple[GateResult, ...] = ()
    known: bool = True

    def router(self, name: str, clock: Clock | None = None) -> Notifications:
        watched = Watched(tuple, lambda _: self.gates, dict, lambda: self.known)
        clock = clock or SystemClock()
        sender = Webhook(self.receiver.url, "/baton/toy.Shelf", self.secret, clock)
        return Notifications(self.control, watched, sender, clock, name)

    async def change(self, **fields: Any) -> None:
        before = await self.control.load()
        after = replace(before, generation=before.generation + 1, **fields)
        assert await self.control.change(JournalEntry(1.0, "ann", "advance", "", before, after))


@pytest.fixture
def site(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(webhook, "POST_SECONDS", USUAL_SECONDS)
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_bytes(SECRET + b"\n")
    secret = SecretFile(file, parse_secret, SystemClock())
    return Site(MemoryControlStore(), receiver, secret)


async def test_a_receiver_that_fails_hangs_and_comes_back_gets_each_notice_in_order(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, receiver = site.router("router-1"), site.receiver
    await site.change(hold=True)
    await router.look()
    assert receiver.received == [], "what has been before is no news"
    await site.change(phase=Phase.SHADOW)
    await site.change(phase=Phase.DUAL_WRITE)
    for status in (500, 429, HANG, 302):
        receiver.status = status
        monkeypatch.setattr(webhook, "POST_SECONDS", HANGING_SECONDS if status == HANG else USUAL_SECONDS)
        with pytest.raises(NotDelivered):
            await router.look()
    assert set(receiver.ids) == {"change-3"}
    assert set(receiver.paths) == {"/hook"}, "a redirect is not followed"
    receiver.status = 200
    await site.router("router-1").look()
    assert receiver.ids[-2:] == ["change-3", "change-4"], "a router that starts goes on"
    await router.look()
    assert receiver.ids[-2:] == ["change-3", "change-4"]


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
    for status in (401, 404):
        receiver.status = status
        for _ in range(notify.REFUSALS + 1):
            with pytest.raises(NotDelivered):
                await router.look()
    receiver.received.clear()
    receiver.status = 400
    for _ in range(notify.REFUSALS - 1):
        with pytest.raises(NotDelivered):
            await router.look()
    await router.look()
    assert router.alerts == ["1 notices were refused by the receiver, and given up"]
    receiver.status = 200
    await site.change(phase=Phase.DUAL_WRITE)
    await router.look()
    assert receiver.ids == ["change-2"] * notify.REFUSALS + ["change-3"]


async def test_a_notice_about_a_gate_is_the_same_in_each_attempt_and_is_given_up_too(site: Site) -> None:
    clock, receiver = ManualClock(), site.receiver
    router = site.router("router-1", clock)
    await router.look()
    site.gates = (GateResult("lag", "s", Verdict.FAIL, "seen", "wanted"),)
    receiver.status = 422
    for _ in range(notify.REFUSALS - 1):
        with pytest.raises(NotDelivered):
            await router.look()
        clock.advance(60.0)
    await router.look()
    assert (len(router.alerts), len(receiver.ids), len(set(receiver.ids))) == (1, notify.REFUSALS, 1)
    clock.advance(notify.GIVEN_UP_SECONDS)
    assert router.alerts == [], "an alert for an hour"


async def test_every_router_shows_that_notices_are_not_delivered_until_they_are(site: Site) -> None:
    first, second, receiver = site.router("router-1"), site.router("router-2"), site.receiver
    await first.look()
    await site.change(phase=Phase.SHADOW)
    receiver.status = 401
    with pytest.raises(NotDelivered):
        await first.look()
    await second.look()
    assert second.alerts == ["notices are not delivered: the receiver answers 401 to change-2"]
    receiver.status = 422
    for _ in range(notify.REFUSALS):
        with suppress(NotDelivered):
            await first.look()
    await second.look()
    assert second.alerts == ["1 notices were refused by the receiver, and given up"]
    receiver.status = 200
    await site.change(phase=Phase.DUAL_WRITE)
    await first.look()
    await site.router("router-1").look()
    assert receiver.ids[-1] == "change-3"
    await second.look()
    assert second.alerts == ["1 notices were refused by the receiver, and given up"], "for an hour"


async def test_a_router_that_stood_still_does_not_put_back_the_record_of_the_next_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    site.control = MemoryControlStore(clock=clock)
    first, second = site.router("router-1", clock), site.router("router-2", clock)
    await first.look()
    await site.change(phase=Phase.SHADOW)

    async def standstill(*arguments: Any) -> Reply:
        monkeypatch.undo()
        await second.look()
        clock.advance(notify.LEASE_SECONDS + 1)
        await second.look()
        await site.change(phase=Phase.DUAL_WRITE)
        await second.look()
        return await first._webhook.post(*arguments)

    monkeypatch.setattr(first._webhook, "post", standstill)
    await first.look()
    await second.look()
    assert site.receiver.ids == ["change-2", "change-3", "change-2"], "no notice is sent again afterwards"


async def test_a_router_sends_nothing_before_it_knows_jobs_and_measurements(site: Site) -> None:
    router = site.router("router-1")
    await router.look()
    await site.change(phase=Phase.SHADOW)
    site.known = False
    await site.router("router-2").look()
    assert site.receiver.received == []


async def test_the_address_is_not_logged(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It may be a secret: whoever knows it can post there."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    configure("debug", as_json=False)
    router = site.router("router-1")
    await router.look()
    await site.change(phase=Phase.SHADOW)
    await router.look()
    assert site.receiver.ids == ["change-2"]
    assert "hook" not in capsys.readouterr().err


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


async def test_a_router_that_has_just_started_does_not_report_old_jobs_again(receiver: Receiver) -> None:
    job = Job("backfill", "backfill to B", "ann", id="backfill-1", state=JobState.FINISHED, ended_seconds=9.0)
    sent = Sent(1, frozenset({"backfill-1 FINISHED 9.000"}))
    async with running_controlled_system() as controlled:
        flows = controlled.flows
        flows.settings = flows.settings.model_copy(update={"notify_url": receiver.url})
        await controlled.store.add(job)
        await controlled.store.remember(notify.SENT, sent.to_json())
        flows.jobs = Jobs(controlled.store, (), "router-9", SystemClock())
        (loop,) = notices(flows).loops
        await eventually(lambda: flows.measurement.fresh)
        await loop._run_body()
        await flows.jobs.look()
        await loop._run_body()
        known = Sent.from_json(await controlled.store.remembered(notify.SENT) or "")
        assert known is not None and known.jobs == sent.jobs
        assert [found for found in receiver.events if found["type"] == "baton.job.ended"] == []


async def _remembered(control: MemoryControlStore) -> bool:
    return await control.remembered(notify.SENT) is not None


async def _has(receiver: Receiver, text: str) -> bool:
    return any(json.loads(body)["text"] == text for _, body in receiver.received)
