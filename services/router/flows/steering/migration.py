"""Changes of the setting: each passes its gates, is compared and set, journaled, and takes effect here at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from libs.clock import Clock
from libs.errors import InvalidField
from services.router.control.port import AUTOMATIC, ControlStore, DamagedSetting, JournalEntry
from services.router.core import approvals, cohort_changes
from services.router.core import phase as phases
from services.router.core.attention import clock_warning
from services.router.core.automatic_rollback import rolled_back
from services.router.core.cohorts import Cohort
from services.router.core.gates import Evidence, GateResult, Limits, Verdict, check, not_overridable, warnings, worst
from services.router.core.limits import changed
from services.router.core.pace import Pace
from services.router.core.pending import PendingCall
from services.router.core.phase import PHASES, GateBlocked, IllegalMove, Outdated, Phase, Setting
from services.router.core.setting_changes import changes
from services.router.flows.steering.gate_webhook import GateWebhook
from services.router.flows.steering.observe import SettingCache

log = logging.getLogger(__name__)

BATON = "baton"
"""The actor of an automatic rollback."""

OPERATOR = "operator"
"""Trigger of a rollback; the other one is AUTOMATIC."""

RECORDED, APPROVED, WITHDRAWN = "approval requested", "approved", "withdrawn"
"""Actions in the journal of a call that needs a second person."""

DEFAULT_LIMITS = Limits()

MAX_ACTOR_CHARACTERS = 128
MAX_REASON_CHARACTERS = 1000
MAX_JOURNAL_ENTRIES = 1000
_NOTES = 5
"""Attempts at a note while others change the setting."""


class Blocked(GateBlocked):
    """Gates do not pass; nothing was changed."""

    def __init__(self, to: Phase, results: Sequence[GateResult], advice: str) -> None:
        failing = [result for result in results if result.verdict is not Verdict.PASS]
        shown = "; ".join(f"{result.name} {result.verdict.value}: {result.evidence}" for result in failing)
        super().__init__(
            # The advice comes first, since a message that is too long is cut at its end.
            f"{to.value} is not entered. {advice}. {shown}",
            name=to.value,
            verdict=worst(failing).value,
            gates=",".join(result.name for result in failing),
        )
        self.results = tuple(results)


@dataclass(frozen=True, slots=True)
class Decision:
    """The actor and the reason of a change of the setting."""

    actor: str
    reason: str = ""
    generation: int = 0
    """The generation that was looked at when deciding; 0 is any."""
    override: bool = False
    """Pass gates that do not pass. Needs a reason."""

    def check(self) -> None:
        """Raises InvalidField."""
        if not self.actor.strip() or len(self.actor) > MAX_ACTOR_CHARACTERS:
            raise InvalidField("actor", self.actor, f"the name of the actor, 1 to {MAX_ACTOR_CHARACTERS} characters")
        if len(self.reason) > MAX_REASON_CHARACTERS:
            raise InvalidField("reason", self.reason, f"at most {MAX_REASON_CHARACTERS} characters")
        if self.override and not self.reason.strip():
            raise InvalidField("reason", self.reason, "why the gates are overridden; it is kept in the journal")
        if self.generation < 0:
            raise InvalidField("generation", self.generation, "the generation that was decided on, or 0 for any")


class Plan(NamedTuple):
    """The next step forward."""

    setting: Setting
    next: Phase | None
    results: tuple[GateResult, ...]
    blocked: str
    """Why there is no next step; "" if there is one."""

    @property
    def effect(self) -> str:
        return PHASES[self.next].effect if self.next else ""


class Migration:
    """Changes of the setting. `evidence` returns the current evidence for the gates."""

    def __init__(
        self,
        control: ControlStore,
        cache: SettingCache,
        evidence: Callable[[Setting], Evidence],
        clock: Clock,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._control = control
        self._cache = cache
        self._evidence = evidence
        self._clock = clock
        self._limits = limits
        self.webhook: GateWebhook | None = None
        """The webhook that also decides about phases; None without one."""
        self.pace = Pace()
        self.rollbacks = Counter({OPERATOR: 0, AUTOMATIC: 0})
        """Rollbacks that this router has made, by trigger."""

    async def plan(self) -> Plan:
        """Return the next step and the verdicts of its gates. Raises ControlUnavailable."""
        return self.outlook(await self._cache.refresh())

    def outlook(self, setting: Setting) -> Plan:
        """Return the plan from this router's own evidence, without a read."""
        try:
            to = phases.next_phase(setting)
        except IllegalMove as error:
            return Plan(setting, None, (), error.message)
        return Plan(setting, to, self.checked(self._gates(to), setting), "")

    def _gates(self, to: Phase) -> tuple[str, ...]:
        """The gates before a phase."""
        return (*PHASES[to].gates, *(self.webhook.gates(to) if self.webhook else ()))

    def limits(self, setting: Setting) -> Limits:
        """The limits in force: this router's own, except those that the migration sets."""
        return self._limits.overlaid(setting.limits)

    def checked(self, gates: Sequence[str], setting: Setting) -> tuple[GateResult, ...]:
        """Return the verdicts of these gates, by this router's evidence and the limits in force."""
        results = check(gates, self._evidence(setting), self.limits(setting))
        return self.pace.noted(results, self._clock.monotonic())

    def alerts(self, setting: Setting) -> list[str]:
        """Return the alerts for the operator, by the evidence of the gates."""
        evidence = self._evidence(setting)
        return [*warnings(evidence, self.limits(setting)), *clock_warning(evidence.clocks_apart_seconds)]

    async def advance(self, decision: Decision, to: Phase, confirm: str = "") -> tuple[Setting, tuple[GateResult, ...]]:
        """Enter the next phase. `confirm`: required where there is no way back.

        Raises:
            InvalidField, ControlUnavailable.
            IllegalMove: `to` is not the next phase.
            Blocked: gates do not pass and are not overridden, or cannot be.
            Outdated: the setting changed since it was looked at.
        """
        before = await self._begin(decision)
        after = phases.advance(before, to)
        if not PHASES[to].way_back and confirm != phases.LAST_STEP_CONFIRM:
            raise InvalidField(
                "confirm",
                confirm,
                f"{phases.LAST_STEP_CONFIRM}, the store that may be shut down then: {to.value} has no way back",
            )
        if self.webhook is not None:
            await self.webhook.ask(before, to)
        results = self.checked(self._gates(to), before)
        fixed = not_overridable(results)
        passed = worst(results) is Verdict.PASS
        if not passed and not decision.override:
            raise Blocked(after.phase, results, "Nothing was changed; an override needs a reason")
        if fixed:
            raise Blocked(after.phase, results, f"Nothing was changed; no override passes {fixed[0].name}")
        return await self._commit("advance", decision, before, after, results), results

    async def rollback(self, decision: Decision, to: Phase) -> Setting:
        """Back to an earlier phase, without gates. Raises as `advance` does, but never Blocked."""
        before, decision = await self._begin_going_back(decision)
        after = await self._commit("rollback", decision, before, phases.rollback(before, to))
        self.rollbacks[OPERATOR] += 1
        return after

    async def roll_back_automatically(self, generation: int, reason: str) -> Setting:
        """All traffic to A until a person lifts the hold. Raises as `rollback` does."""
        before, decision = await self._begin_going_back(Decision(BATON, reason[:MAX_REASON_CHARACTERS], generation))
        after = await self._commit(AUTOMATIC, decision, before, rolled_back(before))
        self.rollbacks[AUTOMATIC] += 1
        return after

    async def set_canary(self, decision: Decision, permille: int) -> Setting:
        """Set the thousandths of the buckets that go to B. Raises as `rollback` does."""
        if not 0 <= permille <= phases.CANARY_FULL:
            raise InvalidField("permille", permille, "0 to 1000 thousandths, that is 0 to 100 % in steps of 0.1 %")
        before = await self._begin(decision)
        return await self._commit("canary", decision, before, phases.set_canary(before, permille))

    async def add_cohort(self, decision: Decision, cohort: Cohort, *, first: bool = False) -> Setting:
        """Raises as `rollback` does, and TooManyCohorts."""
        before = await self._begin(decision)
        return await self._commit("cohort", decision, before, cohort_changes.add_cohort(before, cohort, first=first))

    async def set_cohort(self, decision: Decision, name: str, permille: int) -> Setting:
        """Set the share of a cohort. Raises as `rollback` does, and CohortNotFound."""
        before = await self._begin(decision)
        return await self._commit("cohort", decision, before, cohort_changes.set_share(before, name, permille))

    async def remove_cohort(self, decision: Decision, name: str) -> Setting:
        """Raises as `rollback` does, and CohortNotFound."""
        before = await self._begin(decision)
        return await self._commit("cohort", decision, before, cohort_changes.remove_cohort(before, name))

    async def set_shadow(self, decision: Decision, permille: int, *, same: bool = False) -> Setting:
        """Set the thousandths of the reads to compare with the other store. Raises as `rollback` does."""
        if not 0 <= permille <= phases.SHADOW_FULL:
            raise InvalidField("permille", permille, "0 to 1000 thousandths, that is 0 to 100 % in steps of 0.1 %")
        before = await self._begin(decision)
        return await self._commit("shadow", decision, before, phases.set_shadow(before, permille, same=same))

    async def lift_hold(self, decision: Decision) -> Setting:
        """Traffic follows the phase again. Raises as `rollback` does."""
        before = await self._begin(decision)
        return await self._commit("hold lifted", decision, before, phases.lift_hold(before))

    async def set_flag(self, decision: Decision, name: str, value: bool | None) -> Setting:
        """Sets a flag, or with None unsets it. The name is checked by the caller. Raises as `rollback` does."""
        before = await self._begin(decision)
        return await self._commit("flag", decision, before, phases.set_flag(before, name, value))

    async def set_limits(self, decision: Decision, to_set: Mapping[str, float], unset: Sequence[str]) -> Setting:
        """Limits of gates and of automatic rollback, at all routers. Raises as `rollback` does."""
        if not to_set and not unset:
            raise InvalidField("limit", "", "at least one to set or to unset")
        if not decision.reason.strip():
            raise InvalidField("reason", decision.reason, "why the limits change; it is kept in the journal")
        before = await self._begin(decision)
        overlay = changed(before.limits, to_set, tuple(unset))
        return await self._commit("limits", decision, before, replace(phases.noted(before), limits=overlay))

    async def switch_identity(self, decision: Decision, *, serve_subjects: bool) -> Setting:
        """Serve requests under the subjects of their callers, or under `anonymous`. Raises as `rollback` does."""
        before = await self._begin(decision)
        after = replace(phases.noted(before), serves_subjects=serve_subjects)
        return await self._commit("identity", decision, before, after)

    async def begin_rehearsal(self, decision: Decision, buckets: Sequence[int]) -> Setting:
        """Move these buckets to the other store. Raises as `rollback` does."""
        before = await self._begin(decision)
        return await self._commit("rehearsal begun", decision, before, phases.begin_rehearsal(before, tuple(buckets)))

    async def end_rehearsal(self, decision: Decision) -> Setting:
        """Move the buckets of the rehearsal back. Raises as `rollback` does."""
        before = await self._begin(decision)
        return await self._commit("rehearsal ended", decision, before, phases.end_rehearsal(before))

    async def note(self, decision: Decision, action: str) -> Setting:
        """Write an action that does not change the setting to the journal. Raises as `rollback` does."""
        for _ in range(_NOTES):
            before = await self._begin(decision)
            # A concurrent change of the setting does not invalidate the note.
            with suppress(Outdated):
                return await self._commit(action, decision, before, phases.noted(before))
        raise Outdated(f"others changed the setting {_NOTES} times: nothing was done, try again")

    async def record(self, decision: Decision, call: PendingCall) -> PendingCall:
        """Record a call that needs a second person; a repeated one is not recorded again. Raises as `rollback` does,
        and TooManyCalls."""
        before = await self._begin(decision)
        if known := approvals.same(before, call):
            return known
        await self._commit(RECORDED, decision, before, approvals.record(before, call))
        return call

    async def approve(self, decision: Decision, call_id: str, subject: str) -> tuple[PendingCall, Setting]:
        """Take a call that another person has made, to run it on the returned setting. Raises as `rollback` does, and
        CallNotFound, OwnCall."""
        before = await self._begin(decision)
        after, call = approvals.approve(before, call_id, subject, self._clock.now())
        return call, await self._commit(APPROVED, _about(call, decision), before, after)

    async def withdraw(self, decision: Decision, call_id: str) -> PendingCall:
        """Take a call out of the record without running it. Raises as `rollback` does, and CallNotFound."""
        before = await self._begin(decision)
        after, call = approvals.withdraw(before, call_id, self._clock.now())
        await self._commit(WITHDRAWN, _about(call, decision), before, after)
        return call

    async def set_two_person(self, decision: Decision, *, on: bool) -> Setting:
        """Raises as `rollback` does."""
        before = await self._begin(decision)
        return await self._commit("two-person rule", decision, before, approvals.set_two_person(before, on=on))

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        """Newest first. Raises InvalidField, ControlUnavailable."""
        if not 0 < limit <= MAX_JOURNAL_ENTRIES:
            raise InvalidField("limit", limit, f"1 to {MAX_JOURNAL_ENTRIES} entries")
        return await self._control.journal(limit)

    async def _begin(self, decision: Decision) -> Setting:
        decision.check()
        setting = await self._cache.refresh()
        if decision.generation and decision.generation != setting.generation:
            raise Outdated(
                f"the setting is at generation {setting.generation} ({setting.phase.value}), the decision was made on"
                f" generation {decision.generation}: nothing was changed; look again and decide anew"
            )
        return setting

    async def _begin_going_back(self, decision: Decision) -> tuple[Setting, Decision]:
        """Like `_begin`, but accept an unreadable setting, so that a rollback is possible."""
        try:
            return await self._begin(decision), decision
        except DamagedSetting as damaged:
            newest = await self._control.journal(1)
            last = newest[0].after if newest else Setting(phase=Phase.CUTOVER)
            log.error("the setting of generation %d is overwritten: %s", damaged.generation, damaged)
            reason = f"{decision.reason} (over a setting that could not be read)".strip()
            return replace(last, generation=damaged.generation), replace(decision, reason=reason)

    async def _commit(
        self,
        action: str,
        decision: Decision,
        before: Setting,
        after: Setting,
        results: tuple[GateResult, ...] = (),
    ) -> Setting:
        entry = JournalEntry(
            time_seconds=self._clock.now(),
            actor=decision.actor,
            action=action,
            reason=decision.reason,
            before=before,
            after=after,
            gates=results,
            overridden=worst(results) is not Verdict.PASS,
        )
        if not await self._control.change(entry):
            raise Outdated()
        _log_entry(entry)
        # Traffic follows at once here, within the refresh interval at other routers.
        await self._cache.take(after)
        return after


def _about(call: PendingCall, decision: Decision) -> Decision:
    """The decision with the call in its reason."""
    reason = f"{decision.reason} ({call.id}: {call.method}, called by {call.subject})".strip()
    return replace(decision, reason=reason)


def _log_entry(entry: JournalEntry) -> None:
    """One line for each entry of the journal, at the router that made it."""
    what = "; ".join(changes(entry.before, entry.after))
    gates = ", ".join(result.name for result in entry.gates if result.verdict is not Verdict.PASS)
    log.info(
        "generation %d, %s by %s%s%s%s",
        entry.after.generation,
        entry.action,
        entry.actor,
        f": {what}" if what else "",
        f"; overrides {gates}" if entry.overridden else "",
        f"; reason: {entry.reason}" if entry.reason else "",
    )
