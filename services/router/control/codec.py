"""The JSON form of settings, gate results and jobs in a control store. Keys are the names of the fields.

Routers of two releases write the same rows. A router keeps unknown fields, of a newer release, and writes them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from services.router.control.port import DamagedSetting
from services.router.core.cohorts import Cohort
from services.router.core.gates import GateResult, Verdict
from services.router.core.jobs import Job, JobState
from services.router.core.pending import PendingCall
from services.router.core.phase import Phase, Setting


def setting_to_json(setting: Setting) -> str:
    return json.dumps(
        {
            "generation": setting.generation,
            "phase": setting.phase.value,
            "canary_permille": setting.canary_permille,
            "hold": setting.hold,
            "rehearsal": setting.rehearsal,
            "cohorts": [_cohort_to_fields(cohort) for cohort in setting.cohorts],
            "flags": dict(setting.flags),
            "limits": dict(setting.limits),
            "shadow_permille": setting.shadow_permille,
            "shadow_same": setting.shadow_same,
            "shadow_since": setting.shadow_since,
            "serves_subjects": setting.serves_subjects,
            "two_person": setting.two_person,
            "pending": [_call_to_fields(call) for call in setting.pending],
            **_values(setting.unknown),
        }
    )


def _call_to_fields(call: PendingCall) -> dict[str, Any]:
    named = asdict(call)
    del named["unknown"]
    return {**named, "request": call.request.hex(), **_values(call.unknown)}


def _call_from_fields(found: Mapping[str, Any]) -> PendingCall:
    known = {name: value for name, value in found.items() if name in _CALL_FIELDS}
    known["request"] = bytes.fromhex(known["request"])
    return PendingCall(**known, unknown=_unknown(found, _CALL_FIELDS))


def _cohort_to_fields(cohort: Cohort) -> dict[str, Any]:
    named = asdict(cohort)
    del named["unknown"]
    return {**named, **_values(cohort.unknown)}


def _cohort_from_fields(found: Mapping[str, Any]) -> Cohort:
    known = {name: value for name, value in found.items() if name in _COHORT_FIELDS}
    return Cohort(**known, unknown=_unknown(found, _COHORT_FIELDS))


def _unknown(found: Mapping[str, Any], known: frozenset[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, json.dumps(value)) for name, value in sorted(found.items()) if name not in known)


def _values(unknown: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in unknown}


def setting_from_json(text: str) -> Setting:
    found = json.loads(text)
    return Setting(
        generation=int(found["generation"]),
        phase=Phase(found["phase"]),
        canary_permille=int(found["canary_permille"]),
        hold=bool(found["hold"]),
        rehearsal=tuple(found.get("rehearsal", ())),
        cohorts=tuple(_cohort_from_fields(cohort) for cohort in found.get("cohorts", ())),
        flags=_flags(found.get("flags", {})),
        limits=tuple(sorted((name, float(value)) for name, value in found.get("limits", {}).items())),
        shadow_permille=int(found.get("shadow_permille", 0)),
        shadow_same=bool(found.get("shadow_same", False)),
        shadow_since=int(found.get("shadow_since", 0)),
        serves_subjects=bool(found.get("serves_subjects", False)),
        two_person=bool(found.get("two_person", False)),
        pending=tuple(_call_from_fields(call) for call in found.get("pending", ())),
        unknown=_unknown(found, SETTING_FIELDS),
    )


def read_setting(generation: int, text: str) -> Setting:
    """The setting in a row of that generation. Raises DamagedSetting."""
    try:
        setting = setting_from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedSetting(generation, f"{type(error).__name__}: {error}") from error
    if setting.generation != generation:
        raise DamagedSetting(generation, f"its generation is {setting.generation}, that of its row {generation}")
    return setting


def _flags(found: Mapping[str, object]) -> tuple[tuple[str, bool], ...]:
    """Raises ValueError."""
    flags = []
    for name, value in sorted(found.items()):
        if not isinstance(value, bool):
            raise ValueError(f"flags: {name} is {value!r}: must be true or false")
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
            name=found["name"],
            sentence=found["sentence"],
            verdict=Verdict(found["verdict"]),
            evidence=found["evidence"],
            threshold=found["threshold"],
        )
        for found in json.loads(text)
    )


_JOB_COLUMNS = frozenset({"id", "version", "checkpoint", "report"})
"""Fields of a job that have their own columns: bytes, large values, and values that the store assigns."""


def _names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind)) - {"unknown"}


SETTING_FIELDS, _CALL_FIELDS, _JOB_FIELDS = _names(Setting), _names(PendingCall), _names(Job)
_COHORT_FIELDS = _names(Cohort)


def job_to_json(job: Job) -> str:
    stored = _JOB_FIELDS - _JOB_COLUMNS
    named = {field.name: getattr(job, field.name) for field in fields(job) if field.name in stored}
    return json.dumps({**named, "state": job.state.value, "arguments": dict(job.arguments), **_values(job.unknown)})


def job_from_json(text: str, number: int, version: int, checkpoint: bytes = b"", report: str = "") -> Job:
    """`number`: the job's number in the store."""
    named = json.loads(text)
    known = {name: value for name, value in named.items() if name in _JOB_FIELDS}
    known["state"] = JobState(named["state"])
    return Job(
        **known,
        id=job_id(known["kind"], number),
        version=version,
        checkpoint=checkpoint,
        report=report,
        unknown=_unknown(named, _JOB_FIELDS),
    )


def job_id(kind: str, number: int) -> str:
    return f"{kind}-{number}"


def number_of_job(job_id: str) -> int:
    """The job's number in the store; 0 if this is not a job's id."""
    kind, _, number = job_id.rpartition("-")
    return int(number) if kind and number.isascii() and number.isdigit() and len(number) < 18 else 0
