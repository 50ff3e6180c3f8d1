"""The jobs `seize` and `recover`, for a store that is lost.

`seize` gives a lost store's share to the other store, so that its records can be written again. The lost store stays
out of service.

`recover` brings back a store that was rolled back or emptied, or whose share was seized. Its outbox goes to the log,
and the other store seizes its share. The lost store then takes the new terms, copies every record of the other store,
moves its remaining rows of older terms to the journal of conflicts, is compared, and opens. From then on it is a
replica that owns no record, and records move to the store that the phase assigns.

Both need the lost store's name as a confirmation. By typing it, a person confirms that no process of that store serves
or will be started during the seizure, and accepts the loss of writes that are neither in the log nor in its outbox.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from libs.clock import Clock
from libs.errors import InvalidField
from libs.eventlog.port import EventLog
from libs.ownership.model import BUCKETS, Store
from libs.ownership.orders import Order, higher
from libs.ownership.wire import order_from_pb, version_from_pb
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from services.router.control.info import Described
from services.router.flows.jobs.backfill import Backfill
from services.router.flows.jobs.kind import JobFailed, Position, Step
from services.router.flows.jobs.log_gap import GapRecords, GapStands, gap
from services.router.flows.jobs.seizure import CALL_SECONDS, SEIZE_BUCKETS, BucketTerm, Seizure
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import Away, Stores

TRUE = "true"
RECHECK = "recheck"
ADOPT_CONTROL = "adopt_control"
ACCEPT_GAP = "accept_gap"

NAMES = {Store.A: "simple_mcp", Store.B: "service_layer"}
"""The confirmations that a person types."""

BOUND_SECONDS = 4 * 3600.0
"""Time in which a store should be recovered."""

FENCED_SECONDS = 8.0
"""Wait after a fence: longer than any write that had begun before it can take."""
POLL_SECONDS = 0.3
SETTLE_ROWS = 500
COMPARE_BUCKETS = 64

STAGES = ("fence", "drain", "plan", "tell", "seize", "take", "fill", "settle", "compare", "recheck", "open", "await")
"""All stages in order. A store recognises late orders by this order."""
BEFORE_SEIZED = frozenset(STAGES[: STAGES.index("seize") + 1])


class Control(Described, GapRecords, Protocol):
    """Part of the control store."""


@dataclass(frozen=True, slots=True)
class _State:
    """The checkpoint."""

    stage: str = "fence"
    epoch: int | None = None
    """Epoch of the job's orders; None before the first one."""
    told: tuple[tuple[int, int], ...] = ()
    """Buckets, and the terms in which they are seized."""
    ends: dict[str, int] = field(default_factory=dict)
    """Ends of the log after the terms were appended, by partition."""
    seized: int = 0
    """Number of buckets that were seized or refused."""
    cursor: str = ""
    """Cursor of the copy."""
    filled: int = 0
    fill_began: float = 0.0
    """UNIX time."""
    compared: int = 0
    """All buckets below this number were found equal."""
    fence_reason: str = ""
    """The store's fence reason when the job began. A store with another reason later is not the one that was filled."""
    refused: tuple[int, ...] = ()
    """Buckets that the seizing store could not seize."""
    why: str = ""
    """The reason for the first of them."""

    def encode(self) -> bytes:
        values = asdict(self)
        if not self.refused:
            # The previous release can read the checkpoint of a job in which no bucket was refused.
            del values["refused"], values["why"]
        return json.dumps(values).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> _State:
        if not checkpoint:
            return cls()
        found: dict[str, Any] = json.loads(checkpoint)
        # A later release may have saved more fields.
        values = {name.name: found[name.name] for name in fields(cls) if name.name in found}
        told = tuple((bucket, term) for bucket, term in values["told"])
        return cls(**{**values, "told": told, "refused": tuple(values.get("refused", ()))})

    @property
    def offsets(self) -> dict[int, int]:
        return {int(part): end for part, end in self.ends.items()}

    def next(self, stage: str) -> _State:
        return replace(self, stage=stage)

    def with_refused(self, refused: Mapping[int, str]) -> _State:
        """The state with more buckets that could not be seized."""
        if not refused:
            return self
        together = (*self.refused, *(bucket for bucket in refused if bucket not in self.refused))
        return replace(self, refused=together, why=self.why or next(iter(refused.values())))

    @property
    def seizures(self) -> str:
        """The result of the seizure, in words."""
        if not self.refused:
            return f"{len(self.told)} buckets seized"
        seized = len(self.told) - len(self.refused)
        return f"{seized} buckets seized, {len(self.refused)} refused: bucket {self.refused[0]}: {self.why}"


