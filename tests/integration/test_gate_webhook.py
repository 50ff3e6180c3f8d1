"""The gate `webhook` asks a real endpoint over HTTP: one that fails, hangs, refuses, redirects, and comes back."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.clock import SystemClock
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.secret_file import SecretFile
from services.router.cli.failure import Exit
from services.router.control.memory import MemoryControlStore
from services.router.core.evidence import Evidence
from services.router.core.gates import GateResult, Verdict
from services.router.core.gates.webhook import MOST_BYTES
from services.router.core.phase import Phase
from services.router.features.webhooks import gate_webhook
from services.router.flows.steering import webhook
from services.router.flows.steering.gate_webhook import GateWebhook
from services.router.flows.steering.migration import Blocked, Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.steering.webhook import Reply, Webhook, parse_secret
from services.router.web.view import gates
from tests.commands import answer, baton
from tests.system.control import running_controlled_system, running_loops
from tests.system.receiver import HANG, HANGING_SECONDS, USUAL_SECONDS, Receiver, running_receiver
from tests.waiting import eventually

SECRET = b"0123456789abcdef01234567"
ANN = Decision("ann", "the change is announced")
OTHERS_PASS = Evidence(
    audit_seconds_ago=1.0, audit_records=7, backfill_finished_seconds_ago=1.0, lag_seconds=0.0, parked=0
)
"""Evidence that passes the gates of SHADOW."""


def decided(verdict: str, message: str = "") -> bytes:
    return json.dumps({"verdict": verdict, "message": message}).encode()


@dataclass
class Site:
    """A router's migration with an endpoint that decides about SHADOW and DUAL_WRITE."""

    receiver: Receiver
    cache: SettingCache
    asked: GateWebhook
    migration: Migration

    def gate(self) -> GateResult:
        return self.migration.outlook(self.cache.current).results[-1]

    async def ask(self) -> tuple[Verdict, str]:
        await self.asked.ask(self.cache.current, Phase.SHADOW)
        found = self.gate()
        assert found.name == "webhook"
        return found.verdict, found.evidence


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    monkeypatch.setattr(webhook, "POST_SECONDS", USUAL_SECONDS)
    async with running_receiver() as made:
        yield made


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_bytes(SECRET)
    return file


@pytest.fixture
async def site(receiver: Receiver, secret: Path) -> Site:
    clock, control = SystemClock(), MemoryControlStore()
    cache = SettingCache(control, clock)
    await cache.refresh()
    sender = Webhook(receiver.url, "/baton/toy.Shelf", SecretFile(secret, parse_secret, clock), clock)
    asked = GateWebhook(sender, {Phase.SHADOW, Phase.DUAL_WRITE}, cache, clock)
    migration = Migration(control, cache, lambda _: asked.evidence(OTHERS_PASS), clock)
    migration.webhook = asked
    return Site(receiver, cache, asked, migration)


