"""Cohorts: records named by a rule, which go to B first or stay at A last, by a share of their own. Pure.

1. A rule is a pattern of names, or an account. Cohorts by name come before cohorts by account, and among each the first
   one that matches decides. No two cohorts have the same rule.
2. A share is sticky: it takes the records of the same buckets as a canary of that share. So a larger share only adds
   records and a smaller one only removes some.
3. Cohorts steer in the phases with `PhaseRule.cohorts`. There a record of a cohort is at B if its bucket is in the
   share, else at A, whatever canary and phase want. A share of 0 % keeps the records at A until the cohort is removed:
   the gate `buckets-done` keeps CUTOVER shut until then.
4. A share above 0 is set only where cohorts steer; CUTOVER keeps it for a way back to DUAL_READ. A rollback that sends
   everything to A sets each share to 0, as it sets the canary to 0, so that a record does not leave A again before an
   operator decides so.
5. A call shows the name to a router, but the account only for a create and for a caller with one account. If a cohort
   by account may want the record elsewhere, the call moves no record (`plan.Target.moves`); the mover, which reads the
   stores' indexes of accounts, does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from libs.errors import BatonError
from libs.ownership.model import BUCKETS, Store
from libs.ownership.patterns import matches
from libs.text import plain

FULL = 1000
"""Permille: all records of the cohort."""


class CohortNotFound(BatonError):
    """There is no cohort of this name."""

    code = "NOT_FOUND"
    reason = "COHORT_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Cohort:
    name: str
    names: str = ""
    """Pattern of record names (`libs.ownership.patterns`). Either this or an account."""
    account: str = ""
    permille: int = 0
    """Share of the records that goes to B, in thousandths."""
    unknown: tuple[tuple[str, str], ...] = ()
    """Fields of a newer release: name, and value as JSON. They are kept."""

    def __str__(self) -> str:
        return f"{self.name} ({self.rule}, {plain(self.permille / 10)} %)"

    @property
    def rule(self) -> str:
        return f"names {self.names}" if self.names else f"account {self.account}"

    def store(self, bucket: int) -> Store:
        """The store of the cohort's records in this bucket."""
        return Store.B if bucket < share_buckets(self.permille) else Store.A


def share_buckets(permille: int) -> int:
    """Number of buckets in a share: those with a lower number than this."""
    return round(BUCKETS * permille / FULL)


def by_name(cohorts: Iterable[Cohort], key: str) -> Cohort | None:
    return next((one for one in cohorts if one.names and matches(one.names, key)), None)


def by_account(cohorts: Iterable[Cohort], account: str) -> Cohort | None:
    return next((one for one in cohorts if account and one.account == account), None)


def cohort_of(cohorts: Sequence[Cohort], key: str, account: str | None) -> Cohort | None:
    """The record's cohort. `account`: "" if it has none, None if it is unknown."""
    # Each call looks here, and most migrations have no cohort.
    if not cohorts:
        return None
    return by_name(cohorts, key) or by_account(cohorts, account or "")


def sent_home(cohorts: Sequence[Cohort]) -> tuple[Cohort, ...]:
    """The same cohorts with all records at A."""
    return tuple(replace(cohort, permille=0) for cohort in cohorts)


def find(cohorts: Iterable[Cohort], name: str) -> Cohort:
    """Raises CohortNotFound."""
    for one in cohorts:
        if one.name == name:
            return one
    raise CohortNotFound(f"there is no cohort {name!r}: baton canary cohort list shows all")
