"""The story of the demo, under live load throughout.

Audit of the old data; A to B; B hangs and the router rolls back automatically; to B again; B is killed; a manual
rollback to A; and forward again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import takewhile

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.proving.history.history import Outcome
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.load import Load
from libs.proving.trial.walk import POLL_SECONDS, GatesBlock, Move, Walk
from libs.proving.trial.world import World
from services.router.cli.demo.screen import Screen
from services.router.cli.demo.strangers import Strangers
from services.router.core.audit import AuditReport

ACTOR = "demo"
CANARY_PERCENTS = (5, 10, 50, 100)
ROLLBACK_SECONDS, ROLLBACK_CALLS = 6, 50
"""Evidence that automatic rollback needs in the demo. The defaults are 30 seconds and 200 calls."""
READS_SEEN = 6
"""Number of answered reads, begun after a rollback, that show that reads work again."""
DEAD_SECONDS = 1.5
"""Time until a killed B is started again."""
MARKED_BY_THE_RUN = ("error-rate", "golden-metrics", "latency-parity")
"""Gates that may fail here: B was killed, and one machine runs all processes."""
OLD_CLIENT_SECONDS = 5
"""Window without a direct call to A, for the certificate. The default is 28 days."""
LIMITS = {
    "gate_client_days": OLD_CLIENT_SECONDS / 86_400,
    "gate_compared_reads": 100,
    "gate_error_calls": 200,
    "gate_error_percent": 60,
    "gate_golden_calls": 100,
    "gate_golden_error_percent": 60,
    "gate_latency_margin_percent": 400,
    "gate_ledger_writes": 50,
    "gate_lock_milliseconds": 60_000,
    "gate_write_delta_milliseconds": 60_000,
}
"""Limits for a run of a minute in which B hangs and is killed: the samples suffice and take seconds."""
EVIDENCE_SECONDS = 20.0
"""How long a step waits for MARKED_BY_THE_RUN. For all other gates it waits until they pass."""
REHEARSED_BUCKETS = 4
ON_PURPOSE = "demo: an override on purpose"

Act = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed under load. ``seconds``: time until the router saw it serve again."""

    process: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Rollback:
    """An automatic rollback. Times are seconds since the fault began; ``home_seconds`` since it ended."""

    fault: str
    reason: str
    """The reason in the journal."""
    held_seconds: float
    reads_seconds: float
    home_seconds: float