async def test_an_endpoint_that_does_not_decide_makes_the_gate_inconclusive(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = site.receiver
    assert (site.gate().verdict, site.gate().evidence) == (Verdict.INCONCLUSIVE, "the webhook was not asked yet")
    for status, body, said in (
        (503, decided("PASS"), "the webhook answers 503"),
        (HANG, decided("PASS"), "the webhook does not answer: TimeoutError"),
        (302, decided("PASS"), "the webhook answers 302"),
        (201, decided("PASS"), "the webhook answers 201"),
        (200, b"<html>PASS</html>", "without a verdict"),
        (200, b'{"verdict": "pass"}', "without a verdict"),
        (200, b'["PASS"]', "without a verdict"),
        (200, b"[" * MOST_BYTES, "without a verdict"),
        (200, decided("PASS") + b" " * MOST_BYTES, f"an answer of more than {MOST_BYTES} bytes"),
        (200, None, "the webhook does not answer: RemoteProtocolError"),
        (200, decided("INCONCLUSIVE", "wait for the release"), "does not decide on the step: wait for the release"),
    ):
        receiver.status, receiver.body = status, body
        monkeypatch.setattr(webhook, "POST_SECONDS", HANGING_SECONDS if status == HANG else USUAL_SECONDS)
        verdict, evidence = await site.ask()
        assert (verdict, said in evidence) == (Verdict.INCONCLUSIVE, True), evidence
    assert set(receiver.paths) == {"/hook"}, "a redirect is not followed"
    receiver.status, receiver.body = 200, decided("PASS")
    assert await site.ask() == (Verdict.PASS, "the webhook allows the step"), "it has come back"
    receiver.body = decided("FAIL", "an incident is open\x1b[2J" + "!" * 1000)
    verdict, evidence = await site.ask()
    assert verdict is Verdict.FAIL
    assert "refuses the step: an incident is open\\x1b[2J!!" in evidence and len(evidence) < 600


async def test_the_question_is_signed_and_names_the_step(site: Site) -> None:
    await site.ask()
    await site.ask()
    (headers, body), (_, second) = site.receiver.received
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = b64encode(hmac.digest(SECRET, text, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    event = json.loads(body)
    assert (event["id"], event["type"]) == (headers["webhook-id"], "baton.gate.asked")
    assert event["data"] == {"generation": 1, "phase": "OFF", "next": "SHADOW"}
    assert json.loads(second)["id"] != event["id"], "an old answer does not fit a new question"


async def test_a_step_asks_anew_and_an_override_passes_as_with_any_gate(site: Site) -> None:
    receiver, migration = site.receiver, site.migration
    receiver.body = decided("PASS")
    assert (await site.ask())[0] is Verdict.PASS
    receiver.body = decided("FAIL", "an incident is open")
    with pytest.raises(Blocked, match="webhook FAIL: the webhook refuses the step: an incident is open"):
        await migration.advance(ANN, Phase.SHADOW)
    assert site.cache.current.phase is Phase.OFF
    receiver.body = decided("PASS", "no incident is open")
    setting, results = await migration.advance(ANN, Phase.SHADOW)
    assert (setting.phase, results[-1].name, results[-1].verdict) == (Phase.SHADOW, "webhook", Verdict.PASS)
    assert site.gate().evidence == "the webhook was not asked yet", "the answer was about another step"
    receiver.status = 503
    with pytest.raises(Blocked, match="webhook INCONCLUSIVE"):
        await migration.advance(ANN, Phase.DUAL_WRITE)
    after, _ = await migration.advance(Decision("ann", "it is away", override=True), Phase.DUAL_WRITE)
    assert after.phase is Phase.DUAL_WRITE
    entry = (await migration.journal(1))[0]
    assert (entry.overridden, entry.gates[-1].name) == (True, "webhook")
    asked = len(receiver.received)
    assert "webhook" not in {gate.name for gate in migration.outlook(after).results}
    await site.asked.ask(after, Phase.DUAL_READ)
    assert len(receiver.received) == asked, "the endpoint does not decide about this phase"


async def test_an_answer_that_comes_late_does_not_replace_a_later_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, verdicts = asyncio.Event(), ["PASS", "FAIL"]

    async def post(*_: Any) -> Reply:
        if (verdict := verdicts.pop(0)) == "PASS":
            await going.wait()
        return Reply(200, decided(verdict))

    monkeypatch.setattr(site.asked._webhook, "post", post)
    slow = asyncio.create_task(site.asked.ask(site.cache.current, Phase.SHADOW))
    await asyncio.sleep(0)
    assert (await site.ask())[0] is Verdict.FAIL
    going.set()
    await slow
    assert site.gate().verdict is Verdict.FAIL


async def test_operators_see_the_endpoints_message_and_the_page_of_the_gate(receiver: Receiver, secret: Path) -> None:
    async with running_controlled_system() as controlled:
        flows = controlled.flows
        flows.settings = flows.settings.model_copy(
            update={"gate_webhook_url": receiver.url, "gate_webhook_secret_file": secret}
        )
        receiver.body = decided("FAIL", "an incident is open: INC-7")
        flows.add([gate_webhook])
        async with running_loops(*flows.features[-1].loops):

            async def shown() -> pb.Gate | None:
                status = await controlled.control.GetStatus(pb.GetStatusRequest())
                return next((one for one in status.gates if "INC-7" in one.evidence), None)

            gate = await eventually(shown, 30.0)
            assert gate is not None
            plan = await baton(controlled, "phase", "plan")
            assert plan.exit_code == Exit.BLOCKED
            for words in ("webhook", "an incident is open: INC-7", "see docs/runbooks/gate-webhook.md"):
                assert words in plan.stdout
            found = (await answer(controlled, "phase", "plan", code=Exit.BLOCKED))["gates"][-1]
            assert (found["name"], found["verdict"]) == ("webhook", "FAIL")
            (view,) = gates.gates([gate])
            assert (view.verdict, view.evidence, view.page) == ("fail", gate.evidence, "docs/runbooks/gate-webhook.md")
            receiver.body = decided("PASS")
            await controlled.system.migration.note(ANN, "note")
            await eventually(
                lambda: flows.migration.outlook(flows.cache.current).results[-1].verdict is Verdict.PASS,
                30.0,
                what="a change of the setting asks again",
            )
