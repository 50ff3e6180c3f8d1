"""A change of the setting by a command: checked against the setting that the router has, announced, and made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from services.router.cli.failure import CommandFailed
from services.router.cli.options import Changing, Moving, agree
from services.router.core.effects import aside
from services.router.core.phase import IllegalMove, Setting

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import Control
    from services.router.cli.views import View

_POLL_SECONDS = 0.5


class Change:
    """A change of the setting: the move, the call that makes it, and its effects in words."""

    def __init__(self, move: Callable[[Setting], Setting], method: str, request: Any, effects: list[str]) -> None:
        self._move = move
        self._method = method
        self._request = request
        self._effects = effects

    def run(
        self,
        options: Changing,
        router: Control,
        planned: pb.PlanPhaseResponse,
        extra: Callable[[], View] = dict,
    ) -> None:
        """Check the move against the router's setting, announce the effects, and make the call.

        Raises CommandFailed.
        """
        from services.router.cli import show, views
        from services.router.core.setting_message import setting_from_pb

        before = setting_from_pb(planned.setting)
        try:
            after = self._move(before)
        except IllegalMove as error:
            raise CommandFailed(error.message) from None
        agreed = agree(options, [*self._effects, *aside(before, after)])
        if agreed:
            after = setting_from_pb(router.call(self._method, self._request).setting)
            if isinstance(options, Moving) and options.wait:
                wait_until_settled(router, options)
        view = {
            **views.setting_view(after),
            "before": views.setting_view(before),
            **agreed.view,
            **extra(),
        }
        if options.json:
            show.print_json(view)
        else:
            show.show(("now " if agreed else "would be ") + show.setting_line(view))


def wait_until_settled(router: Control, options: Moving) -> None:
    """Show the moves until every bucket is where the setting wants it. Raises CommandFailed at --timeout."""
    from libs.pb.baton.control.v1 import control_pb2 as pb

    shown, patience = "", options.patience("the move of the records")
    while True:
        status = router.call("GetStatus", pb.GetStatusRequest())
        if status.settled:
            return
        at_b = status.buckets_at_b if status.HasField("buckets_at_b") else "?"
        line = f"{at_b} of {status.buckets} buckets at B, {status.buckets_to_b} wanted; {status.handoffs} handoffs"
        if line != shown and not options.json:
            typer.echo(line, err=True)
            shown = line
        patience.pause(_POLL_SECONDS)


def plan_of(router: Control) -> pb.PlanPhaseResponse:
    from libs.pb.baton.control.v1 import control_pb2 as pb

    answer: pb.PlanPhaseResponse = router.call("PlanPhase", pb.PlanPhaseRequest())
    return answer
