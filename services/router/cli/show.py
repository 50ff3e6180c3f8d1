"""Output of views: tables and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from libs.text import plain, visible
from services.router.cli.lines import clients_lines, counts_line, job_line
from services.router.cli.show_security import certificates_line, open_line
from services.router.cli.views import View
from services.router.core.runbooks import BY_NAME

_PIPE_WIDTH = 160
_JOB_CHARACTERS = 120
"""Length of a job's line in the status."""

_COLOURS = {"PASS": "green", "WARN": "yellow", "INCONCLUSIVE": "yellow", "FAIL": "red"}


class SafeConsole(Console):
    """A console that escapes control characters in text from elsewhere."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def console() -> Console:
    return SafeConsole(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False)


def print_json(value: View) -> None:
    """Print one object on one line, with control characters escaped."""
    print(as_json(value), flush=True)


def as_json(value: object, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Outside strings JSON has no such character, so each escape lands in a string.
    return "".join(one if one == "\n" or visible(one) == one else json.dumps(one)[1:-1] for one in text)


def show(renderable: RenderableType) -> None:
    console().print(renderable)


def setting_line(view: View) -> str:
    canary = (
        f", canary {plain(view['canary_percent'])} %" if view["canary_percent"] or view["phase"] == "DUAL_WRITE" else ""
    )
    shares = ", ".join(f"{cohort['name']} {plain(cohort['percent'])} %" for cohort in view["cohorts"])
    cohorts = f", cohorts: {shares}" if shares else ""
    hold = ", held at A" if view["hold"] else ""
    same = " with itself" if view["shadow_same"] else ""
    shadow = f", shadow {plain(view['shadow_percent'])} %{same}" if view["shadow_percent"] else ""
    flags = f", flags set: {len(view['set_flags'])}" if view["set_flags"] else ""
    return f"{view['phase']}{canary}{cohorts}{shadow}{hold}{flags} (generation {view['generation']})"


def gates_table(gates: Sequence[View]) -> Table:
    table = table_of("gate", "verdict", "seen, wanted, to do")
    for gate in gates:
        lines = [gate["evidence"]]
        if wait := wait_line(gate):
            lines.append(wait)
        if gate["verdict"] != "PASS":
            lines += [f"wanted: {gate['threshold']}", f"to do: {gate['runbook']}"]
            lines += [f"see {gate['runbook_page']}"] if gate["runbook_page"] else []
        table.add_row(gate["name"], _coloured(gate["verdict"]), "\n".join(lines))
    return table


def findings_table(findings: Sequence[View]) -> Table:
    table = table_of("", "subject", "found", "to do")
    for finding in findings:
        table.add_row(_coloured(finding["level"]), finding["subject"], finding["text"], finding["remedy"])
    return table


def journal_table(entries: Sequence[View]) -> Table:
    table = table_of("generation", "time (UTC)", "actor", "change and reason")
    for entry in entries:
        what = [": ".join([entry["action"], "; ".join(entry["changes"])]) if entry["changes"] else entry["action"]]
        why = entry["reason"]
        if entry["overridden"]:
            gates = ", ".join(gate["name"] for gate in entry["gates"] if gate["verdict"] != "PASS")
            why = f"{why} [overrides {gates}]"
        what += [why] if why else []
        time = entry["time"].replace("T", " ").partition(".")[0]
        table.add_row(str(entry["generation"]), time, entry["actor"], "\n".join(what))
    return table


def status_screen(view: View) -> Group:
    """Lay out the status. It fits 80 columns."""
    head = Table.grid(padding=(0, 2))
    for name, value in _status_lines(view):
        head.add_row(Text(name, style="bold red" if name == LOOK else "bold"), value)
    return Group(head, Text(""), _stores_table(view))


LOOK = "look at this"
CONTROL_AWAY = "the control store is away: calls go on, nothing can be changed"
OWN_LINE = frozenset({"canary-auto", "rehearsal"})
"""Kinds of jobs that have a line of their own in the status."""


def _status_lines(view: View) -> list[tuple[str, str]]:
    at_b = "?" if view["buckets_at_b"] is None else view["buckets_at_b"]
    jobs = [job for job in view["jobs"] if job["kind"] not in OWN_LINE]
    lines = [
        ("phase", setting_line(view) + (" - control store away, last known" if view["setting_stale"] else "")),
        ("since", since_line(view)),
        *([(LOOK, _with_page(CONTROL_AWAY, BY_NAME["control-store-down"].path))] if view["setting_stale"] else []),
        *((LOOK, _with_page(alert, page)) for alert, page in zip(view["alerts"], view["alert_pages"], strict=True)),
        *open_line(view),
        *certificates_line(view),
        ("next step", f"{view['next']}: {view['blocked'] or 'open'}" if view["next"] else view["blocked"]),
        *(("enough when", wait_line(gate)) for gate in view["gates"] if wait_line(gate)),
        ("rollback", view["rollback_cost"]["note"]),
        ("leaving", leaving_line(view)),
        *(("old rows", line) for line in (old_rows_line(store) for store in view["stores"].values()) if line),
        ("buckets at B", f"{at_b} of {view['buckets']}, wanted {view['buckets_to_b']}{_settled(view)}"),
        ("handover", progress_line(view["handover"])),
        *((job["lane"], _cut(f"{job['id']}: {job_line(job)}", job)) for job in jobs),
        ("calls", f"{view['handoffs']} handoffs, {view['stale_reads']} stale reads, {view['unavailable']} unavailable"),
        ("writes", answered_line(view)),
        ("ledger", counts_line(view["ledger"])),
        ("faults of B", faults_line(view)),
    ]
    waiting = {name: store["waiting"] for name, store in view["stores"].items() if store["waiting"]}
    lines += [("waiting", f"{count} calls for {name}, which is out of reach") for name, count in waiting.items()]
    if view["canary_auto"]["steps"]:
        lines.append(("canary walk", walk_line(view["canary_auto"])))
    if view["rehearsing"] or view["last_rehearsal"]:
        lines.append(("rehearsal", view["rehearsing"] or rehearsal_line(view["last_rehearsal"])))
    if view["last_automatic"]:
        last = view["last_automatic"]
        lines.append(("rolled back", f"without a person at {last['time']}: {last['reason']}"))
    if shown := flags_line(view["flags"]):
        lines.append(("flags", shown))
    if view["limits"]:
        lines.append(("limits set", ", ".join(f"{name} {plain(value)}" for name, value in view["limits"].items())))
    if view["ping_pong"]:
        often = ", ".join(f"{entry['key']} ({entry['handoffs']})" for entry in view["ping_pong"])
        lines.append(("ping-pong", often))
    if old_clients := clients_lines(view["clients"]):
        lines.append(("old clients", old_clients))
    if len(view["routers"]) > 1:
        lines.append(("routers", ", ".join(map(_router, view["routers"]))))
    return lines


def _with_page(alert: str, page: str) -> str:
    return f"{alert}\nsee {page}" if page else alert


def leaving_line(view: View) -> str:
    """Report whether `simple_mcp leave` can still return the file to the old program."""
    at_a, at_b = view["stores"]["A"], view["stores"]["B"]
    owned = [at_b["owned_records"], at_b["owned_buckets"]]
    if at_a["records"] is None or None in owned:
        return "not known: a store is out of reach"
    away = at_a["records"] - at_a["owned_records"]
    if away > 0 or any(owned) or at_a["owned_buckets"] < view["buckets"]:
        return "simple_mcp leave is not possible while B owns records or buckets: baton rollback first"
    return "simple_mcp leave is possible until the first record or bucket moves to B"


def old_rows_line(store: View) -> str:
    """Report the store's progress in completing rows of the old program; "" if it has completed all."""
    left, records = store["unfilled_records"], store["records"]
    if not left:
        return ""
    share = 100 * (records - left) // records
    return f"{left} of {records} are left to complete ({share} % done); moves of buckets and comparisons wait"


