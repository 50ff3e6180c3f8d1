"""The status as one line of key=value, for logs and for programs that read lines."""

from __future__ import annotations

import json
import re

from libs.text import plain
from services.router.cli.views import View

_BARE = re.compile(r"[A-Za-z0-9_.:/%+,-]+")


def plain_line(view: View, place: str = "") -> str:
    """Keys stay the same from release to release; new ones come last. A value that is not known is `?`."""
    found: dict[str, object] = {
        "phase": view["phase"],
        "generation": view["generation"],
        "canary": f"{plain(view['canary_percent'])}%",
        "hold": view["hold"],
        "buckets_at_b": view["buckets_at_b"],
        "buckets": view["buckets"],
        "settled": view["settled"],
    }
    for name, store in view["stores"].items():
        key, measured = name.lower(), view["measured"].get(name, {})
        found |= {
            f"{key}.state": "serves" if store["serving"] else "not-serving" if store["reachable"] else "away",
            f"{key}.calls_per_second": measured.get("calls_per_second"),
            f"{key}.p99_ms": None if measured.get("p99_seconds") is None else 1000 * measured["p99_seconds"],
            f"{key}.faults": measured.get("recent_faults"),
            f"{key}.owned": store["owned_records"],
            f"{key}.outbox": store["outbox_entries"],
            f"{key}.lag_seconds": store["lag_seconds"],
            f"{key}.parked": store["parked"],
        }
    running = [job for job in view["jobs"] if job["state"] in ("QUEUED", "RUNNING")]
    if running:
        job = running[0]
        done = f"{100 * job['done'] / job['total']:.1f}%" if job["total"] else job["done"]
        found |= {"job": job["id"], "job.done": done, "job.rate": job["rate"], "job.eta_seconds": job["eta_seconds"]}
    found |= {"next": view["next"] or "none", "blocked": view["blocked"] or "no", "alerts": len(view["alerts"])}
    if view["alerts"]:
        found["alert"] = view["alerts"][0]
    if place:
        found["at"] = place
    return " ".join(f"{key}={_value(value)}" for key, value in found.items())


def _value(value: object) -> str:
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = plain(value) if isinstance(value, float) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
