"""Numbers and times as an operator reads them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from libs.ownership.wire import STORES
from libs.pb.baton.record.v1 import record_pb2

NOT_KNOWN = "—"
"""Shown for a number that is not known. A missing number is never a zero."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def count(value: int | None) -> str:
    """The number with thin spaces between thousands."""
    return NOT_KNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def rate(value: float) -> str:
    """Calls per second."""
    return f"{value:.1f}" if 0 < value < 10 else count(round(value))


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NOT_KNOWN
    value = 1000 * seconds
    return f"{value:.1f}" if value < 10 else count(round(value))


def percent(permille: int | None) -> str:
    """Thousandths as a percentage, without the sign."""
    if permille is None:
        return NOT_KNOWN
    whole, part = divmod(permille, 10)
    return f"{whole}.{part}" if part else str(whole)


def share(part: int, whole: int) -> str:
    """The part as a percentage of the whole; "" without a whole."""
    if not whole:
        return ""
    value = 100 * part / whole
    return f"{value:.2g} %" if 0 < value < 10 else f"{value:.0f} %"


def duration(seconds: float | None) -> str:
    """A length of time in one or two units."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 2 * _MINUTE:
        return f"{whole} s"
    if whole < 2 * _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < 2 * _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} days"


def seconds_of(time: Timestamp) -> float:
    return time.ToNanoseconds() / 1e9


def stamp(time: Timestamp) -> str:
    """The time in UTC, to the second."""
    return datetime.fromtimestamp(seconds_of(time), UTC).strftime("%Y-%m-%d %H:%M:%S")


def store(number: int) -> str:
    """A or B; "" if the number is unspecified."""
    found = STORES.get(number)  # type: ignore[call-overload]
    return found.value if found else ""


def version(message: record_pb2.Version) -> str:
    return f"{message.term}-{message.revision}"


def enum_word(name: str, prefix: str) -> str:
    """The name of an enum's value without its prefix."""
    return name.removeprefix(prefix)
