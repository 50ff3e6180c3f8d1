"""Changes of the setting's cohorts. Each is journaled as any other change of the setting. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from libs.contract.accounts import MAX_CHARACTERS, may_be_listed
from libs.errors import BatonError, InvalidField
from libs.ownership.patterns import check_pattern
from services.router.core.cohorts import FULL, Cohort, find
from services.router.core.phase import PHASES, IllegalMove, Setting

MAX_COHORTS = 64

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


class TooManyCohorts(BatonError):
    """The migration has as many cohorts as it may have: remove one first."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_COHORTS"


def add_cohort(setting: Setting, cohort: Cohort, *, first: bool = False) -> Setting:
    """Add a cohort, behind the others or `first`. Raises InvalidField, IllegalMove, TooManyCohorts."""
    check_cohort(cohort)
    others = setting.cohorts
    if len(others) >= MAX_COHORTS:
        raise TooManyCohorts(f"there are {MAX_COHORTS} cohorts: remove one first")
    for one in others:
        if one.name == cohort.name:
            raise InvalidField("name", cohort.name, "the name of no other cohort")
        if (one.names, one.account) == (cohort.names, cohort.account):
            raise InvalidField("names" if cohort.names else "account", cohort.rule, f"a rule other than {one.name}'s")
    _check_steers(setting, cohort.permille)
    return _with(setting, (cohort, *others) if first else (*others, cohort))


def set_share(setting: Setting, name: str, permille: int) -> Setting:
    """Set a cohort's share. Raises InvalidField, IllegalMove, CohortNotFound."""
    known = find(setting.cohorts, name)
    changed = replace(known, permille=permille)
    check_cohort(changed)
    _check_steers(setting, permille)
    return _with(setting, tuple(changed if one is known else one for one in setting.cohorts))


def remove_cohort(setting: Setting, name: str) -> Setting:
    """Remove a cohort: its records follow canary and phase. Raises CohortNotFound."""
    known = find(setting.cohorts, name)
    return _with(setting, tuple(one for one in setting.cohorts if one is not known))


def _with(setting: Setting, cohorts: tuple[Cohort, ...]) -> Setting:
    return replace(setting, generation=setting.generation + 1, cohorts=cohorts, rehearsal=())


def check_cohort(cohort: Cohort) -> None:
    """Raises InvalidField."""
    if not _NAME.fullmatch(cohort.name):
        raise InvalidField("name", cohort.name, "1 to 32 characters of a-z, 0-9 and -, the first one a letter")
    if bool(cohort.names) == bool(cohort.account):
        raise InvalidField("names", cohort.names, "a pattern of names, or an account, and not both")
    if cohort.names:
        check_pattern("names", cohort.names)
    elif not may_be_listed(cohort.account):
        raise InvalidField("account", cohort.account, f"an account of at most {MAX_CHARACTERS} characters")
    if not 0 <= cohort.permille <= FULL:
        raise InvalidField("permille", cohort.permille, "0 to 1000 thousandths, that is 0 to 100 % in steps of 0.1 %")


def _check_steers(setting: Setting, permille: int) -> None:
    """Raises IllegalMove."""
    phases = ", ".join(phase.value for phase, rule in PHASES.items() if rule.cohorts)
    if not setting.rule.cohorts and permille:
        raise IllegalMove(f"the share of a cohort is above 0 only in {phases}; the phase is {setting.phase.value}")
    if setting.hold and permille:
        raise IllegalMove("traffic is held at A since a rollback: lift the hold first (baton hold lift)")
