"""The search of a record: both rows, its owner, the target of calls, and its latest events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import events_pb2, records_pb2
from services.router.web.calls import Caller, CallFailed
from services.router.web.view import record

MOST_EVENTS = 20


async def context(caller: Caller, name: str) -> Mapping[str, Any]:
    """Values for the template. Parts that the operator's role does not show have the refusal instead."""
    found: dict[str, Any] = {
        "title": name or "Record",
        "name": name or "Record",
        "trouble": "" if name else "Give the name of a record.",
        "route": None,
        "rows": [],
        "events": [],
        "events_trouble": "",
    }
    if not name:
        return found
    try:
        answer = await caller.call("Explain", pb.ExplainRequest(key=name, operation="get"))
        found["route"], found["rows"] = record.route(answer), record.explained(answer)
        shown = await caller.call("ShowRecord", records_pb2.ShowRecordRequest(key=name))
        found["rows"] = record.rows(shown.records)
    except CallFailed as error:
        found["trouble"] = error.message
    try:
        request = events_pb2.ReadEventsRequest(name=name, limit=MOST_EVENTS)
        found["events"] = record.events(await caller.collect("ReadEvents", request))
    except CallFailed as error:
        found["events_trouble"] = error.message
    return found
