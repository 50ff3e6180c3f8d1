"""Explores the models.

python -m tests.model            the protocol in all scenes: 'safe' and how many states there are
python -m tests.model VARIANT    a wrong rule: the trace that breaks it
python -m tests.model --all      all of them; exits 1 unless the protocol is safe and every wrong rule is caught
python -m tests.model --large    the protocol in the larger scenes of a recovery too, for some minutes
"""

from __future__ import annotations

import sys

from tests.model import ownership, recovery
from tests.model.explore import Explored, explore

WRONG_RULES = {**ownership.WRONG_RULES, **recovery.WRONG_RULES}


def scenes(*, large: bool = False) -> dict[str, Explored]:
    """The protocol, scene by scene."""
    explored = {name: explore(ownership.Rules(scene)) for name, scene in ownership.SCENES.items()}
    for name, scene in {**recovery.SCENES, **(recovery.LARGE_SCENES if large else {})}.items():
        explored[name] = explore(recovery.RecoveryRules(scene))
    return explored


def variant(name: str) -> Explored:
    """A wrong rule."""
    if name in ownership.WRONG_RULES:
        return explore(ownership.Rules(ownership.SCENES[ownership.WRONG_RULES[name].scene], name))
    return explore(recovery.RecoveryRules(recovery.SCENES[recovery.WRONG_RULES[name].scene], name))


def main(arguments: list[str]) -> int:
    options = {argument for argument in arguments if argument in ("--all", "--large")}
    names = [argument for argument in arguments if argument not in options]
    unknown = [name for name in names if name not in WRONG_RULES]
    if unknown:
        print(f"unknown rule {unknown[0]!r}; one of: {', '.join(WRONG_RULES)}", file=sys.stderr)
        return 2
    safe = True
    if options or not names:
        for name, explored in scenes(large="--large" in options).items():
            print(f"{name}: {explored}")
            safe = safe and explored.broken is None
    broke = []
    for name in WRONG_RULES if "--all" in options else names:
        explored = variant(name)
        print(f"{name}: {explored}")
        broke.append(explored.broken is not None)
    # With a rule's name alone: like the protocol, 0 means that nothing broke.
    return int(not (safe and all(broke))) if options or not names else int(any(broke))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
