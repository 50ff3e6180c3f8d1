"""The checks of `baton doctor` that the router makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import Store
from libs.ownership.wire import STORES
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from libs.store.connections import REMEDY, Connections
from services.router.control.info import ControlInfo, Described
from services.router.core.attention import certificate_warnings
from services.router.core.phase import Setting
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.stores import StoreView

MAX_SKEW_SECONDS = 2.0

_OF_THE_DATABASE = ("LOCK_TIMEOUT", "OWNER_UNAVAILABLE", "DISK_FULL")
"""Reasons in front of a feed's trouble that the store's own database causes."""
_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph"})


class Level(Enum):
    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    text: str
    remedy: str = ""
    """Advice; "" if the check passes."""


class Credentials(NamedTuple):
    """The credentials that a process requires of its clients."""

    public_auth: str = ""
    """The process's setting public_auth; "" if it is not set."""
    optional: bool = False
    """The process's setting public_auth_optional."""


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class Doctor:
    """The checks of a router and its dependencies."""

    observer: Observer
    cache: SettingCache
    control: Described
    log_partitions: int | None
    """Partitions of the open log; None without a log."""
    tokens: dict[str, bool]
    """Whether a token is used, by listener or store ("stores")."""
    clock: Clock
    credentials: Credentials = NO_CREDENTIALS
    """Credentials that this router requires."""
    control_auth: str = ""
    """The authentication of operators in force; "" without one."""
    gap: Callable[[], str] = str
    """The same text as `services.router.flows.jobs.log_gap.GapWatch.text`."""

    event_keys: Callable[[], Sequence[str]] = tuple
    """Ids of this router's keys of events: first the one that signs."""
    certificate: Callable[[], telemetry_pb2.Certificate | None] = lambda: None
    """The state of this router's certificate; None without TLS."""

    async def diagnose(self) -> list[Finding]:
        """Make all checks. They take a few seconds at most."""
        await self.observer.poll()
        before = {store: self.observer.view(store) for store in Store}
        # The log's ends have to be later than the positions that are compared with them.
        await self.observer.poll()
        findings = []
        for store in Store:
            findings += _store(self.observer.view(store), self.clock, self.event_keys())
            findings += _processes(store, self.observer)
        findings += _quotas({store: self.observer.view(store).status for store in Store})
        findings.append(_log(self, before))
        findings.append(await _control(self))
        findings += [_token(name, used) for name, used in self.tokens.items()]
        findings.append(_operators(self.control_auth, two_person=self.cache.current.two_person))
        findings += _certificate("this router", self.certificate())
        findings += _clients("this router", self.credentials)
        findings += _principal(self.credentials, self.cache.current)
        return findings


def _revival(store: Store, status: pb.GetStatusResponse) -> str:
    name = "simple_mcp" if store is Store.A else "service_layer"
    return f"baton recover {name} brings it back" if status.fence_reason else f"see the log of store {store}"


def _feed_remedy(feed: pb.Feed) -> str:
    if feed.trouble.startswith(_OF_THE_DATABASE):
        return "see the store's own database: its server, its disk, a session that holds locks"
    return "changes of the other store do not arrive: see that the event log is up and that the store reaches it"


def _event_auth(subject: str, feed: pb.Feed, event_keys: Sequence[str]) -> list[Finding]:
    """The authentication of the events that this store applies. `event_keys`: those of this router."""
    findings = []
    if feed.unauthenticated_now:
        remedy = (
            "give all routers and stores the same event_keys; if they have, another program writes to the topic: take"
            " its right to write away, then drop the events: baton events drop --unauthenticated"
        )
        text = f"{feed.unauthenticated_now} parked events have no right code ({feed.unauthenticated} in all)"
        findings.append(Finding(Level.FAIL, subject, text, remedy))
    if feed.event_keys_trouble:
        remedy = "correct the file: until then the last good keys stay in use, and a restart fails"
        findings.append(Finding(Level.WARN, subject, feed.event_keys_trouble, remedy))
    if feed.event_auth in ("sign", "require"):
        text = f"event_auth is {feed.event_auth}; keys: {', '.join(feed.event_keys)}"
        if event_keys and event_keys[0] in feed.event_keys:
            findings.append(Finding(Level.PASS, subject, text))
        else:
            signs = f"signs with key {event_keys[0]}" if event_keys else "does not sign"
            remedy = "give all routers and stores the same event_keys: the store takes no event of this router"
            findings.append(Finding(Level.FAIL, subject, f"{text}; this router {signs}", remedy))
    return findings


