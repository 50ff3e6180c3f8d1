"""The records whose cohort wants them elsewhere than their bucket: strays from the bucket's home, by right.

The mover moves buckets, and these records one by one. It finds them by their names, or in the stores' indexes of
accounts, so a look costs as much as the cohorts have records. Therefore it looks again only if the counts of a bucket
do not fit the records found, or after `REFRESH_SECONDS`, and spends at most a tenth of the time on it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from libs.clock import Clock
from libs.ownership.model import Store, bucket_of
from services.router.core.cohort_changes import check_cohort
from services.router.core.cohorts import Cohort, by_name, cohort_of, find
from services.router.core.phase import Setting
from services.router.core.plan import Aim, Flags, aim, home, kinds, parts_from, record_home, steering_cohorts
from services.router.flows.moving.transfer import Transfer

REFRESH_SECONDS = 30.0
"""Time after which a record that does not change the counts of its bucket is noticed."""

SHARE = 0.1
"""Share of the time that looks may take."""

MOST_COUNTED = 100_000
"""Records of a cohort that a preview counts at each store."""

_NO_NAME = "-"

Apart = Mapping[Store, frozenset[str]]
"""Keys of one bucket, by owner, of the records whose home is not the bucket's."""

NONE_APART: Apart = {store: frozenset() for store in Store}


class CohortRecords:
    """Raises Away, Refused and NotListed."""

    def __init__(self, transfer: Transfer, clock: Clock) -> None:
        self._transfer = transfer
        self._clock = clock
        self._found: Mapping[int, Apart] = {}
        self._found_for: Aim | None = None
        self._next_at = float("-inf")
        self._valid_until = float("-inf")

    async def apart(
        self, setting: Setting, flags: Flags, owned: Mapping[int, Mapping[Store, int]]
    ) -> Mapping[int, Apart]:
        """Return the records that belong elsewhere, by bucket. `owned`: counts of records by bucket and owner."""
        wanted, now = aim(setting, flags), self._clock.monotonic()
        firsts = [kind.first for kind in kinds(setting)] if wanted.cohorts else ()
        cohorts = [one for one in wanted.cohorts if any(parts_from(setting, one, first) for first in firsts)]
        if not cohorts:
            self._found, self._found_for = {}, None
            return self._found
        if self._found_for == wanted and (
            now < self._next_at or (now < self._valid_until and self._fits(setting, flags, owned))
        ):
            return self._found
        found = await self._look(setting, flags, cohorts)
        took = self._clock.monotonic() - now
        self._found, self._found_for = found, wanted
        self._next_at, self._valid_until = now + took / SHARE, now + took + REFRESH_SECONDS
        return found

    def _fits(self, setting: Setting, flags: Flags, owned: Mapping[int, Mapping[Store, int]]) -> bool:
        """Whether the records found so far are all those that are not at the home of their bucket."""
        for bucket, counts in owned.items():
            at, apart = home(setting, flags, bucket), self._found.get(bucket, NONE_APART)
            if apart[at] or counts.get(at.other, 0) != len(apart[at.other]):
                return False
        return True

    async def _look(self, setting: Setting, flags: Flags, cohorts: Iterable[Cohort]) -> Mapping[int, Apart]:
        found: dict[int, dict[Store, set[str]]] = {}
        for store in Store:
            for cohort in cohorts:
                async for keys in self._pages(store, cohort):
                    for key in keys:
                        bucket = bucket_of(key)
                        if record_home(setting, flags, key, cohort.account) is not home(setting, flags, bucket):
                            found.setdefault(bucket, {one: set() for one in Store})[store].add(key)
        return {bucket: {store: frozenset(keys) for store, keys in apart.items()} for bucket, apart in found.items()}

    async def preview(self, setting: Setting, after: Setting, flags: Flags, name: str) -> Preview:
        """Count the records of one cohort, of either setting. Raises CohortNotFound."""
        known = find([*after.cohorts, *setting.cohorts], name)
        cohorts = after.cohorts if known in after.cohorts else setting.cohorts
        counted = Preview()
        for store in Store:
            seen = 0
            async with aclosing(self._pages(store, known)) as pages:
                async for keys in pages:
                    for key in keys:
                        if cohort_of(cohorts, key, known.account) is known:
                            counted.add(store, record_home(after, flags, key, known.account))
                    seen += len(keys)
                    if seen >= MOST_COUNTED:
                        counted.more = True
                        break
        return counted

    def _pages(self, store: Store, cohort: Cohort) -> AsyncGenerator[Sequence[str], None]:
        return self._transfer.keys_by_rule(store, pattern=cohort.names, account=cohort.account)

    async def check(self) -> None:
        """Raises NotListed, or the error of a store that is out of reach."""
        for store in Store:
            async with aclosing(self._transfer.keys_by_rule(store, pattern=_NO_NAME)) as pages:
                await anext(pages, None)


def with_cohorts(setting: Setting, cohorts: Iterable[Cohort]) -> Setting:
    """The setting with other cohorts. Raises InvalidField."""
    for cohort in (found := tuple(cohorts)):
        check_cohort(cohort)
    return replace(setting, cohorts=found)


@dataclass(slots=True)
class Preview:
    records: int = 0
    at_b: int = 0
    to: dict[Store, int] = field(default_factory=lambda: dict.fromkeys(Store, 0))
    """Records that would move to each store."""
    more: bool = False

    def add(self, owner: Store, home: Store) -> None:
        self.records += 1
        self.at_b += owner is Store.B
        self.to[home] += owner is not home


def stays(setting: Setting, flags: Flags, key: str, to: Store, apart: Sequence[Apart]) -> bool:
    """Whether a record stays where it is while its bucket goes to store `to`."""
    if any(key in one[to.other] for one in apart):
        return True
    cohort = by_name(steering_cohorts(setting, flags), key)
    return cohort is not None and record_home(setting, flags, key, "") is not to
