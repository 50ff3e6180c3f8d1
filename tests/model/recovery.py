"""A lost store as a model: terms, seizure, and how the store comes back.

The model beside this one (`ownership`) shows that a record is never lost while it moves, as long as a store remembers
what it has done. A restored database does not: it may claim records that it gave away after the backup. Such a store is
fenced. A *seizure* is the moment from which nothing counts that the store said after the backup: the other store reads
the log to its end, and then makes everything of the bucket its own in a new *term*, which is higher than every revision
of an older one.

In a state: each store's disk, the log, the messages in routers' hands, and a backup. `loser` is the store whose disk is
lost, `seizer` the other one. The stores' decisions are the product's own, as in the other model. The steps beside its
steps:

* A backup is taken, at any time; later the disk becomes that backup, or an empty one.
* The loser stops and starts at any time. A start asks the seizer or the log for the terms.
* The log gets the term of the seizure. Then the seizer reads the log to its end, and seizes.
* The fenced store takes the terms, is filled from the seizer's rows, and opens.
* A row is copied to the other store. It is read first and the requests that were served a moment later, as a program of
  the release before does it: so a copy may name requests whose effects are not in its row.

One thing depends on a person: a store that is merely stopped is not started between the moment when the log gets the
term and the seizure. (If it is, it may serve when the log is out of reach, so the seizure waits for its end. A fenced
store is fenced by its own disk and needs no such promise.)

The properties, checked in every state:

    one owner        at most one store would accept a write, and at most one would create a record in the bucket
    one writer       no two different records carry one version
    owner is fresh   the store that would accept a write has every write that was in the log when the bucket was seized,
                     and all of the log that is of its own term
    nothing silent   a record of an older term that reaches the log later goes to the journal of conflicts, if its
                     writes are not in the owner's row; and only such a record
    answers match    a request that is answered as served has its effect in the row that answers for it
    one effect       a request that has its effect in the owner's row does not get another one
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from libs.backend.evidence import by_buckets, by_terms
from libs.ownership.model import BucketOwner, Row, Store
from libs.ownership.terms import Fate, is_share
from libs.store.window import newest
from tests.model.store import (
    BUCKET,
    FIRST,
    A,
    B,
    Disk,
    Message,
    Procedures,
    Request,
    Rules,
    Written,
    effects_of,
    flaw,
    make_message,
)
from tests.model.wrong import RULES


class State(NamedTuple):
    disks: tuple[Disk, Disk] = (FIRST[A], FIRST[B])
    loser_is: str = "up"
    """up, down, fenced, taken (fenced, and it has taken the terms), filled (and it has been filled)."""
    terms: tuple[int, ...] = ()
    """Terms of seizures in the log."""
    log: frozenset[Message] = frozenset()
    flight: frozenset[Message] = frozenset()
    """Releases and copies in routers' hands: each may arrive at any time, and again."""
    exported: Row | None = None
    """The row that the loser has read for a copy, before it reads the requests."""
    is_copied: bool = False
    drained: frozenset[BucketOwner] = frozenset()
    """Released buckets of which a coordinator has seen all rows at the target."""
    backup: Disk | None = None
    lost: int = 0
    """How often the loser has lost its disk."""
    seen: frozenset[Message] = frozenset()
    """The log at a seizure, except the records that were in the journal already."""
    trouble: str | None = None
    """The property that a step has broken."""


@dataclass(frozen=True)
class Scene:
    """Which steps are explored together, and how far."""

    loser: Store
    stops: bool
    """The loser stops, and starts again with everything it had; else it loses its disk."""
    requests: tuple[Request, ...] = (Request("r1"),)
    revisions: int = 2
    buckets: int = 2
    """Versions of the bucket in the first term."""
    more: int = 2
    """Revisions and versions of the bucket after every seizure."""
    losses: int = 1
    copies: bool = False
    """One row of the loser is copied; there is no backup."""
    bulk: bool = False
    """Releases are made in bulk, without payloads."""
    least_states: int = 0
    """Fewer states mean that the model has lost steps."""


