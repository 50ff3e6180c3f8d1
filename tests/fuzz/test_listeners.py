"""Every listener of a system of real processes gets hostile requests, and goes on serving good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.proving.trial.world import Size, World
from tests.fuzz import aftermath
from tests.fuzz.campaign import LISTENERS, addresses_of, open_sender, run, spread
from tests.fuzz.case import load_corpus

CASES = 150 * len(LISTENERS)
SEED = 20

pytestmark = pytest.mark.slow


async def test_hostile_requests_to_every_listener_leave_no_fault_and_no_record(tmp_path: Path) -> None:
    world = World.embedded(tmp_path / "world", size=Size(http=True))
    async with world.running():
        async with open_sender(addresses_of(world)) as sender:
            report = await run(sender, SEED, spread(CASES), load_corpus())
        assert not report.failures, str(report)
        answers = sender.sent.answers
        for listener in LISTENERS:
            good, bad = (
                f"{listener} {code}" for code in (("200", "400") if "http" in listener else ("OK", "INVALID_ARGUMENT"))
            )
            assert answers[good] > 10 and answers[bad] > 10, answers
        assert sender.sent.only_checked, "no create only checked: a check that makes a record would not show"
        await aftermath.check(world, sender.sent.names)
