"""Diagram and table of the phases, made from the phase table."""

from __future__ import annotations

from itertools import pairwise

from services.router.core.phase import ORDER, PHASES


def diagram() -> str:
    """A mermaid state diagram: forward steps with their gates, and the ways back. No line break at its end."""
    lines = ["stateDiagram-v2", f"    [*] --> {ORDER[0].value}"]
    for before, after in pairwise(ORDER):
        gates = ", ".join(PHASES[after].gates) or "no gate"
        lines.append(f"    {before.value} --> {after.value}: {gates}")
    for phase in ORDER[1:]:
        rule = PHASES[phase]
        if rule.way_back:
            lines += [f"    {phase.value} --> {earlier.value}: back" for earlier in ORDER[: ORDER.index(phase)]]
    lines += [f"    {phase.value} --> [*]" for phase in ORDER if not PHASES[phase].way_back]
    for phase in ORDER:
        canary = ", canary buckets at B" if PHASES[phase].canary else ""
        lines.append(f"    note right of {phase.value}: home {PHASES[phase].home}{canary}")
    return "\n".join(lines)


def guarantees() -> str:
    """A Markdown table with one row per phase, without a line break at the end."""
    lines = [
        "| phase | answers | lost in a crash of one process | rollback cost |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {phase.value} | {rule.answers} | {rule.crash} | {rule.back} |" for phase, rule in PHASES.items()]
    return "\n".join(lines)