def status_line(view: View) -> str:
    """Format the status as one line, for a log or a pipe."""
    at_b = "?" if view["buckets_at_b"] is None else view["buckets_at_b"]
    parts = [setting_line(view), f"{at_b} of {view['buckets']} buckets at B"]
    for name, store in view["stores"].items():
        parts.append(f"{name} {_state(store)}, {_rate(view, name)}, {_p99(view, name)}, {_faults(view, name)}")
    parts += [f"{LOOK}: {alert}" for alert in view["alerts"]]
    return " | ".join(parts)


def since_line(view: View) -> str:
    """Format the time, actor and reason of the last change of phase."""
    if view["phase_time"] is None:
        return "not known"
    seconds = view["phase_seconds"]
    ago = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else _hours(seconds)
    why = f": {view['phase_reason']}" if view["phase_reason"] else ""
    return f"{ago} ({view['phase_time'].replace('T', ' ').partition('.')[0]} UTC), by {view['phase_actor']}{why}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def wait_line(gate: View) -> str:
    """Estimate the time until a gate has enough samples; "" if it has, or needs none."""
    if gate["samples"] >= gate["least_samples"]:
        return ""
    seen = f"{gate['name']} has {gate['samples']} of {gate['least_samples']}"
    left = gate["seconds_left"]
    if left is None:
        return (
            f"{seen}, and at this rate never has enough: more traffic (baton probe), or a lower limit (baton gates set)"
        )
    return f"{seen}, about {left:.0f} s to go" if left < 120 else f"{seen}, about {left / 60:.0f} min to go"


