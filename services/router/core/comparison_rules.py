"""Differences that the contract allows: the order of a list, and times within a tolerance. Pure.

An allowed difference is no finding, and not equal either: it has a count of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.contract.descriptors import Method
from libs.contract.unfit import UnfitContract

_NANOSECONDS = 1_000_000
"""Nanoseconds in a millisecond."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules by path, below the compared message."""

    unordered: frozenset[str] = frozenset()
    milliseconds: Mapping[str, int] = field(default_factory=dict)
    """Tolerance of times."""

    @classmethod
    def of(cls, method: Method, head: str = "") -> Rules:
        """`head`: the path of the compared messages in the reply, with a dot."""
        times = dict(method.tolerated_reply_times)
        return cls(
            frozenset(_below(method.unordered_reply_fields, head)),
            {path: times[f"{head}{path}"] for path in _below(times, head)},
        )

    def check(self, descriptor: Any) -> None:
        """Raises UnfitContract."""
        for path in self.unordered:
            if not (last := _last(descriptor, path)) or not last.is_repeated or _is_map(last):
                raise UnfitContract(f"unordered_reply_fields: {path!r} is no list in {descriptor.full_name}")
        for path, most in self.milliseconds.items():
            last = _last(descriptor, path)
            if last is None or last.is_repeated or last.message_type is not Timestamp.DESCRIPTOR or most <= 0:
                raise UnfitContract(
                    f"tolerated_reply_times: {path!r} in {descriptor.full_name} must be a Timestamp, and its tolerance"
                    f" above 0 ms, not {most}"
                )

    def allows(self, path: str, one: Any, other: Any) -> bool:
        """Whether the two values at a path, which differ, may differ so."""
        if path in self.unordered:
            return Counter(map(_hashable, one)) == Counter(map(_hashable, other))
        if path in self.milliseconds:
            apart = abs(one.ToNanoseconds() - other.ToNanoseconds())
            return bool(apart <= self.milliseconds[path] * _NANOSECONDS)
        return False


def _below(paths: Iterable[str], head: str) -> list[str]:
    return [path.removeprefix(head) for path in paths if path.startswith(head)]


def _hashable(value: Any) -> Any:
    return value.SerializeToString(deterministic=True) if isinstance(value, Message) else repr(value)


def _last(descriptor: Any, path: str) -> Any:
    """The last field of a path; None if the path leads to none, or into a map, which is compared as a whole."""
    found = None
    for name in path.split("."):
        found = descriptor.fields_by_name.get(name) if descriptor is not None else None
        descriptor = found.message_type if found is not None and not _is_map(found) else None
    return found


def _is_map(found: Any) -> bool:
    return found.message_type is not None and bool(found.message_type.GetOptions().map_entry)
