"""How settings and gate results are written into a control store: JSON with the names of the fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from services.router.core.gates import GateResult, Verdict
from services.router.core.phase import Phase, Setting


def setting_to_json(setting: Setting) -> str:
    return json.dumps(
        {
            "generation": setting.generation,
            "phase": setting.phase.value,
            "canary_permille": setting.canary_permille,
            "hold": setting.hold,
            "rehearsal": setting.rehearsal,
            "flags": dict(setting.flags),
            "shadow_permille": setting.shadow_permille,
            "shadow_same": setting.shadow_same,
            "shadow_since": setting.shadow_since,
        }
    )


def setting_from_json(text: str) -> Setting:
    fields = json.loads(text)
    return Setting(
        generation=int(fields["generation"]),
        phase=Phase(fields["phase"]),
        canary_permille=int(fields["canary_permille"]),
        hold=bool(fields["hold"]),
        rehearsal=tuple(fields.get("rehearsal", ())),
        flags=_flags(fields.get("flags", {})),
        shadow_permille=int(fields.get("shadow_permille", 0)),
        shadow_same=bool(fields.get("shadow_same", False)),
        shadow_since=int(fields.get("shadow_since", 0)),
    )


def _flags(fields: Mapping[str, object]) -> tuple[tuple[str, bool], ...]:
    """Raises ValueError."""
    flags = []
    for name, value in sorted(fields.items()):
        if not isinstance(value, bool):
            raise ValueError(f"flags: {name} is {value!r}: true or false is expected")
        flags.append((name, value))
    return tuple(flags)


def gates_to_json(results: Sequence[GateResult]) -> str:
    return json.dumps(
        [
            {
                "name": result.name,
                "sentence": result.sentence,
                "verdict": result.verdict.value,
                "evidence": result.evidence,
                "threshold": result.threshold,
            }
            for result in results
        ]
    )


def gates_from_json(text: str) -> tuple[GateResult, ...]:
    return tuple(
        GateResult(
            name=fields["name"],
            sentence=fields["sentence"],
            verdict=Verdict(fields["verdict"]),
            evidence=fields["evidence"],
            threshold=fields["threshold"],
        )
        for fields in json.loads(text)
    )
