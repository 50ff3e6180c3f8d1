"""The quota of an account: the number of its live records at a store.

An exact count for each create would be too expensive. So a count is kept for COUNT_SECONDS, or until this process has
made COUNT_CREATES records of the account since; a create that would be refused counts again, at most once in
REFUSED_SECONDS. The count stops at the quota, so it costs at most as much as the quota is large.

So the quota is a soft bound. Creates that are in flight at the same time do not see each other, and another process of
the store does not see those that this one made since its last count. The number of records exceeds the quota by at most
the writes in flight, and by COUNT_CREATES for each other process. During a migration, the creates at the other store
count once they have been applied here.

Only calls of clients have a quota. Records that come from the other store or from the log are always applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from libs.clock import Clock
from libs.contract.accounts import AccountField
from libs.errors import BatonError
from libs.ownership.model import Answered, Changed, Row, Version
from libs.ownership.rules import Change, Resource
from libs.store.inspection import Inspection

COUNT_SECONDS = 5.0
COUNT_CREATES = 100
REFUSED_SECONDS = 1.0
MOST_ACCOUNTS = 4096
"""Number of accounts whose count is kept."""

Work = Callable[[], Awaitable[Changed | Answered]]


class QuotaExceeded(BatonError):
    """The account has as many records as it may have."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUOTA_EXCEEDED"

    def __init__(self, account: str, records: int, most: int) -> None:
        super().__init__(
            f"the account {account!r} has {records} records, and its quota account_records is {most}: delete some, or"
            " ask for a higher quota",
            limit="account_records",
            account=account,
            count=str(records),
            most=str(most),
        )


class _CountNeeded(Exception):
    def __init__(self, account: str) -> None:
        super().__init__(account)
        self.account = account


@dataclass(slots=True)
class _Count:
    records: int
    made: int
    """Records that this process made since."""
    at: float
    """Monotonic time at which the count began."""


@dataclass(slots=True)
class Attempt:
    """One call. It may decide several times."""

    counted: set[str] = field(default_factory=set)
    """Accounts that were counted for this call."""
    creates_in: str = ""
    """The account that the last decision makes a record in; "" if it makes none."""


class AccountQuota:
    """The quotas of one process."""

    def __init__(self, most: int, account: AccountField, inspection: Inspection, clock: Clock) -> None:
        """`most`: number of records of each account."""
        self._most = most
        self._account = account
        self._inspection = inspection
        self._clock = clock
        self._counts: dict[str, _Count] = {}
        self._counting: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<AccountQuota {self._most} accounts={len(self._counts)}>"

    def limited(self, attempt: Attempt, change: Change) -> Change:
        """The change, which raises QuotaExceeded if it would make one record too many. Run it in `run`."""

        def check(row: Row | None, version: Version) -> Resource | Answered:
            attempt.creates_in = ""
            after = change(row, version)
            if isinstance(after, Resource) and after.live and (row is None or not row.live):
                account = self._account.of(after.payload, after.schema_version)
                if account:
                    self._check(attempt, account)
                    attempt.creates_in = account
            return after

        return check

    async def run(self, attempt: Attempt, work: Work) -> Changed | Answered:
        """Run a write whose change is `limited`. Raises its errors."""
        while True:
            try:
                outcome = await work()
            except _CountNeeded as needed:
                await self._count(needed.account)
                attempt.counted.add(needed.account)
            else:
                if isinstance(outcome, Changed) and (count := self._counts.get(attempt.creates_in)):
                    count.made += 1
                return outcome

    def _check(self, attempt: Attempt, account: str) -> None:
        """Raises QuotaExceeded, or _CountNeeded if the count is too old for a decision."""
        count = self._counts.get(account)
        if count is None:
            raise _CountNeeded(account)
        known, seconds = count.records + count.made, self._clock.monotonic() - count.at
        may_count = account not in attempt.counted
        if may_count and (seconds >= COUNT_SECONDS or count.made >= COUNT_CREATES):
            raise _CountNeeded(account)
        if known >= self._most:
            if may_count and seconds >= REFUSED_SECONDS:
                raise _CountNeeded(account)
            raise QuotaExceeded(account, known, self._most)

    async def _count(self, account: str) -> None:
        """Count an account. Calls that need its count at the same time wait for the same one."""
        task = self._counting.get(account)
        if task is None:
            task = self._counting[account] = asyncio.create_task(self._count_now(account))
            task.add_done_callback(lambda _: self._counting.pop(account, None))
        await asyncio.shield(task)

    async def _count_now(self, account: str) -> None:
        began, before = self._clock.monotonic(), self._made(account)
        records = await self._inspection.count_of(account, self._most)
        # Records made during the count may be in it or not: they count in any case.
        made = self._made(account) - before
        self._counts.pop(account, None)
        if len(self._counts) >= MOST_ACCOUNTS:
            del self._counts[next(iter(self._counts))]
        self._counts[account] = _Count(records, made, began)

    def _made(self, account: str) -> int:
        count = self._counts.get(account)
        return 0 if count is None else count.made
