"""The ownership protocol as a model that is small enough to be explored completely.

Two stores, A and B, hold copies of the same records, and a client's call may reach either of them. The danger is always
the same: both stores accept changes of one record, and one of the two changes is lost. Tests of the real stores run
into such an accident only now and then. A model is a state and a list of all steps that can be taken from it. The
computer takes every step, in every order, until no state is new. A property that holds in all of these states holds
whatever the network, a crash or a slow process does.

The stores' decisions are the product's own: the model asks `libs.ownership` through `tests.model.store`. This module
adds the world around the two stores:

* Any router sends any request to any store, since flags are only hints. A reply may be lost and the request be sent
  again, there or elsewhere. A request may also be given up, and be carried out much later, or never.
* A record is released alone or in bulk. The event of a bulk release has no payload: it names the version, the row that
  was released and its requests. The new owner's feed reads it once. The mover finds records that no store owns, and
  asks for the whole release.
* Everything ever sent from store to store may arrive at any time, in any order, and again: the event of a change, the
  answer of a release, a copied row.
* Coordinators of a move stop anywhere. Others finish the move, and the first may come back later.

The properties, checked in every state:

    one owner        at most one store would accept a write, and at most one would create a record in the bucket
    one writer       no two different records carry the same version
    one effect       a request changes the record at most once, wherever it is sent and however often
    nothing lost     each version contains every write that was made before it
    owner is fresh   the store that would accept a write has the newest version, with every write that was made
    it gets home     a record that no store owns is brought to its new owner, by an event, a message or a router
    answers match    a retry gets the answer of its own request, and the row has the effect
    reads are fresh  a read never returns less than the newest version at the time when it began
    no means no      a request has no effect once the client has seen its refusal

A model that finds no broken property could be blind. So there are wrong variants (`tests.model.wrong`), each of them
tempting, and the exploration must find the accident that each leads to.

Terms change only at a seizure: the model beside this one, `recovery`, has them. `SCENES` keeps the number of states
small: each scene explores some of the steps together, with bounds that leave room for every known accident.
`python -m tests.model --all` explores all of them and shows a shortest trace for every wrong variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from libs.ownership.model import NEVER, BucketOwner, Store, Version
from tests.model.store import (
    FIRST,
    A,
    Disk,
    Message,
    Procedures,
    Refused,
    Request,
    Rules,
    Written,
    flaw,
    make_message,
)
from tests.model.wrong import LATE_RULES, RULES

STORES = tuple(Store)


class Reading(NamedTuple):
    """A strict read under way."""

    target: Store
    floor: Version
    """The newest version when the read began: the answer must not be older."""
    denied: int
    """How many stores have answered that they are not the owner: first the target, then the other."""
    looked: frozenset[Store]
    """The stores whose rows were read after both had denied."""
    best: Version
    answer: Version | None


class State(NamedTuple):
    disks: tuple[Disk, Disk] = (FIRST[Store.A], FIRST[Store.B])
    messages: frozenset[Message] = frozenset()
    """All records that were ever sent; each may arrive at any time."""
    drained: frozenset[BucketOwner] = frozenset()
    """Released buckets of which a coordinator has seen all of the releaser's rows at the target."""
    given_up: frozenset[tuple[str, Store]] = frozenset()
    """Requests sent to a store without waiting for the answer: carried out at any time, or never."""
    refused: frozenset[str] = frozenset()
    """Requests whose refusal the client has seen."""
    reading: Reading | None = None
    read: frozenset[Message] = frozenset()
    """Bulk releases that the new owner's feed has read: it does not read them again."""
    trouble: str | None = None
    """The property that a step has broken."""


@dataclass(frozen=True)
class Scene:
    """Which steps are explored together, and how far."""

    requests: tuple[Request, ...]
    revisions: int
    buckets: int
    """Versions of the bucket."""
    copies: bool = False
    declines: bool = False
    reads: bool = False
    given_up: bool = False
    bulk: bool = False
    """Records are released in bulk, too: the event has no payload, and the new owner's feed reads it once."""
    least_states: int = 0
    """Fewer states mean that the model has lost steps."""


