"""The list of mutants fits the code. `make mutants` runs them; this only keeps the list from rotting."""

from __future__ import annotations

from dataclasses import replace

from tests.mutants import Mutant, load, problems


def test_every_mutant_changes_one_place_and_names_a_test() -> None:
    assert problems(load()) == []


def test_a_mutant_that_no_longer_fits_the_code_is_reported() -> None:
    good = load()[0]
    assert (
        _problem(replace(good, before="no such line"))
        == f"{good.name}: `before` occurs 0 times in {good.file}, expected once"
    )
    assert _problem(replace(good, killed_by="tests/unit/test_mutants.py::test_nothing")).endswith(
        "there is no test tests/unit/test_mutants.py::test_nothing"
    )
    assert _problem(replace(good, after=good.before)) == f"{good.name}: `after` equals `before`"
    assert problems([good, good]) == [f"{good.name}: two mutants have this name"]


def _problem(mutant: Mutant) -> str:
    (problem,) = problems([mutant])
    return problem
