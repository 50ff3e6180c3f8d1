"""Read-only commands: status, journal, doctor."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from libs.text import visible
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Common, command

if TYPE_CHECKING:
    from services.router.cli.client import Control

_WATCH_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    command(app, "status", Common)(status)
    command(app, "journal", Common)(journal)
    command(app, "doctor", Common)(doctor)


def status(
    options: Common,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every second until interrupted.")] = False,
    as_line: Annotated[bool, typer.Option("--plain", help="One line of key=value, for a log.")] = False,
) -> None:
    """Show phase, split, lag, jobs and the cost of a rollback.

    \b
    JSON keys: {Setting} setting_stale settled buckets buckets_to_b
      buckets_at_b handoffs stale_reads unavailable log_trouble
      stores.A stores.B: {StoreStatus}
      handover rehearsal: {Progress}
      jobs: the latest job of each lane, as in `baton jobs show`
      canary_auto: running step steps note finished_time
      rehearsing: its current step, or ""
      last_rehearsal: {Rehearsal}, or null
      rollback_cost: {RollbackCost}
      phase_time phase_seconds phase_actor phase_reason
      routers: list of {RouterStatus}
      percent_at_b (canary_percent is the target)
      next blocked gates: the next step, as in `phase plan`
      alerts: problems that need a person now
      alert_pages: the runbook of each, or ""
      automatic_rollback: its current assessment, in words
      last_automatic: {AutomaticRollback}, or null
      measured.A measured.B: {MeasuredCalls}
        operations: list of {OperationRate}
      bucket_runs: list of {BucketRun}
      buckets_age_seconds
      logged_phases: phases that answer a write once it is in the log
      ledger: {LedgerCounts}, of all routers
      ping_pong: list of {PingPong}
      clients: those that call A directly or with an old schema version,
        list of name at schema_version calls idle_seconds
      flags: list of {Flag}
      context: the name of the system, or ""
    null is "not known". With --watch, JSON is one object a line, with the key
    error while no router answers. A pipe gets one line a second.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        if watch:
            _watch(router, options, as_line=as_line)
            return
        view = views.status_view(router.call("GetStatus", pb.GetStatusRequest()))
    if options.json:
        show.print_json(view | {"context": options.system})
    elif as_line:
        print(_plain(view, options))
    else:
        if options.system:
            show.show(f"context {options.place}")
        show.show(show.status_screen(view))


def _plain(view: Any, options: Common) -> str:
    from services.router.cli.plain import plain_line

    return visible(plain_line(view, options.place), keep="")


def _watch(router: Control, options: Common, *, as_line: bool) -> None:
    """Show the status until interrupted: one screen at a terminal, one line each elsewhere.

    While no router answers, show the error and retry.
    """
    from rich.live import Live
    from rich.text import Text

    from services.router.cli import show, views

    if options.json:
        _follow(
            router,
            lambda status: show.print_json(views.status_view(status) | {"context": options.system}),
            lambda error: show.print_json({"error": {"message": str(error)}}),
        )
    elif as_line or not sys.stdout.isatty():
        one_line = (lambda view: _plain(view, options)) if as_line else show.status_line
        _follow(
            router,
            lambda status: _line(one_line(views.status_view(status))),
            lambda error: _line(str(error)),
        )
    else:
        with Live(console=show.console(), auto_refresh=False, screen=False) as live:
            _follow(
                router,
                lambda status: live.update(show.status_screen(views.status_view(status)), refresh=True),
                lambda error: live.update(Text(str(error)), refresh=True),
            )


def _follow(router: Control, show: Callable[[Any], None], fail: Callable[[CommandFailed], None]) -> None:
    while True:
        try:
            for status in router.watch(_WATCH_SECONDS):
                show(status)
        except CommandFailed as error:
            fail(error)
        time.sleep(_WATCH_SECONDS)


def _line(text: str) -> None:
    """Print the text with the time, unbuffered."""
    now = datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    print(f"{now}Z {visible(text, keep='')}", flush=True)


def journal(
    options: Common,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of entries.")] = 20,
) -> None:
    """Show the changes of the setting with actor, time and reason; newest first.

    \b
    JSON keys: entries: list of {JournalEntry} changes
      before after: {Setting}
      gates: list of {Gate}
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        answer = router.call("ListJournal", pb.ListJournalRequest(limit=limit))
    entries = [views.entry_view(entry) for entry in answer.entries]
    if options.json:
        show.print_json({"entries": entries})
    else:
        show.show(show.journal_table(entries))


def doctor(options: Common) -> None:
    """Check router, stores, event log, control store, clocks and tokens; print remedies.

    \b
    JSON keys: findings: list of level (PASS WARN FAIL) subject text remedy
    Exits with 1 if a check fails.
    """
    from services.router.cli import show
    from services.router.cli.checkup import examine

    findings = examine(options)
    if options.json:
        show.print_json({"findings": findings})
    else:
        show.show(show.findings_table(findings))
    failed = sum(finding["level"] == "FAIL" for finding in findings)
    if failed:
        raise CommandFailed(f"{failed} of {len(findings)} checks failed", Exit.FAILED)
