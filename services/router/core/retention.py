"""Retention: which events the log may soon drop, and where reading it begins. Pure.

A log drops its oldest events, by age, by size, or both. An event that a store has not read by then never reaches it by
its feed, and the store must be filled again. Unread events in the older half of the log are at risk:

* by age: events older than half of the age at which the log drops them;
* by size, once the log has dropped something: the older half of the events that it holds.

A size limit that was never reached puts no event at risk.

Reading begins at a start. Operators type it, the API and jobs store it:

    start                        the oldest events that the log still holds
    2026-05-04T10:00:00+00:00    events that were appended at this time or later
    3/1200,5/80                  from these offsets on, in these partitions and in no other

An operator may type a time of day: 10:00 is the latest ten o'clock. Times are UTC unless they have an offset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from libs.errors import InvalidField

KEPT_SHARE = 0.5
"""Share of the log, from its oldest event on, in which unread events are at risk."""

OLDEST = "start"
ALLOWED = (
    "start, a time in UTC (10:00, 2026-05-04T10:00), a time of another zone (2026-05-04T10:00+02:00), or partition and"
    " offset (3/1200, several with commas between them)"
)
MAX_PLACES = 1000

_PLACE = re.compile(r"([0-9]{1,6})/([0-9]{1,18})")
_TIME_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?")


class Risk(NamedTuple):
    """Events that one store has not read."""

    store: str
    old: int
    """Events that the log may soon drop or has dropped."""
    gone: int
    """Events that the log has dropped, included in `old`."""

    def __str__(self) -> str:
        if self.gone:
            return f"the log has dropped {self.gone} events that {self.store} has not read: it must be filled again"
        return f"the log may soon drop {self.old} events that {self.store} has not read: bring its feed back"


class Held(NamedTuple):
    """The contents of one partition."""

    oldest: int
    end: int
    aged: int
    """Offset of the first event that is younger than KEPT_SHARE of the retention time, read after `end`. `oldest` if
    the log drops no event by age."""
    by_size: bool

    @property
    def safe_from(self) -> int:
        """Offset of the first event that is not at risk."""
        if not (self.by_size and self.oldest):
            return max(self.oldest, self.aged)
        return max(self.oldest + int(KEPT_SHARE * (self.end - self.oldest)), self.aged)


def risk_of(store: str, following: Mapping[int, int], held: Mapping[int, Held]) -> Risk:
    """`following`: by partition the next offset that the store reads, 0 if it has read none."""
    positions = [(following.get(partition, 0), one) for partition, one in held.items()]
    old = sum(max(0, min(one.safe_from, one.end) - at) for at, one in positions)
    return Risk(store, old, sum(max(0, one.oldest - at) for at, one in positions))


@dataclass(frozen=True, slots=True)
class Start:
    """The position at which reading begins. Without a time and positions: the oldest event."""

    time_seconds: float | None = None
    """UNIX time."""
    positions: Mapping[int, int] = field(default_factory=dict)
    """First offset by partition."""


def parse_start(text: str) -> Start:
    """Raises InvalidField."""
    if text == OLDEST:
        return Start()
    if _PLACE.match(text):
        return Start(positions=_positions(text))
    moment = _moment(text)
    if moment.tzinfo is None:
        raise InvalidField("start", text, "a time with its offset from UTC, as 2026-05-04T10:00:00+00:00")
    return Start(time_seconds=moment.timestamp())


def typed_start(text: str, now_seconds: float) -> str:
    """Convert typed text to the form that `parse_start` takes. Raises InvalidField."""
    text = text.strip()
    if text == OLDEST or _PLACE.match(text):
        parse_start(text)
        return text
    now = datetime.fromtimestamp(now_seconds, UTC)
    moment = _time_of_day(text, now) if _TIME_OF_DAY.fullmatch(text) else _moment(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment > now:
        raise InvalidField("start", text, f"a time that has passed: it is {now.isoformat(timespec='seconds')}")
    return moment.isoformat()


def _positions(text: str) -> dict[int, int]:
    found: dict[int, int] = {}
    parts = text.split(",")
    for part in parts:
        match = _PLACE.fullmatch(part.strip())
        if match is None or int(match[1]) in found or len(parts) > MAX_PLACES:
            raise InvalidField("start", text, "each partition once, as partition/offset: 3/1200,5/80")
        found[int(match[1])] = int(match[2])
    return found


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidField("start", text, ALLOWED) from None
    if moment.year < 1970:
        raise InvalidField("start", text, ALLOWED)
    return moment


def _time_of_day(text: str, now: datetime) -> datetime:
    hour, minute, *rest = (int(part) for part in text.split(":"))
    try:
        today = now.replace(hour=hour, minute=minute, second=rest[0] if rest else 0, microsecond=0)
    except ValueError:
        raise InvalidField("start", text, ALLOWED) from None
    return today if today <= now else today - timedelta(days=1)
