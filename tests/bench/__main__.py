"""python -m tests.bench [--quick] [--only NAME] [-o table|json]"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from libs.proving.servers.errors import ServersError
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.stack import running_stack, server_directory
from tests.bench import (
    ack,
    audit,
    backfill,
    calls,
    doors,
    first_start,
    handoff,
    lag,
    locks,
    memory,
    mover,
    reconcile,
    recovery,
    replay,
    report,
    steering,
    stores,
)
from tests.bench.measure import Figure, Machine
from tests.bench.report import Result
from tests.bench.site import Site

REPORT = PROJECT_ROOT / "build" / "bench" / "report.json"
MANY_RECORDS = 100_000
QUICK_RECORDS = 4_000
BENCH_SECONDS = 240.0
"""A bench that takes longer has failed; with more than MANY_RECORDS it may take longer in proportion."""

Measure = Callable[[Site], Awaitable[list[Figure]]]

BENCHES: dict[str, tuple[str, Measure]] = {
    "stores": ("writes of each store against the same statements on the bare database", stores.measure),
    "calls": ("calls through the router against the store directly, and a bare proxy between", calls.measure),
    "doors": ("a read by REST, Connect and MCP against the same read by gRPC", doors.measure),
    "ack": ("writes answered when they are in the log, against the same answered when committed", ack.measure),
    "lag": ("from a change at A to its row at B, at half of the top write rate", lag.measure),
    "locks": ("locks in Redis against redis-py's, and against a bare round trip", locks.measure),
    "handoff": ("one record from store to store and back", handoff.measure),
    "first_start": (
        "the first start on a file of the old program, and calls while it is taken over",
        first_start.measure,
    ),
    "audit": ("A's records looked through, against one bare look; memory meanwhile", audit.measure),
    "backfill": ("every record of A copied to B, against a bare upsert; memory meanwhile", backfill.measure),
    "reconcile": ("two equal stores compared, against the bare statement at each; memory meanwhile", reconcile.measure),
    "replay": ("a topic given to B again, against a plain consumer; memory meanwhile", replay.measure),
    "mover": ("all records from store to store and back", mover.measure),
    "recovery": ("B brought back after the loss of its database, against a bare upsert", recovery.measure),
    "memory": ("memory of each process", memory.measure),
    "steering": ("planning a call, comparing reads, flipping a flag, and bringing all records home", steering.measure),
}
"""In this order: what disturbs most comes last."""


Keep = Callable[[list[Result]], None]
"""Is told all results that there are, after each bench: one that is ended early has measured the others."""


async def run(names: Sequence[str], site: Site, progress: Console, keep: Keep) -> list[Result]:
    results: list[Result] = []
    for name in names:
        title, measure = BENCHES[name]
        progress.print(f"[dim]{name}: {title} ...[/dim]")
        machine = Machine()
        try:
            async with asyncio.timeout(BENCH_SECONDS * max(1.0, site.many / MANY_RECORDS)):
                figures = await measure(site)
        # The outermost owner of a bench: the others are measured all the same, and the exit code tells.
        except Exception as error:  # noqa: BLE001
            progress.print(traceback.format_exc(), markup=False)
            results.append(Result(name, title, machine=machine.as_json(), error=f"{type(error).__name__}: {error}"))
        else:
            results.append(Result(name, title, figures, machine.as_json()))
        keep(results)
    return results


async def run_all(names: Sequence[str], site: Site, progress: Console, keep: Keep) -> list[Result]:
    async with site.exits:
        return await run(names, site, progress, keep)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure, each figure by its baseline.")
    parser.add_argument("--quick", action="store_true", help="fewer turns: below two minutes")
    parser.add_argument("--only", action="append", choices=BENCHES, help="this one (may be given several times)")
    parser.add_argument("--records", type=int, metavar="N", help="of a bench that needs many; 100 000, quick 4 000")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    names = [name for name in BENCHES if not options.only or name in options.only]
    many = options.records or (QUICK_RECORDS if options.quick else MANY_RECORDS)
    progress = Console(stderr=True)
    shown = Console(width=None if sys.stdout.isatty() else 130)

    def text_of(results: list[Result]) -> str:
        return report.as_json(results, quick=options.quick, cores=os.cpu_count() or 1)

    def keep(results: list[Result]) -> None:
        report.write(REPORT, text_of(results))
        if options.output == "table":
            report.show(shown, results[-1:])

    try:
        with running_stack() as stack, server_directory() as directory:
            site = Site(stack, Path(directory), options.quick, AsyncExitStack(), many)
            results = asyncio.run(run_all(names, site, progress, keep))
    except ServersError as error:
        progress.print(f"[red]{error}[/red]")
        return 1
    if options.output == "json":
        sys.stdout.write(text_of(results))
    else:
        progress.print(f"[dim]{REPORT.relative_to(PROJECT_ROOT)}[/dim]")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
