"""Moves a migration through its phases by a router's control API, and measures each move.

With several routers, any of them is used, so the walk continues while one of them is unavailable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.baton.control.v1.ending_pb2 import GetCertificateRequest, GetCertificateResponse
from libs.pb.baton.control.v1.events_pb2 import DropParkedRequest
from libs.proving.trial.errors import TrialFailed
from libs.rpc.auth import operator_metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from libs.tls.process import ClientTls

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub

CALL_SECONDS = 3.0
POLL_SECONDS = 0.05
TRY_AGAIN_SECONDS = 0.2
OBSERVED_SECONDS = 0.7
"""A router's view of its stores is half a second old."""

PHASES = ("OFF", "SHADOW", "DUAL_WRITE", "DUAL_READ", "CUTOVER")
"""Phases in order. The last one, DEPRECATED, cannot be rolled back and is left out."""

_Code = grpc.StatusCode
_AWAY = frozenset({_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.INTERNAL, _Code.UNKNOWN, _Code.CANCELLED})


class GatesBlock(TrialFailed):
    """Gates do not pass; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Move:
    """One change of the setting, until every bucket was at its target. Times are monotonic seconds."""

    before: str
    after: str
    started: float
    ended: float
    records: int
    """Change of the number of records that B owns; 0 if the walk does not count them."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def phase_name(setting: pb.Setting) -> str:
    """Display name, such as "DUAL_WRITE 10 %" or "OFF, held at A"."""
    name = pb.Phase.Name(setting.phase).removeprefix("PHASE_")
    if name == "DUAL_WRITE":
        name += f" {setting.canary_permille / 10:g} %"
    return f"{name}, held at A" if setting.hold else name


def owned_by_b(status: pb.GetStatusResponse) -> int:
    """Number of records, as the router reports it."""
    return next((store.owned_records for store in status.stores if pb_store(store) == "B"), 0)


def pb_store(status: pb.StoreStatus) -> str:
    """A or B."""
    return "A" if status.store == 1 else "B"


def _unseen(job: pb.Job) -> None:
    """Ignore the progress."""