def _store(view: StoreView, clock: Clock, event_keys: Sequence[str] = ()) -> list[Finding]:
    subject = f"store {view.store}"
    status = view.status
    if view.database_away:
        remedy = (
            "bring its database back: its server, its disk, sessions that hold locks; the store then serves by itself"
        )
        return [Finding(Level.FAIL, subject, f"answers, but its database does not: {view.trouble}", remedy)]
    if status is None or view.trouble:
        remedy = (
            f"start {subject}, and compare its internal address and token with this router's settings; if it does not"
            " start, or runs and does not answer, read the end of its log"
        )
        return [Finding(Level.FAIL, subject, f"out of reach: {view.trouble}", remedy)]
    if STORES.get(status.store, view.store) is not view.store:
        remedy = "exchange the addresses of the stores in this router's settings"
        return [Finding(Level.FAIL, subject, "the process at this address is the other store", remedy)]
    findings = []
    if status.serving:
        findings.append(Finding(Level.PASS, subject, f"serves from {status.backend or 'its database'}"))
    else:
        findings.append(Finding(Level.FAIL, subject, f"does not serve: {status.reason}", _revival(view.store, status)))
    if status.feed.trouble:
        findings.append(
            Finding(Level.FAIL, subject, f"its feed stands still: {status.feed.trouble}", _feed_remedy(status.feed))
        )
    if parked := status.feed.parked_now - status.feed.unauthenticated_now:
        remedy = "baton events parked shows them; phases cannot advance until they are applied or dropped"
        findings.append(Finding(Level.WARN, subject, f"{parked} events are parked", remedy))
    findings += _event_auth(subject, status.feed, event_keys)
    findings += _certificate(subject, status.certificate if status.HasField("certificate") else None)
    findings += _old_rows(subject, status)
    findings += _clients(subject, Credentials(status.public_auth, status.public_auth_optional))
    if status.conflicts:
        remedy = "baton conflicts lists the changes that a seizure did not see; review and resolve each"
        findings.append(Finding(Level.WARN, subject, f"{status.conflicts} conflicts are not resolved", remedy))
    findings += _outbox(subject, status.outbox)
    if status.HasField("connections"):
        findings.append(_connections(view.store, status.connections))
    findings.append(_skew(view, clock))
    return findings


def _processes(store: Store, observer: Observer) -> list[Finding]:
    """Findings about single processes of a store that answers."""
    subject = f"store {store}"
    findings = []
    if observer.processes.locks_away(store):
        remedy = "start its lock server: until then writes to busy records are slower, and leases are refused"
        findings.append(Finding(Level.WARN, subject, "its lock server does not answer", remedy))
    if observer.view(store).reachable and (missing := observer.processes.missing(store)):
        remedy = f"start the missing ones, or take their addresses out of store_{store.value.lower()} at the routers"
        findings.append(
            Finding(Level.WARN, subject, f"{missing} of its processes did not answer within a minute", remedy)
        )
    return findings


def _quotas(statuses: Mapping[Store, pb.GetStatusResponse | None]) -> list[Finding]:
    """The quotas of accounts. No finding if neither store has one, or one of them is out of reach."""
    quotas = {store: status.account_records for store, status in statuses.items() if status is not None}
    if len(quotas) < len(statuses) or not any(quotas.values()):
        return []
    if len(set(quotas.values())) == 1:
        return [Finding(Level.PASS, "quotas", f"an account may have {quotas[Store.A]} records")]
    text = f"account_records is {quotas[Store.A]} at store A and {quotas[Store.B]} at store B"
    return [Finding(Level.WARN, "quotas", text, "give both stores the same account_records")]


