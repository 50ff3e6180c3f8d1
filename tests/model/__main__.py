"""Explores the model.

python -m tests.model            the protocol in all scenes: 'safe' and how many states there are
python -m tests.model VARIANT    a wrong rule: the trace that breaks it
python -m tests.model --all      all of them; exits 1 unless the protocol is safe and every wrong rule is caught
"""

from __future__ import annotations

import sys

from tests.model.explore import explore
from tests.model.ownership import SCENES, WRONG_RULES, Rules


def _report(name: str, rules: Rules) -> bool:
    explored = explore(rules)
    print(f"{name}: {explored}")
    return explored.broken is None


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in WRONG_RULES and name != "--all"]
    if unknown:
        print(f"unknown rule {unknown[0]!r}; one of: {', '.join(WRONG_RULES)}", file=sys.stderr)
        return 2
    everything = "--all" in arguments
    safe = True
    if everything or not arguments:
        shown = [_report(name, Rules(scene)) for name, scene in SCENES.items()]
        safe = all(shown)
    names = list(WRONG_RULES) if everything else arguments
    broke = [not _report(name, Rules(SCENES[WRONG_RULES[name].scene], name)) for name in names]
    # With a rule's name alone: like the protocol, 0 means that nothing broke.
    return int(not (safe and all(broke))) if everything or not arguments else int(any(broke))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