@dataclass(slots=True)
class Story:
    """A player of the acts, one after the other, spread over ``seconds``."""

    world: World
    walk: Walk
    load: Load
    screen: Screen
    seconds: float
    strangers: Strangers | None = None
    """Strangers of a secure demo."""
    kills: list[Kill] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    blocked: str = ""
    """The gates' refusal of the first step, which had no evidence."""
    copied: int = 0
    findings: list[str] = field(default_factory=list)
    """Kinds of findings of the first audit."""

    async def play(self) -> None:
        """Raises TrialFailed or ServerFailed if an act fails."""
        acts = self._acts()
        began = time.monotonic()
        for number, (sentence, act) in enumerate(acts, start=1):
            self.screen.begin_step(sentence)
            await act()
            # A slow machine takes longer, but skips no act.
            await asyncio.sleep(max(0.0, began + self.seconds * number / len(acts) - time.monotonic()))

    def _acts(self) -> list[tuple[str, Act]]:
        there: list[tuple[str, Act]] = [
            ("every call goes to A, the old service; B runs and follows the event log", self._settle),
            ("the gates get limits that fit a run of a minute: baton gates set", self._set_limits),
            ("the old data is audited in a snapshot of A, while A serves", self._audit),
            (
                "SHADOW is requested without a copy, and with findings not yet accepted: the gates must refuse",
                self._be_blocked,
            ),
            ("the operator accepts the findings, such records move unchanged; second audit", self._accept_findings),
            ("every record of A is copied to B, under live traffic", self._backfill),
            ("OFF -> SHADOW: every gate passes; A still answers all calls", self._forward),
            ("reads are compared with B's, and all records of both stores: baton shadow set 100", self._compare),
            ("SHADOW -> DUAL_WRITE: the canary may begin", self._forward),
        ]
        there += [
            (f"{percent} % of the buckets are handed to B, record by record", self._canary(percent))
            for percent in CANARY_PERCENTS
        ]
        there += [
            ("DUAL_WRITE -> DUAL_READ: B owns every bucket", self._forward),
            ("a rollback is rehearsed on live buckets: baton rehearse", self._rehearse),
            ("DUAL_READ -> CUTOVER: B serves all calls, A is a hot standby", self._forward),
        ]
        if self.strangers is not None:
            there += [("a stranger writes events to the log: both stores must refuse them", self._forge)]
        fault: list[tuple[str, Act]] = [
            (
                f"fault injected: B hangs; the router must roll back automatically, here after {ROLLBACK_SECONDS} s",
                self._hang_new,
            ),
            ("the hold of the automatic rollback is lifted", self._lift),
            ("forward again: all buckets to B", self._canary(100)),
            ("forward again: DUAL_WRITE -> DUAL_READ", self._forward),
            ("forward again: DUAL_READ -> CUTOVER", self._forward),
            ("B is killed with SIGKILL under load and started again", self._kill_new),
        ]
        back: list[tuple[str, Act]] = [
            ("rollback to A: CUTOVER -> OFF, every record returns under traffic", self._back),
            ("the hold of the rollback is lifted", self._lift),
        ]
        again: list[tuple[str, Act]] = [
            ("forward again: OFF -> SHADOW", self._forward),
            ("an override on purpose: SHADOW -> DUAL_WRITE, without a second comparison", self._override),
            ("forward again: all buckets to B", self._canary(100)),
            ("forward again: DUAL_WRITE -> DUAL_READ", self._forward),
            ("forward again: DUAL_READ -> CUTOVER", self._forward),
        ]
        return there + fault + back + again

    async def _settle(self) -> None:
        await self.walk.settled()

    async def _be_blocked(self) -> None:
        # A router learns of the ended audit within a second.
        await self.walk.has_evidence("audit")
        try:
            await self.walk.advance()
        except GatesBlock as refusal:
            self.blocked = refusal.message
            note = "refused, as it should be (exit code 3 or 4 of `baton phase advance SHADOW`)"
            self.screen.tell(f"  {note}: {self.blocked}")
            return
        raise TrialFailed("SHADOW was entered over invalid data: the gates should have refused")

    def _show(self, job: pb.Job) -> None:
        self.screen.progress(job.id, job.done, job.total)

    async def _audit(self) -> None:
        job = await self.walk.job("audit", {}, self._show)
        self.findings = list(AuditReport.from_json(job.report).found)
        self.screen.tell(f"  {job.note}")

    async def _accept_findings(self) -> None:
        job = await self.walk.job("audit", {"accept": ",".join(self.findings)}, self._show)
        self.screen.tell(f"  {job.note}")

    async def _backfill(self) -> None:
        self.copied = (await self.walk.job("backfill", {"to": "B"}, self._show)).done
        self.screen.tell(f"  {self.copied} records copied")

    async def _set_limits(self) -> None:
        await self.walk.set_limits(LIMITS, "demo: a run of a minute, in which B hangs and is killed on purpose")
        self.screen.tell(f"  journaled: {', '.join(f'{name}={value}' for name, value in LIMITS.items())}")

    async def _compare(self) -> None:
        await self.walk.shadow(100)
        job = await self.walk.job("reconcile", {"repair": "yes", "deep": "no"}, self._show)
        self.screen.tell(f"  {job.note}")

    async def _rehearse(self) -> None:
        result = await self.walk.rehearse(REHEARSED_BUCKETS)
        self.screen.tell(f"  {'passed' if result.passed else 'failed'}: {result.note}")

    async def _forge(self) -> None:
        assert self.strangers is not None
        await self.strangers.forge()
        await self.walk.events_refused()
        dropped = await self.walk.drop_refused("demo: written by a stranger, on purpose")
        self.screen.tell(f"  both stores refused them as UNAUTHENTICATED; {dropped} dropped, the journal keeps it")

    async def _override(self) -> None:
        reason = f"{ON_PURPOSE}: the stores were compared before the rollback, without a difference"
        self._log_move(await self.walk.advance(reason))
        self.screen.tell(f"  the journal keeps the reason: {reason}")

    async def _forward(self) -> None:
        unpassed = await self.walk.gates_awaited(MARKED_BY_THE_RUN, EVIDENCE_SECONDS)
        reason = f"demo: no evidence within {EVIDENCE_SECONDS:.0f} s: {', '.join(unpassed)}" if unpassed else ""
        self._log_move(await self.walk.advance(reason))
        if reason:
            self.screen.tell(f"  overridden and journaled: {', '.join(unpassed)}")

    def _canary(self, percent: float) -> Act:
        async def hand_over() -> None:
            self._log_move(await self.walk.canary(percent))

        return hand_over

    @property
    def _new(self) -> str:
        """The process of B to disturb."""
        return next(name for name in self.world.names if name.startswith("b-"))

    async def _kill_new(self) -> None:
        name = self._new
        began = time.monotonic()
        await self.world.kill(name)
        await asyncio.sleep(DEAD_SECONDS)
        self.screen.begin_step("B is restarted; until then its writes wait, and A answers its reads, marked stale")
        await self.world.start(name)
        await self.walk.serving("B")
        self.kills.append(Kill(name, time.monotonic() - began))
        self.screen.tell(f"  B serves again after {self.kills[-1].seconds:.1f} s")

    async def _hang_new(self) -> None:
        before = await self.walk.status()
        began = time.monotonic()
        await self.world.pause(self._new)
        try:
            reason = (await self.walk.taken_back()).last_automatic.reason
            held = time.monotonic()
            self.screen.tell(f"  all traffic is held at A after {held - began:.1f} s: {reason}")
            reads = await self._reads_back(held)
            self.screen.begin_step("A answers reads, marked stale; B resumes, and its records return to A")
        finally:
            await self.world.resume(self._new)
        over = time.monotonic()
        move = await self.walk.came_home(before, began)
        self.rollbacks.append(Rollback("B hung", reason, held - began, reads - began, move.ended - over))
        self._log_move(move)

    async def _reads_back(self, held: float) -> float:
        """Return the time at which READS_SEEN reads begun since ``held`` were answered; monotonic seconds."""

        def answered() -> list[float]:
            calls = takewhile(lambda call: call.end >= held, reversed(self.load.stats.finished))
            return [
                call.end for call in calls if call.method == "get" and call.start >= held and call.outcome is Outcome.OK
            ]

        deadline = held + self.walk.patience_seconds
        while len(ends := answered()) < READS_SEEN:
            if time.monotonic() > deadline:
                raise TrialFailed(
                    f"{len(ends)} reads were answered {self.walk.patience_seconds:g} s after the rollback"
                )
            await asyncio.sleep(POLL_SECONDS)
        return sorted(ends)[READS_SEEN - 1]

    async def _back(self) -> None:
        self._log_move(await self.walk.rollback("OFF", "demo: going back must always be possible"))

    async def _lift(self) -> None:
        self._log_move(await self.walk.lift_hold("demo: going forward again"))

    def _log_move(self, move: Move) -> None:
        self.load.label(move.after)
        window = self.load.stats.window(move.started, move.ended)
        self.screen.tell(
            f"  {move.after}: settled after {move.seconds:.1f} s, {move.records} records moved;"
            f" slowest request {window.slowest_milliseconds:.0f} ms"
        )


async def journaled_overrides(walk: Walk) -> list[pb.JournalEntry]:
    """Return the journal entries of overrides, newest first."""
    return [entry for entry in (await walk.journal()).entries if entry.overridden]
