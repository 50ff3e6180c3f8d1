"""A router's view of the setting, both stores and the log. It keeps the last good answers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from libs.clock import Clock
from libs.errors import BatonError
from libs.eventlog.port import EventLog, EventLogError
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop
from libs.telemetry.latency import Histogram, summed
from services.router.control.port import ControlStore
from services.router.core.gates import Evidence
from services.router.core.phase import Setting
from services.router.core.plan import NO_FLAGS, Flags
from services.router.core.setting_changes import changes
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.processes import StoreProcesses
from services.router.flows.stores import StoreClient, Stores, StoreView

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.5
ANSWER_SECONDS = 1.0
"""Timeout of a query to a store or to the log."""

STALE_SETTING_SECONDS = 3.0

_SAMPLES = 1000


class SettingCache:
    """This router's copy of the setting, refreshed every half second.

    While the control store is unavailable, the last good setting stays.
    """

    def __init__(
        self,
        control: ControlStore,
        clock: Clock,
        switches: Switches | None = None,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        """`switches`: gets the operator's flags with each setting; None without flags."""
        self._control = control
        self._clock = clock
        self._switches = switches
        self._interval_seconds = interval_seconds
        self._current = Setting()
        self._good_at: float | None = None
        self._away = False
        self._refreshing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self.when_changed: list[Callable[[], None]] = []
        """Called with each change, before `changed` returns."""
        self.loop = Loop("setting", self._body, first_pause_seconds=0.2, longest_pause_seconds=1.0)

    @property
    def current(self) -> Setting:
        """The setting for planning calls. Generation 0 (all traffic at A) before the first `refresh`."""
        return self._current

    @property
    def flags(self) -> Flags:
        """The flags for planning calls."""
        return NO_FLAGS if self._switches is None else self._switches.current

    @property
    def lasting_flags(self) -> Flags:
        """The flags that move records (see `Switches.lasting`)."""
        return NO_FLAGS if self._switches is None else self._switches.lasting

    @property
    def stale(self) -> bool:
        """Whether the control store is unavailable, so that `current` may be old."""
        return self._away or self.age_seconds > STALE_SETTING_SECONDS

    @property
    def age_seconds(self) -> float:
        """Time since the control store confirmed `current`; infinite if it never did."""
        return float("inf") if self._good_at is None else self._clock.monotonic() - self._good_at

    async def refresh(self) -> Setting:
        """Read the control store. If it raises ControlUnavailable, `current` stays."""
        async with self._refreshing:
            try:
                setting = await self._control.load()
            except BatonError:
                self._away = True
                raise
            self._log_foreign(setting)
            await self._take(setting)
        return setting

    def _log_foreign(self, setting: Setting) -> None:
        """Log a change by another router. That router's log has the actor and the reason."""
        before = self._current
        if not before.generation:
            log.info("generation %d: the phase is %s", setting.generation, setting.phase.value)
        elif changed := changes(before, setting):
            log.info("generation %d, set at another router: %s", setting.generation, "; ".join(changed))

    async def take(self, setting: Setting) -> None:
        """Apply a setting that this router has just committed, without another read."""
        async with self._refreshing:
            if setting.generation > self._current.generation:
                await self._take(setting)

    async def _take(self, setting: Setting) -> None:
        self._away = False
        self._good_at = self._clock.monotonic()
        if setting != self._current:
            self._current = setting
            if self._switches is not None:
                self._switches.take(setting)
            for note in self.when_changed:
                note()
            async with self._changed:
                self._changed.notify_all()

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting:
        """Wait until `current` differs from `since`, or for the timeout. Returns `current`."""
        try:
            async with asyncio.timeout(timeout_seconds), self._changed:
                await self._changed.wait_for(lambda: self._current != since)
        except TimeoutError:
            pass
        return self._current

    async def _body(self, loop: Loop) -> None:
        await self.refresh()
        loop.well()
        await asyncio.sleep(self._interval_seconds)


