"""`baton shadow`: set the share of reads to compare with the other store, and show the differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from libs.text import plain
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_percent
from services.router.cli.options import Changing, Common, command
from services.router.core import phase
from services.router.core.effects import of_shadow

if TYPE_CHECKING:
    from rich.console import RenderableType

    from libs.pb.baton.control.v1 import control_pb2 as pb

View = dict[str, Any]

OFF = "off"
COUNTS = ("compared", "match", "allowed", "stale", "mismatch", "missing", "error", "dropped")


def register(app: typer.Typer) -> None:
    shadow = typer.Typer(help="Compare reads with the other store, in the background.", no_args_is_help=True)
    # Without it, -5 is reported as an unknown option instead of a wrong percentage.
    command(shadow, "set", Changing, context_settings={"ignore_unknown_options": True})(set_shadow)
    command(shadow, "show", Common)(show)
    command(shadow, "differences", Common)(differences)
    app.add_typer(shadow, name="shadow")


def parse_share(text: str) -> int:
    """Return the share in thousandths; 0 for "off". Raises CommandFailed (usage)."""
    if text.strip().lower() == OFF:
        return 0
    try:
        return parse_percent(text)
    except CommandFailed as error:
        raise CommandFailed(f"{error}, or {OFF}", Exit.USAGE) from None


def set_shadow(
    options: Changing,
    percent: Annotated[str, typer.Argument(metavar="PERCENT|off", help="0 to 100, in steps of 0.1.")],
    same: Annotated[
        bool, typer.Option("--same", help="Compare with the answering store itself, to measure the noise.")
    ] = False,
) -> None:
    """Set the share of reads to compare. Resets the counts.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    permille = parse_share(percent)

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.setting_change import Change, plan_of

    with control(options) as router:
        planned = plan_of(router)
        request = pb.SetShadowRequest(
            actor=options.who,
            reason=options.reason,
            permille=permille,
            same=same,
            generation=planned.setting.generation,
        )
        effects = of_shadow(planned.setting.shadow_permille, permille, same=same)
        Change(lambda setting: phase.set_shadow(setting, permille, same=same), "SetShadow", request, effects).run(
            options, router, planned
        )


def show(
    options: Common,
    limit: Annotated[int, typer.Option(min=0, max=500, help="Number of differences, newest first.")] = 20,
) -> None:
    """Show this router's comparisons since the share was set.

    \b
    JSON keys: phase generation shadow_percent shadow_same
      compared match allowed stale mismatch missing error dropped
      skipped queued waiting noise_different noise_compared
      operations: by name: {ShadowTally}
      differences: list of {ShadowDifference}
        one other: {ShadowDifference.Side}
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show as screen
    from services.router.cli.client import control

    with control(options) as router:
        view = shadow_view(router.call("GetShadow", pb.GetShadowRequest()), limit)
    if options.json:
        screen.print_json(view)
    else:
        screen.show(_screen(view))


def differences(
    options: Common,
    example: Annotated[str, typer.Argument(metavar="[ID]", help="Show this one, with request and answers.")] = "",
) -> None:
    """Show the latest example of each kind of difference, of all routers; with an
    ID the request and both answers, without secrets.

    \b
    JSON keys: examples: list of {DifferenceExample}
      difference: {ShadowDifference}
    With an ID: the keys of one example.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show as screen
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    with control(options) as router:
        if example:
            view = view_of(router.call("GetDifference", pb.GetDifferenceRequest(id=example)))["example"]
        else:
            view = view_of(router.call("ListDifferences", pb.ListDifferencesRequest()))
    if options.json:
        screen.print_json(view)
    else:
        screen.show(_example_screen(view) if example else _examples_table(view["examples"]))


def _examples_table(examples: list[View]) -> RenderableType:
    from services.router.cli.show import table_of

    if not examples:
        return "no differences"
    found = table_of("id", "time (UTC)", "operation", "record", "kind", "fields", "router")
    for one in examples:
        seen = one["difference"]
        found.add_row(
            one["id"],
            _time(seen),
            seen["operation"],
            seen["key"],
            seen["kind"],
            ", ".join(seen["fields"]),
            one["router"],
        )
    return found


def _example_screen(view: View) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.show import table_of

    seen = view["difference"]
    one, other = (_side(seen[side]) for side in ("one", "other"))
    head = f"{seen['kind']} of {seen['key']}, {seen['operation']} at {_time(seen)}, by {view['router']}"
    values = table_of("field", one, other)
    for value in view["values"]:
        values.add_row(value["path"], Text(value["one"]), Text(value["other"]))
    whole = [f"{name}: {view[field]}" for name, field in (("request", "request"), (one, "one"), (other, "other"))]
    return Group(Text(head), Text(""), values, Text(""), *map(Text, whole))


def _time(difference: View) -> str:
    return str(difference["time"].replace("T", " ").removesuffix("+00:00"))


def shadow_view(answer: pb.GetShadowResponse, limit: int) -> View:
    from services.router.cli.views import view_of

    view = view_of(answer)
    setting, total = view.pop("setting"), view.pop("total")
    return {
        **{name: setting[name] for name in ("phase", "generation", "shadow_percent", "shadow_same")},
        **view,
        **{name: total[name] for name in COUNTS},
        "operations": {tally["operation"]: tally for tally in view["operations"]},
        "differences": view["differences"][:limit],
    }


def _screen(view: View) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from services.router.cli.show import table_of

    share = f"{plain(view['shadow_percent'])} % of the reads" if view["shadow_percent"] else OFF
    against = ", each compared with the answering store itself: noise only" if view["shadow_same"] else ""
    head = f"{view['phase']}, shadow {share}{against}; {view['waiting']} wait for a second comparison"
    if view["skipped"]:
        head += f", {view['skipped']} were skipped while the other store was out of reach"
    if view["noise_compared"]:
        head += f"; noise floor: {view['noise_different']} of {view['noise_compared']} reads differed without a cause"
    counts = table_of("operation", *COUNTS)
    for name, tally in {**view["operations"], "all": view}.items():
        counts.add_row(name, *(str(tally[count]) for count in COUNTS))
    parts: list[RenderableType] = [Text(head), Text(""), counts]
    if view["differences"]:
        found = table_of("time (UTC)", "operation", "record", "kind", "fields", "answered", "compared with")
        for difference in view["differences"]:
            found.add_row(
                _time(difference),
                difference["operation"],
                difference["key"],
                difference["kind"],
                ", ".join(difference["fields"]),
                *(_side(difference[side]) for side in ("one", "other")),
            )
        parts += [Text(""), found]
    return Group(*parts)


def _side(view: View) -> str:
    return " ".join(part for part in (view["store"], view["version"], view["content"]) if part)
