"""Tables and progress bars of jobs."""

from __future__ import annotations

from rich.console import Console, Group
from rich.json import JSON
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from services.router.cli.lines import job_line
from services.router.cli.views import View


def jobs_table(views: list[View]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in (
        "id",
        "state",
        "done",
        "total",
        "rate",
        "left",
        "asked by",
        "since",
        "current step, reason for waiting",
    ):
        table.add_column(name, overflow="fold")
    for view in views:
        left = "" if view["eta_seconds"] is None or view["end_time"] else f"{view['eta_seconds']:.0f} s"
        step = "; ".join(text for text in (view["waits"], view["note"]) if text)
        rate = f"{view['rate']:.0f}/s" if view["rate"] else ""
        total = "" if view["total"] is None else str(view["total"])
        table.add_row(
            view["id"], view["state"], str(view["done"]), total, rate, left, view["actor"], view["create_time"], step
        )
    return table


def job_screen(view: View) -> Group:
    head = Table.grid(padding=(0, 2))
    for name, value in view.items():
        if name != "report" and value not in (None, "", {}):
            shown = ", ".join(f"{key}={text}" for key, text in value.items()) if isinstance(value, dict) else str(value)
            head.add_row(Text(name, style="bold"), shown)
    return Group(head) if view["report"] is None else Group(head, Text(""), JSON.from_data(view["report"]))


class JobBar:
    """A progress bar for a job, at a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), console=console
        )
        self._task = self._progress.add_task("", total=None, line="")
        self._progress.start()

    def show(self, view: View) -> None:
        self._progress.update(
            self._task, description=view["id"], total=view["total"], completed=view["done"], line=job_line(view)
        )

    def close(self) -> None:
        self._progress.stop()