def _outbox(subject: str, outbox: pb.Outbox) -> list[Finding]:
    findings = []
    if outbox.full:
        findings.append(Finding(Level.FAIL, subject, "its outbox is full: it refuses writes", "bring the log back"))
    if outbox.aside:
        remedy = "let the log take larger events (max.message.bytes), or make the record smaller or delete it"
        text = f"the log refuses {outbox.aside} events, they are set aside: {outbox.aside_first}"
        findings.append(Finding(Level.FAIL, subject, text, remedy))
    return findings


def _old_rows(subject: str, status: pb.GetStatusResponse) -> list[Finding]:
    if not status.unfilled_records:
        return []
    left = f"completes rows of the old program: {status.unfilled_records} of {status.records} are left"
    return [Finding(Level.PASS, subject, left)]


def _connections(store: Store, found: pb.Connections) -> Finding:
    subject = f"connections of store {store}"
    connections = Connections(found.per_process, found.processes, found.allowed)
    if connections.fits:
        return Finding(Level.PASS, subject, str(connections))
    return Finding(Level.WARN, subject, str(connections), REMEDY)


def _skew(view: StoreView, clock: Clock) -> Finding:
    subject = f"clock of store {view.store}"
    if view.status is None or view.seen_at is None or not view.status.HasField("now_time"):
        return Finding(Level.WARN, subject, "the store does not report its time", "run the same version everywhere")
    age = clock.monotonic() - view.seen_at
    skew = view.status.now_time.ToNanoseconds() / 1e9 - (clock.now() - age)
    if abs(skew) > MAX_SKEW_SECONDS:
        where = "ahead of" if skew > 0 else "behind"
        remedy = "set the clocks by NTP; no write is at risk, but times and measured lags are wrong"
        return Finding(Level.WARN, subject, f"{abs(skew):.1f} s {where} this router's", remedy)
    return Finding(Level.PASS, subject, f"within {MAX_SKEW_SECONDS:g} s of this router's")


def _log(doctor: Doctor, before: Mapping[Store, StoreView]) -> Finding:
    if doctor.log_partitions is None:
        remedy = "name an event log in this router's settings"
        return Finding(Level.FAIL, "event log", "there is none: no change reaches the other store", remedy)
    if doctor.observer.log_trouble:
        remedy = "start it; until then outboxes grow, and writes are refused when they are full"
        return Finding(Level.FAIL, "event log", f"out of reach: {doctor.observer.log_trouble}", remedy)
    ends = doctor.observer.log_ends or {}
    if len(ends) != doctor.log_partitions:
        text = f"{len(ends)} partitions answer, {doctor.log_partitions} are expected"
        return Finding(Level.FAIL, "event log", text, "bring all partitions of the topic back")
    for view in before.values():
        if view.status is not None and view.status.feed.log_replaced:
            remedy = "bring the former log back, or baton events restart: it copies the changes that the feeds missed"
            return Finding(Level.FAIL, "event log", view.status.feed.log_replaced, remedy)
        if view.status is not None and (text := _misplaced(view.store, dict(view.status.feed.next_offsets), ends)):
            remedy = "give all processes the same log; if it lost events, the store must be filled again"
            return Finding(Level.FAIL, "event log", text, remedy)
    if gap := doctor.gap():
        return Finding(Level.WARN, "event log", gap, "until then keep both stores: baton seize and recover are refused")
    return Finding(Level.PASS, "event log", f"{len(ends)} partitions, within reach")


def _misplaced(store: Store, positions: Mapping[int, int], ends: Mapping[int, tuple[int, int]]) -> str:
    """Return why a store's feed cannot have read this log; "" if it can."""
    for partition, position in positions.items():
        if partition not in ends:
            return f"store {store} reads partition {partition}, the log has {len(ends)}"
        oldest, end = ends[partition]
        if not oldest <= position <= end:
            return f"store {store} stands at offset {position} of partition {partition}, the log has {oldest} to {end}"
    return ""


