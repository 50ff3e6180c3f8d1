"""Which records of two stores disagree, how, and what may be done about it. Pure.

Two stores agree on a record when both have a row of it with the same version, owner and payload. In between lies the
feed: what one of them has just changed, the other one does not have yet. So a difference is seen twice before it is
believed, and between the two looks everything must have reached the other store that was changed before the first.

    MISSING  the store that answers for the record has it, the other one has no row      copied
    STALE    as MISSING, but the other one has an older version                          copied
    CORRUPT  other content at one version, or a row that somebody wrote beside Baton     only if a person names it
    EXTRA    a store has what the other one has made, and that one has no row of it      never: it went back in time
    OWNER    who owns the record is not clear, or its owner is older than its copy       never: it went back in time

A store answers for a record that it owns by its own row, and for one that it has given up by the version that lies
there. Repair copies from there to the other store, by versions as ever: nothing gets lower by it.
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
"""In a report; the rest is only counted."""


class Kind(Enum):
    MISSING = "MISSING"
    EXTRA = "EXTRA"
    STALE = "STALE"
    CORRUPT = "CORRUPT"
    OWNER = "OWNER"


REPAIRED = frozenset({Kind.MISSING, Kind.STALE})
"""Without a person."""


class Look(NamedTuple):
    """What a store has of a record."""

    version: Version
    owner: Store
    write_version: Version
    digest: int
    """As it is kept beside the row."""
    content: int
    """Made anew from the row."""
    written_seconds: float | None = None
    """UNIX time, as the record says itself."""

    @property
    def is_damaged(self) -> bool:
        """Somebody else wrote here."""
        return self.digest != self.content

    @property
    def maker(self) -> Store:
        """A write is made by the owner, a release by the store that was it."""
        return self.owner if self.version == self.write_version else self.owner.other


Pair = tuple[Look | None, Look | None]
"""At A and at B."""


@dataclass(frozen=True, slots=True)
class Difference:
    key: str
    kind: Kind
    newer: Store
    """Which has the higher version; of equal ones, the one that owns the record."""
    pair: Pair

    def at(self, store: Store) -> Look | None:
        return self.pair[0 if store is Store.A else 1]

    @property
    def is_handed_over(self) -> bool:
        """Whether a person's word is enough to mend it: its owner has a version that the other store has not passed."""
        look = self.at(self.newer)
        return self.kind is Kind.CORRUPT and look is not None and look.owner is self.newer

    @property
    def version(self) -> Version:
        """The higher one."""
        look = self.at(self.newer)
        assert look is not None, "the newer store has a row"
        return look.version


def difference(key: str, pair: Pair) -> Difference | None:
    """How the stores disagree, as it looks; None: they agree."""
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
    """Of two looks; what had been changed before the first one has reached both stores before the second."""
    if second is None:
        return False
    before, now = (one.at(first.newer.other) for one in (first, second))
    if first.kind is Kind.CORRUPT or (before is not None and before.version == first.version):
        return second.pair == first.pair
    return now is None or now.version < first.version


def is_mended(difference: Difference, pair: Pair) -> bool:
    """After a repair: the store that was behind has what the other one had, or more."""
    older = pair[0 if difference.newer is Store.B else 1]
    if older is None or older.is_damaged or older.version < difference.version:
        return False
    return difference.kind is not Kind.CORRUPT or older.version > difference.version


def _newer(a: Look | None, b: Look | None) -> Store:
    if a is None or b is None:
        return Store.B if a is None else Store.A
    if a.version == b.version:
        return a.owner
    return Store.A if a.version > b.version else Store.B


def _is_other_content(here: Look, there: Look | None) -> bool:
    same = there is not None and (there.version, there.owner) == (here.version, here.owner)
    return same and there is not None and there.content != here.content


class Compared(NamedTuple):
    """What came of the last comparison of all records."""

    seconds_ago: float
    """Below 0 if dated in the future."""
    records: int
    different: int
    """Believed to be."""
    left: int
    """Of these, not repaired."""

    @property
    def share(self) -> float:
        return self.different / max(self.records, self.different, 1)


@dataclass(slots=True)
class Findings:
    """Of a comparison so far: what its report says."""

    records: int = 0
    """That were compared."""
    buckets_walked: int = 0
    """In which the digests were not the same."""
    found: Counter[str] = field(default_factory=Counter)
    """Believed, by kind."""
    repaired: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    """The first ones, as JSON."""
    named: str = ""
    """What the record is that a person has named as CORRUPT: "CORRUPT", which is mended, or in words why not."""
    left_out: int = 0
    """That cannot be copied as they are."""
    why: str = ""
    """The first of them, for a person."""

    @property
    def different(self) -> int:
        return self.found.total()

    @property
    def left(self) -> int:
        return self.different - self.repaired

    def add(self, differences: Iterable[Difference], named: str = "") -> None:
        """`named`: a record that a person says is CORRUPT, or ""."""
        for one in differences:
            if one.key == named:
                self.named = _judged(one)
            self.found[one.kind.value] += 1
            if len(self.differences) < KEPT_DIFFERENCES:
                self.differences.append(_shown(one))

    def mended(self, differences: Sequence[Difference]) -> None:
        self.repaired += len(differences)
        keys = {one.key for one in differences}
        for shown in self.differences:
            shown["repaired"] = shown["repaired"] or shown["key"] in keys

    def leave_out(self, refused: Mapping[str, str]) -> None:
        """By key, why a record cannot be copied."""
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
        )


def _judged(one: Difference) -> str:
    if one.kind is not Kind.CORRUPT:
        return f"it is {one.kind.value}, not CORRUPT"
    return Kind.CORRUPT.value if one.is_handed_over else "it is CORRUPT, but its owner has not the newest version of it"


def _shown(one: Difference) -> dict[str, Any]:
    return {
        "key": one.key,
        "kind": one.kind.value,
        "newer": one.newer.value,
        "A": _shown_look(one.pair[0]),
        "B": _shown_look(one.pair[1]),
        "repaired": False,
    }


def _shown_look(look: Look | None) -> dict[str, Any] | None:
    if look is None:
        return None
    return {
        "version": f"{look.version.term}-{look.version.revision}",
        "owner": look.owner.value,
        "content": f"{look.content:016x}",
        "written_beside_baton": look.is_damaged,
    }
