"""The commands of the runbooks' blocks, each run once on a system in which an operator could type it."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator

import pytest

from libs.ownership.model import Store
from services.router.cli.failure import Exit
from services.router.core.phase import Phase
from services.router.core.runbooks import RUNBOOKS
from services.router.flows.steering.migration import Decision
from tests.commands import baton
from tests.documents import blocks
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
BLOCKED = frozenset({Exit.OK, Exit.BLOCKED, Exit.INCONCLUSIVE})
"""A gate, or the certificate, may say no."""
FAILS = {"baton audit --yes": "a store in memory takes no snapshot; tests/acceptance/test_audit.py audits files"}
"""Commands that cannot succeed on this system."""


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system() as running:
        yield running


def commands() -> list[str]:
    found: dict[str, None] = {}
    for one in RUNBOOKS:
        for block in blocks(one.path):
            if block.kind == "sh":
                assert block.runs, f"{one.path}: every block is run"
                found |= dict.fromkeys(block.code.splitlines())
    return list(found)


async def test_every_command_of_the_runbooks_runs(controlled: ControlledSystem) -> None:
    flows = controlled.flows
    while flows.cache.current.phase is not Phase.DUAL_WRITE:
        await step(flows.migration, BY_HAND)
    wrong = []
    for command in commands():
        if command.startswith("baton hold lift"):
            await flows.migration.rollback(BY_HAND, Phase.DUAL_WRITE)
        program, *words = shlex.split(command)
        result = await baton(controlled, *words)
        good = result.exit_code in BLOCKED or (command in FAILS and result.exit_code == Exit.FAILED)
        if program != "baton" or result.exception.startswith("AssertionError") or not good:
            wrong.append(f"{command}: exit code {result.exit_code}: {result.stderr} {result.exception}")
    assert not wrong, "\n".join(wrong)


async def test_commands_name_the_page_of_a_gate_of_a_limit_and_of_an_error(controlled: ControlledSystem) -> None:
    plan = await baton(controlled, "phase", "plan")
    assert "see docs/runbooks/backfill.md" in plan.stdout
    limits = await baton(controlled, "gates")
    assert "docs/runbooks/old-clients.md" in limits.stdout
    unknown = await baton(controlled, "jobs", "show", "audit-99")
    assert "see docs/runbooks/jobs.md#job_not_found" in unknown.stderr
    as_json = await baton(controlled, "jobs", "show", "audit-99", "-o", "json")
    assert json.loads(as_json.stderr)["error"]["runbook"] == "docs/runbooks/jobs.md#job_not_found"
    await controlled.system.stop(Store.A)
    await eventually(lambda: not controlled.flows.observer.view(Store.A).reachable)
    status = await baton(controlled, "status")
    assert "see docs/runbooks/store-down.md" in status.stdout
