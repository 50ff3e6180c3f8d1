"""What is in a state of the model `recovery`: disks, the log, what is under way; and how to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.ownership import STORES


class Served(NamedTuple):
    """A request and the version that it made."""

    request: str
    term: int
    revision: int


EMPTY: frozenset[Served] = frozenset()


class Row(NamedTuple):
    term: int
    revision: int
    owner: str
    done: frozenset[Served]
    """The requests whose effects are in it."""
    bases: tuple[tuple[int, int], ...] = ()
    """Its versions before the seizures."""

    @property
    def version(self) -> tuple[int, int]:
        return self.term, self.revision


class Absence(NamedTuple):
    term: int
    version: int
    owner: str


class Copy(NamedTuple):
    """A row on its way to the other store, with the requests that its store knew a moment later."""

    row: Row
    served: frozenset[Served]


class Disk(NamedTuple):
    """What a store remembers."""

    row: Row | None
    absence: Absence
    outbox: frozenset[Row | Absence] = frozenset()
    known: frozenset[Served] = EMPTY
    """Requests that were served, each with one version: answered again, without an effect, if the row has that."""
    journal: frozenset[Row] = frozenset()


FRESH = {"A": Disk(None, Absence(0, 1, "A")), "B": Disk(None, Absence(0, 0, "A"))}


class State(NamedTuple):
    disks: tuple[Disk, Disk] = (FRESH["A"], FRESH["B"])
    loser_is: str = "up"
    """up, down, gone, taken (gone, and it has taken the terms), filled (and it has been filled)."""
    told: int = 0
    """The log has this term of a seizure."""
    log: frozenset[Row | Absence] = frozenset()
    flight: frozenset[Row] = frozenset()
    """Releases in routers' hands: they may arrive at any time, and again."""
    exported: tuple[str, Row] | None = None
    """The row that a store has read for a copy, before it reads the requests."""
    copies: frozenset[Copy] = frozenset()
    """In routers' hands too."""
    drained: frozenset[Absence] = frozenset()
    """Released absences whose rows are all at the target, as some coordinator has seen."""
    backup: Disk | None = None
    lost: int = 0
    """How often the loser's disk has gone back."""
    promised: frozenset[Served] = EMPTY
    """Writes that were in the log at a seizure, but for those that were a conflict already."""
    trouble: str | None = None
    """What a step has broken that no state shows afterwards."""


def everywhere(state: State) -> Iterator[Row]:
    """All rows that anybody has."""
    a, b = state.disks
    events = state.log | state.flight | a.outbox | b.outbox | a.journal | b.journal
    yield from (copy.row for copy in state.copies)
    yield from (event for event in events if isinstance(event, Row))
    yield from (row for row in (a.row, b.row) if row is not None)


def clash(state: State, row: Row) -> str | None:
    """Two records with one version that are not the same."""
    if any(there.version == row.version and there[2:4] != row[2:4] for there in everywhere(state)):
        return "two writers of one version"
    return None


def learned(known: frozenset[Served], served: frozenset[Served]) -> frozenset[Served]:
    """Of two versions of one request the higher one stays."""
    newest: dict[str, Served] = {}
    for one in (*known, *served):
        newest[one.request] = max(one, newest.get(one.request, one))
    return frozenset(newest.values())


def seizer_of(term: int) -> str:
    """Even terms are A's, odd ones B's."""
    return "B" if term % 2 else "A"


def next_term(term: int, store: str) -> int:
    return term + 1 if seizer_of(term + 1) == store else term + 2


def seizures_of(term: int) -> int:
    """How many there were, of one seizer."""
    return (term + 1) // 2


def disk_of(state: State, store: str) -> Disk:
    return state.disks[STORES.index(store)]


def with_disk(state: State, store: str, disk: Disk) -> State:
    a, b = state.disks
    return state._replace(disks=(disk, b) if store == "A" else (a, disk))


def shown(event: Row | Absence) -> str:
    if isinstance(event, Absence):
        return f"the bucket's term {event.term}"
    return f"version {event.term}-{event.revision} for {event.owner}"
