"""Where reading the log begins: as a person types it, and as the API and jobs keep it. Pure.

    start                        the oldest events that the log still holds
    2026-05-04T10:00:00+00:00    events that were appended at this time or later
    3/1200,5/80                  from these offsets on, in these partitions and in no other

A person may leave out what is clear: 10:00 is the last time that it was ten o'clock. Times are UTC unless they say
otherwise, as all times that are shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from libs.errors import InvalidField

OLDEST = "start"
ALLOWED = (
    "start, a time in UTC (10:00, 2026-05-04T10:00), a time of another zone (2026-05-04T10:00+02:00), or partition and"
    " offset (3/1200, several with commas between them)"
)
MAX_PLACES = 1000

_PLACE = re.compile(r"([0-9]{1,6})/([0-9]{1,18})")
_TIME_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?")


@dataclass(frozen=True, slots=True)
class Start:
    """Neither a time nor places: the oldest that there is."""

    time_seconds: float | None = None
    """UNIX time."""
    places: Mapping[int, int] = field(default_factory=dict)
    """By partition the first offset."""


def parse_start(text: str) -> Start:
    """Raises InvalidField."""
    if text == OLDEST:
        return Start()
    if _PLACE.match(text):
        return Start(places=_places(text))
    moment = _moment(text)
    if moment.tzinfo is None:
        raise InvalidField("start", text, "a time with its offset from UTC, as 2026-05-04T10:00:00+00:00")
    return Start(time_seconds=moment.timestamp())


def typed_start(text: str, now_seconds: float) -> str:
    """What a person has typed, in the form that `parse_start` takes. Raises InvalidField."""
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


def _places(text: str) -> dict[int, int]:
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