TWO = (Request("r1"), Request("r2", keeps_answer=False))

SCENES = {
    "giving up": Scene(
        (Request("create", "not live"), Request("delete", "live")), 4, 3, given_up=True, least_states=12_216
    ),
    "moving": Scene(TWO, revisions=6, buckets=5, declines=True, least_states=22_638),
    "copying": Scene(TWO, revisions=5, buckets=3, copies=True, least_states=45_917),
    "bulk": Scene(TWO, revisions=4, buckets=1, copies=True, bulk=True, least_states=24_729),
    "reading": Scene(TWO, revisions=4, buckets=3, reads=True, least_states=130_270),
}

Steps = Iterator[tuple[str, State]]


class Ownership:
    """All steps of a scene, by the product's rules or by one wrong variant."""

    start = State()

    def __init__(self, scene: Scene, wrong: str = "") -> None:
        self.scene = scene
        self.wrong = wrong
        self.store = Procedures(RULES.get(wrong, Rules()))
        self.late_store = Procedures(LATE_RULES.get(wrong, self.store.by))
        self.wrong_answers = cache(self._wrong_answers)

    def steps(self, state: State) -> Steps:
        for disk in state.disks:
            yield from self.write(state, disk)
            yield from self.release(state, disk)
            yield from self.arrive(state, disk)
            yield from self.release_bucket(state, disk)
            yield from self.adopt_bucket(state, disk)
            if self.scene.declines:
                yield from self.decline_bucket(state, disk)
            if self.scene.copies:
                yield from self.copy(state, disk)
            if self.scene.given_up:
                yield from self.give_up(state, disk)
            if self.wrong == "arriving_decides":
                yield from self.write_along(state, disk)
        if self.scene.reads:
            yield from self.read(state)

    def write(self, state: State, disk: Disk) -> Steps:
        """A request reaches a store. A denial and a repeated answer change nothing, so they are no steps."""
        for request in self.scene.requests:
            is_late = (request.name, disk.me) in state.given_up
            written = (self.late_store if is_late else self.store).write(disk, request)
            if isinstance(written, Refused):
                yield from self.refuse(state, disk, request.name)
            elif isinstance(written, Written) and (is_late or request.name not in state.refused):
                yield from self.commit(state, written, f"{request.name} at {disk.me}", by=request.name)

    def write_along(self, state: State, disk: Disk) -> Steps:
        """A write takes a released record along. By the rules this is `arrive` and then `write`, at once or not, so the
        model has every state of it. A wrong store decides on the record that arrives."""
        for message in state.messages:
            if message.row.owner is disk.me and message.row.version != message.row.write_version:
                arrived = disk.but(row=message.row, served=disk.served | set(message.record.served))
                yield from self.write(state, arrived)

    def commit(self, state: State, written: Written, step: str, by: str = "") -> Steps:
        """A change, within the scene's bound."""
        if written.event.version.revision <= self.scene.revisions:
            yield step, made(state, written, by)

    def refuse(self, state: State, disk: Disk, request: str) -> Steps:
        """The contract refuses. The client may see it if no other attempt can still have an effect."""
        is_pending = any(given_up == request for given_up, _ in state.given_up)
        if is_pending and self.wrong != "refusal_is_told":
            return
        after = state._replace(refused=state.refused | {request})
        if any(effect.request == request for one in state.messages for effect in one.effects):
            after = after._replace(trouble="a refused request has an effect")
        yield f"{disk.me} refuses {request}", after

    def give_up(self, state: State, disk: Disk) -> Steps:
        """A request is sent, and its answer is not awaited. From then on `write` may carry it out, or never."""
        for request in self.scene.requests:
            sent = request.name, disk.me
            if request.name not in state.refused and sent not in state.given_up:
                given_up = state.given_up | {sent}
                yield f"{request.name} sent to {disk.me} and given up", state._replace(given_up=given_up)

    def release(self, state: State, disk: Disk) -> Steps:
        written = self.store.release(disk)
        if written is not None and written.disk is not disk:
            trouble = "a store that released a record still owns it" if self.store.accepts(written.disk) else None
            yield from self.commit(state._replace(trouble=trouble), written, f"{disk.me} releases")
        elif written is not None and self.scene.copies:
            yield f"{disk.me} answers its release again", sent(state, written.event)
        if self.scene.bulk and (in_bulk := self.store.release_in_bulk(disk)) is not None:
            yield from self.commit(state, in_bulk, f"{disk.me} releases in bulk")
        if self.wrong == "seize" and disk.row is not None and not self.store.accepts(disk):
            row = replace(disk.row, version=Version(0, disk.version.revision + 1), owner=disk.me)
            written = Written(disk.but(row=row), make_message(row, ()))
            yield from self.commit(state, written, f"{disk.me} seizes")

    def copy(self, state: State, disk: Disk) -> Steps:
        """A row is read to be applied at the other store: by an export with its served requests, by a read without."""
        if disk.row is None:
            return
        if disk.row.owner is disk.me or self.wrong == "copy_of_released_bare":
            yield f"{disk.me} is read", sent(state, make_message(disk.row, ()))
        served = self.store.by.travels(disk.row, disk.served)
        yield f"{disk.me} is exported", sent(state, make_message(disk.row, served))

    def arrive(self, state: State, disk: Disk) -> Steps:
        for message in state.messages:
            after = self.store.apply(disk, message).disk
            if after is not disk:
                yield arrival(message, disk.me), with_disk(state, after)
            if message.entry is not None and message.row.owner is disk.me and message not in state.read:
                # The feed of the new owner reads the event and moves on, whether or not it could take the record.
                read = with_disk(state, after)._replace(read=state.read | {message})
                yield f"the feed of {disk.me} reads bulk release {message.version.revision}", read

    def release_bucket(self, state: State, disk: Disk) -> Steps:
        released = self.store.release_bucket(disk)
        if released is not None and released.bucket.version <= self.scene.buckets:
            yield f"{disk.me} releases the bucket", with_disk(state, released)

    def adopt_bucket(self, state: State, disk: Disk) -> Steps:
        """A coordinator sees all rows of the releaser here, and lets this store adopt the bucket: soon, late or never.

        The store may be asked to adopt any bucket that a coordinator ever drained, the other store's included.
        """
        there = state.disks[disk.me is A]
        released, to_here = there.bucket, there.bucket.owner is disk.me
        rows_are_here = there.row is None or disk.row is not None
        if to_here and released.version > FIRST[A].bucket.version and rows_are_here and released not in state.drained:
            yield f"bucket {released.version} is drained", state._replace(drained=state.drained | {released})
        if self.wrong == "drain_before_release" and released.owner is there.me and rows_are_here:
            early = replace(released, version=released.version + 1, owner=disk.me)
            yield f"bucket {early.version} is drained early", state._replace(drained=state.drained | {early})
        offered = {one for one in state.drained if one.version <= max(released.version, disk.bucket.version)}
        if to_here and self.wrong == "adopt_without_drain":
            offered.add(released)
        for one in offered:
            adopted = self.store.adopt_bucket(disk, one)
            if adopted is not None:
                yield f"{disk.me} adopts bucket {one.version}", with_disk(state, adopted)

    def decline_bucket(self, state: State, disk: Disk) -> Steps:
        """The target gives a release back: in one step it writes the next version, with the releaser as the owner.

        A late coordinator may ask for it with a bucket that was released long ago.
        """
        releaser = state.disks[disk.me is A]
        for released in {releaser.bucket} | state.drained:
            declined = self.store.decline_bucket(disk, released)
            if declined is None or declined.bucket.version > self.scene.buckets:
                continue
            after = with_disk(state, declined)
            if self.wrong == "declined_is_drained":
                after = after._replace(drained=state.drained | {declined.bucket})
            yield f"{disk.me} declines bucket {released.version}", after
            if self.wrong == "take_back":
                yield f"{releaser.me} takes its bucket back", with_disk(state, releaser.but(bucket=declined.bucket))

    def read(self, state: State) -> Steps:
        """The target is asked, then the other store; when both deny, both rows are looked at, in either order."""
        reading = state.reading
        if reading is None:
            floor = max((message.version for message in state.messages), default=NEVER)
            for target in STORES:
                begun = Reading(target, floor, 0, frozenset(), NEVER, None)
                yield f"a read begins at {target}", state._replace(reading=begun)
        elif reading.answer is not None:
            yield "the read ends", state._replace(reading=None)
        elif reading.denied < len(STORES):
            asked = reading.target if not reading.denied else reading.target.other
            answer = self.store.read(disk_of(state, asked))
            denied = reading.denied + (answer is None)
            verb = "denies" if answer is None else "answers"
            yield f"{asked} {verb}", state._replace(reading=reading._replace(denied=denied, answer=answer))
        else:
            yield from self.look(state, reading)

    def look(self, state: State, reading: Reading) -> Steps:
        wanted = {reading.target} if self.wrong == "read_the_target" else set(STORES)
        for store in wanted - reading.looked:
            best = max(reading.best, disk_of(state, store).version)
            looked = reading.looked | {store}
            after = reading._replace(looked=looked, best=best, answer=best if looked == wanted else None)
            yield f"the row of {store} is looked at", state._replace(reading=after)

    def broken(self, state: State) -> str | None:
        """The property that does not hold."""
        if state.trouble is not None:
            return state.trouble
        owners = [disk for disk in state.disks if self.store.accepts(disk)]
        if len(owners) > 1:
            return "two owners"
        if all(disk.bucket.owner is disk.me for disk in state.disks):
            return "two owners of the bucket"
        for disk in owners:
            if trouble := behind(state, disk):
                return trouble
        for disk in state.disks:
            if trouble := self.wrong_answers(disk):
                return trouble
        if self.scene.bulk and not owners and self.is_stuck(state):
            return "a record that nothing brings home"
        reading = state.reading
        if reading is not None and reading.answer is not None and reading.answer < reading.floor:
            return "a stale read"
        return None

    def is_stuck(self, state: State) -> bool:
        """Whether the record was released, and no event, message or router makes its new owner adopt it."""
        newest = max(state.disks, key=lambda disk: disk.version)
        if newest.row is None or newest.row.owner is newest.me:
            return False
        under_way = [one for one in state.messages if one.version == newest.version and one not in state.read]
        # The mover looks for records that no store owns, and asks the releaser for the whole record.
        return not under_way and self.wrong == "untaken_is_dropped"

    def _wrong_answers(self, disk: Disk) -> str | None:
        found = (self.store.wrong_answer(disk, request) for request in self.scene.requests)
        return next(filter(None, found), None)


