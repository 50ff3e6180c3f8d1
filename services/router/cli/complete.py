"""Completion of arguments with names from the running system.

A shell waits for it, so it takes at most a second, and an error is no completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import typer

SECONDS = 1.0

Completion = Callable[[typer.Context, str], list[str]]


def _completion(names: Callable[[typer.Context], Iterable[str]]) -> Completion:
    def complete(context: typer.Context, incomplete: str) -> list[str]:
        from libs.errors import BatonError
        from services.router.cli.failure import CommandFailed

        try:
            return [name for name in names(context) if name.startswith(incomplete)]
        except (BatonError, CommandFailed, LookupError, OSError, ValueError):
            return []

    return complete


def _ask(context: typer.Context, method: str, request: Any) -> Any:
    """Call the router that the line so far names."""
    from services.router.cli.client import control
    from services.router.cli.contexts import fill_in
    from services.router.cli.options import Common, with_globals

    defaults = {field.name: field.default for field in fields(Common)}
    values = {name: context.params.get(name, default) for name, default in defaults.items()}
    options = Common(**fill_in(context, with_globals(context, values)))
    with control(options) as router:
        return router.call(method, request, SECONDS)


def _jobs(context: typer.Context) -> list[str]:
    from libs.pb.baton.control.v1 import control_pb2 as pb

    return [job.id for job in _ask(context, "ListJobs", pb.ListJobsRequest()).jobs]


def _calls(context: typer.Context) -> list[str]:
    from libs.pb.baton.control.v1 import approvals_pb2 as pb

    return [call.id for call in _ask(context, "ListPendingCalls", pb.ListPendingCallsRequest()).calls]


def _flags(context: typer.Context) -> list[str]:
    from libs.pb.baton.control.v1 import control_pb2 as pb

    return [flag.name for flag in _ask(context, "ListFlags", pb.ListFlagsRequest()).flags]


def _operations(context: typer.Context) -> list[str]:
    # The first flag is the global one. Each other name has its operation after the prefix.
    return [name.rpartition(".")[2].partition("_")[0] for name in _flags(context)[1:]]


def _limits(context: typer.Context) -> list[str]:
    from libs.pb.baton.control.v1 import control_pb2 as pb

    return [limit.name for limit in _ask(context, "ListLimits", pb.ListLimitsRequest()).limits]


def _phases(context: typer.Context, *, earlier: bool) -> list[str]:
    """The next phase, or the earlier ones, the nearest first."""
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.core.phase import Phase
    from services.router.core.setting_message import phase_name

    plan = _ask(context, "PlanPhase", pb.PlanPhaseRequest())
    names = [phase.value for phase in Phase]
    now = names.index(phase_name(plan.setting.phase).value)
    return names[:now][::-1] if earlier else names[now + 1 : now + 2]


jobs = _completion(_jobs)
calls = _completion(_calls)
flags = _completion(_flags)
operations = _completion(_operations)
limits = _completion(_limits)
next_phase = _completion(lambda context: _phases(context, earlier=False))
earlier_phases = _completion(lambda context: _phases(context, earlier=True))