TWO = (Request("r1"), Request("r2"))

SCENES = {
    "B is restored": Scene(B, stops=False, least_states=28_664),
    "B returns": Scene(B, stops=True, least_states=53_130),
    "B returns, bulk": Scene(B, stops=True, revisions=3, more=1, bulk=True, least_states=108_706),
    "A returns": Scene(A, stops=True, least_states=120_052),
    "A is restored": Scene(A, stops=False, least_states=112_542),
    "B is restored twice": Scene(B, False, TWO, revisions=3, buckets=1, more=1, losses=2, least_states=120_848),
    "A is copied and emptied": Scene(A, False, TWO, revisions=2, buckets=0, more=1, copies=True, least_states=154_656),
}
LARGE_SCENES = {f"{name}, two requests": Scene(scene.loser, scene.stops, TWO) for name, scene in SCENES.items()}

Steps = Iterator[tuple[str, State]]


class Recovery:
    """All steps of a scene, by the product's rules or by one wrong variant."""

    start = State()

    def __init__(self, scene: Scene, wrong: str = "") -> None:
        self.scene = scene
        self.wrong = wrong
        self.loser = scene.loser
        self.seizer = scene.loser.other
        self.store = Procedures(RULES.get(wrong, Rules()))
        self.wrong_answers = cache(self._wrong_answers)

    def steps(self, state: State) -> Steps:
        for disk in state.disks:
            if self.serves(state, disk.me):
                yield from self.change(state, disk)
                yield from self.move_bucket(state, disk)
            if disk.me is self.seizer or state.loser_is != "down":
                yield from self.publish(state, disk)
                yield from self.arrive(state, disk)
        yield from self.copy(state)
        yield from self.lose(state)
        yield from self.stop_and_start(state)
        yield from self.seize(state)
        yield from self.come_back(state)

    def serves(self, state: State, store: Store) -> bool:
        return store is self.seizer or state.loser_is == "up"

    def change(self, state: State, disk: Disk) -> Steps:
        """Writes and releases of the owner."""
        most = self.scene.revisions + self.scene.more * seizures(disk)
        if self.store.next_revision(disk) > most:
            return
        for request in self.scene.requests:
            written = self.store.write(disk, request)
            if isinstance(written, Written):
                yield f"{request.name} at {disk.me}", self.made(state, written)
        if self.store.accepts(disk) and self.store.found(disk).row is not None:
            if self.scene.bulk and (in_bulk := self.store.release_in_bulk(disk)) is not None:
                yield f"{disk.me} releases in bulk", self.made(state, in_bulk)
            released = self.store.release(disk)
            if released is not None:
                after = self.made(state, released)
                yield f"{disk.me} releases", after._replace(flight=state.flight | {released.event})

    def made(self, state: State, written: Written) -> State:
        """A new version of the record, committed and on its way."""
        disk, event = written
        trouble = state.trouble or clash(state, event.row) or flaw(event.row)
        return with_disk(state, disk.but(outbox=disk.outbox | {event}))._replace(trouble=trouble)

    def copy(self, state: State) -> Steps:
        """A row of the loser is read, and its served requests a moment later."""
        disk = disk_of(state, self.loser)
        if not self.scene.copies or state.is_copied or not self.serves(state, self.loser):
            return
        if state.exported is not None:
            served = () if self.wrong == "copied_bare" else newest(disk.served)
            flight = state.flight | {make_message(state.exported, served)}
            read = state._replace(exported=None, is_copied=True, flight=flight)
            yield f"the requests of {self.loser} are read for the copy", read
        elif row := self.store.found(disk).row:
            yield f"the row of {self.loser} is read for a copy", state._replace(exported=row)

    def publish(self, state: State, disk: Disk) -> Steps:
        if disk.outbox:
            after = with_disk(state, self.store.publish(disk))
            yield f"the log has the changes of {disk.me}", after._replace(log=state.log | disk.outbox)

    def arrive(self, state: State, disk: Disk) -> Steps:
        for message in state.log | state.flight:
            after, fate = self.store.apply(disk, message)
            if after is not disk:
                yield arrival(message, disk.me, fate), with_disk(state, after)
        for term in state.terms if disk.me is self.loser else ():
            after = self.store.take_term(disk, term)
            if after is not disk:
                yield f"term {term} arrives at {disk.me}", with_disk(state, after)

    def move_bucket(self, state: State, disk: Disk) -> Steps:
        """Releases, and the adopts of coordinators that have seen every row of the releaser here."""
        there = disk_of(state, disk.me.other)
        after = self.store.release_bucket(disk)
        if after is not None and disk.bucket.version < self.scene.buckets + self.scene.more * seizures(disk):
            yield f"{disk.me} releases the bucket", with_disk(state, after)
        released = there.bucket
        rows_are_here = there.row is None or disk.row is not None
        # The releaser's keys are listed by asking it, so it must serve.
        can_list = self.serves(state, there.me) and self.serves(state, disk.me)
        if released.owner is disk.me and rows_are_here and can_list and released not in state.drained:
            yield "the bucket is drained", state._replace(drained=state.drained | {released})
        for offered in state.drained:
            adopted = self.store.adopt_bucket(disk, offered)
            if adopted is not None:
                yield f"{disk.me} adopts bucket {offered.version}", with_disk(state, adopted)

    def lose(self, state: State) -> Steps:
        disk = disk_of(state, self.loser)
        if self.scene.stops or state.lost >= self.scene.losses:
            return
        if state.backup is None and state.loser_is == "up" and not self.scene.copies:
            yield "a backup is taken", state._replace(backup=disk)
        if state.loser_is not in ("up", "down"):
            return
        recognised = "up" if self.wrong == "old_backup_serves" else "fenced"
        for name, found in (("the backup is restored", state.backup), ("the disk is emptied", FIRST[self.loser])):
            if found is not None and found is not disk:
                backup = state.backup if state.lost + 1 < self.scene.losses else None
                after = with_disk(state, found)
                yield name, after._replace(lost=state.lost + 1, loser_is=recognised, backup=backup)

    def stop_and_start(self, state: State) -> Steps:
        if not self.scene.stops:
            return
        if state.loser_is == "up":
            yield f"{self.loser} stops", state._replace(loser_is="down")
        elif state.loser_is == "down":
            mine, theirs = disk_of(state, self.loser).bucket, disk_of(state, self.seizer).bucket
            evidence = {
                "the seizer": by_buckets([mine], [theirs], self.loser),
                "the log": by_terms([mine], {BUCKET: max(state.terms, default=0)}),
            }
            if self.wrong == "nobody_is_asked":
                evidence = {"no source": ""}
            for source, reason in evidence.items():
                found = "fenced" if reason else "up"
                yield f"{self.loser} starts and asks {source}: it is {found}", state._replace(loser_is=found)

    def seize(self, state: State) -> Steps:
        """Once for each loss, in one transaction of the seizer."""
        disk = disk_of(state, self.seizer)
        if state.loser_is not in ("down", "fenced") or seizures(disk) >= max(state.lost, 1):
            return
        if not self.has_share(disk):
            return
        term = self.store.by.next_term(disk.bucket.term, self.seizer)
        if max(state.terms, default=0) < term and self.wrong != "log_is_not_told":
            yield f"the log gets term {term}", state._replace(terms=(*state.terms, term))
            return
        is_read = all(self.store.apply(disk, message).disk is disk for message in state.log)
        if not is_read and self.wrong != "log_not_read":
            return
        seized = self.store.seize(disk, term)
        after = self.made(state, seized) if isinstance(seized, Written) else with_disk(state, seized)
        seen = {message for message in state.log if message.row not in disk.journal}
        yield f"{self.seizer} seizes the bucket", after._replace(seen=state.seen | seen)

    def has_share(self, disk: Disk) -> bool:
        """Whether the other store may own something of the bucket."""
        row = self.store.found(disk).row
        return is_share(disk.bucket, disk.me, int(row is not None), int(row is not None and row.owner is disk.me))

    def come_back(self, state: State) -> Steps:
        """The fenced store takes the terms, gets the rows, and opens."""
        disk, there = disk_of(state, self.loser), disk_of(state, self.seizer)
        if state.loser_is == "fenced" and not self.has_share(there):
            taken = self.store.take_bucket(disk, there.bucket)
            yield f"{self.loser} takes the terms", with_disk(state, taken)._replace(loser_is="taken")
        if state.loser_is == "taken":
            if there.row is not None:
                served = self.store.by.travels(there.row, there.served)
                filled = self.store.apply(disk, make_message(there.row, served)).disk
            else:
                filled = self.store.settle(disk)
            after = with_disk(state, filled)._replace(loser_is="filled")
            yield f"{self.loser} is filled", after._replace(trouble=state.trouble or dropped(after, disk))
        if state.loser_is == "filled" and (disk.row is None or self.store.found(disk).row is not None):
            yield f"{self.loser} opens", state._replace(loser_is="up")

    def broken(self, state: State) -> str | None:
        """The property that does not hold."""
        serving = [disk for disk in state.disks if self.serves(state, disk.me)]
        owners = [disk for disk in serving if self.store.accepts(disk)]
        if len(owners) > 1:
            return "two owners"
        if sum(disk.bucket.owner is disk.me for disk in serving) > 1:
            return "two owners of the bucket"
        if state.trouble is not None:
            return state.trouble
        for disk in serving:
            if trouble := self.wrong_answers(disk):
                return trouble
        for disk in owners:
            if trouble := self.missing(state, disk):
                return trouble
        return None

    def _wrong_answers(self, disk: Disk) -> str | None:
        found = (self.store.wrong_answer(disk, request) for request in self.scene.requests)
        return next(filter(None, found), None)

    def missing(self, state: State, owner: Disk) -> str | None:
        """A write that the owner should have and has not."""
        a, b = state.disks
        for event in state.seen:
            if not event.effects <= owner.effects:
                return "a logged write is not in the row of the owner"
            if event.row in a.journal or event.row in b.journal:
                return "a change that the seizer had seen is a conflict"
        for event in state.log:
            if event.effects <= owner.effects:
                continue
            if event.version.term >= owner.bucket.term:
                return "an owner without the newest version"
            if event.entry is not None:
                # It shows no write: each write has an event of its own, which is in the log before it.
                continue
            if event.row in a.journal or event.row in b.journal:
                continue
            seizer = disk_of(state, self.seizer)
            if self.store.apply(seizer, event).disk is seizer:
                return "a logged write is gone without a trace"
        return None