async def _control(doctor: Doctor) -> Finding:
    subject = "control store"
    try:
        info = await doctor.control.info()
    except BatonError as error:
        remedy = "bring it back; routers go on with the last setting, but nothing can be changed"
        return Finding(Level.FAIL, subject, f"out of reach: {error.message}", remedy)
    if doctor.cache.stale:
        return Finding(Level.WARN, subject, "its last answer is old", "look again in some seconds")
    b = doctor.observer.view(Store.B).status
    if info.server_id and b is not None and b.server_id == info.server_id:
        text = f"{info.kind} at {info.where} is B's own server: no rollback is possible while B is down"
        return Finding(Level.WARN, subject, text, "put it on another server")
    if info.kind == "memory":
        return Finding(Level.WARN, subject, "in memory: it ends with this router", "use SQLite or PostgreSQL")
    if info.kind == "sqlite":
        return _file(info)
    return Finding(Level.PASS, subject, f"{info.kind} at {info.where}")


def _file(info: ControlInfo) -> Finding:
    system = file_system_of(Path(info.where))
    if system in _NETWORK_FILE_SYSTEMS:
        text = f"the SQLite file {info.where} is on {system}: its locks do not hold between hosts"
        return Finding(
            Level.FAIL, "control store", text, "use a local disk, or PostgreSQL for routers on several hosts"
        )
    return Finding(Level.PASS, "control store", f"SQLite file {info.where}, for routers on this host only")


def file_system_of(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type of the file system of a path; "" if unknown."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    resolved = path.resolve()
    holding = [(line[1], line[2]) for line in lines if len(line) > 2 and resolved.is_relative_to(line[1])]
    return max(holding, key=lambda mount: len(mount[0]))[1] if holding else ""


def _clients(subject: str, required: Credentials) -> list[Finding]:
    """The authentication of clients. Without the setting, the public listeners are on loopback."""
    if not required.public_auth:
        return []
    subject = f"clients of {subject}"
    if required.optional:
        remedy = "once every client sends credentials, set public_auth_optional to false (baton identity status)"
        text = "may leave out credentials (public_auth_optional), and then read and change everything"
        return [Finding(Level.WARN, subject, text, remedy)]
    if required.public_auth != "none":
        return [Finding(Level.PASS, subject, f"are authenticated: public_auth is {required.public_auth}")]
    remedy = "fine where only trusted programs reach the listeners; else set public_auth to jwt, mtls or tokens"
    return [Finding(Level.WARN, subject, "are not authenticated: each may read and change everything", remedy)]


def _certificate(owner: str, found: telemetry_pb2.Certificate | None) -> list[Finding]:
    if found is None:
        return []
    subject = f"certificate of {owner}"
    days = found.days if found.HasField("days") else None
    if not (troubles := certificate_warnings(owner, days, found.reload_trouble)):
        return [Finding(Level.PASS, subject, f"expires in {days:.0f} days")]
    level = Level.FAIL if days is not None and days <= 0 else Level.WARN
    return [Finding(level, subject, text, "replace its files; a restart is not needed") for text in troubles]


def _operators(control_auth: str, *, two_person: bool) -> Finding:
    if two_person and control_auth in ("", "none", "token"):
        text = "have no names here, but the two-person rule is on: this router refuses the steps that need it"
        return Finding(Level.FAIL, "operators", text, "set control_auth to jwt, mtls or tokens at this router")
    if control_auth in ("", "none"):
        remedy = "fine on one machine; set control_auth before listening beyond 127.0.0.1"
        text = "are not authenticated: anyone who can connect has all roles"
        return Finding(Level.WARN, "operators", text, remedy)
    if control_auth == "token":
        return Finding(
            Level.PASS, "operators", "share one token: each has all roles, and names in the journal are claims"
        )
    return Finding(Level.PASS, "operators", f"are authenticated: control_auth is {control_auth}")


def _principal(required: Credentials, setting: Setting) -> list[Finding]:
    """The principal of served requests, once callers have a subject."""
    if required.public_auth in ("", "none") or required.optional:
        return []
    subject = "served requests"
    if setting.serves_subjects:
        return [Finding(Level.PASS, subject, "are stored under the subjects of their callers")]
    remedy = "baton identity switch --to subjects, once every process authenticates its callers"
    return [Finding(Level.WARN, subject, "are stored under anonymous: callers share their request ids", remedy)]


def _token(name: str, used: bool) -> Finding:
    if used:
        return Finding(Level.PASS, f"token of {name}", "is required")
    remedy = "fine on one machine; set a token file before listening beyond 127.0.0.1"
    return Finding(Level.WARN, f"token of {name}", "none: anyone who can connect may use it", remedy)
