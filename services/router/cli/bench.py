"""`baton bench pool`: find the sufficient pool size for a PostgreSQL server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import DryRun, Shown, Yes, agree, command

if TYPE_CHECKING:
    from libs.proving.pools.curve import Point
    from libs.proving.pools.sweep import Plan, Server
    from services.router.cli.bench_report import PoolReport

MOST_CONNECTIONS = 500


def register(app: typer.Typer) -> None:
    bench = typer.Typer(help="Measure the system's environment.", no_args_is_help=True)
    command(bench, "pool", Measuring)(pool)
    app.add_typer(bench, name="bench")


@dataclass(frozen=True)
class Measuring(Shown):
    """Options of a measurement."""

    callers: Annotated[int, typer.Option(min=1, max=10_000, help="Callers that share the pool.")] = 64
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="Length of one round of one size.")] = 1.0
    turns: Annotated[int, typer.Option(min=1, max=20, help="Rounds of each size; the sizes alternate.")] = 3
    writes: Annotated[int, typer.Option(min=0, max=100, metavar="PERCENT", help="Share of calls that write.")] = 50
    dry_run: DryRun = False
    yes: Yes = False


def pool(
    options: Measuring,
    database: Annotated[
        str, typer.Option(envvar="BATON_BENCH_DATABASE", metavar="DSN", help="postgresql://user@host:port/name.")
    ],
    sizes: Annotated[
        str, typer.Option(metavar="N,N,...", help="Pool sizes; by default 1 to 64, limited by free connections.")
    ] = "",
    processes: Annotated[
        int, typer.Option(min=1, max=1000, help="Processes of the service, to sum their connections.")
    ] = 1,
    cores: Annotated[
        int, typer.Option(min=0, max=400, help="Cores of the database's machine; 0: detect, if it is this one.")
    ] = 0,
) -> None:
    """Measure throughput and p99 by pool size on your PostgreSQL; name the knee.

    \b
    It creates the schema baton_bench and drops it at the end. It puts full
    load on the server: other users of it see slower answers meanwhile.
    JSON keys: server database allowed in_use rule knee best note dry_run effects
      points: list of size calls_per_second p50_ms p99_ms busy
      connections: per_process processes allowed fits
    """
    import asyncio

    from libs.errors import BatonError
    from libs.proving.pools.sweep import Plan, look
    from libs.store.connections import default_request_pool, local_cores

    try:
        server = asyncio.run(look(database))
        known = cores or (local_cores() if server.here else 0)
        rule = default_request_pool(known) if known else None
        plan = Plan(_sizes(sizes, server, rule), options.callers, options.seconds, options.turns, options.writes)
        agreed = agree(options, _effects(server, plan))
        points = _measured(database, plan) if agreed else []
    except BatonError as error:
        raise CommandFailed(error.message) from None
    if not points and options.json:
        from services.router.cli import show

        show.print_json({**agreed.view, "sizes": list(plan.sizes), "rule": rule})
    elif points:
        _show(options, server, points, rule, processes)


def parse_sizes(text: str) -> tuple[int, ...]:
    """Raises CommandFailed (usage)."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 1 <= found[0] <= found[-1] <= MOST_CONNECTIONS:
        raise CommandFailed(
            f"--sizes: {text!r} is not valid: numbers from 1 to {MOST_CONNECTIONS} by commas, such as 2,4,8", Exit.USAGE
        )
    return tuple(found)


def _sizes(text: str, server: Server, rule: int | None) -> tuple[int, ...]:
    """Return the given sizes, or the default ones. Raises CommandFailed if too few connections are free."""
    from libs.proving.pools.curve import sizes_up_to

    free = f"{server.free} connections are free for a bench: {server.in_use} of {server.allowed} are in use"
    if not text:
        sizes = sizes_up_to(server.free, rule)
        if not sizes:
            raise CommandFailed(free)
        return sizes
    sizes = parse_sizes(text)
    if sizes[-1] > server.free:
        raise CommandFailed(f"--sizes: {sizes[-1]} is too many: {free}", Exit.USAGE)
    return sizes


def _effects(server: Server, plan: Plan) -> list[str]:
    from libs.proving.pools.sweep import SCHEMA

    return [
        f"schema {SCHEMA} is created in {server.database} on PostgreSQL {server.version}, and dropped at the end",
        f"{plan.callers} callers, {plan.write_percent} % writes, with {', '.join(map(str, plan.sizes))} connections",
        f"full load on that server for about {plan.seconds:.0f} s",
    ]


def _measured(database: str, plan: Plan) -> list[Point]:
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from libs.proving.pools.sweep import sweep

    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return asyncio.run(sweep(database, plan, progress))


def _show(options: Measuring, server: Server, points: list[Point], rule: int | None, processes: int) -> None:
    from services.router.cli import show
    from services.router.cli.bench_report import PoolReport

    report: PoolReport = PoolReport(server, points, rule, processes)
    if options.json:
        show.print_json({**report.as_dict(), "dry_run": False})
    else:
        show.show(report.screen())
