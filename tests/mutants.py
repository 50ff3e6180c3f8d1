"""Broken rules, and the test that notices each: `make mutants` proves it again.

A mutant is a small change of the product that breaks a promise. `tests/mutations/*.toml` lists them:

    [[mutant]]
    name = "a release keeps its owner"            # what is broken, in a few words; unique
    file = "libs/ownership/rules.py"
    before = '''owner=to))'''                     # occurs exactly once in the file
    after = '''owner=me))'''
    killed_by = "tests/unit/test_ownership_rules.py::test_name"   # without parameters

Each mutant is applied to a copy of the tracked files, and its test is run there. The test must fail. Before that, the
test must pass on the unchanged copy, else its failure would show nothing. The tests of one file do so together.

    python -m tests.mutants [TEXT ...]    # only mutants whose name or file contains one of the texts

Exit codes: 0 every mutant was killed, 1 at least one survived or its test fails without it, 2 wrong usage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "mutations"
COPY = ROOT / "build" / "mutants"
TEST_SECONDS = 600
"""A mutant whose test takes longer is killed."""


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str
    before: str
    after: str
    killed_by: str


def load() -> list[Mutant]:
    """All mutants, by file and position. Raises TypeError or KeyError if an entry is malformed."""
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        found += [Mutant(**entry) for entry in tomllib.loads(path.read_text())["mutant"]]
    return found


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """Entries that no longer fit the code, one sentence each."""
    found = []
    names: set[str] = set()
    for mutant in mutants:
        if mutant.name in names:
            found.append(f"{mutant.name}: two mutants have this name")
        names.add(mutant.name)
        source = root / mutant.file
        count = source.read_text().count(mutant.before) if source.is_file() else 0
        if count != 1:
            found.append(f"{mutant.name}: `before` occurs {count} times in {mutant.file}, expected once")
        if mutant.before == mutant.after:
            found.append(f"{mutant.name}: `after` equals `before`")
        path, _, name = mutant.killed_by.partition("::")
        test = root / path
        if not test.is_file() or f"def {name.rpartition('::')[2]}(" not in test.read_text():
            found.append(f"{mutant.name}: there is no test {mutant.killed_by}")
    return found


def copy_tree() -> None:
    """Copy the tracked files, as they are in the working tree, to `COPY`."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, COPY / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    servers = ROOT / "build" / "kafka"
    if servers.exists():
        (COPY / "build").mkdir(exist_ok=True)
        (COPY / "build" / "kafka").symlink_to(servers.resolve())


def passes(tests: Iterable[str]) -> bool:
    """Run tests in the copy. False if one fails, does not exist, or runs for longer than `TEST_SECONDS`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n0", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(COPY)}
    try:
        run = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, timeout=TEST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def survives(mutant: Mutant) -> bool:
    source = COPY / mutant.file
    original = source.read_text()
    source.write_text(original.replace(mutant.before, mutant.after))
    try:
        return passes([mutant.killed_by])
    finally:
        source.write_text(original)


def healthy_tests(tests: Sequence[str]) -> set[str]:
    """The tests of one file that pass on the unchanged copy."""
    if passes(tests):
        return set(tests)
    return {test for test in tests if passes([test])}


def main(texts: Sequence[str]) -> int:
    mutants = [m for m in load() if not texts or any(text in m.name or text in m.file for text in texts)]
    wrong = problems(mutants)
    if wrong or not mutants:
        print("\n".join(wrong) or "no mutant has such a name or file", file=sys.stderr)
        return 2
    copy_tree()
    failed: list[str] = []
    by_file: dict[str, set[str]] = {}
    for mutant in mutants:
        by_file.setdefault(mutant.killed_by.partition("::")[0], set()).add(mutant.killed_by)
    healthy: dict[str, set[str]] = {}
    begun = time.monotonic()
    for number, mutant in enumerate(mutants, 1):
        test = mutant.killed_by
        file = test.partition("::")[0]
        if file not in healthy:
            healthy[file] = healthy_tests(sorted(by_file[file]))
        verdict = "its test fails without it"
        if test in healthy[file]:
            verdict = "SURVIVED" if survives(mutant) else "killed"
        if verdict != "killed":
            failed.append(f"{mutant.name}: {verdict} ({test})")
        left = (time.monotonic() - begun) / number * (len(mutants) - number)
        print(f"[{number}/{len(mutants)}, about {left:.0f} s left] {verdict:8} {mutant.name}", flush=True)
    print(f"{len(mutants) - len(failed)} of {len(mutants)} killed", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
