"""Every store tells the golden transcripts word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.store.port import StorePorts
from tests.contracts.store_adapters import ADAPTERS_AND_FORMS, MEMORY_A, Adapter
from tests.contracts.store_transcript import GOLDEN, Case, Teller, read_cases, show_case

pytestmark = pytest.mark.parametrize("adapter", ADAPTERS_AND_FORMS, ids=str, indirect=True)

CASES = [(path, case) for path in sorted(GOLDEN.glob("*.txt")) for case in read_cases(path)]


@pytest.mark.parametrize(("path", "case"), CASES, ids=[f"{path.stem}:{case}" for path, case in CASES])
async def test_a_store_tells_the_golden_transcript(
    path: Path, case: Case, store: StorePorts, adapter: Adapter, rewrite_golden: bool
) -> None:
    told = await Teller(store).run(case)
    if rewrite_golden and adapter is MEMORY_A:
        _rewrite(path, told)
    else:
        assert show_case(told) == show_case(case)


def _rewrite(path: Path, told: Case) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    cases = [told if case.title == told.title else case for case in read_cases(path)]
    path.write_text("\n".join([*head, "", *(show_case(case) for case in cases)]))