def disk_of(state: State, store: Store) -> Disk:
    return state.disks[store is not A]


_new_tuple = tuple.__new__
"""`State._replace` takes several times as long, and most steps change a disk."""


def with_disk(state: State, disk: Disk) -> State:
    a, b = state.disks
    return _new_tuple(State, ((disk, b) if disk.me is A else (a, disk), *state[1:]))


def seizures(disk: Disk) -> int:
    """How many seizures the bucket has had, all by one store."""
    return (disk.bucket.term + 1) // 2


def everywhere(state: State) -> Iterator[Row]:
    """All rows that a store, the log or a router has."""
    a, b = state.disks
    yield from (message.row for message in state.log | state.flight | a.outbox | b.outbox)
    yield from a.journal | b.journal
    yield from (disk.row for disk in state.disks if disk.row is not None)


def clash(state: State, row: Row) -> str | None:
    if any(there.version == row.version and there != row for there in everywhere(state)):
        return "two writers of one version"
    return None


def dropped(after: State, before: Disk) -> str | None:
    """A row that was replaced is a part of the row that replaced it, or is found elsewhere."""
    if before.row is None or any(before.effects <= effects_of(row) for row in everywhere(after)):
        return None
    return "a write of the returned store is gone without a trace"


@cache
def arrival(message: Message, store: Store, fate: Fate) -> str:
    term, revision = message.version
    return f"version {term}-{revision} for {message.row.owner} arrives at {store}: {fate.value}"
