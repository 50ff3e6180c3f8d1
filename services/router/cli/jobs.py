"""`baton jobs` and `baton backfill`. Commands that start a job use `run_job`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli import complete
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Changing, Common, Starting, agree, command, without_command
from services.router.core.effects import JOB_EFFECTS, of_backfill, of_tuning

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2 import StartJobRequest
    from services.router.cli.client import Control
    from services.router.cli.views import View

_POLL_SECONDS = 0.3
MAX_RATE = 1_000_000

JobId = Annotated[
    str, typer.Argument(metavar="ID", help="An id from `baton jobs`: backfill-7.", autocompletion=complete.jobs)
]
RATE_HELP = "At most N units per second; 0: as fast as live traffic allows."


def register(app: typer.Typer) -> None:
    command(app, "backfill", Starting)(backfill)
    jobs = typer.Typer(help="Long-running work: list, pause, resume, cancel or tune it.")
    without_command(jobs, Common)(list_jobs)
    command(jobs, "show", Common)(show_job)
    command(jobs, "resume", Starting)(resume)
    for name, function in (("pause", pause), ("cancel", cancel), ("tune", tune)):
        command(jobs, name, Changing)(function)
    app.add_typer(jobs, name="jobs")


@dataclass(frozen=True)
class NewJob:
    """The kind, arguments and rate of a job to start."""

    kind: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.0

    def request(self, options: Changing) -> StartJobRequest:
        from libs.pb.baton.control.v1 import control_pb2 as pb

        return pb.StartJobRequest(
            actor=options.who, kind=self.kind, arguments=self.arguments, rate=self.rate, reason=options.reason
        )


def run_job(options: Starting, new: NewJob, effects: list[str], *, wait: bool) -> View | None:
    """Announce the effects, start the job and show it; with `wait`, show progress until it has ended.

    Returns the job, or None after a dry run. Raises CommandFailed, also if the job did not finish.
    """
    from services.router.cli import lines, show, views
    from services.router.cli.client import control

    with control(options) as router:
        view: View | None = None
        if agreed := agree(options, effects):
            view = views.job_view(router.call("StartJob", new.request(options)).job)
            if wait:
                view = follow(router, options, view["id"])
    if options.json:
        show.print_json({**(view or {}), **agreed.view})
    elif view is not None:
        show.show(f"{view['id']}: {lines.job_line(view)}")
    return view


def follow(router: Control, options: Starting, job_id: str) -> View:
    """Show a job until it has finished. Raises CommandFailed if it is paused, cancelled or failed."""
    from rich.console import Console

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import lines, show_jobs, views

    bar = show_jobs.JobBar(Console(stderr=True)) if sys.stderr.isatty() and not options.json else None
    shown, patience = "", options.patience(job_id)
    try:
        while True:
            view = views.job_view(router.call("GetJob", pb.GetJobRequest(id=job_id)).job)
            if bar is not None:
                bar.show(view)
            if view["state"] == "FINISHED":
                return view
            if view["state"] not in ("QUEUED", "RUNNING"):
                raise CommandFailed(f"{job_id} is not finished: {view['state']}, {view['note']}")
            line = lines.job_line(view)
            if bar is None and line != shown and not options.json:
                typer.echo(line, err=True)
                shown = line
            patience.pause(_POLL_SECONDS)
    finally:
        if bar is not None:
            bar.close()


def backfill(
    options: Starting,
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="The target: B, or A to copy from B to A.")] = "B",
    rate: Annotated[str, typer.Option(metavar="N", help=RATE_HELP)] = "0",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has finished, and show progress.")] = False,
) -> None:
    """Copy every record of A to B under live traffic (--to A: from B to A).
    Safe to repeat. It is a job: `baton jobs` pauses, resumes, tunes it.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    With --wait, the last line is the result.
    """
    if to not in ("A", "B"):
        raise CommandFailed(f"--to: {to!r} is not valid: A or B", Exit.USAGE)
    per_second = parse_rate(rate)
    run_job(options, NewJob("backfill", {"to": to}, per_second), of_backfill(to, per_second), wait=wait)


def list_jobs(options: Common) -> None:
    """List the jobs, newest first.

    \b
    JSON keys: jobs: list of the keys of `baton jobs show`, without report
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, show_jobs, views
    from services.router.cli.client import control

    with control(options) as router:
        jobs = [views.job_view(job) for job in router.call("ListJobs", pb.ListJobsRequest()).jobs]
    if options.json:
        show.print_json({"jobs": jobs})
    else:
        show.show(show_jobs.jobs_table(jobs) if jobs else "there are no jobs")


def show_job(options: Common, job: JobId) -> None:
    """Show one job with its report.

    \b
    JSON keys: {Job}
    waits: why it is paused or runs below its rate.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, show_jobs, views
    from services.router.cli.client import control

    with control(options) as router:
        view = views.job_view(router.call("GetJob", pb.GetJobRequest(id=job)).job)
    if options.json:
        show.print_json(view)
    else:
        show.show(show_jobs.job_screen(view))


def pause(options: Changing, job: JobId) -> None:
    """Pause a job until it is resumed.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    _change(options, job, "PAUSE", JOB_EFFECTS["PAUSE"])


def resume(
    options: Starting,
    job: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has finished, and show progress.")] = False,
) -> None:
    """Resume a job that is paused or has failed.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    _change(options, job, "RESUME", JOB_EFFECTS["RESUME"], wait=wait)


def cancel(options: Changing, job: JobId) -> None:
    """End a job for good. Its finished work is not undone.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    _change(options, job, "CANCEL", JOB_EFFECTS["CANCEL"])


def tune(
    options: Changing,
    job: JobId,
    setting: Annotated[str, typer.Argument(metavar="rate=N", help=RATE_HELP)],
) -> None:
    """Set a job's rate while it runs.

    \b
    JSON keys: those of `baton jobs show`, dry_run effects
    """
    name, equals, value = setting.partition("=")
    if name != "rate" or not equals:
        raise CommandFailed(f"{setting!r} is not valid: rate=N", Exit.USAGE)
    rate = parse_rate(value)
    _change(options, job, "TUNE", of_tuning(rate), rate)


def _change(options: Changing, job_id: str, action: str, effect: str, rate: float = 0.0, *, wait: bool = False) -> None:
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import lines, show, views
    from services.router.cli.client import control

    with control(options) as router:
        job = router.call("GetJob", pb.GetJobRequest(id=job_id)).job
        agreed = agree(options, [f"{job.id} {effect}: {lines.job_line(views.job_view(job))}"])
        if agreed:
            number = pb.ChangeJobRequest.Action.Value(f"ACTION_{action}")
            request = pb.ChangeJobRequest(actor=options.who, id=job_id, action=number, rate=rate, reason=options.reason)
            job = router.call("ChangeJob", request).job
        view = views.job_view(job)
        if agreed and wait and isinstance(options, Starting):
            view = follow(router, options, job_id)
    if options.json:
        show.print_json({**view, **agreed.view})
    else:
        show.show(f"{view['id']}: {lines.job_line(view)}")


def parse_rate(text: str) -> float:
    """Return units per second, or 0. Raises CommandFailed (usage)."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if rate != 0 and not 1 <= rate <= MAX_RATE:
        raise CommandFailed(
            f"rate: {text!r} is not valid: 1 to {MAX_RATE} per second, or 0 for as fast as live traffic allows",
            Exit.USAGE,
        )
    return rate
