"""The job `reconcile`: compares the stores, and repairs replicas that differ from their owner.

The job compares the digests of all buckets, and then the rows of the buckets that differ. A row that differs is only a
suspect at first, because its change may be in transit. When every change of the suspects is in the log, and both stores
have read the log up to there, the job reads the suspects again. A row that still differs is a confirmed difference. The
job stores it in the report, and then repairs it if it may (see `services.router.core.differences`).

The checkpoint has all state of a step, and differences are stored before they are repaired. So a router's death in
between does not change the result.
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
from services.router.control.port import RememberedValues
from services.router.core.differences import (
    REPAIRED,
    Difference,
    Findings,
    Kind,
    Pair,
    RowView,
    difference,
    is_believed,
    is_repaired,
)
from services.router.flows.jobs.bucket_comparison import BucketComparison, BucketPair
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import Stores

NAME = "reconcile"
DEEP = "deep comparison"
"""The name of the remembered value."""
NAMES = {"repair": "yes or no", "deep": "yes or no", "corrupt": "the name of a record"}

DOUBTS = 80
"""Maximum number of suspects at a time; a checkpoint has room for these."""
BUCKETS_AT_ONCE = 32
"""Number of buckets whose digests are compared again before their rows are read."""
DEEP_BUCKETS = 32
"""Number of buckets whose digests are recomputed in one step."""
STEP_SECONDS = 0.25
"""Time after which a step starts no further page."""
CALL_SECONDS = 5.0
FEED_SECONDS = 0.1
"""Interval at which the feeds' positions are read."""


SETTLING_LOOKS = 20
"""Looks at buckets that change all the time, after which their digests are reported as they are."""

Sums = tuple[int, ...]
NO_SUMS: Sums = (0, 0)


