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
    cost,
    debezium,
    doors,
    event_codes,
    first_start,
    handoff,
    hops,
    identity,
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
    workers,
)
from tests.bench.measure import Figure, Machine
from tests.bench.report import Result
from tests.bench.site import Site

REPORT = PROJECT_ROOT / "build" / "bench" / "report.json"
MANY_RECORDS = 100_000
QUICK_RECORDS = 4_000
BENCH_SECONDS = 240.0
"""Timeout of a bench. With more than MANY_RECORDS it grows in proportion."""

Measure = Callable[[Site], Awaitable[list[Figure]]]

BENCHES: dict[str, tuple[str, Measure]] = {
    "stores": ("writes of each store against the same statements on the bare database", stores.measure),
    "calls": ("calls through the router against direct calls to the store and against a bare proxy", calls.measure),
    "cost": ("CPU of a read at each server against bare handlers and a bare proxy", cost.measure),
    "workers": ("calls through a router with two workers, against one worker", workers.measure),
    "hops": ("a read by xDS, through a router and through Envoy, against the same read at the store", hops.measure),
    "doors": ("a read by REST, Connect and MCP against the same read by gRPC", doors.measure),
    "identity": ("a read with tokens of an issuer, and one over TLS, against the same plain read", identity.measure),
    "ack": ("writes acknowledged from the log, against the same writes acknowledged at commit", ack.measure),
    "event_codes": (
        "CPU time of publishing and applying an event with its code, against one without",
        event_codes.measure,
    ),
    "lag": ("time from a change at A to its row at B, at half of the maximum write rate", lag.measure),
    "locks": ("locks in Redis against redis-py's, and against a bare round trip", locks.measure),
    "handoff": ("handoff of one record to the other store and back", handoff.measure),
    "first_start": ("the first start on a file of the old program, and calls meanwhile", first_start.measure),
    "audit": ("audit of A's records, against a bare copy and check; growth of memory", audit.measure),
    "backfill": ("copy of all records of A to B, against a bare upsert; growth of memory", backfill.measure),
    "reconcile": ("comparison of two equal stores, against the bare statements; growth of memory", reconcile.measure),
    "replay": ("replay of a topic to B, against a plain consumer; growth of memory", replay.measure),
    "mover": ("move of all records to the other store and back", mover.measure),
    "recovery": ("recovery of B after the loss of its database, against a bare upsert", recovery.measure),
    "memory": ("memory of each process", memory.measure),
    "debezium": ("copy and lag against Debezium with its JDBC sink; gets it from Maven Central", debezium.measure),
    "steering": ("planning a call, comparing reads, setting a flag, and returning all records to A", steering.measure),
}
"""All benches. Those that disturb others most come last."""
BY_NAME_ONLY = frozenset({"debezium"})
"""Benches that need more than this project's own set-up."""
BENCHES_IN_ONE = {"debezium": 5}
"""Benches whose time limit is that of several."""


Keep = Callable[[list[Result]], None]
"""Called after each bench with all results so far, so that a run that ends early keeps them."""


async def run(names: Sequence[str], site: Site, progress: Console, keep: Keep) -> list[Result]:
    results: list[Result] = []
    for name in names:
        title, measure = BENCHES[name]
        progress.print(f"[dim]{name}: {title} ...[/dim]")
        machine = Machine()
        try:
            limit = BENCH_SECONDS * max(1.0, site.many / MANY_RECORDS) * BENCHES_IN_ONE.get(name, 1)
            async with asyncio.timeout(limit):
                figures = await measure(site)
        # A bench that fails does not end the others; the exit code reports it.
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
    parser.add_argument("--quick", action="store_true", help="fewer rounds: below two minutes")
    parser.add_argument("--only", action="append", choices=BENCHES, help="run this bench (may be given several times)")
    parser.add_argument(
        "--records", type=int, metavar="N", help="records of benches that need many; default 100 000, quick 4 000"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    wanted = options.only or BENCHES.keys() - BY_NAME_ONLY
    names = [name for name in BENCHES if name in wanted]
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
