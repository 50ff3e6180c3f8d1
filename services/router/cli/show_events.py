"""Tables of events of the log."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Group
from rich.text import Text

from libs.pb.baton.control.v1 import events_pb2 as pb
from services.router.cli.show import as_json
from services.router.cli.views import view_of

View = dict[str, Any]


_RECORD_FIELDS = ("version", "owner", "origin", "live", "schema_version", "made_time")


def event_view(event: pb.LogEvent) -> View:
    view = view_of(event)
    record = view.pop("record") or {}
    return {
        "position": f"{event.partition}/{event.offset}",
        **view,
        **{name: record.get(name) for name in _RECORD_FIELDS},
        "served": [{"request_id": one.request_id, "principal": one.principal} for one in event.record.served],
        "content": json.loads(event.content) if event.content else None,
    }


def _code(view: View) -> str:
    """How an event's line names its code; a right one, or none where none is asked for, is the usual case."""
    if view["code"] == "WRONG":
        return f"  code is wrong: {view['code_trouble']}"
    return {"NONE": "", "RIGHT": "  signed", "UNCHECKED": "  code not checked"}.get(view["code"], "")


def event_line(view: View) -> Text:
    line = _line(view)
    line.append(_code(view), style="red" if view["code"] == "WRONG" else "")
    return line


def _line(view: View) -> Text:
    head = f"{view['time'].replace('T', ' ').removesuffix('+00:00')}  {view['position']:<12}"
    if view["trouble"]:
        return Text(f"{head}  {view['key'] or '(no key)'}  cannot be read: {view['trouble']}", style="red")
    if view["version"] is None:
        return Text(f"{head}  {view['type']}", style="dim")
    state = "" if view["live"] else "  deleted"
    trace = f"  trace {view['trace_id']}" if view["trace_id"] else ""
    text = f"{head}  {view['key']}  {view['version']}  owner {view['owner']}  made by {view['origin']}{state}{trace}"
    return Text(text, overflow="fold")


def event_screen(view: View) -> Group:
    """Format one event with its content."""
    left = ("bytes", "schema_version", "made_time")
    rest = [f"  {name}: {view[name]}" for name in left if view[name] is not None]
    rest += [f"  request: {one['request_id']} of {one['principal']}" for one in view["served"]]
    parts: list[Any] = [event_line(view), Text("\n".join(rest))]
    if view["content"] is not None:
        parts.append(Text(as_json(view["content"], indent=2)))
    return Group(*parts)