class _Job(ABC):
    """The common part of both kinds: all stages up to the seizure."""

    name = ""
    unit = "records"
    options: tuple[str, ...] = (ADOPT_CONTROL, ACCEPT_GAP)
    """Arguments other than the store and its confirmation. Each is "true" or absent."""

    def __init__(self, stores: Stores, event_log: EventLog, clock: Clock, control: Control) -> None:
        self._control = control
        self._stores = stores
        self._event_log = event_log
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        """Raises InvalidField."""
        unknown = sorted(set(arguments) - {"store", "confirm", *self.options})
        if unknown:
            raise InvalidField("arguments", unknown[0], ", ".join(("store", "confirm", *self.options)))
        for name in self.options:
            if arguments.get(name, TRUE) != TRUE:
                raise InvalidField(name, arguments[name], f"{TRUE}, or leave it out")
        store = _store(arguments)
        if not arguments.get(RECHECK) and arguments.get("confirm") != NAMES[store]:
            raise InvalidField("confirm", arguments.get("confirm", ""), f"the name of the lost store, {NAMES[store]}")
        return f"recovery of {store}"

    async def check(self, arguments: Mapping[str, str]) -> None:
        """Raises GapStands, ControlUnavailable."""
        if text := await self._gap(arguments):
            raise GapStands(f"{text}; or accept the loss of these writes with --accept-gap. Nothing was changed")

    async def step(self, at: Position) -> Step:
        """Raises the errors of the stores and the log, JobFailed."""
        state = _State.decode(at.checkpoint)
        if not at.checkpoint and at.arguments.get(RECHECK):
            state = state.next("recheck")
        # Checked before each step, because the feeds may be restarted while a job waits.
        if state.stage in BEFORE_SEIZED and (text := await self._gap(at.arguments)):
            raise JobFailed(
                f"{text}, then resume this job; or cancel it and accept the loss of these writes with --accept-gap"
            )
        control = (await self._control.info()).id
        order = Order(state.epoch or 0, at.number, STAGES.index(state.stage), control, at.job)
        seizing = Seizure(self._stores, self._event_log, self._clock, _store(at.arguments), order)
        if state.epoch is None:
            kept = await self._kept(seizing)
            epoch = kept.epoch if kept is not None else 0
            state = replace(state, epoch=epoch)
            if at.arguments.get(ADOPT_CONTROL) and kept is not None and kept.control != control:
                # A separate step: a late router cannot store its checkpoint, so it adopts no control store.
                return _step(replace(state, epoch=epoch + 1), note=f"adopting control store {control}")
            seizing.order = order._replace(epoch=epoch)
        return await getattr(self, f"_{state.stage}")(state, seizing, at)  # type: ignore[no-any-return]

    async def _gap(self, arguments: Mapping[str, str]) -> str:
        return "" if arguments.get(ACCEPT_GAP) or arguments.get(RECHECK) else await gap(self._control)

    async def _kept(self, seizing: Seizure) -> Order | None:
        """The highest order that a store has taken."""
        kept: Order | None = None
        for client in (seizing.seizer, seizing.lost):
            with suppress(Away):
                standing = await seizing.standing(client)
                kept = higher(kept, order_from_pb(standing.order) if standing.HasField("order") else None)
        return kept

    async def _plan(self, state: _State, seizing: Seizure, at: Position) -> Step:
        """Choose the buckets and terms. They are stored before they are appended to the log, so that a repetition
        appends the same terms even if the lost store has read them by then."""
        share, stake = await seizing.share()
        there: dict[int, int] = {}
        if self.name == RECOVER:
            there = {
                one.bucket: one.term for one in (await seizing.standing(seizing.lost, bucket_owners=True)).bucket_owners
            }
        after = replace(state, stage="tell", told=tuple(seizing.terms(share, there)))
        note = (
            f"seizing {stake.buckets} buckets with {stake.records} records of the lost store;"
            f" it may create records in {stake.bucket_owners} of them"
        )
        return _step(after, note=note)

    async def _tell(self, state: _State, seizing: Seizure, at: Position) -> Step:
        """Append the terms to the log. From here on, each start of the lost store reads them."""
        await seizing.append_terms([BucketTerm(*one) for one in state.told])
        ends = {str(part): end for part, end in (await seizing.ends()).items()}
        return _step(replace(state, stage="seize", ends=ends))

    async def _seize(self, state: _State, seizing: Seizure, at: Position) -> Step:
        if unread := await seizing.unread(state.offsets):
            return _wait(state, f"{seizing.seizer.store} has {unread} events of the log to read before it seizes")
        some = state.told[state.seized : state.seized + SEIZE_BUCKETS]
        if some:
            refused = await seizing.seize([BucketTerm(*one) for one in some], state.offsets)
            return _step(replace(state, seized=state.seized + len(some)).with_refused(refused))
        return await self._seized(state, seizing)

    @abstractmethod
    async def _seized(self, state: _State, seizing: Seizure) -> Step:
        """Continue after every bucket was seized or refused."""


