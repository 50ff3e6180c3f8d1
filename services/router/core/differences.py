"""Differences between the records of two stores, and their repair. Pure.

Two stores agree on a record if both have a row with the same version, owner and payload. A recent change may still
be in the feed. So a difference counts only if a second look confirms it, and every change made before the first look
has reached the other store by then.

    MISSING  the source has the record, the other store has no row                       copied
    STALE    as MISSING, but the other one has an older version                          copied
    CORRUPT  other content at one version, or a row that was not written by Baton        only if an operator names it
    EXTRA    a store has a version that the other made, and the other has no row          never: it was rolled back
    OWNER    the owner is unclear, or the owner's row is older than the copy              never: it was rolled back

The source of a repair is the owner's row, or the released version at the store that released it. Repair copies it to
the other store by version, so no version gets lower.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from libs.ownership.model import Store, Version

KEPT_DIFFERENCES = 100
"""Differences that a report lists; the rest is counted."""


class Kind(Enum):
    MISSING = "MISSING"
    EXTRA = "EXTRA"
    STALE = "STALE"
    CORRUPT = "CORRUPT"
    OWNER = "OWNER"


REPAIRED = frozenset({Kind.MISSING, Kind.STALE})
"""Kinds that are repaired without an operator."""


class RowView(NamedTuple):
    """A record at one store."""

    version: Version
    owner: Store
    write_version: Version
    digest: int
    """The digest stored beside the row."""
    content: int
    """The digest computed from the row."""
    written_seconds: float | None = None
    """UNIX time, from the record."""

    @property
    def is_damaged(self) -> bool:
        """The row was changed by another program."""
        return self.digest != self.content

    @property
    def maker(self) -> Store:
        """A write is made by the owner, a release by the store that was it."""
        return self.owner if self.version == self.write_version else self.owner.other


Pair = tuple[RowView | None, RowView | None]
"""The row at A and the row at B."""


@dataclass(frozen=True, slots=True)
class Difference:
    key: str
    kind: Kind
    newer: Store
    """The store with the higher version; for equal versions, the owner."""
    pair: Pair

    def at(self, store: Store) -> RowView | None:
        return self.pair[0 if store is Store.A else 1]

    @property
    def is_handed_over(self) -> bool:
        """Whether an operator may order its repair: the owner has a version that the other store has not passed."""
        look = self.at(self.newer)
        return self.kind is Kind.CORRUPT and look is not None and look.owner is self.newer

    @property
    def version(self) -> Version:
        """The higher one."""
        look = self.at(self.newer)
        assert look is not None, "the newer store has a row"
        return look.version


def difference(key: str, pair: Pair) -> Difference | None:
    """The difference between the rows; None: they agree."""
    a, b = pair
    if a is None and b is None:
        return None
    newer = _newer(a, b)
    here, there = (a, b) if newer is Store.A else (b, a)
    assert here is not None, "the newer store has a row"
    if (here.is_damaged or (there is not None and there.is_damaged)) or _is_other_content(here, there):
        return Difference(key, Kind.CORRUPT, newer, pair)
    answers = newer in (here.owner, here.maker)
    if there is None:
        return Difference(key, Kind.MISSING if answers else Kind.EXTRA, newer, pair)
    if here.version == there.version:
        return None if here.owner is there.owner else Difference(key, Kind.OWNER, newer, pair)
    claims = there.owner is newer.other
    return Difference(key, Kind.STALE if answers and not claims else Kind.OWNER, newer, pair)


def is_believed(first: Difference, second: Difference | None) -> bool:
    """Whether the second look confirms the first. Changes made before the first have reached both stores by then."""
    if second is None:
        return False
    before, now = (one.at(first.newer.other) for one in (first, second))
    if first.kind is Kind.CORRUPT or (before is not None and before.version == first.version):
        return second.pair == first.pair
    return now is None or now.version < first.version


def is_repaired(difference: Difference, pair: Pair) -> bool:
    """Whether a repair worked: the store that was behind has the other's version, or a later one."""
    older = pair[0 if difference.newer is Store.B else 1]
    if older is None or older.is_damaged or older.version < difference.version:
        return False
    return difference.kind is not Kind.CORRUPT or older.version > difference.version


