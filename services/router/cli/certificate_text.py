"""The certificate of a migration in words, for the terminal and for the page."""

from __future__ import annotations

from typing import Any

View = dict[str, Any]
COMPLETE, NOT_COMPLETE = "COMPLETE", "NOT COMPLETE"


def title(found: View) -> str:
    return f"Certificate of the migration of {found['service']}: {COMPLETE if found['complete'] else NOT_COMPLETE}"


def sections(found: View) -> list[tuple[str, list[str]]]:
    """The certificate in words: headings, and lines below each."""
    clients, history = found["clients"], found["history"]
    return [
        ("Open", [f"{one['name']} {one['verdict']}: {one['text']}; {one['remedy']}" for one in found["open"]]),
        ("Phases", _entries(history["phases"], lambda one: f"{one['phase']}, {one['action']}")),
        (
            "Gates",
            [f"{one['name']} {one['verdict']}: {one['evidence']} ({one['threshold']})" for one in found["gates"]],
        ),
        (
            "Overrides",
            _entries(
                history["overrides"],
                lambda one: f"{one['phase']}, over {', '.join(gate['name'] for gate in one['gates'])}",
            ),
        ),
        ("Rollbacks", _entries(history["rollbacks"], lambda one: f"{one['action']} to {one['phase']}")),
        (
            "Interventions",
            _entries(history["interventions"], lambda one: "; ".join(filter(None, [one["action"], one["changes"]]))),
        ),
        ("Stores", _stores(found["stores"], found["compared"])),
        ("Ledger", _ledger(found["ledger"])),
        (
            "Jobs",
            [f"{one['ended']} {one['id']} {one['state']} by {one['actor']}: {one['note']}" for one in found["jobs"]],
        ),
        ("Old clients", _clients(clients)),
        (
            "Left over",
            [f"parked events: {_known(found['parked'])}", f"open conflicts: {_known(found['conflicts'])}"],
        ),
    ]


def lines(view: View) -> list[str]:
    found = view["certificate"]
    shown = [title(found), f"made {found['made']} by router {found['router']}, generation {found['generation']}"]
    for heading, rows in sections(found):
        shown += ["", heading, *(f"  {row}" for row in rows or ["none"])]
    signed = f"signed with key {view['key']}" if view["code"] else "not signed: this router has no event keys"
    return [*shown, "", f"SHA-256 {view['digest']}", signed]


def _entries(kept: View, shown: Any) -> list[str]:
    rows = [
        f"{one['time']} {shown(one)}, by {one['actor']}" + (f": {one['reason']}" if one["reason"] else "")
        for one in kept["newest"]
    ]
    left = kept["total"] - len(rows)
    return [f"{left} earlier ones are in the journal", *rows] if left else rows


def _ledger(ledger: View | None) -> list[str]:
    if ledger is None:
        return ["not known"]
    return [
        f"{ledger['sampled']} acknowledged writes sampled ({ledger['sampled_permille']} of 1000),"
        f" {ledger['checked']} checked at their owner, {ledger['superseded']} superseded before,"
        f" {ledger['dropped']} not checked, {ledger['waiting']} waiting",
        f"lost: {ledger['lost']}",
        f"done twice: {ledger['doubled']}",
    ]


def _stores(deep: View | None, compared: View | None) -> list[str]:
    rows = ["not compared from their rows: baton reconcile --deep"]
    if deep is not None:
        rows = [
            f"compared from their rows {deep['compared']}: {deep['records']} records, {deep['different']} differed,"
            f" {deep['repaired']} repaired, {deep['left']} left",
            *(f"digest of {store}: {digest}" for store, digest in sorted(deep["digests"].items())),
        ]
        if deep["changing"]:
            rows.append(f"{deep['changing']} buckets changed all the time, so the digests are of different moments")
    if compared is not None:
        rows.append(
            f"last scheduled comparison {compared['ended']}: {compared['records']} records,"
            f" {compared['different']} differed, {compared['left']} left"
        )
    return rows


def _clients(clients: View) -> list[str]:
    watched = clients["watched_seconds"]
    seen = "direct calls were not observed" if watched is None else f"direct calls observed for {watched} s"
    rows = [f"window without a direct call: {clients['window_seconds']} s; {seen}"]
    return rows + [
        f"{one['name']}, at {one['at']}, schema version {one['schema_version']}: last call {one['last_call']}"
        for one in clients["old"]
    ]


def _known(number: int | None) -> str:
    return "unknown" if number is None else str(number)