SEIZE = "seize"
RECOVER = "recover"


class Seize(_Job):
    """A `JobKind`. Arguments: `store`, the lost store, A or B; `confirm`, its name."""

    name = SEIZE

    async def _fence(self, state: _State, seizing: Seizure, at: Position) -> Step:
        """Check that the lost store does not answer, or is fenced."""
        lost = seizing.lost.store
        try:
            standing = await seizing.standing(seizing.lost)
        except Away:
            return _step(state.next("plan"), note=f"{lost} does not answer")
        if standing.fence_reason:
            return _step(state.next("plan"), note=f"{lost} is fenced: {standing.fence_reason}")
        raise JobFailed(f"{lost} answers and is not fenced: stop all its processes, or use baton recover instead")

    async def _seized(self, state: _State, seizing: Seizure) -> Step:
        return _step(state, note=state.seizures, finished=True)


class Recover(_Job):
    """A `JobKind`. Arguments: `store`, the store to bring back, A or B; `confirm`, its name."""

    name = RECOVER
    options = (ADOPT_CONTROL, ACCEPT_GAP, RECHECK)

    def __init__(self, stores: Stores, event_log: EventLog, clock: Clock, control: Control, transfer: Transfer) -> None:
        super().__init__(stores, event_log, clock, control)
        self._transfer = transfer
        self._filling = Backfill(stores, clock)
        self._fenced: dict[str, float] = {}
        """Times since which this router has known a store to be fenced, by job."""

    async def _fence(self, state: _State, seizing: Seizure, at: Position) -> Step:
        client, seizer = seizing.lost, seizing.seizer.store
        there = await seizing.standing(seizing.seizer)
        if there.fence_reason:
            # If both stores were fenced, there would be no store to recover from.
            raise JobFailed(f"{seizer} is fenced too, so it cannot seize: {there.fence_reason}; nothing was changed")
        if not there.serving:
            return _wait(
                state, f"{seizer}, the seizing store, does not serve yet; {client.store} is fenced once it does"
            )
        try:
            await seizing.fence(f"it is being recovered by {at.job or self.name}", at.job)
            fence_reason = (await seizing.standing(client)).fence_reason
        except Away as error:
            return _wait(state, f"{client.store} does not answer: start it, it stays fenced: {error.message}")
        # Wait even if the process that answered did not serve: another one may have, or this step is a repetition.
        self._fenced[at.job] = self._clock.monotonic()
        after = replace(state, stage="drain", fence_reason=fence_reason)
        return _wait(after, f"{client.store} is fenced; its writes in flight are ending", FENCED_SECONDS)

    async def _recheck(self, state: _State, seizing: Seizure, at: Position) -> Step:
        lost = seizing.lost.store
        if fence_reason := await seizing.recheck():
            raise JobFailed(
                f"{lost} stays fenced: {fence_reason}; cancel this job, then run baton recover without --recheck"
            )
        return _step(state.next("await"), note=f"{lost} has no reason to be fenced any more")

    async def _drain(self, state: _State, seizing: Seizure, at: Position) -> Step:
        """Wait until the fenced store's outbox is in the log. A write that ends later would be acknowledged and lost,
        so a router that takes over from another one repeats the whole wait."""
        now = self._clock.monotonic()
        if (left := self._fenced.setdefault(at.job, now) + FENCED_SECONDS - now) > 0:
            return _wait(state, f"{seizing.lost.store} is fenced; its writes in flight are ending", left)
        outbox = (await seizing.status(seizing.lost)).outbox
        if outbox.entries:
            return _wait(state, f"{outbox.entries} changes of {seizing.lost.store} are not in the log yet")
        note = f"all changes of {seizing.lost.store} are in the log"
        if outbox.aside:
            # The rows remain: changes that the seizing store has not seen go to the journal.
            note = f"the log refuses {outbox.aside} changes of {seizing.lost.store}: {outbox.aside_first}"
        return _step(state.next("plan"), note=note)

    async def _seized(self, state: _State, seizing: Seizure) -> Step:
        """Wait until all buckets are seized: the store would open with its old rows of any other bucket."""
        if state.refused:
            left = [BucketTerm(*one) for one in state.told if one[0] in state.refused]
            refused = await seizing.seize(left, state.offsets)
            state = replace(state, refused=(), why="").with_refused(refused)
        if state.refused:
            return _wait(state, state.seizures)
        return _step(state.next("take"), note=state.seizures)

    async def _take(self, state: _State, seizing: Seizure, at: Position) -> Step:
        await seizing.take_terms(state.offsets)
        after = replace(state, stage="fill", cursor="", filled=0, fill_began=self._clock.now())
        return _step(after, note=f"{seizing.lost.store} has taken the terms")

    async def _fill(self, state: _State, seizing: Seizure, at: Position) -> Step:
        to = seizing.lost.store
        position = Position({"to": to.value}, state.cursor.encode(), at.limit, state.filled)
        step = await self._filling.step(position)
        after = replace(state, cursor=step.checkpoint.decode(), filled=state.filled + step.done)
        note = self._pace(after, step.total, to)
        if step.finished:
            after, note = after.next("settle"), f"{to} has {after.filled} records of {to.other}"
        return _step(after, done=step.done, total=step.total, note=note)

    def _pace(self, state: _State, total: int, to: Store) -> str:
        """The estimated time left, and the bound."""
        rate = state.filled / max(self._clock.now() - state.fill_began, 0.001)
        left = max(total - state.filled, 0) / rate if rate else 0.0
        late = "" if left <= BOUND_SECONDS else ": LONGER THAN THE BOUND"
        return f"filling {to}: {left / 60:.0f} min left at {rate:.0f} records/s, the bound is 4 h{late}"

    async def _settle(self, state: _State, seizing: Seizure, at: Position) -> Step:
        if await seizing.settle(SETTLE_ROWS):
            return _step(state, note="moving rows of older terms to the journal of conflicts")
        return _step(state.next("compare"))

    async def _compare(self, state: _State, seizing: Seizure, at: Position) -> Step:
        """Compare some buckets: the lost store must have every record of the other store, and no other record."""
        if state.compared >= BUCKETS:
            return _step(state.next("open"), note="both stores are equal")
        some = list(range(state.compared, min(state.compared + COMPARE_BUCKETS, BUCKETS)))
        lost, seizer = [await self._digests(store, some) for store in (seizing.lost.store, seizing.seizer.store)]
        differing = [bucket for bucket in some if lost.get(bucket) != seizer.get(bucket)]
        if differing and (difference := await self._missing(seizing, differing)):
            return _wait(state, difference)
        return _step(replace(state, compared=some[-1] + 1), note=f"compared up to bucket {some[-1]}")

    async def _digests(self, store: Store, buckets: list[int]) -> dict[int, tuple[int, int]]:
        client = self._stores[store]
        request = rpb.DigestBucketsRequest(buckets=buckets)
        answer = await client.ask(client.replication.DigestBuckets, request, CALL_SECONDS)
        return {one.bucket: (one.records, one.digest) for one in answer.buckets}

    async def _missing(self, seizing: Seizure, buckets: list[int]) -> str:
        """The records that only one store has, in words; "" if none. Reads the seizing store before and after the lost
        one, so that a concurrent change does not count."""
        wanted = await self._transfer.envelopes(seizing.seizer.store, buckets)
        found = await self._transfer.envelopes(seizing.lost.store, buckets)
        again = {one.key for one in await self._transfer.envelopes(seizing.seizer.store, buckets)}
        there = {one.key: version_from_pb(one.version) for one in found}
        behind = [one.key for one in wanted if one.key not in there or there[one.key] < version_from_pb(one.version)]
        more = [key for key in there if key not in again]
        if behind or more:
            named = ", ".join(sorted([*behind, *more])[:3])
            return f"{len(behind)} records have not arrived, {len(more)} exist only at {seizing.lost.store}: {named}"
        return ""

    async def _open(self, state: _State, seizing: Seizure, at: Position) -> Step:
        lost = seizing.lost
        fence_reason = (await seizing.standing(lost)).fence_reason
        if fence_reason and fence_reason != state.fence_reason:
            raise JobFailed(
                f"{lost.store} was fenced again: {fence_reason}; cancel this job and start baton recover again"
            )
        await seizing.open(state.fence_reason, at.job)
        return _step(state.next("await"))

    async def _await(self, state: _State, seizing: Seizure, at: Position) -> Step:
        lost = seizing.lost.store
        standing = await seizing.standing(seizing.lost)
        if not standing.serving:
            return _wait(state, f"{lost} is starting to serve")
        # Read from the store: a count by the job would miss the work of a step whose router died.
        journaled = f"; its journal has {standing.conflicts} conflicts" if standing.conflicts else ""
        filled = "" if at.arguments.get(RECHECK) else f", with {state.filled} records"
        return _step(state, note=f"{lost} serves again{filled}{journaled}", finished=True)


def _store(arguments: Mapping[str, str]) -> Store:
    """Raises InvalidField."""
    name = arguments.get("store", "")
    if name not in {store.value for store in Store}:
        raise InvalidField("store", name, "the lost one, A or B")
    return Store(name)


def _step(state: _State, **more: Any) -> Step:
    return Step(state.encode(), **more)


def _wait(state: _State, why: str, seconds: float = POLL_SECONDS) -> Step:
    return Step(state.encode(), waits=why, wait_seconds=seconds)