def _newer(a: RowView | None, b: RowView | None) -> Store:
    if a is None or b is None:
        return Store.B if a is None else Store.A
    if a.version == b.version:
        return a.owner
    return Store.A if a.version > b.version else Store.B


def _is_other_content(here: RowView, there: RowView | None) -> bool:
    same = there is not None and (there.version, there.owner) == (here.version, here.owner)
    return same and there is not None and there.content != here.content


class Compared(NamedTuple):
    """The result of the last comparison of all records."""

    seconds_ago: float
    """Below 0 if dated in the future."""
    records: int
    different: int
    """Confirmed differences."""
    left: int
    """Differences that were not repaired."""

    @property
    def share(self) -> float:
        return self.different / max(self.records, self.different, 1)


@dataclass(slots=True)
class Findings:
    """The report of a comparison."""

    records: int = 0
    """Compared records."""
    buckets_walked: int = 0
    """Buckets whose digests differed."""
    found: Counter[str] = field(default_factory=Counter)
    """Confirmed differences by kind."""
    repaired: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    """The first differences, as JSON."""
    named: str = ""
    """The result for the record that an operator named as CORRUPT: "CORRUPT" if it is repaired, or the reason."""
    left_out: int = 0
    """Records that cannot be copied unchanged."""
    why: str = ""
    """Reason why the first of them cannot be copied."""
    deep: bool = False
    """The digests were computed from the rows."""
    digests: dict[str, str] = field(default_factory=dict)
    """XOR of the digests of each store's rows, by store, as 32 hexadecimal digits. For a deep comparison."""
    changing: int = 0
    """Number of buckets that changed at each look, so that their digests differ although no record does. For a deep
    comparison."""

    @property
    def different(self) -> int:
        return self.found.total()

    @property
    def left(self) -> int:
        return self.different - self.repaired

    def add(self, differences: Iterable[Difference], named: str = "") -> None:
        """`named`: a record that an operator has named as CORRUPT, or ""."""
        for one in differences:
            if one.key == named:
                self.named = _named(one)
            self.found[one.kind.value] += 1
            if len(self.differences) < KEPT_DIFFERENCES:
                self.differences.append(_shown(one))

    def count_repaired(self, differences: Sequence[Difference]) -> None:
        self.repaired += len(differences)
        keys = {one.key for one in differences}
        for shown in self.differences:
            shown["repaired"] = shown["repaired"] or shown["key"] in keys

    def leave_out(self, refused: Mapping[str, str]) -> None:
        """`refused`: why a record cannot be copied, by key."""
        self.left_out += len(refused)
        self.why = self.why or next(iter(refused.values()), "")

    def to_json(self) -> str:
        counted = {kind.value: self.found[kind.value] for kind in Kind}
        value = {
            "records": self.records,
            "buckets_walked": self.buckets_walked,
            "found": counted,
            "different": self.different,
            "repaired": self.repaired,
            "left": self.left,
            "differences": self.differences,
            "named": self.named,
            "left_out": self.left_out,
            "why": self.why,
            "deep": self.deep,
            "digests": self.digests,
            "changing": self.changing,
        }
        return json.dumps(value, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Findings:
        if not text:
            return cls()
        value = json.loads(text)
        found = Counter({kind: count for kind, count in value["found"].items() if count})
        return cls(
            value["records"],
            value["buckets_walked"],
            found,
            value["repaired"],
            value["differences"],
            value.get("named", ""),
            value.get("left_out", 0),
            value.get("why", ""),
            value.get("deep", False),
            value.get("digests", {}),
            value.get("changing", 0),
        )


def _named(one: Difference) -> str:
    if one.kind is not Kind.CORRUPT:
        return f"it is {one.kind.value}, not CORRUPT"
    return Kind.CORRUPT.value if one.is_handed_over else "it is CORRUPT, but its owner does not have its newest version"


def _shown(one: Difference) -> dict[str, Any]:
    return {
        "key": one.key,
        "kind": one.kind.value,
        "newer": one.newer.value,
        "A": _shown_look(one.pair[0]),
        "B": _shown_look(one.pair[1]),
        "repaired": False,
    }


def _shown_look(look: RowView | None) -> dict[str, Any] | None:
    if look is None:
        return None
    return {
        "version": f"{look.version.term}-{look.version.revision}",
        "owner": look.owner.value,
        "content": f"{look.content:016x}",
        "written_beside_baton": look.is_damaged,
    }
