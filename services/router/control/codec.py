"""How settings and gate results are written into a control store: JSON with the names of the fields."""

from __future__ import annotations

import json
from collections.abc import Sequence

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
    )


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