def _cut(line: str, job: View) -> str:
    """Shorten a job's line. Its report has the rest."""
    if len(line) <= _JOB_CHARACTERS:
        return line
    return f"{line[:_JOB_CHARACTERS]}... (baton jobs show {job['id']})"


def _router(view: View) -> str:
    return f"{view['name']} at generation {view['generation']}, reported {view['age_seconds']:.0f} s ago"


def answered_line(view: View) -> str:
    """Report at which point writes are answered: after the owner's commit, or once in the log."""
    logged = view["logged_phases"]
    now = "when they are in the log" if view["phase"] in logged else "when their owner has committed them"
    return f"answered {now}" + (f" (in the log: {', '.join(logged)})" if logged else "")


def faults_line(view: View) -> str:
    b = view["measured"].get("B")
    if b is None:
        return "not known"
    share = f" ({plain(100 * b['recent_faults'] / b['recent_calls'])} %)" if b["recent_calls"] else ""
    return f"{b['recent_faults']} of {b['recent_calls']} calls in half a minute{share}; {view['automatic_rollback']}"


def flags_line(flags: Sequence[View]) -> str:
    """List the flags that are set or whose source has trouble; "" if there are none."""
    shown = []
    for flag in flags:
        if flag["trouble"]:
            shown.append(f"{flag['name']} {_value(flag)}, {flag['source']}, {_seen(flag)}: {flag['trouble']}")
        elif flag["value"] is not None:
            shown.append(f"{flag['name']} {_value(flag)}, {flag['source']}")
    return "\n".join(shown)


def flags_table(flags: Sequence[View]) -> Table:
    table = table_of("flag", "value", "source", "last good", "trouble")
    for flag in flags:
        table.add_row(flag["name"], _value(flag), flag["source"], _seen(flag), flag["trouble"])
    return table


def explanation_screen(view: View) -> Group:
    canary = f", canary are those below {view['canary_buckets']}" if view["canary_buckets"] else ""
    head = Table.grid(padding=(0, 2))
    lines = [
        ("target", f"{view['target']}, by {view['rule']}"),
        ("because", view["because"]),
        ("then", view["then"]),
        ("phase", setting_line(view["setting"]) + (" - last known" if view["setting_stale"] else "")),
    ]
    if view["bucket"] is not None:
        lines.append(("bucket", f"{view['bucket']} of 1024{canary}"))
    for row in view["rows"]:
        lines.append((f"store {row['store']}", _row(row)))
    for name, value in lines:
        head.add_row(Text(name, style="bold"), value)
    return Group(head, Text(""), flags_table(view["flags"]))


def _row(row: View) -> str:
    if row["trouble"]:
        return f"out of reach: {row['trouble']}"
    owner = f"owner {row['owner']}" if row["owner"] else "no owner: a handoff is under way"
    if not row["exists"]:
        return f"no row; its bucket has {owner}"
    return f"version {row['version']}{'' if row['live'] else ', deleted'}, {owner}"


