"""A store that lost its disk, as a model: terms, seizure, and how the store comes back.

For a newcomer. The model beside this one (`ownership`) shows that a record is never lost while it moves. It takes for
granted that a store remembers what it has done. A database that was restored from a backup does not: it may believe
that it owns what it gave away since. Such a store is *gone*. Somebody has to say from which moment on nothing counts
any more that it said after the backup, and that moment is the *seizure*: the other store reads the log to its end and
then makes everything of the bucket its own in a new *term*, which is higher than every revision of an older one.

What is in a state: one record in one bucket; each store's disk (row, absence, what waits for the log, the requests it
knows as served); the log; what routers still hold in their hands; and a backup. `loser` is the store whose disk goes
back, `seizer` the other one. Beside the steps of the other model:

* A backup is taken, at any time; later the disk becomes that backup, or an empty one.
* The loser stops and starts at any time. A start asks the seizer or the log for the terms.
* The log is told the term of the seizure. Then the seizer reads the log to its end, and seizes.
* The gone store takes the terms, is filled from the seizer's rows, and opens.
* A row is copied to the other store. It is read first and the requests that were served a moment later, as a program of
  the release before does it: so a copy may name requests whose effects are not in its row.

One thing is a person's word: a store that is merely stopped is not started between the moment when the log is told and
the seizure. (If it is, it may serve when the log is out of reach, so the seizure waits for its end. A gone store is
fenced by its own disk and needs no such word.)

What must be true in every state (`broken` says it in code):

    one owner        at most one store would accept a write
    one writer       no two different records carry one version
    owner is fresh   the store that would accept a write has every write that was in the log when the bucket was seized,
                     and all of the log that is of its own term
    nothing silent   what reaches the log later, of an older term, goes to the journal of conflicts, and never is "old"
    done is done     a request that is answered as served has its effect in the row that answers for it
    one effect       a request that has its effect in the owner's row does not get another one
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.ownership import STORES, Variant, other
from tests.model.recovery_state import (
    EMPTY,
    FRESH,
    Absence,
    Copy,
    Disk,
    Row,
    Served,
    State,
    clash,
    disk_of,
    everywhere,
    learned,
    next_term,
    seizer_of,
    seizures_of,
    shown,
    with_disk,
)


@dataclass(frozen=True)
class Scene:
    """Which steps are explored together, and how far."""

    loser: str
    stops: bool
    """It stops and starts again with all it had; else it loses its disk."""
    requests: tuple[str, ...] = ("r1",)
    revisions: int = 2
    absences: int = 2
    """Versions in the first term."""
    more: int = 2
    """Of each, after every seizure."""
    losses: int = 1
    copies: bool = False
    """One row of the loser is copied; there is no backup."""
    least_states: int = 0
    """Fewer would mean that the exploration has gone blind."""


SCENES = {
    "B returns": Scene("B", stops=True, least_states=30_000),
    "B is restored": Scene("B", stops=False, least_states=25_000),
    "A returns": Scene("A", stops=True, least_states=80_000),
    "A is restored": Scene("A", stops=False, least_states=10_000),
    "B is restored twice": Scene(
        "B", False, ("r1", "r2"), revisions=3, absences=1, more=1, losses=2, least_states=80_000
    ),
    "A is copied and emptied": Scene(
        "A", False, ("r1", "r2"), revisions=2, absences=0, more=1, copies=True, least_states=10_000
    ),
}
LARGE_SCENES = {
    f"{name}, two requests": Scene(scene.loser, scene.stops, ("r1", "r2")) for name, scene in SCENES.items()
}


WRONG_RULES = {
    "old_backup_serves": Variant("B is restored", "a store that went back in time is not recognised", "two owners"),
    "nobody_is_asked": Variant("B returns", "a store that starts asks nobody for the terms", "two owners"),
    "lazy_terms": Variant(
        "B is restored", "rows of a lower term belong to the bucket's owner; a seizure leaves them alone", "two"
    ),
    "own_old_absence": Variant("B returns", "a returned store keeps its own old absence", "two owners"),
    "no_term": Variant("B returns", "a seizure adds one to the revision and begins no term", "two"),
    "log_not_read": Variant("B is restored", "a store seizes before it has read the log to its end", "a logged write"),
    "log_is_not_told": Variant("B returns", "a bucket is seized before the log knows the term", "two owners"),
    "last_base": Variant(
        "B is restored twice", "a seizure forgets what the ones before it had seen", "without a trace"
    ),
    "journaled_stays_known": Variant(
        "B returns",
        "a store answers whatever it knows, and requests of a row that went to the journal stay known",
        "without its effect",
    ),
    "known_is_done": Variant(
        "A is copied and emptied",
        "a request that is known as served is answered, though its effect is not in the row",
        "without its effect",
    ),
    "copied_bare": Variant(
        "A is copied and emptied", "a row is copied without the requests that it has served", "two effects"
    ),
    "late_is_old": Variant(
        "B returns", "a record of an older term than its bucket is old, whatever it says", "without a trace"
    ),
}

Steps = Iterator[tuple[str, State]]


class Fate(NamedTuple):
    """What becomes of a record that arrives."""

    disk: Disk
    said: str


@dataclass(frozen=True)
class RecoveryRules:
    """All steps of a scene, by the protocol or with one wrong rule."""

    scene: Scene
    wrong: str | None = None

    @property
    def start(self) -> State:
        return State()

    @property
    def loser(self) -> str:
        return self.scene.loser

    @property
    def seizer(self) -> str:
        return other(self.scene.loser)

    def steps(self, state: State) -> Steps:
        for store in STORES:
            if self.serves(state, store):
                yield from self.change(state, store)
                yield from self.move_absence(state, store)
                if self.scene.copies and not state.copies and store == self.loser:
                    yield from self.copy(state, store)
            if not (store == self.loser and state.loser_is == "down"):
                yield from self.publish(state, store)
                yield from self.arrive(state, store)
        yield from self.lose(state)
        yield from self.stop_and_start(state)
        yield from self.seize(state)
        yield from self.come_back(state)

    def serves(self, state: State, store: str) -> bool:
        return state.loser_is == "up" if store == self.loser else True

    def owner(self, disk: Disk) -> str:
        row, absence = disk.row, disk.absence
        if row is None:
            return absence.owner
        if row.term < absence.term:
            # Hidden: the row counts for nothing, and the seizer of the term has what counts.
            return absence.owner if self.wrong == "lazy_terms" else seizer_of(absence.term)
        return row.owner

    def accepts(self, state: State, store: str) -> bool:
        return self.serves(state, store) and self.owner(disk_of(state, store)) == store

    def change(self, state: State, store: str) -> Steps:
        """Writes and releases of the owner."""
        disk = disk_of(state, store)
        row, absence = disk.row, disk.absence
        revision = row.revision + 1 if row else 1
        if self.owner(disk) != store or revision > self.scene.revisions + self.scene.more * seizures_of(absence.term):
            return
        term = absence.term if self.wrong == "lazy_terms" or row is None else row.term
        done, bases = (row.done, row.bases) if row else (EMPTY, ())
        for request in self.scene.requests:
            if all(one.request != request for one in self.answered(disk)):
                new = Row(term, revision, store, done | {Served(request, term, revision)}, bases)
                yield f"{request} at {store}", self.made(state, store, new)
        if row:
            given = Row(term, revision, other(store), done, bases)
            yield f"{store} releases", self.made(state, store, given)._replace(flight=state.flight | {given})

    def made(self, state: State, store: str, row: Row) -> State:
        """A new version of the record, here and on its way."""
        disk = disk_of(state, store)
        disk = disk._replace(row=row, outbox=disk.outbox | {row}, known=learned(disk.known, row.done))
        twice = "two effects of one request" if len({one.request for one in row.done}) < len(row.done) else None
        return with_disk(state, store, disk)._replace(trouble=state.trouble or clash(state, row) or twice)

    def answered(self, disk: Disk) -> frozenset[Served]:
        """Requests that are answered as served: by the rule of `libs.ownership.rules.done`, if the row is of their term
        and as new, or if a seizure had seen them."""
        if self.wrong in ("known_is_done", "journaled_stays_known"):
            return disk.known
        row = disk.row
        if row is None:
            return EMPTY
        reached = (*row.bases, row.version)
        return frozenset(
            one for one in disk.known if any(one.term == term and one.revision <= to for term, to in reached)
        )

    def copy(self, state: State, store: str) -> Steps:
        disk = disk_of(state, store)
        if disk.row is not None and state.exported is None and disk.row.term >= disk.absence.term:
            yield f"{store}'s row is read for a copy", state._replace(exported=(store, disk.row))
        if state.exported is not None and state.exported[0] == store:
            served = EMPTY if self.wrong == "copied_bare" else disk.known
            copies = state.copies | {Copy(state.exported[1], served)}
            yield f"{store}'s requests are read for the copy", state._replace(exported=None, copies=copies)

    def publish(self, state: State, store: str) -> Steps:
        disk = disk_of(state, store)
        if disk.outbox:
            after = with_disk(state, store, disk._replace(outbox=frozenset()))
            yield f"the log has the changes of {store}", after._replace(log=state.log | disk.outbox)

    def arrive(self, state: State, store: str) -> Steps:
        disk = disk_of(state, store)
        for event in state.log | state.flight:
            if isinstance(event, Absence) and store == self.seizer:
                continue  # Its own word.
            fate = self.judge(disk, event, store)
            if fate.disk != disk:
                yield f"{shown(event)} arrives at {store}: {fate.said}", with_disk(state, store, fate.disk)
        for copy in state.copies:
            fate = self.judge(disk, copy.row, store, copy.served)
            if fate.disk != disk:
                yield f"a copy of {shown(copy.row)} arrives at {store}: {fate.said}", with_disk(state, store, fate.disk)

    def judge(self, disk: Disk, event: Row | Absence, store: str, told: frozenset[Served] | None = None) -> Fate:
        """Apply. The rule of `libs.ownership.terms.decide_apply`. `told`: the requests that come with a row, else those
        of which it has the effects."""
        if isinstance(event, Absence):
            return Fate(self.take_term(disk, event.term), "its term is taken")
        served = event.done if told is None else told
        disk = self.take_term(disk, event.term)
        row, term = disk.row, disk.absence.term
        if event.term < term and self.wrong != "lazy_terms":
            return self.judge_late(disk, event, store)
        if row is not None and row.term < term and self.wrong != "lazy_terms":
            return Fate(self.replace_lower(disk, row, event, served), "it replaces a row of an older term")
        disk = disk._replace(known=learned(disk.known, served))
        if row is None or event.version > row.version:
            return Fate(disk._replace(row=event), "it is newer")
        return Fate(disk, "it is old")

    def take_term(self, disk: Disk, term: int) -> Disk:
        if term <= disk.absence.term:
            return disk
        return disk._replace(absence=Absence(term, 0, seizer_of(term)))

    def judge_late(self, disk: Disk, event: Row, store: str) -> Fate:
        """By the seizer. The other store may not have the seizer's row yet: it can say nothing of the bases."""
        row = disk.row
        if store != seizer_of(disk.absence.term):
            return Fate(disk, "it is left to the seizer")
        if self.wrong != "late_is_old" and (row is None or self.was_missed(event, row.bases)):
            return Fate(disk._replace(journal=disk.journal | {event}), "it is a conflict")
        return Fate(disk, "it is old")

    def was_missed(self, row: Row, bases: tuple[tuple[int, int], ...]) -> bool:
        """Whether no seizure had seen it."""
        if self.wrong == "last_base":
            return not bases or row.version > bases[-1]
        return not any(row.term == term and row.version <= (term, revision) for term, revision in bases)

    def replace_lower(self, disk: Disk, row: Row, event: Row, served: frozenset[Served]) -> Disk:
        """By a row of the bucket's term. What the seizer has not seen is journaled first."""
        journal, known = disk.journal, learned(disk.known, served)
        if self.was_missed(row, event.bases):
            journal = journal | {row}
            if self.wrong != "journaled_stays_known":
                known = served
        return disk._replace(row=event, journal=journal, known=known)

    def move_absence(self, state: State, store: str) -> Steps:
        """Releases, and the adopts of coordinators that have seen every row of the releaser here."""
        disk, there = disk_of(state, store), disk_of(state, other(store))
        absence = disk.absence
        if absence.owner == store and absence.version < self.scene.absences + self.scene.more * seizures_of(
            absence.term
        ):
            after = Absence(absence.term, absence.version + 1, other(store))
            yield f"{store} releases the absence", with_disk(state, store, disk._replace(absence=after))
        released = there.absence
        rows_are_here = there.row is None or disk.row is not None
        if released.owner == store and rows_are_here and released not in state.drained and self.can_list(state, store):
            yield "drain seen", state._replace(drained=state.drained | {released})
        for found in state.drained:
            same = found.term == absence.term or self.wrong == "lazy_terms"
            hidden = disk.row is not None and disk.row.term < absence.term and self.wrong != "lazy_terms"
            if found.owner == store and same and found.version > absence.version and not hidden:
                adopted = Absence(absence.term, found.version, store)
                yield f"{store} adopts absence {found.version}", with_disk(state, store, disk._replace(absence=adopted))

    def can_list(self, state: State, target: str) -> bool:
        """The releaser's keys are listed by asking it: one that does not serve does not answer."""
        return self.serves(state, other(target)) and self.serves(state, target)

    def lose(self, state: State) -> Steps:
        disk = disk_of(state, self.loser)
        if self.scene.stops:
            return
        more = state.lost < self.scene.losses
        if state.backup is None and state.loser_is == "up" and more and not self.scene.copies:
            yield "a backup is taken", state._replace(backup=disk)
        if not more or state.loser_is not in ("up", "down"):
            return
        recognised = "up" if self.wrong == "old_backup_serves" else "gone"
        for name, found in (("the backup is restored", state.backup), ("the disk is emptied", FRESH[self.loser])):
            if found is not None and found != disk:
                backup = state.backup if state.lost + 1 < self.scene.losses else None
                after = with_disk(state, self.loser, found)
                yield name, after._replace(lost=state.lost + 1, loser_is=recognised, backup=backup)

    def stop_and_start(self, state: State) -> Steps:
        if not self.scene.stops:
            return
        if state.loser_is == "up":
            yield f"{self.loser} stops", state._replace(loser_is="down")
        elif state.loser_is == "down":
            mine = disk_of(state, self.loser).absence.term
            asked = {
                "the seizer": disk_of(state, self.seizer).absence.term,
                "the log": max((event.term for event in state.log), default=0),
            }
            if self.wrong == "nobody_is_asked":
                asked = {"nobody": mine}
            for who, term in asked.items():
                found = "gone" if term > mine else "up"
                yield f"{self.loser} starts and asks {who}: it is {found}", state._replace(loser_is=found)

    def seize(self, state: State) -> Steps:
        """Once for each loss. What it does is one transaction of the seizer."""
        disk = disk_of(state, self.seizer)
        row, absence = disk.row, disk.absence
        if state.loser_is not in ("down", "gone") or seizures_of(absence.term) >= max(state.lost, 1):
            return
        if self.owner(disk) == self.seizer and absence.owner == self.seizer:
            return
        term = 0 if self.wrong == "no_term" else next_term(absence.term, self.seizer)
        if state.told < term and self.wrong != "log_is_not_told":
            told = state.log | {Absence(term, 0, self.seizer)}
            yield "the log is told the term", state._replace(told=term, log=told)
            return
        rows = [event for event in state.log if isinstance(event, Row)]
        if self.wrong != "log_not_read" and any(self.judge(disk, row, self.seizer).disk != disk for row in rows):
            return
        taken = Absence(term, absence.version + 1, self.seizer)
        waits = disk.outbox
        trouble = state.trouble
        if row is not None and self.wrong != "lazy_terms":
            row = Row(term, row.revision + 1, self.seizer, row.done, (*row.bases, row.version))
            waits, trouble = waits | {row}, trouble or clash(state, row)
        disk = disk._replace(row=row, absence=taken, outbox=waits)
        yield (
            f"{self.seizer} seizes the bucket",
            with_disk(state, self.seizer, disk)._replace(
                promised=state.promised.union(*(event.done for event in rows if event not in disk.journal)),
                trouble=trouble,
            ),
        )

    def come_back(self, state: State) -> Steps:
        """Of a gone store: the terms, then the rows, then it opens."""
        disk, there = disk_of(state, self.loser), disk_of(state, self.seizer)
        all_seizers = self.owner(there) == self.seizer and there.absence.owner == self.seizer
        if state.loser_is == "gone" and all_seizers:
            absence = max(disk.absence, there.absence, key=lambda one: one[:2])
            if self.wrong == "own_old_absence":
                absence = disk.absence._replace(term=absence.term)
            taken = disk._replace(absence=absence)
            yield f"{self.loser} takes the terms", with_disk(state, self.loser, taken)._replace(loser_is="taken")
        if state.loser_is == "taken":
            filled = self.judge(disk, there.row, self.loser).disk if there.row is not None else self.settle(disk)
            after = with_disk(state, self.loser, filled)._replace(loser_is="filled")
            yield f"{self.loser} is filled", after._replace(trouble=self.dropped(after, disk.row))
        if state.loser_is == "filled":
            yield f"{self.loser} opens", state._replace(loser_is="up")

    def dropped(self, state: State, row: Row | None) -> str | None:
        """A row that was replaced is a part of what replaced it, or can be found elsewhere."""
        if row is None or any(row.done <= there.done for there in everywhere(state)):
            return state.trouble
        return state.trouble or "a write of the returned store is gone without a trace"

    def settle(self, disk: Disk) -> Disk:
        """A row that the seizer does not have goes to the journal."""
        if disk.row is None or disk.row.term >= disk.absence.term:
            return disk
        known = disk.known if self.wrong == "journaled_stays_known" else EMPTY
        return disk._replace(row=None, journal=disk.journal | {disk.row}, known=known)

    def broken(self, state: State) -> str | None:
        """What of the promises does not hold."""
        owners = [store for store in STORES if self.accepts(state, store)]
        if len(owners) > 1:
            return "two owners"
        if state.trouble:
            return state.trouble
        for store in owners:
            if what := self.misses(state, store):
                return what
        return None

    def misses(self, state: State, store: str) -> str | None:
        """What an owner should have and has not."""
        disk = disk_of(state, store)
        done = disk.row.done if disk.row else EMPTY
        if not self.answered(disk) <= done:
            return "a request is answered as served without its effect"
        if not state.promised <= done:
            return "a logged write is not in the row of the owner"
        journal = disk.journal | disk_of(state, other(store)).journal
        for event in state.log:
            if not isinstance(event, Row) or event.done <= done:
                continue
            if event.term >= disk.absence.term:
                return "an owner without the newest version"
            seizer = disk_of(state, self.seizer)
            if event not in journal and self.judge(seizer, event, self.seizer).disk == seizer:
                return "a logged write is gone without a trace"
        return None
