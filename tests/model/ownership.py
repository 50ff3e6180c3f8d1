"""The ownership protocol as a model that is small enough to be explored completely.

For a newcomer. Two stores, A and B, hold copies of the same records, and a client's call may reach either of them. The
danger is always the same: both believe that they may change a record, and one of the two changes is lost. Tests of the
real stores run into such an accident only now and then. A model has no "now and then": it is a state and a list of all
steps that can be taken from it, and the computer takes every one of them, in every order, until no state is new. What
holds in all of these states holds whatever the network, a crash or a slow process does.

What is in a state: one record in one bucket, as each store has it; who owns the bucket's absent records, as each store
believes; and everything that is on its way. What can happen next:

* Any router sends any request to any store, since flags are only hints. A reply may be lost and the request be sent
  again, there or elsewhere; or it is given up and carried out much later, or never.
* Everything ever sent from store to store may arrive at any time, in any order, and again: the event of a change, what
  a release answered, a row that was copied. Nothing that was sent is ever forgotten.
* Coordinators of a move stop anywhere. Others finish what they began, and the first may come back later.

What must be true in every state (`broken` says it in code):

    one owner        at most one store would accept a write
    one writer       no two different records carry the same revision
    one effect       a request changes the record at most once, wherever it is sent and however often
    owner is fresh   the store that would accept a write has the newest revision
    reads are fresh  a read never shows less than what was there when it began; so nothing acknowledged goes missing
    no means no      a request whose refusal was told to the client never has an effect afterwards

A model that finds nothing could be blind. So the rules of the protocol have wrong variants here, each of them tempting,
and the exploration must find the accident that each leads to.

Terms are left out, since they change only at a seizure: the model beside this one, `recovery`, has them. `SCENES`
keeps the number of states small: each explores some of the steps together, with bounds that leave room for every
accident known.
`python -m tests.model --all` explores it all and shows for every wrong rule a shortest way to the accident.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

STORES = ("A", "B")


class Row(NamedTuple):
    """The record as one store has it, or on its way to one."""

    revision: int
    owner: str
    value: str | None
    """None: there is no live record (a stub, or a tombstone)."""
    served: frozenset[str]


class Absence(NamedTuple):
    """Who owns the records of the bucket that do not exist yet."""

    version: int
    owner: str


class Reading(NamedTuple):
    """A strict read under way."""

    target: str
    floor: int
    """The newest revision when it began: the answer must not be older."""
    denied: int
    """How many stores have said that they are not the owner: first the target, then the other."""
    looked: frozenset[str]
    """When both have: the stores whose rows were looked at since."""
    best: int
    answer: int | None


Rows = tuple[Row | None, Row | None]
Absences = tuple[Absence, Absence]


class State(NamedTuple):
    rows: Rows = (None, None)
    absence: Absences = (Absence(1, "A"), Absence(0, "A"))
    records: frozenset[Row] = frozenset()
    """All that was ever sent; it may arrive at any time."""
    effects: frozenset[tuple[str, int]] = frozenset()
    """Requests that changed the record, with the revision they made."""
    drained: frozenset[int] = frozenset()
    """Versions of the absence whose releaser has no row that the target lacks, as some coordinator has seen."""
    given_up: frozenset[tuple[str, str]] = frozenset()
    """Requests sent to a store whose answer nobody waits for any more: carried out at any time, or never."""
    refused: frozenset[str] = frozenset()
    """Requests of which the client was told that they were refused."""
    reading: Reading | None = None


@dataclass(frozen=True)
class Scene:
    """Which steps are explored together, and how far."""

    requests: Mapping[str, str]
    """Name, and what the contract asks of the record: "live", "not live" or "nothing"."""
    revisions: int
    absences: int
    copies: bool = False
    declines: bool = False
    reads: bool = False
    given_up: bool = False
    least_states: int = 0
    """Fewer would mean that the exploration has gone blind."""


SCENES = {
    "moving": Scene({"r1": "nothing", "r2": "nothing"}, revisions=6, absences=5, declines=True, least_states=6_000),
    "copying": Scene({"r1": "nothing", "r2": "nothing"}, revisions=5, absences=3, copies=True, least_states=40_000),
    "reading": Scene({"r1": "nothing", "r2": "nothing"}, revisions=5, absences=3, reads=True, least_states=250_000),
    "giving up": Scene({"create": "not live", "delete": "live"}, 4, 3, given_up=True, least_states=12_000),
}


@dataclass(frozen=True)
class Variant:
    """A rule that is wrong, the scene that shows it, and what it leads to."""

    scene: str
    rule: str
    breaks: str


WRONG_RULES = {
    "absent_is_free": Variant(
        "moving", "a store without a row accepts a create, whoever owns the absent records", "two owners"
    ),
    "seize": Variant("moving", "a store takes a record over without the owner's release", "two owners"),
    "requests_stay": Variant("moving", "a release travels without the requests that were served", "two effects"),
    "drain_before_release": Variant(
        "moving", "the source's keys are listed while it still creates records", "two owners"
    ),
    "adopt_without_drain": Variant("moving", "an absence is adopted before the source's rows are here", "two owners"),
    "adopt_any_version": Variant("moving", "an older version of an absence is adopted again", "two owners"),
    "declined_is_drained": Variant(
        "moving", "a releaser adopts what was declined without a look at the other store's rows", "two owners"
    ),
    "take_back": Variant("moving", "a store takes back by itself what it has released", "two owners"),
    "apply_anything": Variant("moving", "what arrives replaces what is here, newer or not", "without the newest"),
    "released_again_bare": Variant(
        "copying", "a release that is repeated answers the row without the requests that were served", "two effects"
    ),
    "copy_of_released_bare": Variant(
        "copying", "a row that was given up is copied to its new owner without the requests it served", "two effects"
    ),
    "read_the_target": Variant("reading", "when both stores deny, the target's row is the answer", "stale read"),
    "late_is_not_looked_up": Variant(
        "giving up", "what is carried out late is not looked up among the served requests", "two effects"
    ),
    "requests_are_known_at_home": Variant(
        "giving up", "a request is recognised only by the store that has served it", "refused"
    ),
    "refusal_is_told": Variant(
        "giving up", "the other store's refusal is told, though the first may still carry the request out", "refused"
    ),
}


Steps = Iterator[tuple[str, State]]


@dataclass(frozen=True)
class Rules:
    """All steps of a scene, by the protocol or with one wrong rule."""

    scene: Scene
    wrong: str | None = None

    @property
    def start(self) -> State:
        return State()

    def broken(self, state: State) -> str | None:
        return broken(state)

    def steps(self, state: State) -> Steps:
        for store in STORES:
            yield from self.write(state, store)
            yield from self.release(state, store)
            yield from self.arrive(state, store)
            yield from self.release_absence(state, store)
            yield from self.adopt_absence(state, store)
            if self.scene.declines:
                yield from self.decline_absence(state, store)
            if self.scene.copies:
                yield from self.copy(state, store)
            if self.scene.given_up:
                yield from self.give_up(state, store)
        if self.scene.reads:
            yield from self.read(state)

    def write(self, state: State, store: str) -> Steps:
        """A request reaches a store. It owns the record, or nothing happens; so denials need no step of their own."""
        row = row_of(state, store)
        if not (owns(state, store) or (self.wrong == "absent_is_free" and row is None)):
            return
        for request, needs in self.scene.requests.items():
            late = (request, store) in state.given_up
            if request in served_of(row) and not (late and self.wrong == "late_is_not_looked_up"):
                continue  # The answer is given again, and nothing changes.
            if needs != "nothing" and needs != ("live" if row and row.value else "not live"):
                yield from self.refuse(state, store, request)
            elif request not in state.refused or late:
                yield f"{request} at {store}", self.change(state, store, request)

    def change(self, state: State, store: str, request: str) -> State:
        row = row_of(state, store)
        revision = revision_of(row) + 1
        if revision > self.scene.revisions:
            return state
        value = None if self.scene.requests[request] == "live" else f"{request}@{store}"
        # The event of a write tells its own request only; that of a release tells them all.
        changed = made(state, store, Row(revision, store, value, frozenset({request})), keep=served_of(row))
        return changed._replace(effects=state.effects | {(request, revision)})

    def refuse(self, state: State, store: str, request: str) -> Steps:
        """The contract refuses. The client may be told so if no other attempt can still have an effect."""
        pending = any(given_up == request for given_up, _ in state.given_up)
        if not pending or self.wrong == "refusal_is_told":
            yield f"{store} refuses {request}", state._replace(refused=state.refused | {request})

    def give_up(self, state: State, store: str) -> Steps:
        """A request is sent and its answer given up. From then on `write` may carry it out, at any time, or never."""
        for request in self.scene.requests:
            if request not in state.refused and (request, store) not in state.given_up:
                given_up = state.given_up | {(request, store)}
                yield f"{request} sent to {store}, answer given up", state._replace(given_up=given_up)

    def release(self, state: State, store: str) -> Steps:
        """Gives the record up, as a stub when there is none; when that was done before, answers the row again."""
        to, row = other(store), row_of(state, store)
        if owns(state, store) and revision_of(row) < self.scene.revisions:
            stays = self.wrong in ("requests_stay", "requests_are_known_at_home")
            served = frozenset[str]() if stays else served_of(row)
            released = Row(revision_of(row) + 1, to, row.value if row else None, served)
            yield f"{store} releases to {to}", made(state, store, released, keep=served_of(row))
        elif row and row.owner != store and self.scene.copies:
            again = row._replace(served=frozenset()) if self.wrong == "released_again_bare" else row
            yield f"{store} answers its release again", sent(state, again)
        if self.wrong == "seize" and not owns(state, store) and revision_of(row) < self.scene.revisions:
            value = row.value if row else None
            yield f"{store} seizes", made(state, store, Row(revision_of(row) + 1, store, value, served_of(row)))

    def copy(self, state: State, store: str) -> Steps:
        """A row is read here to be applied at the other store: an export tells the served requests, a read does not."""
        row = row_of(state, store)
        if row and (row.owner == store or self.wrong == "copy_of_released_bare"):
            yield f"{store} is read", sent(state, row._replace(served=frozenset()))
        if row:
            yield f"{store} is exported", sent(state, row)

    def arrive(self, state: State, store: str) -> Steps:
        """Apply: the higher version stays, and the served requests are kept either way."""
        row = row_of(state, store)
        for record in state.records:
            newer = record.revision > revision_of(row) or self.wrong == "apply_anything"
            stays = self.wrong in ("requests_stay", "requests_are_known_at_home")
            kept = served_of(row) | (frozenset() if stays and not newer else record.served)
            after = record._replace(served=kept) if newer or row is None else row._replace(served=kept)
            if after != row:
                told = ", ".join(sorted(record.served)) or "no request"
                yield f"revision {record.revision} with {told} arrives at {store}", with_row(state, store, after)

    def release_absence(self, state: State, store: str) -> Steps:
        absence = absence_of(state, store)
        if absence.owner == store and absence.version < self.scene.absences:
            released = Absence(absence.version + 1, other(store))
            yield f"{store} releases the absence", with_absence(state, store, released)

    def adopt_absence(self, state: State, store: str) -> Steps:
        """A coordinator sees that all rows of the releaser are here, and lets this store adopt: soon, late, never."""
        released, here = absence_of(state, other(store)), absence_of(state, store)
        to_us = released.owner == store and released.version > 1
        rows_are_here = row_of(state, other(store)) is None or row_of(state, store) is not None
        if to_us and rows_are_here and released.version not in state.drained:
            yield f"drain {released.version} seen", state._replace(drained=state.drained | {released.version})
        if self.wrong == "drain_before_release" and released.owner == other(store) and rows_are_here:
            yield "drain seen early", state._replace(drained=state.drained | {released.version + 1})
        # The versions that were ever released to this store: even ones to B, odd ones to A.
        ours = {version for version in state.drained if version <= released.version and version % 2 == (store == "A")}
        for version in ours | ({released.version} if to_us else set()):
            if version not in state.drained and self.wrong != "adopt_without_drain":
                continue
            if version > here.version or (self.wrong == "adopt_any_version" and version != here.version):
                adopted = with_absence(state, store, Absence(version, store))
                yield f"{store} adopts absence {version}", adopted

    def decline_absence(self, state: State, store: str) -> Steps:
        """The target gives a release back: in one step it writes the next version, with the releaser as the owner."""
        released, here = absence_of(state, other(store)), absence_of(state, store)
        if released.version >= self.scene.absences:
            return
        if released.owner == store and released.version > here.version:
            back = Absence(released.version + 1, other(store))
            declined = with_absence(state, store, back)
            if self.wrong == "declined_is_drained":
                declined = declined._replace(drained=state.drained | {back.version})
            yield f"{store} declines absence {released.version}", declined
            if self.wrong == "take_back":
                yield f"{other(store)} takes its absence back", with_absence(state, other(store), back)

    def read(self, state: State) -> Steps:
        """The target is asked, then the other store; when both deny, both rows are looked at, in either order."""
        reading = state.reading
        if reading is None:
            floor = max((record.revision for record in state.records), default=0)
            for target in STORES:
                yield (
                    f"read begins at {target}",
                    state._replace(reading=Reading(target, floor, 0, frozenset(), 0, None)),
                )
        elif reading.answer is not None:
            yield "read ends", state._replace(reading=None)
        elif reading.denied < len(STORES):
            asked = reading.target if not reading.denied else other(reading.target)
            answer = revision_of(row_of(state, asked)) if owns(state, asked) else None
            denied = reading.denied + (answer is None)
            said = "denies" if answer is None else "answers"
            yield f"{asked} {said}", state._replace(reading=reading._replace(denied=denied, answer=answer))
        else:
            yield from self.look(state, reading)

    def look(self, state: State, reading: Reading) -> Steps:
        wanted = {reading.target} if self.wrong == "read_the_target" else set(STORES)
        for store in wanted - reading.looked:
            best = max(reading.best, revision_of(row_of(state, store)))
            looked = reading.looked | {store}
            after = reading._replace(looked=looked, best=best, answer=best if looked == wanted else None)
            yield f"row of {store} looked at", state._replace(reading=after)


def other(store: str) -> str:
    return "B" if store == "A" else "A"


def row_of(state: State, store: str) -> Row | None:
    return state.rows[STORES.index(store)]


def absence_of(state: State, store: str) -> Absence:
    return state.absence[STORES.index(store)]


def revision_of(row: Row | None) -> int:
    return row.revision if row else 0


def served_of(row: Row | None) -> frozenset[str]:
    return row.served if row else frozenset()


def owns(state: State, store: str) -> bool:
    """The one rule: its row, or for a record that does not exist its absence, names this store."""
    return (row_of(state, store) or absence_of(state, store)).owner == store


def with_row(state: State, store: str, row: Row) -> State:
    a, b = state.rows
    return state._replace(rows=(row, b) if store == "A" else (a, row))


def with_absence(state: State, store: str, absence: Absence) -> State:
    a, b = state.absence
    return state._replace(absence=(absence, b) if store == "A" else (a, absence))


def sent(state: State, record: Row) -> State:
    return state._replace(records=state.records | {record})


def made(state: State, store: str, row: Row, keep: frozenset[str] = frozenset()) -> State:
    """A new version of the record, here and on its way. `keep`: requests that are known here and do not travel."""
    return sent(with_row(state, store, row._replace(served=row.served | keep)), row)


def broken(state: State) -> str | None:
    """What of the promises does not hold."""
    owners = [store for store in STORES if owns(state, store)]
    if len(owners) > 1:
        return "two owners"
    writers: dict[int, tuple[str, str | None]] = {}
    for record in state.records:
        if writers.setdefault(record.revision, (record.owner, record.value)) != (record.owner, record.value):
            return f"two writers of revision {record.revision}"
    requests = [request for request, _ in state.effects]
    if len(requests) != len(set(requests)):
        return "two effects of one request"
    if state.refused.intersection(requests):
        return "a refused request has an effect"
    newest = max(writers, default=0)
    if any(revision_of(row_of(state, store)) < newest for store in owners):
        return "an owner without the newest revision"
    if state.reading and state.reading.answer is not None and state.reading.answer < state.reading.floor:
        return "a stale read"
    return None
