"""Answers of the control API as plain values (views), the source of JSON output and of tables.

`view_of` makes a view: it has the fields of its message, under their names in the .proto file. A few messages have a
function below that rearranges the view.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.ownership.wire import STORES
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.core.cohorts import Cohort
from services.router.core.phase import Setting
from services.router.core.runbooks import of_line
from services.router.core.setting_changes import changes
from services.router.core.setting_message import setting_from_pb

View = dict[str, Any]

_DECIMALS = 6


def view_of(message: Message) -> View:
    """Return the message's fields by name. An absent field or an unspecified enum is None.

    Enum values have no prefix, times are ISO 8601 in UTC, bytes are hexadecimal, and thousandths become percent.
    """
    found = {}
    for field in message.DESCRIPTOR.fields:
        value = _field(message, field)
        if "permille" in field.name:
            found[field.name.replace("permille", "percent")] = None if value is None else value / 10
        else:
            found[field.name] = value
    return found


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_single(one, field) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _single(value, field)


def _single(value: Any, field: Any) -> Any:
    if isinstance(value, Message):
        return _SPECIAL.get(value.DESCRIPTOR.full_name, view_of)(value)
    if field.enum_type is not None:
        return _enum_name(value, field.enum_type)
    if isinstance(value, bytes):
        return value.hex()
    return round(value, _DECIMALS) if isinstance(value, float) else value


def _enum_name(number: int, enum: Any) -> str | None:
    if enum is record_pb2.Store.DESCRIPTOR:
        return store_name(number)
    value = enum.values_by_number.get(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix) if value is not None and number else None


def time_of(message: Timestamp) -> str:
    return datetime.fromtimestamp(message.ToNanoseconds() / 1e9, UTC).isoformat(timespec="milliseconds")


def seconds_since(message: Timestamp) -> float:
    """Return the age by this machine's clock."""
    return round(max(0.0, time.time() - message.ToNanoseconds() / 1e9), 1)


def version_text(version: record_pb2.Version) -> str:
    return f"{version.term}-{version.revision}"


def store_name(number: int) -> str | None:
    """Return A or B, or None if the number is unspecified."""
    store = STORES.get(number)  # type: ignore[call-overload]
    return store.value if store else None


def setting_view(setting: Setting) -> View:
    return {
        "phase": setting.phase.value,
        "generation": setting.generation,
        "canary_percent": setting.canary_permille / 10,
        "cohorts": [cohort_view(cohort) for cohort in setting.cohorts],
        "hold": setting.hold,
        "shadow_percent": setting.shadow_permille / 10,
        "shadow_same": setting.shadow_same,
        "set_flags": dict(setting.flags),
        "limits": dict(setting.limits),
        "serves_subjects": setting.serves_subjects,
        "two_person": setting.two_person,
    }


def cohort_view(cohort: Cohort) -> View:
    return {
        "name": cohort.name,
        "names": cohort.names,
        "account": cohort.account,
        "percent": cohort.permille / 10,
    }


def job_view(job: pb.Job) -> View:
    return {**view_of(job), "report": json.loads(job.report) if job.report else None}


def client_view(status: pb.ClientStatus) -> View:
    store = store_name(status.store)
    return {"at": f"store {store}" if store else "router", **view_of(status.client)}


_SPECIAL: Mapping[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": time_of,
    "baton.record.v1.Version": version_text,
    "baton.control.v1.ClientStatus": client_view,
    "baton.control.v1.Job": job_view,
    "baton.control.v1.Setting": lambda message: setting_view(setting_from_pb(message)),
}
"""The functions for messages with a special view, by full name."""


def status_view(status: pb.GetStatusResponse) -> View:
    view = view_of(status)
    since = seconds_since(status.phase_time) if status.HasField("phase_time") else None
    return {
        **view.pop("setting"),
        **view,
        "stores": {store["store"]: store for store in view["stores"]},
        "measured": {calls["store"]: calls for calls in view["measured"]},
        "canary_auto": walk_view(status.canary_auto),
        "rehearsing": status.rehearsal.note if status.rehearsal.running else "",
        "rollback_cost": view_of(status.rollback_cost),
        "handover": view_of(status.handover),
        "ledger": view_of(status.ledger),
        "phase_seconds": since,
        "alert_pages": [of_line(alert) for alert in view["alerts"]],
    }


def walk_view(progress: pb.Progress) -> View:
    """Return the progress of `baton canary auto`."""
    view = view_of(progress)
    return {"step": view["done"], "steps": view["total"], **{k: view[k] for k in ("running", "note", "finished_time")}}


def plan_view(plan: pb.PlanPhaseResponse) -> View:
    view = view_of(plan)
    return {**view.pop("setting"), **view}


def entry_view(entry: pb.JournalEntry) -> View:
    return {**view_of(entry), "changes": changes(setting_from_pb(entry.before), setting_from_pb(entry.after))}
