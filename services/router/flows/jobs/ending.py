"""The end of a migration: the certificate, the steps that take A away, and the record of A's backup."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from libs.clock import Clock
from libs.errors import InvalidField
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.seals import Seal, seal, why_no_code
from libs.ownership.model import Store
from services.router.core import retirement
from services.router.core.evidence import Evidence
from services.router.core.gates import GATES, GateResult, Verdict
from services.router.core.gates.ending import BACKUP as BACKUP_GATE
from services.router.core.gates.steps import CLIENT_SILENCE
from services.router.core.migration_certificate import (
    ENDING_GATES,
    LAST,
    CertificateOpen,
    Facts,
    OpenItem,
    document,
    open_items,
)
from services.router.core.phase import Setting
from services.router.core.row_sum import Sum
from services.router.flows.jobs.chronicle import BACKUP, Chronicle, Known
from services.router.flows.jobs.cold_backup import BackupUnfit, Export, Page
from services.router.flows.steering.history import utc
from services.router.flows.steering.migration import MAX_REASON_CHARACTERS, Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.stores import Stores, StoreViews

EXPORTED = "backup exported"
RECORDED = "backup recorded"
"""Actions in the journal."""
EXPORT = "backup export"
"""Name of the remembered value: the sum and the end of the last export."""
MAX_FILE_CHARACTERS = 300
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Certificate:
    document: bytes
    seal: Seal
    open: Sequence[OpenItem]


@dataclass(frozen=True, slots=True)
class Backup:
    """A verified backup of A, as it is recorded."""

    ended_seconds: int
    """End of its export, in UNIX seconds."""
    actor: str
    file: str
    file_digest: str
    records: int
    digest: str


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """Name, settings and keys of this router that a certificate shows or needs."""

    name: str
    service: str
    ledger_permille: int
    direct_routes: bool
    """Whether the router gives clients routes to A."""
    ring: Callable[[], KeyRing | None]
    """The keys that sign events; None without any."""


class Ending:
    def __init__(
        self,
        chronicle: Chronicle,
        migration: Migration,
        cache: SettingCache,
        stores: Stores,
        views: StoreViews,
        evidence: Callable[[Setting], Evidence],
        clock: Clock,
        router: RouterFacts,
    ) -> None:
        self._chronicle = chronicle
        self._migration = migration
        self._cache = cache
        self._stores = stores
        self._views = views
        self._evidence = evidence
        self._clock = clock
        self._router = router

    async def certificate(self) -> Certificate:
        """Raises ControlUnavailable."""
        facts = self._facts(await self._cache.refresh(), await self._chronicle.read())
        made = document(facts)
        return Certificate(made, seal(made, self._router.ring()), open_items(facts))

    def why_no_code(self, found: Seal) -> str:
        """Why the code of a seal is not right; "" if it is."""
        return why_no_code(found, self._router.ring())

    async def retirement(self) -> tuple[list[retirement.Step], Backup | None, float | None]:
        """The steps, the recorded backup, and the end of the window in UNIX seconds, None before the last phase.
        Raises ControlUnavailable."""
        setting, known = await self._cache.refresh(), await self._chronicle.read()
        backup = None if known.backup is None else Backup(**known.backup)
        until = self._keep_until(setting, known)
        standing = retirement.Standing(
            phase=setting.phase,
            open=[item.name for item in open_items(self._facts(setting, known))],
            backup="" if backup is None else _shown(backup),
            backup_counts=self._is_fresh(setting),
            a_answers=self._views.view(Store.A).reachable,
            direct_routes=self._router.direct_routes,
            keep_until="" if until is None else utc(until),
            window_over=until is not None and self._clock.now() >= until,
        )
        return retirement.steps(standing), backup, until

    async def export(self, decision: Decision) -> AsyncIterator[Page | Sum]:
        """All pages of A, then the sum. Raises CertificateOpen, BackupUnfit, and the errors of the store's client."""
        certificate = await self.certificate()
        if certificate.open:
            names = ", ".join(item.name for item in certificate.open)
            raise CertificateOpen(f"nothing was exported, because the certificate is not complete: {names}")
        await self._migration.note(decision, EXPORTED)
        export = Export(self._stores)
        async for page in export.pages():
            yield page
        kept = {"records": export.total.records, "digest": export.total.text, "ended": round(self._clock.now())}
        await self._chronicle.remember(EXPORT, kept)
        yield export.total

    async def record(self, decision: Decision, file: str, file_digest: str, found: Sum) -> Backup:
        """Record that the last export was read back from a file. Raises InvalidField, BackupUnfit, and the errors of a
        note in the journal."""
        if not 0 < len(file) <= MAX_FILE_CHARACTERS:
            raise InvalidField("file", file, f"the name of the backup, 1 to {MAX_FILE_CHARACTERS} characters")
        if not _DIGEST.fullmatch(file_digest):
            raise InvalidField("file_digest", file_digest, "SHA-256 as 64 hexadecimal digits in lower case")
        exported = await self._chronicle.remembered(EXPORT)
        if exported is None or (exported["records"], exported["digest"]) != (found.records, found.text):
            raise BackupUnfit(
                f"the file has {found.records} records with digest {found.text}, the last export"
                f" {exported or 'does not exist'}: nothing was recorded; make the backup again"
            )
        # A backup is as old as its export, whenever it is recorded.
        backup = Backup(exported["ended"], decision.actor, file, file_digest, found.records, found.text)
        shown = f" ({_shown(backup)})"
        note = Decision(decision.actor, f"{decision.reason[: MAX_REASON_CHARACTERS - len(shown)]}{shown}".strip())
        await self._migration.note(note, RECORDED)
        await self._chronicle.remember(BACKUP, asdict(backup))
        return backup

    def _facts(self, setting: Setting, known: Known) -> Facts:
        evidence, limits = self._evidence(setting), self._migration.limits(setting)
        deep, compared, counted = known.deep, evidence.compared, known.counted
        answers = [self._views.view(store).fresh(self._clock.monotonic()) for store in Store]
        watched = evidence.clients_watched_seconds
        return Facts(
            made=utc(self._clock.now()),
            router=self._router.name,
            service=self._router.service,
            setting=setting,
            results=self._results(setting, known),
            is_past=setting.phase is LAST,
            history={
                "phases": asdict(known.history.phases),
                "overrides": asdict(known.history.overrides),
                "rollbacks": asdict(known.history.rollbacks),
                "interventions": asdict(known.history.interventions),
            },
            deep=None if deep is None else {**deep, "compared": utc(deep["ended_seconds"])},
            compared=None
            if compared is None
            else {
                "ended": utc(self._clock.now() - compared.seconds_ago),
                "records": compared.records,
                "different": compared.different,
                "left": compared.left,
            },
            ledger=None if counted is None else counted.ledger.total,
            ledger_permille=self._router.ledger_permille,
            jobs=[] if counted is None else list(counted.jobs.values()),
            clients=[] if counted is None else list(counted.clients.values()),
            window_seconds=round(limits[CLIENT_SILENCE]),
            watched_seconds=None if watched is None else round(watched),
            parked=evidence.parked,
            conflicts=sum(one.conflicts for one in answers if one is not None) if None not in answers else None,
        )

    def _results(self, setting: Setting, known: Known) -> list[GateResult]:
        if setting.phase is not LAST:
            return list(self._migration.checked(ENDING_GATES, setting))
        entered = _entry_of_last(known)
        gates = {gate["name"]: gate for gate in entered["gates"]} if entered is not None else {}
        return [_past(name, gates.get(name)) for name in ENDING_GATES]

    def _is_fresh(self, setting: Setting) -> bool:
        (result,) = self._migration.checked((BACKUP_GATE,), setting)
        return setting.phase is LAST or result.verdict is Verdict.PASS

    def _keep_until(self, setting: Setting, known: Known) -> float | None:
        entered = _entry_of_last(known)
        if setting.phase is not LAST or entered is None:
            return None
        return float(entered["seconds"]) + self._migration.limits(setting)[CLIENT_SILENCE]


def _entry_of_last(known: Known) -> Mapping[str, Any] | None:
    """The journal's entry of the last phase."""
    entered = [entry for entry in known.history.phases.newest if entry["phase"] == LAST.value]
    return entered[-1] if entered else None


def _past(name: str, gate: Mapping[str, str] | None) -> GateResult:
    """The result with which the last phase was entered."""
    sentence = GATES[name].sentence
    if gate is None:
        return GateResult(name, sentence, Verdict.INCONCLUSIVE, "the journal does not name this gate", "")
    return GateResult(name, sentence, Verdict(gate["verdict"]), gate["evidence"], gate["threshold"])


def _shown(backup: Backup) -> str:
    return (
        f"{backup.file}: {backup.records} records, exported {utc(backup.ended_seconds)}, SHA-256 {backup.file_digest}"
    )
