"""The long fuzz: hostile requests to every listener of a system of real processes, then the checks of `aftermath`.

    python -m tests.fuzz [CASES] [SEED]      # 100000 cases by default; the seed is printed and repeats the run

A failing case is printed in its smallest form and kept in build/fuzz. To replay it with every `make test`, move it to
tests/fuzz/corpus. Exit codes: 0 nothing was found, 1 something was found, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from libs.proving.trial.world import Size, World
from tests.fuzz import aftermath
from tests.fuzz.campaign import Report, addresses_of, open_sender, run, spread
from tests.fuzz.case import keep, load_corpus

CASES = 100_000
FOUND = Path(__file__).parents[2] / "build" / "fuzz"
_SHOW_SECONDS = 5.0


class Line:
    """Progress on stderr, at most every few seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def show(self, done: int, wanted: int, seconds: float) -> None:
        if seconds - self._last < _SHOW_SECONDS and done < wanted:
            return
        self._last = seconds
        rate = done / seconds if seconds else 0.0
        left = (wanted - done) / rate if rate else 0.0
        print(f"fuzz: {done}/{wanted} cases, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr, flush=True)


async def _fuzz(cases: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="baton-fuzz-") as folder:
        world = World.embedded(Path(folder) / "world", size=Size(http=True))
        async with world.running():
            async with open_sender(addresses_of(world)) as sender:
                report = await run(sender, seed, spread(cases), load_corpus(), Line().show)
            for number, failure in enumerate(report.failures):
                FOUND.mkdir(parents=True, exist_ok=True)
                keep(failure.smallest, f"{seed}-{number}", failure.problem, FOUND)
            print(report)
            for answer, count in sorted(sender.sent.answers.items()):
                print(f"  {answer:40} {count}")
            await aftermath.check(world, sender.sent.names)
            print("processes, records, feed, lists and logs are right")
    return report


def main(arguments: list[str]) -> int:
    try:
        cases, seed = [*map(int, arguments), *(CASES, time.time_ns() % 2**31)[len(arguments) :]]
    except ValueError:
        print(__doc__, file=sys.stderr)
        return 2
    print(f"seed {seed}", file=sys.stderr)
    return 1 if asyncio.run(_fuzz(cases, seed)).failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
