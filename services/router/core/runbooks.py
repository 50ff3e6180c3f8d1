"""The runbooks: one page for each alert, gate and reason of an error, or for several with one remedy. Pure.

A page is docs/runbooks/NAME.md. This table is the one source for links from the command, the alerts and the index, and
`tests/unit/test_runbooks.py` holds it complete. To add an alert or a reason, name it in the runbook that has its
remedy, or add a runbook. A gate names its runbook itself (`Gate.page`). A page lists its alerts and gates below its
title, and has a heading for each reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.router.core.gates import GATES

FOLDER = "docs/runbooks"


@dataclass(frozen=True, slots=True)
class Runbook:
    name: str
    title: str
    alerts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    """Parts of the lines under "look at this" in the status."""

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.name}.md"

    @property
    def gates(self) -> tuple[str, ...]:
        """Gates that name this page."""
        return tuple(gate.name for gate in GATES.values() if gate.page == self.name)

    @property
    def covers(self) -> str:
        """The line below the page's title; "" if it covers no alert and no gate."""
        kinds = (("alert", self.alerts), ("gate", self.gates))
        return " · ".join(f"{kind} {', '.join(f'`{one}`' for one in names)}" for kind, names in kinds if names)


RUNBOOKS = (
    Runbook(
        "automatic-rollback",
        "Baton rolled back by itself, or B fails and it may not",
        alerts=(
            "BatonAutomaticRollback",
            "BatonNoRollback",
            "BatonHold",
        ),
        signs=(" of B's in ",),
    ),
    Runbook(
        "b-fails",
        "Calls to B fail",
        alerts=("BatonErrors",),
        signs=("failed by its fault in half a minute",),
    ),
    Runbook(
        "b-slow",
        "B is slower than A",
        alerts=("BatonSlower", "BatonWriteDelta"),
    ),
    Runbook(
        "locks",
        "Locks are slow, lost or unavailable",
        alerts=("BatonLockWait", "BatonLockServerAway", "BatonLocksLost"),
        reasons=("LOCK_TIMEOUT", "LOCKS_UNAVAILABLE"),
        signs=("cannot reach its lock server",),
    ),
    Runbook(
        "store-lost",
        "A store was lost, restored or replaced",
        reasons=(
            "NOT_FENCED",
            "RECOVERY_OVER",
            "SEIZURE_REFUSED",
            "LOG_NOT_READ",
            "FOREIGN_CONTROL",
            "REVISION_EXHAUSTED",
        ),
        signs=("(baton recover)",),
    ),
    Runbook(
        "store-down",
        "A store does not answer",
        alerts=("BatonStoreDown", "BatonProcessMissing"),
        reasons=("OWNER_UNAVAILABLE", "STORE_NOT_READY", "DEADLINE_EXCEEDED", "DISK_FULL", "STILL_FILLING"),
        signs=("is unreachable: ", "does not serve: ", " of its processes for a minute"),
    ),
    Runbook(
        "conflicts",
        "A seizure left conflicts",
        alerts=("BatonConflicts",),
        reasons=("NO_CONFLICT",),
    ),
    Runbook(
        "lag",
        "A store is behind the other",
        alerts=("BatonLag", "BatonLagUnknown"),
        signs=("the feed into store ",),
    ),
    Runbook(
        "log-horizon",
        "The log may drop unread events",
        alerts=("BatonLogHorizon",),
        reasons=("LOG_OFFSET_GONE",),
        signs=("the log may soon drop", "the log has dropped"),
    ),
    Runbook(
        "event-log-down",
        "The event log is unavailable or refuses events",
        alerts=(
            "BatonLogDown",
            "BatonOutboxNearFull",
        ),
        reasons=(
            "LOG_UNAVAILABLE",
            "LOG_FAILED",
            "NOT_LOGGED",
            "OUTBOX_FULL",
            "LOG_EVENT_TOO_LARGE",
            "LOG_TOPIC_UNFIT",
        ),
        signs=("the event log is unreachable", "the log refuses events of store"),
    ),
    Runbook(
        "event-log-replaced",
        "The event log is another one",
        reasons=("LOG_REPLACED", "LOG_NOT_REPLACED", "LOG_GAP"),
        signs=("before the feeds were restarted",),
    ),
    Runbook(
        "parked-events",
        "A store could not apply events",
        alerts=("BatonParked",),
        reasons=("EVENT_NOT_PARKED", "LOG_HEADERS_INVALID"),
        signs=("could not apply ",),
    ),
    Runbook(
        "event-keys",
        "Events have no right authentication code",
        alerts=("BatonUnauthenticated",),
        reasons=("RELAY_UNSIGNED", "REPLAY_UNCHECKED", "EVENT_KEYS_UNFIT", "EVENT_KEYS_MISSING"),
        signs=("events without a right code",),
    ),
    Runbook(
        "reads-differ",
        "Compared reads disagree",
        alerts=("BatonInconsistent",),
        reasons=("DIFFERENCE_NOT_FOUND",),
        signs=("compared reads disagree",),
    ),
    Runbook(
        "stores-differ",
        "The stores differ",
        alerts=("BatonDiverged", "BatonDifferencesLeft"),
        signs=("records differ, ",),
    ),
    Runbook(
        "lost-write",
        "An acknowledged write is lost",
        alerts=("BatonWriteLost",),
        signs=("acknowledged writes are not in the store",),
    ),
    Runbook(
        "record-unreadable",
        "A record cannot be read",
        reasons=("RECORD_CORRUPT", "SCHEMA_UNKNOWN", "NO_RECORD", "RECORD_READABLE"),
    ),
    Runbook(
        "control-store-down",
        "The control store is unavailable or damaged",
        alerts=("BatonControlStoreDown",),
        reasons=("CONTROL_UNAVAILABLE", "SETTING_DAMAGED"),
    ),
    Runbook(
        "phase-refused",
        "A change of the migration is refused",
        reasons=("GATE_BLOCKED", "ILLEGAL_MOVE", "NOT_POSSIBLE", "OUTDATED"),
    ),
    Runbook("audit", "A's data must be audited", reasons=("SNAPSHOT_GONE", "NO_SCRATCH", "NOT_HERE")),
    Runbook("backfill", "A's records must be copied"),
    Runbook("handover", "Records are not where they belong"),
    Runbook(
        "cohorts",
        "A change of a cohort is refused",
        reasons=("COHORT_NOT_FOUND", "TOO_MANY_COHORTS", "RECORDS_NOT_LISTED"),
    ),
    Runbook("gate-webhook", "The webhook does not allow the step"),
    Runbook("rehearsal", "A rollback must be rehearsed", reasons=("REHEARSAL_FAILED",)),
    Runbook("old-clients", "Clients still call A"),
    Runbook(
        "last-step",
        "A may not be taken away yet",
        reasons=("CERTIFICATE_OPEN", "BACKUP_DIFFERS"),
    ),
    Runbook(
        "jobs",
        "A job failed, waits or is refused",
        alerts=(
            "BatonJobFailed",
            "BatonJobStuck",
        ),
        reasons=("JOB_FAILED", "JOB_UNDER_WAY", "JOB_STATE", "JOB_NOT_FOUND", "PROBE_UNDER_WAY", "NO_PROBE"),
        signs=(" FAILED: ",),
    ),
    Runbook(
        "operator-refused",
        "An operator's call is refused",
        reasons=(
            "ROLE_MISSING",
            "SECOND_PERSON_NEEDED",
            "OWN_CALL",
            "CALL_NOT_FOUND",
            "NEWER_CALL",
            "TOO_MANY_CALLS",
            "ROUTERS_NOT_READY",
            "IDENTITY_NEEDED",
            "IDENTITY_NOT_READY",
        ),
        signs=("asks for a second admin",),
    ),
    Runbook(
        "caller-refused",
        "A caller is not authenticated or not allowed",
        reasons=(
            "UNAUTHENTICATED",
            "TOKEN_MISSING",
            "TOKEN_MALFORMED",
            "TOKEN_UNKNOWN",
            "TOKEN_EXPIRED",
            "TOKEN_NOT_YET_VALID",
            "TOKEN_WRONG_AUDIENCE",
            "TOKEN_WRONG_ISSUER",
            "TOKEN_BAD_SIGNATURE",
            "TOKEN_UNKNOWN_KEY",
            "TOKEN_ALGORITHM",
            "TOKEN_CLAIM_MISSING",
            "TOKEN_TOO_LARGE",
            "TOKEN_REFUSED",
            "CERTIFICATE_MISSING",
            "CERTIFICATE_UNKNOWN",
            "CERTIFICATE_REVOKED",
            "KEYS_UNAVAILABLE",
            "PRINCIPAL_MISSING",
            "ACCOUNT_NOT_YOURS",
            "IDENTITY_CHANGED",
        ),
    ),
    Runbook(
        "caller-limits",
        "A caller is over its limits",
        reasons=(
            "OVERLOADED",
            "LIMIT_CALLS",
            "LIMIT_STREAMS",
            "LIMIT_ANSWERS",
            "LIMIT_REQUEST_BYTES",
            "LIMIT_RATE",
            "QUOTA_EXCEEDED",
            "TOO_MANY_CONNECTIONS",
            "SLOW_READER",
        ),
    ),
    Runbook(
        "bad-request",
        "A request cannot be carried out",
        reasons=(
            "INVALID_FIELD",
            "REQUEST_ID_REUSED",
            "ETAG_MISMATCH",
            "SANDBOX_NOT_FOUND",
            "SANDBOX_ALREADY_EXISTS",
            "NAME_TAKEN",
            "LEASE_HELD",
            "LEASE_LOST",
            "ILLEGAL_STATE_TRANSITION",
        ),
    ),
    Runbook(
        "bad-http-request",
        "An HTTP request is refused",
        reasons=(
            "NO_SUCH_PATH",
            "NO_SUCH_METHOD",
            "METHOD_NOT_ALLOWED",
            "UNSUPPORTED_MEDIA_TYPE",
            "UNSUPPORTED_COMPRESSION",
            "UNSUPPORTED_TRANSFER_ENCODING",
            "BODY_TOO_LARGE",
            "NOT_HTTP",
            "HEAD_TOO_LATE",
            "HEAD_TOO_LARGE",
            "SESSION_TOO_LARGE",
            "FOREIGN_FORM",
            "FOREIGN_ORIGIN",
        ),
    ),
    Runbook(
        "start-refused",
        "A process does not start",
        reasons=("WRONG_SETTING", "UNFIT_FILE", "UNFIT_PROVIDER", "CANNOT_LEAVE"),
    ),
    Runbook("flags", "The flags are unavailable", reasons=("FLAGS_UNAVAILABLE",)),
    Runbook(
        "xds",
        "Clients with xDS are not served",
        alerts=("BatonXdsRefused",),
        signs=("xDS clients refused", "no process serves clients"),
    ),
    Runbook(
        "tls-certificate",
        "A TLS certificate ends soon",
        alerts=(
            "BatonCertificateExpires",
            "BatonCertificateReload",
        ),
        signs=("certificate of ",),
    ),
    Runbook(
        "notices",
        "Notices are not delivered",
        reasons=("NOTICE_NOT_DELIVERED",),
        signs=("notices are not delivered", "notices were refused"),
    ),
    Runbook("clocks", "Clocks differ", signs=("clocks are ",)),
    Runbook("internal-errors", "An error inside Baton", reasons=("INTERNAL", "NOT_OWNER", "CALL_LOOP", "TARGET_AWAY")),
)

BY_NAME: Mapping[str, Runbook] = {one.name: one for one in RUNBOOKS}
BY_ALERT: Mapping[str, Runbook] = {alert: one for one in RUNBOOKS for alert in one.alerts}
BY_REASON: Mapping[str, Runbook] = {reason: one for one in RUNBOOKS for reason in one.reasons}


def of_reason(reason: str) -> str:
    """The page of an error's reason, with its anchor; "" if there is none."""
    found = BY_REASON.get(reason)
    return "" if found is None else f"{found.path}#{reason.lower()}"


def of_line(line: str) -> str:
    """The page of a line under "look at this"; "" if there is none."""
    return next((one.path for one in RUNBOOKS for sign in one.signs if sign in line), "")


def of_gate(gate: str) -> str:
    """The page of a gate; "" if this release has no such gate."""
    found = GATES.get(gate)
    return "" if found is None else BY_NAME[found.page].path
