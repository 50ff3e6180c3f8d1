"""The journal of changes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.text import plain
from services.router.core.phase import Setting
from services.router.core.setting_changes import changes
from services.router.core.setting_message import setting_from_pb
from services.router.web.view.gates import GateView, gates
from services.router.web.view.words import percent, stamp


@dataclass(frozen=True, slots=True)
class EntryView:
    generation: int
    time: str
    actor: str
    action: str
    changes: Sequence[str]
    reason: str
    overridden: bool
    fields: Sequence[tuple[str, str, str, bool]]
    """Before and after: name, both values, whether they differ."""
    gates: Sequence[GateView]


def entries(found: Sequence[pb.JournalEntry]) -> list[EntryView]:
    return [entry(one) for one in found]


def entry(found: pb.JournalEntry) -> EntryView:
    before, after = setting_from_pb(found.before), setting_from_pb(found.after)
    old, new = _fields(before), _fields(after)
    names = list(dict.fromkeys([*old, *new]))
    return EntryView(
        found.generation,
        stamp(found.time),
        found.actor,
        found.action,
        changes(before, after),
        found.reason,
        found.overridden,
        [(name, old.get(name, "unset"), new.get(name, "unset"), old.get(name) != new.get(name)) for name in names],
        gates(found.gates),
    )


def _fields(setting: Setting) -> dict[str, str]:
    shadow = f"{percent(setting.shadow_permille)} %" + (" with itself" if setting.shadow_same else "")
    return {
        "generation": str(setting.generation),
        "phase": setting.phase.value,
        "canary": f"{percent(setting.canary_permille)} %",
        "hold": "all traffic at A" if setting.hold else "no",
        "compared reads": shadow,
        "rehearsal": ", ".join(map(str, setting.rehearsal)) or "no",
        "two-person rule": "on" if setting.two_person else "off",
        "principals": "subjects" if setting.serves_subjects else "anonymous",
        **{f"cohort {one.name}": f"{percent(one.permille)} %, {one.rule}" for one in setting.cohorts},
        **{f"flag {name}": "B" if value else "A" for name, value in setting.flags},
        **{f"limit {name}": plain(value) for name, value in setting.limits},
    }