@dataclass(slots=True)
class Walk:
    """The operator. Every wait ends after ``patience_seconds`` in TrialFailed with the awaited condition."""

    stubs: Sequence[ControlServiceAsyncStub]
    actor: str
    token: str = ""
    patience_seconds: float = 60.0
    counts_records: bool = True
    """Whether a move reports how many records it moved: the walk waits OBSERVED_SECONDS after each move to see them."""
    moves: list[Move] = field(default_factory=list)
    overrides: int = 0
    """Steps that were made although their gates did not pass, with a reason that the journal keeps."""
    _stub: int = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, controls: Sequence[str], actor: str, token: str = "", tls: ClientTls | None = None
    ) -> AsyncIterator[Self]:
        """``controls``: addresses of the routers' control listeners."""
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(open_channel(address, tls)) for address in controls]
            yield cls([ControlServiceStub(channel.grpc) for channel in channels], actor, token)

    async def status(self) -> pb.GetStatusResponse:
        """Status of the first router that answers."""
        found: pb.GetStatusResponse = await self._ask("GetStatus", pb.GetStatusRequest())
        return found

    async def plan(self) -> pb.PlanPhaseResponse:
        """The next step and the verdicts of its gates."""
        found: pb.PlanPhaseResponse = await self._ask("PlanPhase", pb.PlanPhaseRequest())
        return found

    async def journal(self) -> pb.ListJournalResponse:
        """Journal entries, newest first."""
        found: pb.ListJournalResponse = await self._ask("ListJournal", pb.ListJournalRequest(limit=200))
        return found

    async def unpassed_gates(self, accepted: Collection[str] = ()) -> list[str]:
        """Names of the next step's gates that do not pass, once no gate fails except the ``accepted`` ones."""
        plan = await self.plan()

        def failing() -> list[pb.Gate]:
            return [gate for gate in plan.gates if gate.verdict == pb.VERDICT_FAIL and gate.name not in accepted]

        async def none_fails() -> bool:
            nonlocal plan
            plan = await self.plan()
            return not failing()

        def words() -> str:
            return "; ".join(f"{gate.name}: {gate.evidence}" for gate in failing())

        await self._until(none_fails, lambda: f"no gate fails; failing: {words()}")
        return [gate.name for gate in plan.gates if gate.verdict != pb.VERDICT_PASS]

    async def has_evidence(self, name: str) -> None:
        """Wait until this gate of the next step has evidence. Raises TrialFailed."""

        async def measured() -> bool:
            gates = (await self.plan()).gates
            return all(gate.verdict != pb.VERDICT_INCONCLUSIVE for gate in gates if gate.name == name)

        await self._until(measured, lambda: f"the gate {name} has evidence")

    async def gates_awaited(self, accepted: Collection[str], seconds: float) -> list[str]:
        """Wait until every gate of the next step passes; return the names of those that do not.

        The ``accepted`` gates are awaited for at most ``seconds``, all others for ``patience_seconds``: a slow machine
        gathers evidence later.
        """
        began = time.monotonic()
        while unpassed := [gate.name for gate in (await self.plan()).gates if gate.verdict != pb.VERDICT_PASS]:
            longest = seconds if set(unpassed) <= set(accepted) else self.patience_seconds
            if time.monotonic() - began > longest:
                break
            await asyncio.sleep(POLL_SECONDS)
        return unpassed

    async def set_limits(self, limits: Mapping[str, float], reason: str) -> None:
        """Set limits of gates and of automatic rollback at all routers."""
        await self._ask("SetLimits", pb.SetLimitsRequest(actor=self.actor, reason=reason, set=limits))

    async def events_refused(self) -> None:
        """Wait until both stores have refused an event without a right code."""

        async def refused() -> bool:
            return all(store.unauthenticated for store in (await self.status()).stores)

        await self._until(refused, lambda: "both stores refuse an event without a right code")

    async def drop_refused(self, reason: str) -> int:
        """Drop the events that the stores have refused. Returns how many."""
        dropped = 0
        for store in (await self.status()).stores:
            request = DropParkedRequest(actor=self.actor, reason=reason, store=store.store, unauthenticated=True)
            dropped += (await self._ask("DropParked", request)).count
        return dropped

    async def shadow(self, percent: float) -> None:
        """Compare this share of the reads with the other store."""
        await self._ask("SetShadow", pb.SetShadowRequest(actor=self.actor, permille=round(percent * 10)))

    async def rehearse(self, buckets: int) -> pb.Rehearsal:
        """Move buckets to the other store and back under traffic; return the result."""
        last = await self.status()
        former = last.last_rehearsal.id
        await self._ask("StartRehearsal", pb.StartRehearsalRequest(actor=self.actor, buckets=buckets), once=True)

        async def ended() -> bool:
            nonlocal last
            last = await self.status()
            return not last.rehearsal.running and last.last_rehearsal.id != former

        await self._until(ended, lambda: f"the rehearsal ends; it says {last.rehearsal.note!r}")
        return last.last_rehearsal

    async def advance(self, override_reason: str = "") -> Move:
        """Move one phase forward. Raises GatesBlock if a gate does not pass and there is no reason for an override."""
        before = (await self.status()).setting
        wanted = PHASES[PHASES.index(_phase(before)) + 1]

        def request() -> Any:
            return pb.AdvancePhaseRequest(
                actor=self.actor,
                reason=override_reason,
                override=bool(override_reason),
                to=pb.Phase.Value(f"PHASE_{wanted}"),
            )

        async def change(generation: int) -> None:
            message = request()
            message.generation = generation
            answer = await self._ask("AdvancePhase", message, once=True)
            self.overrides += any(gate.verdict != pb.VERDICT_PASS for gate in answer.gates)

        return await self._move(change, lambda setting: _phase(setting) == wanted)

    async def canary(self, percent: float) -> Move:
        """Hand this share of the buckets to B."""
        permille = round(percent * 10)

        async def change(generation: int) -> None:
            await self._ask(
                "SetCanary",
                pb.SetCanaryRequest(actor=self.actor, permille=permille, generation=generation),
                once=True,
            )

        return await self._move(change, lambda setting: setting.canary_permille == permille)

    async def rollback(self, to: str, reason: str) -> Move:
        """Return to an earlier phase at once."""
        number = pb.Phase.Value(f"PHASE_{to}")

        async def change(generation: int) -> None:
            message = pb.RollbackPhaseRequest(actor=self.actor, reason=reason, to=number, generation=generation)
            await self._ask("RollbackPhase", message, once=True)

        return await self._move(change, lambda setting: setting.phase == number)

    async def lift_hold(self, reason: str) -> Move:
        """Let traffic follow the phase again."""

        async def change(generation: int) -> None:
            message = pb.LiftHoldRequest(actor=self.actor, reason=reason, generation=generation)
            await self._ask("LiftHold", message, once=True)

        return await self._move(change, lambda setting: not setting.hold)

    async def taken_back(self) -> pb.GetStatusResponse:
        """Wait until an automatic rollback has set a hold, and the router reports its reason. It reads that after the
        setting."""
        last = await self.status()

        async def held() -> bool:
            nonlocal last
            last = await self.status()
            return last.setting.hold and last.last_automatic.after.hold

        await self._until(held, lambda: f"an automatic rollback; assessment: {last.automatic_rollback!r}")
        return last

    async def came_home(self, before: pb.GetStatusResponse, started: float) -> Move:
        """Wait until an automatic rollback is complete; ``before``: the status until then."""
        return await self._moved(before, started)

    async def backfill(self) -> int:
        """Copy every record of A to B; return their number."""
        return (await self.job("backfill", {"to": "B"})).done

    async def job(self, kind: str, arguments: Mapping[str, str], seen: Callable[[pb.Job], None] = _unseen) -> pb.Job:
        """Run a job to its end and return it. ``seen`` is called with its progress repeatedly."""
        return await self.end_of_job((await self.start_job(kind, arguments)).id, seen)

    async def start_job(self, kind: str, arguments: Mapping[str, str], rate: float = 0.0) -> pb.Job:
        """Start a job. ``rate``: maximum units per second; 0: as fast as possible."""
        request = pb.StartJobRequest(actor=self.actor, kind=kind, arguments=arguments, rate=rate)
        job: pb.Job = (await self._ask("StartJob", request)).job
        return job

    async def look_at_job(self, job_id: str) -> pb.Job:
        """The job as it is recorded now."""
        job: pb.Job = (await self._ask("GetJob", pb.GetJobRequest(id=job_id))).job
        return job

    async def tune_job(self, job_id: str, rate: float) -> None:
        """Set the job's rate, as `start_job` does."""
        tune = pb.ChangeJobRequest.ACTION_TUNE
        await self._ask("ChangeJob", pb.ChangeJobRequest(actor=self.actor, id=job_id, action=tune, rate=rate))

    async def end_of_job(self, job_id: str, seen: Callable[[pb.Job], None] = _unseen) -> pb.Job:
        """Wait until the job has finished."""
        job = await self.look_at_job(job_id)

        async def ended() -> bool:
            nonlocal job
            job = await self.look_at_job(job_id)
            seen(job)
            if job.state in (pb.Job.STATE_FAILED, pb.Job.STATE_CANCELLED):
                raise TrialFailed(f"{job.id} ended as {pb.Job.State.Name(job.state)}: {job.note}")
            return job.state == pb.Job.STATE_FINISHED

        await self._until(ended, lambda: f"{job.id} finishes; it says {job.waits or job.note!r}")
        return job

    async def certificate(self) -> GetCertificateResponse:
        """Compare all rows of both stores, and wait until the certificate of the migration is complete."""
        await self.job("reconcile", {"repair": "yes", "deep": "yes"})
        found = GetCertificateResponse()

        async def complete() -> bool:
            nonlocal found
            found = await self._ask("GetCertificate", GetCertificateRequest())
            return bool(found.complete)

        await self._until(complete, lambda: f"nothing is open; open: {[(one.name, one.text) for one in found.open]}")
        return found

    async def settled(self) -> pb.GetStatusResponse:
        """Wait until every bucket is at its target."""
        last = await self.status()

        async def there() -> bool:
            nonlocal last
            last = await self.status()
            return last.settled and not last.setting_stale

        await self._until(
            there,
            lambda: (
                f"every bucket is where {phase_name(last.setting)} wants it: {last.buckets_at_b} of"
                f" {last.buckets_to_b} are at B; the mover says {last.handover.note!r}"
            ),
        )
        return last

    async def serving(self, store: str) -> None:
        """Wait until the router reports that this store serves."""

        async def serves() -> bool:
            return any(found.serving for found in (await self.status()).stores if pb_store(found) == store)

        await self._until(serves, lambda: f"the router sees store {store} serve")

    async def _move(self, change: Callable[[int], Awaitable[None]], done: Callable[[pb.Setting], bool]) -> Move:
        """Make a change. It names the generation that it is based on, so that a change whose answer was lost is not
        repeated."""
        before = await self.status()
        started = time.monotonic()
        setting = before.setting
        deadline = started + self.patience_seconds
        while True:
            try:
                await change(setting.generation)
                break
            except grpc.aio.AioRpcError as error:
                self._judge(error)
                if time.monotonic() > deadline:
                    raise TrialFailed(f"the setting could not be changed: {_words(error)}") from error
            await asyncio.sleep(TRY_AGAIN_SECONDS)
            setting = (await self.status()).setting
            if setting.generation > before.setting.generation and done(setting):
                break
        return await self._moved(before, started)

    async def _moved(self, before: pb.GetStatusResponse, started: float) -> Move:
        after = await self.settled()
        ended = time.monotonic()
        records = 0
        if self.counts_records:
            await asyncio.sleep(OBSERVED_SECONDS)
            records = abs(owned_by_b(await self.status()) - owned_by_b(before))
        move = Move(phase_name(before.setting), phase_name(after.setting), started, ended, records)
        self.moves.append(move)
        return move

    def _judge(self, error: grpc.aio.AioRpcError) -> None:
        """Return if a retry may help. Raises TrialFailed for all other errors."""
        reason = reason_of(error)[0]
        if reason == "GATE_BLOCKED":
            raise GatesBlock(error.details()) from error
        if error.code() not in _AWAY and reason != "OUTDATED":
            raise TrialFailed(f"the router refuses: {_words(error)}") from error

    async def _ask(self, method: str, request: Any, *, once: bool = False) -> Any:
        """Ask the router that answered last, then the others. Raises TrialFailed, and AioRpcError if asked `once`."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            call = getattr(self.stubs[self._stub], method)
            try:
                return await call(
                    request, timeout=CALL_SECONDS, metadata=grpc.aio.Metadata(*operator_metadata(self.token))
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _AWAY:
                    self._stub = (self._stub + 1) % len(self.stubs)
                if once:
                    raise
                if error.code() not in _AWAY or time.monotonic() > deadline:
                    raise TrialFailed(f"{method}: {_words(error)}") from error
            await asyncio.sleep(TRY_AGAIN_SECONDS)

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: Callable[[], str]) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not await condition():
            if time.monotonic() > deadline:
                raise TrialFailed(f"not so after {self.patience_seconds:g} s: {what()}")
            await asyncio.sleep(POLL_SECONDS)


def _phase(setting: pb.Setting) -> str:
    return pb.Phase.Name(setting.phase).removeprefix("PHASE_")


def _words(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name} {reason_of(error)[0]} {error.details()}"