@dataclass(slots=True)
class Backlog:
    """The times since which each partition of the log has been ahead of one store's feed."""

    seen: dict[int, deque[tuple[float, int]]] = field(default_factory=dict)
    """Ends of the log, each with the time of its first sighting, by partition."""

    def note(self, now: float, ends: dict[int, tuple[int, int]]) -> None:
        for partition, (_, end) in ends.items():
            samples = self.seen.setdefault(partition, deque())
            if not samples or samples[-1][1] < end:
                samples.append((now, end))
            if len(samples) > _SAMPLES:
                # Keep fewer samples over the same time: the oldest ones determine the lag.
                self.seen[partition] = deque(list(samples)[::2])

    def oldest(self, now: float, following: dict[int, int]) -> float:
        """Return the age in seconds of the oldest event that is not applied; 0 if all are."""
        oldest = now
        for partition, samples in self.seen.items():
            while samples and samples[0][1] <= following.get(partition, 0):
                samples.popleft()
            if samples:
                oldest = min(oldest, samples[0][0])
        return now - oldest


class Observer:
    """The poller of both stores and the log, about every half second, with a timeout of a second each.

    The lag of the feed into a store, in seconds, is the age of the oldest change that waits in the other store's outbox
    plus the age of the oldest event in the log that the store has not read. The latter counts from when this router
    first saw the log's end beyond that event. So it is too small by up to one interval, by the events already in the
    log when this router started, and, in a backlog of more than 1000 intervals, by some intervals. Without pending
    changes the lag is 0.

    While the store or the log is out of reach, the last known lag grows with time, for the status and for alarms; as
    evidence it is then unknown. It is also unknown while the other store is out of reach, or if the feed is stuck
    without pending changes. The lag in events is unknown while the log is out of reach.
    """

    def __init__(
        self,
        stores: Stores,
        event_log: EventLog | None,
        clock: Clock,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        setting: Callable[[], Setting] = Setting,
        addresses: Mapping[Store, int] | None = None,
    ) -> None:
        """`setting`: the current one, reported to the stores; of generation 0 if it is unknown. `addresses`: the number
        that this router has of each store."""
        self.processes = StoreProcesses(clock, addresses)
        self._setting = setting
        self._stores = stores
        self._log = event_log
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._views = {store: StoreView(store) for store in Store}
        self._backlogs = {store: Backlog() for store in Store}
        self._waits = LockWaits()
        self._ends: dict[int, tuple[int, int]] | None = None
        self._last_ends: dict[int, tuple[int, int]] | None = None
        """The last known `_ends`."""
        self.log_trouble = ""
        """The log's error; "" if it answers."""
        self.loop = Loop("observer", self._body, longest_pause_seconds=1.0)

    def view(self, store: Store) -> StoreView:
        return self._views[store]

    @property
    def log_ends(self) -> dict[int, tuple[int, int]] | None:
        """The oldest and the next offset of each partition; None while the log is out of reach."""
        return self._ends

    def evidence(self, setting: Setting, buckets_at_b: int | None, backfill_seconds_ago: float | None) -> Evidence:
        """Return the evidence for the gates. Values that are unknown or too old are None."""
        now = self._clock.monotonic()
        views = [self._views[store] for store in Store]
        answers = [view.fresh(now) for view in views]
        a = answers[0]
        lags = [view.lag_seconds for view in views]
        # After a replacement of the log, the store's lag is unknown.
        all_fresh = all(answer is not None and not answer.feed.log_replaced for answer in answers)
        sure = all_fresh and not self.log_trouble and all(view.reachable for view in views)
        return Evidence(
            backfill_finished_seconds_ago=backfill_seconds_ago,
            lag_seconds=max(lag for lag in lags if lag is not None) if sure and None not in lags else None,
            parked=sum(_not_applied(answer) for answer in answers if answer) if all_fresh else None,
            unauthenticated=sum(one.feed.unauthenticated_now for one in answers if one) if all_fresh else None,
            canary_permille=setting.canary_permille,
            buckets_at_b=buckets_at_b if all_fresh else None,
            a_owned_records=a.owned_records if a else None,
            a_owned_buckets=a.owned_buckets if a else None,
            a_outbox_entries=a.outbox.entries + a.outbox.aside if a else None,
            lock_waits=self._waits.counts(now),
            clocks_apart_seconds=max(self._apart_seconds(view, now) for view in views),
        )

    def _apart_seconds(self, view: StoreView, now: float) -> float:
        """Return the difference of the store's clock, and of times that it reads in the log, from this router's."""
        status = view.fresh(now)
        if status is None or view.seen_at is None or not status.HasField("now_time"):
            return 0.0
        skew = status.now_time.ToNanoseconds() / 1e9 - (self._clock.now() - (now - view.seen_at))
        return max(abs(skew), status.feed.clock_ahead_seconds)

    @property
    def fenced(self) -> frozenset[Store]:
        """The stores that are fenced until they are recovered, by their last answers."""
        views = self._views.values()
        return frozenset(one.store for one in views if one.status is not None and one.status.fence_reason)

    @property
    def worst_lag_seconds(self) -> float | None:
        """Return the greater lag of both feeds, as far as known; None if neither is."""
        return max((view.lag_seconds for view in self._views.values() if view.lag_seconds is not None), default=None)

    async def poll(self) -> None:
        """Query both stores and the log at once. Unavailable ones are not an error."""
        views, _ = await asyncio.gather(
            asyncio.gather(*(self._ask(client) for client in self._stores.values())), self._ask_log()
        )
        now = self._clock.monotonic()
        found = {view.store: view for view in views}
        for store, view in found.items():
            self._views[store] = self._with_lag(view, found.get(store.other), now)

    async def _body(self, loop: Loop) -> None:
        await self.poll()
        loop.well()
        await asyncio.sleep(self._interval_seconds)

    async def _ask(self, client: StoreClient) -> StoreView:
        before = self._views[client.store]
        try:
            request, setting = pb.GetStatusRequest(), self._setting()
            if setting.generation:
                request.serves_subjects, request.generation = setting.serves_subjects, setting.generation
            status = await client.ask(client.replication.GetStatus, request, ANSWER_SECONDS)
        except BatonError as error:
            return StoreView(client.store, before.status, before.seen_at, error.message or error.reason)
        if client.store is Store.B and status.HasField("locks"):
            self._waits.note(status.locks, self._clock.monotonic())
        self.processes.note(client.store, status)
        if status.uncounted:
            # Its zeros are no counts: the last ones stay.
            return StoreView(client.store, before.status, before.seen_at, status.reason, database_away=True)
        if (certificate := self.processes.certificate(client.store)) is not None:
            status.certificate.CopyFrom(certificate)
        return StoreView(client.store, status, self._clock.monotonic(), "")

    async def _ask_log(self) -> None:
        if self._log is None:
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._ends = self._last_ends = await self._log.ends()
        except (EventLogError, TimeoutError) as error:
            self._ends = None
            self.log_trouble = str(error) or f"no answer within {ANSWER_SECONDS:g} s"
            return
        self.log_trouble = ""
        for backlog in self._backlogs.values():
            backlog.note(self._clock.monotonic(), self._ends)

    def _with_lag(self, view: StoreView, source: StoreView | None, now: float) -> StoreView:
        ends = self._last_ends
        if view.status is None or ends is None:
            return view
        feed = view.status.feed
        following = dict(feed.next_offsets)
        waiting = sum(max(0, end - following.get(part, oldest)) for part, (oldest, end) in ends.items())
        unread = self._backlogs[view.store].oldest(now, following)
        seconds = None
        if source is not None and source.reachable and source.status is not None:
            outbox = source.status.outbox
            # An unavailable log stops every feed, so the status must show the changes in the outbox.
            shows = waiting or (outbox.entries if self._ends is None else not feed.trouble)
            if shows and not feed.log_replaced:
                seconds = outbox.oldest_seconds + (unread if waiting else 0.0)
        return replace(view, lag_events=None if self._ends is None else waiting, lag_seconds=seconds)


def _not_applied(status: pb.GetStatusResponse) -> int:
    """Events that need a person: parked at this store, or made by it and refused by the log."""
    return status.feed.parked_now + status.outbox.aside


WAITS_FRESH_SECONDS = 30.0
"""A process that has not reported for this long is no longer counted."""


class LockWaits:
    """The time that writes at B wait for their write lock. Each process of B reports its own."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, Histogram]] = {}
        """Time of the last report, and the report, by process."""

    def note(self, locks: pb.Locks, now: float) -> None:
        self._reports[locks.process] = now, Counter(dict(locks.waits))

    def counts(self, now: float) -> Histogram | None:
        """The sum over all processes; None: no process has reported."""
        fresh = {name: report for name, report in self._reports.items() if now - report[0] <= WAITS_FRESH_SECONDS}
        self._reports = fresh
        return summed(waits for _, waits in fresh.values()) if fresh else None