class Ends(Protocol):
    """Part of the event log."""

    async def ends(self) -> dict[int, tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class State:
    """The job's checkpoint."""

    digested: int = 0
    """Buckets below this number are digested: all at once, or some per step if `deep`."""
    differing: tuple[int, ...] = ()
    """Buckets whose digests differ and whose rows are not yet compared."""
    after: str = ""
    """Last key that was compared in the first of them."""
    doubts: tuple[Difference, ...] = ()
    """Suspects: differences that may be in transit."""
    ends: Mapping[int, int] | None = None
    """Ends of the log, by partition, when it had all changes of the suspects; None while it does not."""
    believed: tuple[Difference, ...] = ()
    """Confirmed differences that are in the report and not yet repaired."""
    sums: Sums = NO_SUMS
    """XOR of the digests of A's and of B's rows, without those of the buckets in `unsummed`. For a deep comparison."""
    unsummed: tuple[int, ...] = ()
    """Buckets whose digests differed at the last look. For a deep comparison."""
    looks: int = 0
    """Number of looks at them since all rows were compared."""

    def encode(self) -> bytes:
        value = {
            "digested": self.digested,
            "differing": self.differing,
            "after": self.after,
            "doubts": [_packed(one) for one in self.doubts],
            "ends": None if self.ends is None else list(self.ends.items()),
            "believed": [_packed(one) for one in self.believed],
            "sums": self.sums,
            "unsummed": self.unsummed,
            "looks": self.looks,
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
            tuple(value.get("sums", NO_SUMS)),
            tuple(value.get("unsummed", ())),
            value.get("looks", 0),
        )


@dataclass(frozen=True, slots=True)
class ReconcileOptions:
    """The job's arguments."""

    repair: bool
    deep: bool
    corrupt: str
    """Name of a CORRUPT record to repair: the operator confirms that the owner's content is right."""

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

    def repairs(self, one: Difference) -> bool:
        return (self.repair and one.kind in REPAIRED) or (one.is_handed_over and one.key == self.corrupt)


class Reconcile:
    """A `JobKind`. Arguments: `repair` ("yes", the default, or "no"), `deep` ("yes": recompute the digests from the
    rows), and `corrupt` (the name of a record whose owner's content is right)."""

    name = NAME
    unit = "buckets"

    def __init__(
        self, stores: Stores, transfer: Transfer, log: Ends, clock: Clock, values: RememberedValues | None = None
    ) -> None:
        """`values`: keeps the result of the last deep comparison, longer than its job is kept."""
        self._values = values
        self._stores = stores
        self._transfer = transfer
        self._comparing = BucketComparison(stores)
        self._log = log
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        ReconcileOptions.of(arguments)
        return NAME

    async def step(self, at: Position) -> Step:
        """Raises the stores' errors, EventLogError."""
        wanted, state = ReconcileOptions.of(at.arguments), State.decode(at.checkpoint)
        findings = Findings.from_json(at.report)
        if state.believed:
            return await self._repair(state, findings)
        if state.digested < BUCKETS:
            return await self._digest(state, findings, wanted, at.limit)
        if state.doubts and (not state.differing or len(state.doubts) >= DOUBTS):
            return await self._look_again(state, findings, wanted)
        if state.differing:
            return await self._walk(state, findings, wanted, at.limit)
        if wanted.deep and state.unsummed:
            return await self._sum_up(state, findings)
        if wanted.corrupt and not findings.named:
            findings.named = "it does not differ" + ("" if wanted.deep else "; --deep also finds edits by hand")
        if wanted.deep:
            await self._keep(state, findings)
        return _step(state, findings, note=_summary(findings, wanted.corrupt), finished=True)

    async def _digest(self, state: State, findings: Findings, wanted: ReconcileOptions, limit: int) -> Step:
        until = min(BUCKETS, state.digested + min(limit, DEEP_BUCKETS)) if wanted.deep else BUCKETS
        some = range(state.digested, until) if wanted.deep else ()
        found = await self._comparing.digests(some, deep=wanted.deep)
        differing = [pair.bucket for pair in found if not pair.is_equal]
        findings.records += sum(pair.records for pair in found)
        findings.buckets_walked += len(differing)
        done = until - state.digested - len(differing)
        state = replace(state, digested=until, differing=(*state.differing, *differing))
        if wanted.deep:
            equal = [pair for pair in found if pair.is_equal]
            state = replace(state, sums=added(state.sums, equal), unsummed=(*state.unsummed, *differing))
        return _step(state, findings, done, f"{len(state.differing)} buckets differ so far")

    async def _sum_up(self, state: State, findings: Findings) -> Step:
        """Read the digests of buckets again that differed, now that their rows are compared and repaired."""
        some = state.unsummed[:DEEP_BUCKETS]
        found = await self._comparing.digests(some, deep=True)
        wrong = {pair.bucket for pair in found if not pair.is_equal}
        if wrong and not findings.left and state.looks < SETTLING_LOOKS:
            settled = [pair for pair in found if pair.bucket not in wrong]
            left = tuple(bucket for bucket in state.unsummed if bucket in wrong or bucket not in some)
            state = replace(state, sums=added(state.sums, settled), unsummed=left, looks=state.looks + 1)
            return replace(_step(state, findings), waits="changes are in transit", wait_seconds=FEED_SECONDS)
        if not findings.left:
            findings.changing += len(wrong)
        state = replace(state, sums=added(state.sums, found), unsummed=state.unsummed[len(some) :], looks=0)
        return _step(state, findings, note="the digests of both stores are added up")

    async def _keep(self, state: State, findings: Findings) -> None:
        """Raises ControlUnavailable."""
        findings.deep = True
        findings.digests = {store.value: f"{total:032x}" for store, total in zip(Store, state.sums, strict=True)}
        if self._values is not None:
            kept = {"ended_seconds": round(self._clock.now()), **json.loads(findings.to_json())}
            del kept["differences"]
            await self._values.remember(DEEP, json.dumps(kept))

    async def _walk(self, state: State, findings: Findings, wanted: ReconcileOptions, limit: int) -> Step:
        """Compare rows until the step has enough suspects or its time is over."""
        end = self._clock.monotonic() + STEP_SECONDS
        left, doubts, after = list(state.differing), list(state.doubts), state.after
        group = left[:1] if after else left[: min(limit, BUCKETS_AT_ONCE)]
        parts: Mapping[int, Sequence[int]] = {group[0]: ()}
        if not (wanted.deep and after):
            # Changes that were in transit at the first digest have usually arrived by now.
            pairs = await self._comparing.digests(group, deep=wanted.deep, parts=not wanted.deep)
            parts = {pair.bucket: pair.differing_parts for pair in pairs if not pair.is_equal}
            after = after if group[0] in parts else ""
        left = [bucket for bucket in left if bucket not in group or bucket in parts]
        group = [bucket for bucket in group if bucket in parts]
        while group and len(doubts) < DOUBTS:
            page = await self._comparing.page(group[0], after, parts[group[0]])
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
        return _step(state, findings, done, f"{len(left)} buckets left to compare")

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
        repairable = tuple(one for one in believed if wanted.repairs(one))
        state = replace(state, doubts=(), ends=None, believed=repairable)
        return _step(state, findings, note=f"{findings.different} records differ so far")

    async def _repair(self, state: State, findings: Findings) -> Step:
        for store in Store:
            keys = [one.key for one in state.believed if one.kind in REPAIRED and one.newer is store.other]
            findings.leave_out((await self._transfer.copy(keys, store)).refused)
        for one in state.believed:
            if one.is_handed_over:
                # Hand the record over and back: each handoff is a change, so the content gets a higher version.
                await self._transfer.take([one.key], one.newer.other)
                await self._transfer.take([one.key], one.newer)
        pairs = dict(await self._comparing.rows([one.key for one in state.believed]))
        findings.count_repaired([one for one in state.believed if is_repaired(one, pairs[one.key])])
        return _step(replace(state, believed=()), findings, note=f"{findings.repaired} records repaired")

    async def _unlogged(self, doubts: Sequence[Difference]) -> int:
        """Number of the suspects' newest changes that are still in an outbox."""

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
        """The stores that have not read the log up to these ends, in words; "" if none."""
        behind = []
        for client in self._stores.values():
            status = await client.ask(client.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
            read = status.feed.next_offsets
            left = sum(max(0, end - read.get(part, 0)) for part, end in ends.items())
            if left:
                behind.append(f"store {client.store} has {left} events of the log to read")
        return " and ".join(behind)


def added(sums: Sums, pairs: Sequence[BucketPair]) -> Sums:
    """The sums with the digests of these buckets."""
    a, b = sums
    for pair in pairs:
        a ^= pair.a.content << 64 | pair.a.envelope
        b ^= pair.b.content << 64 | pair.b.envelope
    return a, b


def _step(state: State, findings: Findings, done: int = 0, note: str = "", *, finished: bool = False) -> Step:
    return Step(state.encode(), done, total=BUCKETS, note=note, finished=finished, report=findings.to_json())


def _waiting(state: State, findings: Findings, why: str) -> Step:
    waits = f"{len(state.doubts)} records differ, perhaps because their changes are in transit: {why}"
    return replace(_step(state, findings), waits=waits, wait_seconds=FEED_SECONDS)


def _summary(findings: Findings, corrupt: str) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.found.items()))
    text = f"{findings.different} of {findings.records} records differ"
    text = f"{text} ({kinds}); {findings.repaired} repaired" if kinds else text
    if findings.left_out:
        text = f"{text}, {findings.left_out} left out: {findings.why}"
    unmended = corrupt and findings.named != Kind.CORRUPT.value
    return f"{text}; {corrupt} was not repaired as CORRUPT: {findings.named}" if unmended else text


def _packed(one: Difference) -> list[Any]:
    return [one.key, *(None if look is None else [*_flat(look)] for look in one.pair)]


def _flat(look: RowView) -> list[Any]:
    return [*look.version, look.owner.value, *look.write_version, look.digest, look.content, look.written_seconds]


def _unpacked(packed: list[Any]) -> Difference:
    key, *looks = packed
    a, b = (None if look is None else _look(*look) for look in looks)
    pair: Pair = (a, b)
    found = difference(key, pair)
    if found is None:
        raise ValueError(f"the checkpoint lists {key} as a difference, but its rows are equal")
    return found


def _look(term: int, revision: int, owner: str, *rest: Any) -> RowView:
    write_term, write_revision, digest, content, written = rest
    return RowView(Version(term, revision), Store(owner), Version(write_term, write_revision), digest, content, written)
