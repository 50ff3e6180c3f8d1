"""Explores the models.

python -m tests.model            the protocol in all scenes: 'safe' and the number of states
python -m tests.model VARIANT    a wrong variant: the trace that breaks it
python -m tests.model --all      all of them; exits 1 unless the protocol is safe and every wrong variant is caught
python -m tests.model --large    the protocol in the larger scenes of a recovery too, for some minutes
"""

from __future__ import annotations

import sys

from tests.model import ownership, recovery, wrong
from tests.model.explore import Explored, explore


def scenes(*, large: bool = False) -> dict[str, Explored]:
    """The protocol, scene by scene."""
    explored = {name: explore(ownership.Ownership(scene)) for name, scene in ownership.SCENES.items()}
    for name, scene in {**recovery.SCENES, **(recovery.LARGE_SCENES if large else {})}.items():
        explored[name] = explore(recovery.Recovery(scene))
    return explored


def variant(name: str) -> Explored:
    """One wrong variant in its scene."""
    if name in wrong.OWNERSHIP:
        return explore(ownership.Ownership(ownership.SCENES[wrong.OWNERSHIP[name].scene], name))
    return explore(recovery.Recovery(recovery.SCENES[wrong.RECOVERY[name].scene], name))


def main(arguments: list[str]) -> int:
    options = {argument for argument in arguments if argument in ("--all", "--large")}
    names = [argument for argument in arguments if argument not in options]
    unknown = [name for name in names if name not in wrong.VARIANTS]
    if unknown:
        print(f"unknown variant {unknown[0]!r}; one of: {', '.join(wrong.VARIANTS)}", file=sys.stderr)
        return 2
    safe = True
    if options or not names:
        for name, explored in scenes(large="--large" in options).items():
            print(f"{name}: {explored}")
            safe = safe and explored.broken is None
    broke = []
    for name in wrong.VARIANTS if "--all" in options else names:
        explored = variant(name)
        print(f"{name}: {explored}")
        broke.append(explored.broken is not None)
    # With a variant's name alone, 0 means that no property broke, as for the protocol.
    return int(not (safe and all(broke))) if options or not names else int(any(broke))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