def _value(flag: View) -> str:
    return {True: "true", False: "false", None: "unset"}[flag["value"]]


def _seen(flag: View) -> str:
    return "never" if flag["good_seconds"] is None else f"{flag['good_seconds']:.1f} s ago"


def progress_line(view: View) -> str:
    done = f"{view['done']} of {view['total']} records" if view["total"] else f"{view['done']} records"
    if view["running"]:
        left = f", about {view['eta_seconds']:.0f} s left" if view["eta_seconds"] else ""
        return f"{done}, {view['rate']:.0f}/s{left}; {view['note'] or 'runs'}"
    finished = f"finished {view['finished_time']}" if view["finished_time"] else ""
    note = "" if view["note"] == "finished" else view["note"]
    return "; ".join(part for part in (finished, done if view["done"] else "", note) if part) or "never ran"


def walk_line(view: View) -> str:
    if not view["steps"]:
        return "never walked"
    step = f"step {view['step']} of {view['steps']}"
    return f"{step}; {view['note']}" if view["running"] else f"ended at {step}; {view['note']}"


def rehearsal_line(view: View) -> str:
    return f"{'passed' if view['passed'] else 'failed'}: {view['note']} ({view['finished_time']})"


def _stores_table(view: View) -> Table:
    """Lay out the stores, one column each."""
    stores = view["stores"]
    table = table_of("", *(f"{name} {store['backend']}".strip() for name, store in stores.items()))
    rows: list[tuple[str, Callable[[str, View], str]]] = [
        ("state", lambda name, store: _state(store)),
        ("calls", lambda name, store: _rate(view, name)),
        ("P99", lambda name, store: _p99(view, name).removeprefix("P99 ")),
        ("faults", lambda name, store: _faults(view, name)),
        (
            "answered",
            lambda name, store: f"{store['reads']} reads, {store['writes']} writes, {store['failures']} failed",
        ),
        ("records", lambda name, store: f"{_count(store['records'])}, owns {_count(store['owned_records'])}"),
        ("buckets", lambda name, store: f"owns {_count(store['owned_buckets'])}"),
        ("outbox", lambda name, store: _count(store["outbox_entries"])),
        ("lag", lambda name, store: _lag(store)),
        ("parked", lambda name, store: _parked(store)),
    ]
    for title, cell in rows:
        table.add_row(Text(title, style="bold"), *(cell(name, store) for name, store in stores.items()))
    return table


def _state(store: View) -> str:
    state = "serves" if store["serving"] else "not serving" if store["reachable"] else "out of reach"
    trouble = store["note"] or store["feed_trouble"]
    return f"{state}: {trouble}" if trouble else state


def _parked(store: View) -> str:
    refused = f", {store['unauthenticated']} without a right code" if store["unauthenticated"] else ""
    return f"{_count(store['parked'])}{refused}"


def _lag(store: View) -> str:
    seconds = "?" if store["lag_seconds"] is None else f"{store['lag_seconds']:.1f} s"
    return f"{seconds}, {_count(store['lag_events'])} events"


def _rate(view: View, name: str) -> str:
    measured = view["measured"].get(name)
    if measured is None:
        return "?"
    direct = measured["direct_calls_per_second"]
    return f"{measured['calls_per_second']:.1f}/s" + (f", {direct:.1f}/s direct" if direct else "")


def _p99(view: View, name: str) -> str:
    seconds = view["measured"].get(name, {}).get("p99_seconds")
    return "P99 not known" if seconds is None else f"P99 {plain(1000 * seconds)} ms"


def _faults(view: View, name: str) -> str:
    measured = view["measured"].get(name)
    if measured is None:
        return "?"
    calls, faults = measured["recent_calls"], measured["recent_faults"]
    share = f" ({plain(100 * faults / calls)} %)" if faults else ""
    return f"{faults} faults of {calls} calls{share}"


def _count(number: int | None) -> str:
    return "?" if number is None else str(number)


def table_of(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _coloured(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def _settled(view: View) -> str:
    return ", settled" if view["settled"] else ", moving"