def behind(state: State, owner: Disk) -> str | None:
    """What an owner lacks."""
    if any(message.version > owner.version for message in state.messages):
        return "an owner without the newest version"
    if any(not message.effects <= owner.effects for message in state.messages):
        return "an owner without an acknowledged write"
    return None


def disk_of(state: State, store: Store) -> Disk:
    return state.disks[store is not A]


def with_disk(state: State, disk: Disk) -> State:
    a, b = state.disks
    return state._replace(disks=(disk, b) if disk.me is A else (a, disk))


def sent(state: State, message: Message) -> State:
    return state._replace(messages=state.messages | {message})


def made(state: State, written: Written, by: str = "") -> State:
    """A new version of the record, committed and on its way."""
    trouble = state.trouble or flaw(written.event.row)
    for earlier in state.messages:
        trouble = trouble or clash(earlier, written.event)
    if by in state.refused:
        trouble = trouble or "a refused request has an effect"
    return sent(with_disk(state, written.disk), written.event)._replace(trouble=trouble)


@cache
def clash(earlier: Message, later: Message) -> str | None:
    if earlier.version == later.version and earlier.row != later.row:
        return "two writers of one version"
    if earlier.version < later.version and not earlier.effects <= later.effects:
        return "an acknowledged write is lost"
    return None


@cache
def arrival(message: Message, store: Store) -> str:
    served = ", ".join(one.request_id for one in message.record.served) or "no request"
    return f"version {message.version.revision} with {served} arrives at {store}"
