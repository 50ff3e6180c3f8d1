"""Comparing the stores, and mending what lags behind its owner: the job `reconcile`.

Digests of all buckets come first; what follows looks only at buckets that differ. Their rows are compared, and what
differs is doubted, no more: it may be on its way. When every change of the doubted records is in the log, and both
stores have read the log up to there, they are looked at again. What still differs is believed, written down, and then,
as far as it may be, mended (see `services.router.core.differences`).

Everything that a step needs is in its checkpoint, and what was found is written down before anything is mended: a
router that dies in between changes nothing about the result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from libs.clock import Clock
from libs.errors import InvalidField
from libs.ownership.model import BUCKETS, Store, Version
from libs.ownership.wire import version_to_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.core.differences import (
    REPAIRED,
    Difference,
    Findings,
    Kind,
    Look,
    Pair,
    difference,
    is_believed,
    is_mended,
)
from services.router.flows.jobs.bucket_comparison import BucketComparison
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import Stores

NAME = "reconcile"
NAMES = {"repair": "yes or no", "deep": "yes or no", "corrupt": "the name of a record"}

DOUBTS = 80
"""Records that are doubted at once; as many as a checkpoint has room for."""
BUCKETS_AT_ONCE = 32
"""Whose digests are asked for again before their rows are looked at."""
DEEP_BUCKETS = 32
"""Whose digests are made anew in one step."""
STEP_SECONDS = 0.25
"""After so long a step begins no further page."""
CALL_SECONDS = 5.0
FEED_SECONDS = 0.1
"""Between two looks at the feeds."""


class Ends(Protocol):
    """Part of the event log."""

    async def ends(self) -> dict[int, tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class State:
    """Where a step begins."""

    digested: int = 0
    """Buckets below it are digested: all of them, or one after the other when deep."""
    differing: tuple[int, ...] = ()
    """Buckets whose digests differ and whose rows are to be looked at."""
    after: str = ""
    """Of the first of them: the key behind which to go on."""
    doubts: tuple[Difference, ...] = ()
    ends: Mapping[int, int] | None = None
    """Of the log, by partition, when all changes of the doubted records were in it; None: they were not yet."""
    believed: tuple[Difference, ...] = ()
    """Written down, to be mended."""

    def encode(self) -> bytes:
        value = {
            "digested": self.digested,
            "differing": self.differing,
            "after": self.after,
            "doubts": [_packed(one) for one in self.doubts],
            "ends": None if self.ends is None else list(self.ends.items()),
            "believed": [_packed(one) for one in self.believed],
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> State:
        if not checkpoint:
            return cls()
        value = json.loads(checkpoint)
        return cls(
            value["digested"],
            tuple(value["differing"]),
            value["after"],
            tuple(_unpacked(one) for one in value["doubts"]),
            None if value["ends"] is None else dict(value["ends"]),
            tuple(_unpacked(one) for one in value["believed"]),
        )


@dataclass(frozen=True, slots=True)
class ReconcileOptions:
    """What the job was asked for."""

    repair: bool
    deep: bool
    corrupt: str
    """A record that may be mended though it is CORRUPT: what its owner has is right."""

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> ReconcileOptions:
        """Raises InvalidField."""
        unknown = sorted(set(arguments) - set(NAMES))
        if unknown:
            raise InvalidField("arguments", unknown[0], "one of " + ", ".join(NAMES))
        for name in ("repair", "deep"):
            if arguments.get(name, "no") not in ("yes", "no"):
                raise InvalidField(name, arguments[name], NAMES[name])
        return cls(
            arguments.get("repair", "yes") == "yes", arguments.get("deep") == "yes", arguments.get("corrupt", "")
        )

    def mends(self, one: Difference) -> bool:
        return (self.repair and one.kind in REPAIRED) or (one.is_handed_over and one.key == self.corrupt)


class Reconcile:
    """A `JobKind`. Arguments: repair ("yes" unless it is "no"), deep ("yes": digests are made anew from the rows), and
    corrupt (the name of a record whose owner's content is right)."""

    name = NAME
    unit = "buckets"

    def __init__(self, stores: Stores, transfer: Transfer, log: Ends, clock: Clock) -> None:
        self._stores = stores
        self._transfer = transfer
        self._comparing = BucketComparison(stores)
        self._log = log
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        ReconcileOptions.of(arguments)
        return NAME

    async def step(self, at: Position) -> Step:
        """Raises what the stores' clients raise, EventLogError."""
        wanted, state = ReconcileOptions.of(at.arguments), State.decode(at.checkpoint)
        findings = Findings.from_json(at.report)
        if state.believed:
            return await self._mend(state, findings)
        if state.digested < BUCKETS:
            return await self._digest(state, findings, wanted, at.limit)
        if state.doubts and (not state.differing or len(state.doubts) >= DOUBTS):
            return await self._look_again(state, findings, wanted)
        if state.differing:
            return await self._walk(state, findings, wanted, at.limit)
        if wanted.corrupt and not findings.named:
            findings.named = "no difference was found of it" + ("" if wanted.deep else "; --deep finds edits by hand")
        return _step(state, findings, note=_told(findings, wanted.corrupt), finished=True)

    async def _digest(self, state: State, findings: Findings, wanted: ReconcileOptions, limit: int) -> Step:
        until = min(BUCKETS, state.digested + min(limit, DEEP_BUCKETS)) if wanted.deep else BUCKETS
        some = range(state.digested, until) if wanted.deep else ()
        found = await self._comparing.digests(some, deep=wanted.deep)
        differing = [pair.bucket for pair in found if not pair.is_equal]
        findings.records += sum(pair.records for pair in found)
        findings.buckets_walked += len(differing)
        done = until - state.digested - len(differing)
        state = replace(state, digested=until, differing=(*state.differing, *differing))
        return _step(state, findings, done, f"{len(state.differing)} buckets differ so far")

    async def _walk(self, state: State, findings: Findings, wanted: ReconcileOptions, limit: int) -> Step:
        """Looks for differing rows until there are enough of them, or it is time."""
        end = self._clock.monotonic() + STEP_SECONDS
        left, doubts, after = list(state.differing), list(state.doubts), state.after
        if not after:
            group = left[: min(limit, BUCKETS_AT_ONCE)]
            # What was on its way when all digests were made has arrived by now, as a rule.
            pairs = await self._comparing.digests(group, deep=wanted.deep)
            again = {pair.bucket for pair in pairs if not pair.is_equal}
            left = [bucket for bucket in left if bucket not in group or bucket in again]
            group = [bucket for bucket in group if bucket in again]
        else:
            group = left[:1]
        while group and len(doubts) < DOUBTS:
            page = await self._comparing.page(group[0], after)
            seen = [one for key, pair in page.rows if (one := difference(key, pair)) is not None]
            room = DOUBTS - len(doubts)
            doubts += seen[:room]
            after = seen[room - 1].key if len(seen) > room else page.after
            if not after:
                left.remove(group.pop(0))
            if self._clock.monotonic() >= end:
                break
        done = len(state.differing) - len(left)
        state = replace(state, differing=tuple(left), after=after, doubts=tuple(doubts))
        return _step(state, findings, done, f"{len(left)} buckets are still to be looked at")

    async def _look_again(self, state: State, findings: Findings, wanted: ReconcileOptions) -> Step:
        ends = state.ends
        if ends is None:
            if waiting := await self._unlogged(state.doubts):
                return _waiting(state, findings, f"{waiting} changes are not in the log yet")
            ends = {part: end for part, (oldest, end) in (await self._log.ends()).items() if end > oldest}
        if behind := await self._behind(ends):
            return _waiting(replace(state, ends=ends), findings, behind)
        pairs = dict(await self._comparing.rows([one.key for one in state.doubts]))
        believed = [
            second
            for first in state.doubts
            if is_believed(first, second := difference(first.key, pairs[first.key])) and second is not None
        ]
        findings.add(believed, wanted.corrupt)
        mended = tuple(one for one in believed if wanted.mends(one))
        state = replace(state, doubts=(), ends=None, believed=mended)
        return _step(state, findings, note=f"{findings.different} records differ so far")

    async def _mend(self, state: State, findings: Findings) -> Step:
        for store in Store:
            keys = [one.key for one in state.believed if one.kind in REPAIRED and one.newer is store.other]
            findings.leave_out((await self._transfer.copy(keys, store)).refused)
        for one in state.believed:
            if one.is_handed_over:
                # There and back: each way is a change like any other, so the content goes with a higher version.
                await self._transfer.take([one.key], one.newer.other)
                await self._transfer.take([one.key], one.newer)
        pairs = dict(await self._comparing.rows([one.key for one in state.believed]))
        findings.mended([one for one in state.believed if is_mended(one, pairs[one.key])])
        return _step(replace(state, believed=()), findings, note=f"{findings.repaired} records are repaired")

    async def _unlogged(self, doubts: Sequence[Difference]) -> int:
        """How many of the doubted records' newest changes are still in an outbox."""

        async def count(store: Store) -> int:
            names = [
                pb.AckChangesRequest.Name(key=one.key, version=version_to_pb(one.version))
                for one in doubts
                if one.newer is store
            ]
            client = self._stores[store]
            request = pb.ListUnloggedRequest(changes=names)
            return len((await client.ask(client.replication.ListUnlogged, request, CALL_SECONDS)).changes)

        return sum(await asyncio.gather(*(count(store) for store in Store)))

    async def _behind(self, ends: Mapping[int, int]) -> str:
        """Which stores have not read the log up to there, in words."""
        told = []
        for client in self._stores.values():
            status = await client.ask(client.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
            read = status.feed.next_offsets
            left = sum(max(0, end - read.get(part, 0)) for part, end in ends.items())
            if left:
                told.append(f"store {client.store} has still to read {left} events")
        return " and ".join(told)


def _step(state: State, findings: Findings, done: int = 0, note: str = "", *, finished: bool = False) -> Step:
    return Step(state.encode(), done, total=BUCKETS, note=note, finished=finished, report=findings.to_json())


def _waiting(state: State, findings: Findings, why: str) -> Step:
    waits = f"{len(state.doubts)} records differ and may be on their way: {why}"
    return replace(_step(state, findings), waits=waits, wait_seconds=FEED_SECONDS)


def _told(findings: Findings, corrupt: str) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.found.items()))
    told = f"{findings.different} of {findings.records} records differ"
    told = f"{told} ({kinds}); {findings.repaired} are repaired" if kinds else told
    if findings.left_out:
        told = f"{told}, {findings.left_out} left out: {findings.why}"
    unmended = corrupt and findings.named != Kind.CORRUPT.value
    return f"{told}; {corrupt} was not mended as CORRUPT: {findings.named}" if unmended else told


def _packed(one: Difference) -> list[Any]:
    return [one.key, *(None if look is None else [*_flat(look)] for look in one.pair)]


def _flat(look: Look) -> list[Any]:
    return [*look.version, look.owner.value, *look.write_version, look.digest, look.content, look.written_seconds]


def _unpacked(packed: list[Any]) -> Difference:
    key, *looks = packed
    a, b = (None if look is None else _look(*look) for look in looks)
    pair: Pair = (a, b)
    found = difference(key, pair)
    if found is None:
        raise ValueError(f"the checkpoint has {key} among the differences, and it is none")
    return found


def _look(term: int, revision: int, owner: str, *rest: Any) -> Look:
    write_term, write_revision, digest, content, written = rest
    return Look(Version(term, revision), Store(owner), Version(write_term, write_revision), digest, content, written)
