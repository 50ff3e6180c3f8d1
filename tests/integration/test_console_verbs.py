"""The verbs of the operators' page: the command's own plan first, then the change that was shown, or none."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from services.router.core.canary import EXAMPLE
from services.router.features.router import Router
from tests.commands import answer
from tests.contracts.identity_adapters import write
from tests.integration.test_console import Browser, console, router_status, tokens
from tests.integration.test_operators import At

FLAG = "sandbox.routing.use_service_layer"


async def plan(browser: Browser, verb: str, **fields: str) -> str:
    """HTML of the plan."""
    found = await browser.post(f"/console/plan/{verb}", {"csrf": await browser.csrf(), **fields})
    return found.body.decode()


def effects(page: str) -> list[str]:
    listed = re.search(r'<ul class="effects">(.*?)</ul>', page, re.DOTALL)
    assert listed is not None, page
    return [html.unescape(one) for one in re.findall(r"<li>(.*?)</li>", listed[1], re.DOTALL)]


def hidden(page: str) -> dict[str, str]:
    """Fields of the form that agrees to a plan."""
    form = re.search(r'<form method="post" action="/console/do/.*?</form>', page, re.DOTALL)
    assert form is not None, page
    found = re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form[0])
    return {name: html.unescape(value) for name, value in found}


async def do(browser: Browser, verb: str, page: str, **typed: str) -> str:
    found = await browser.post(f"/console/do/{verb}", {**hidden(page), **typed})
    return html.unescape(found.body.decode())


async def advance(browser: Browser, to: str, **typed: str) -> str:
    page = await plan(browser, "advance", to=to, override="yes")
    return await do(browser, "advance", page, reason="by hand", **typed)


async def phase(router: Router) -> str:
    return (await answer(At(router.control.address), "status"))["phase"]  # type: ignore[no-any-return]


async def test_the_page_shows_the_plan_of_the_command_and_changes_nothing(tmp_path: Path) -> None:
    plan_file = write(tmp_path / "plan.toml", EXAMPLE)
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        await advance(browser, "SHADOW")
        await advance(browser, "DUAL_WRITE")
        before = (await router_status(router)).setting
        for verb, fields, command in (
            ("canary", {"percent": "12.5"}, ("canary", "set", "12.5")),
            ("flag", {"name": FLAG, "value": "false"}, ("flags", "set", FLAG, "false")),
            ("rollback", {"to": "OFF"}, ("phase", "rollback", "OFF")),
            ("advance", {"to": "DUAL_READ", "override": "yes"}, ("phase", "advance", "DUAL_READ", "--override", "x")),
            ("start", {"kind": "reconcile", "repair": "no"}, ("reconcile", "--no-repair")),
            ("start", {"kind": "backfill"}, ("backfill",)),
            (
                "start",
                {"kind": "audit", "sample": "2.5", "accept": "x, y"},
                ("audit", "--sample", "2.5", "--accept", "x,y"),
            ),
            ("shadow", {"percent": "25", "with": "same"}, ("shadow", "set", "25", "--same")),
            ("shadow", {"percent": "0", "with": "other"}, ("shadow", "set", "off")),
            ("rehearse", {"buckets": "8"}, ("rehearse", "--buckets", "8")),
            ("walk", {"plan": EXAMPLE.replace("\n", "\r\n")}, ("canary", "auto", str(plan_file))),
        ):
            shown = effects(await plan(browser, verb, **fields))
            assert shown == (await answer(At(router.control.address), *command, "--dry-run"))["effects"], verb
        assert (await router_status(router)).setting == before


async def test_a_change_is_the_one_that_was_shown_and_the_journal_names_its_author() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        shown = await plan(browser, "flag", name=FLAG, value="false")
        assert "generation 2" in await do(browser, "flag", shown, reason="a drill")
        newest = (await answer(At(router.control.address), "journal"))["entries"][0]
        assert (newest["actor"], newest["reason"], newest["changes"]) == (
            "ann",
            "a drill",
            [f"flag {FLAG} = false (was unset)"],
        )
        late = await do(browser, "flag", shown)
        assert "Another change was faster" in late or "generation" in late
        assert (await router_status(router)).setting.generation == 2, "the plan was based on an earlier generation"


async def test_jobs_a_walk_and_a_comparison_are_started_and_stopped_as_they_were_shown() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        await advance(browser, "SHADOW")
        await advance(browser, "DUAL_WRITE")

        async def agree(verb: str, **fields: str) -> str:
            return await do(browser, verb, await plan(browser, verb, **fields), reason="a drill")

        assert "Now DUAL_WRITE" in await agree("shadow", **{"percent": "25", "with": "same"})
        setting = (await router_status(router)).setting
        assert (setting.shadow_permille, setting.shadow_same) == (250, True)
        assert "canary-auto-" in await agree("walk", plan=EXAMPLE.replace("\n", "\r\n"))
        assert (await router_status(router)).canary_auto.running
        await agree("stop")
        assert not (await router_status(router)).canary_auto.running
        assert "rehearsal-" in await agree("rehearse", buckets="8")
        assert "audit-" in await agree("start", kind="audit", sample="2.5")
        jobs = {one["kind"]: one for one in (await answer(At(router.control.address), "jobs"))["jobs"]}
        assert {kind: one["actor"] for kind, one in jobs.items()} == dict.fromkeys(
            ("canary-auto", "rehearsal", "audit"), "ann"
        )
        late = await plan(browser, "walk", plan=EXAMPLE)
        await agree("flag", name=FLAG, value="true")
        assert "nothing was changed" in await do(browser, "walk", late)


async def test_gates_block_a_step_and_an_override_needs_a_reason() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        blocked = await plan(browser, "advance", to="SHADOW")
        assert "These gates do not pass" in blocked and "/console/do/" not in blocked and "backfill" in blocked
        form = {"csrf": await browser.csrf(), "to": "SHADOW", "generation": "1"}
        assert "these gates do not pass" in html.unescape(
            (await browser.post("/console/do/advance", form)).body.decode()
        )
        override = await plan(browser, "advance", to="SHADOW", override="yes")
        assert any(one.startswith("overridden: backfill") for one in effects(override))
        assert "nothing was changed" in await do(browser, "advance", override, reason=" ")
        unseen = await do(browser, "advance", override, reason="copied by hand", overridden="backfill")
        assert "since the plan was shown, these gates do not pass either: audit" in unseen
        assert await phase(router) == "OFF"
        await do(browser, "advance", override, reason="copied by hand")
        assert await phase(router) == "SHADOW"


async def test_cutover_needs_its_name_typed() -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        for to in ("SHADOW", "DUAL_WRITE", "DUAL_READ"):
            await advance(browser, to)
        for typed in ("", "cutover", "DUAL_READ"):
            assert "type CUTOVER; nothing was changed" in await advance(browser, "CUTOVER", confirm=typed)
        assert await phase(router) == "DUAL_READ"
        assert "Now CUTOVER" in await advance(browser, "CUTOVER", confirm="CUTOVER")


@pytest.mark.parametrize("verb", ["plan", "do"])
async def test_a_form_without_the_value_of_the_session_or_from_elsewhere_changes_nothing(verb: str) -> None:
    async with console() as (browser, router):
        await browser.sign_in(actor="ann")
        csrf = await browser.csrf()
        form = {"name": FLAG, "value": "false", "generation": "1"}
        for sent, headers in (
            (form, {}),
            ({**form, "csrf": csrf + "x"}, {}),
            ({**form, "csrf": csrf}, {"origin": "http://evil.example"}),
            ({**form, "csrf": csrf}, {"origin": "http://127.0.0.1:1"}),
            ({**form, "csrf": csrf}, {"cookie": ""}),
        ):
            assert (await browser.post(f"/console/{verb}/flag", sent, **headers)).status in (401, 403), (sent, headers)
        assert (await router_status(router)).setting.generation == 1


async def test_the_api_refuses_what_a_role_does_not_allow(tmp_path: Path) -> None:
    async with console(**tokens(tmp_path)) as (browser, _):
        await browser.sign_in("viewer")
        shown = await plan(browser, "flag", name=FLAG, value="false")
        assert "SetFlag needs the role operator; the roles of this caller: viewer" in await do(browser, "flag", shown)
        await browser.sign_in("operator")
        override = await plan(browser, "advance", to="SHADOW", override="yes")
        assert "needs the role admin" in await do(browser, "advance", override, reason="by hand")
        assert "Now OFF, generation 2." in await do(
            browser, "flag", await plan(browser, "flag", name=FLAG, value="false")
        )


async def test_a_seizure_is_planned_for_a_lost_store_and_needs_its_name() -> None:
    async with console() as (browser, _):
        await browser.sign_in(actor="ann")
        shown = await plan(browser, "seize", store="service_layer")
        assert effects(shown)[0].startswith("simple_mcp seizes every record and bucket that service_layer owns")
        assert "type service_layer; nothing was changed" in await do(browser, "seize", shown, confirm="simple_mcp")


WRONG: list[tuple[str, dict[str, str], str]] = [
    ("canary", {"percent": "101"}, "0 to 100, in steps of 0.1"),
    ("canary", {"percent": "5"}, "a canary steers only in DUAL_WRITE"),
    ("advance", {"to": "NOWHERE"}, "one of OFF, SHADOW"),
    ("advance", {"to": "CUTOVER"}, "is not the next phase"),
    ("rollback", {"to": "OFF"}, "OFF is not before OFF"),
    ("lift", {}, "hold"),
    ("job", {"id": "x-1", "action": "explode"}, "one of pause"),
    ("parked", {"store": "C", "partition": "1", "offset": "2", "action": "retry"}, "one of A, B"),
    ("parked", {"store": "A", "partition": "-1", "offset": "2", "action": "retry"}, "a whole number"),
    ("parked", {"store": "A", "partition": "3000000000", "offset": "2", "action": "retry"}, "a whole number, at most"),
    ("start", {"kind": "seize"}, "one of audit, backfill, reconcile"),
    ("start", {"kind": "audit", "sample": "101"}, "0 to 100, in steps of 0.1"),
    ("shadow", {"percent": "5", "with": "other"}, "reads are compared only in"),
    ("shadow", {"percent": "5", "with": "me"}, "one of other, same"),
    ("walk", {"plan": "nonsense"}, "TOML such as"),
    ("walk", {"plan": EXAMPLE}, "a canary steers only in"),
    ("stop", {}, "no walk is under way"),
    ("rehearse", {"buckets": "4"}, "a rehearsal needs a phase"),
    ("rehearse", {"buckets": "3000000000"}, "a whole number, at most"),
    ("approve", {"id": "9"}, "a call that waits for approval"),
    ("explode", {}, "one of advance"),
]


async def test_a_plan_names_the_field_that_is_wrong() -> None:
    async with console() as (browser, _):
        await browser.sign_in(actor="ann")
        for verb, fields, words in WRONG:
            assert words in html.unescape(await plan(browser, verb, **fields)), (verb, fields)
