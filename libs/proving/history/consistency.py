"""Compares the clients' answers with the final state of the stores and the log.

All data come from exports: the clients' files, the events in the log, the rows of both stores. Three questions about
the run: was an acknowledged write lost, did a request take effect twice, did a strict read show less than was
acknowledged before it began? Two questions about the end state: does every record have one owner, and do the stores
agree?
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from libs.proving.history.history import READS, WRITES, Call, Outcome, Version

MAX_OFFENDERS = 20


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write that was acknowledged to a client. ``value`` is None for a delete or an undelete."""

    name: str
    version: Version
    request_id: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A served request in a store, and the version it made."""

    request_id: str
    version: Version


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event in the log. A write carries its own request, a release those of the retry window.

    ``value``: the value in the payload, or None if the exporter did not decode it.
    """

    name: str
    version: Version
    served: tuple[Served, ...]
    origin: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One record as one store holds it. ``owner``: the store that may change it. ``digest``: hash of the payload."""

    store: str
    name: str
    version: Version
    owner: str
    digest: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of findings, and the first MAX_OFFENDERS of them in words."""

    count: int
    offenders: tuple[str, ...]

    @classmethod
    def of(cls, offenders: Sequence[str]) -> Tally:
        return cls(len(offenders), tuple(offenders[:MAX_OFFENDERS]))


@dataclass(frozen=True, slots=True)
class Findings:
    """The ledger's result. ``unjudged``: answers that lack data for a check; they do not count as correct."""

    acknowledged_writes: int
    strict_reads: int
    lost: Tally
    duplicated: Tally
    stale_strict_reads: Tally
    diverged: Tally
    misowned: Tally
    unjudged: Tally

    @property
    def ok(self) -> bool:
        """No finding, and no answer without a judgement."""
        tallies = (self.lost, self.duplicated, self.stale_strict_reads, self.diverged, self.misowned, self.unjudged)
        return not any(tally.count for tally in tallies)


def audit(calls: Sequence[Call], events: Sequence[LogEvent], rows: Sequence[Row]) -> Findings:
    """Answer all questions about one run. ``calls``: the clients' records. ``rows``: rows of all stores."""
    writes = acknowledged(calls)
    reads = [call for call in calls if _strict_read(call)]
    return Findings(
        acknowledged_writes=sum(call.method in WRITES and call.outcome is Outcome.OK for call in calls),
        strict_reads=len(reads),
        lost=Tally.of(lost(writes, events, rows)),
        duplicated=Tally.of(duplicated(writes, events)),
        stale_strict_reads=Tally.of(stale_strict_reads(calls)),
        diverged=Tally.of(diverged(rows)),
        misowned=Tally.of(misowned(rows)),
        unjudged=Tally.of([_words(call) for call in calls if _unjudged(call)]),
    )


def acknowledged(calls: Iterable[Call]) -> list[Acknowledged]:
    """The acknowledged writes of a history that carry a revision and a request id."""
    return [
        Acknowledged(call.key, call.revision, call.request_id, call.value)
        for call in calls
        if call.method in WRITES and call.outcome is Outcome.OK and call.revision and call.request_id
    ]


def lost(writes: Iterable[Acknowledged], events: Iterable[LogEvent], rows: Iterable[Row]) -> list[str]:
    """Acknowledged writes without their event in the log, or with an older row at the final owner."""
    logged: dict[tuple[str, Version], list[LogEvent]] = defaultdict(list)
    for event in events:
        logged[event.name, event.version].append(event)
    final: dict[str, Version] = {}
    for row in rows:
        if row.owner == row.store:
            final[row.name] = max(row.version, final.get(row.name, row.version))
    offenders = []
    for write in dict.fromkeys(writes):
        reason = _lost_in_log(write, logged[write.name, write.version]) or _lost_in_rows(write, final)
        if reason:
            offenders.append(f"{write.name} {write.version} request {write.request_id}: {reason}")
    return offenders


def _lost_in_log(write: Acknowledged, events: Sequence[LogEvent]) -> str | None:
    if not events:
        return "no event of this version in the log"
    for event in events:
        if Served(write.request_id, write.version) not in event.served:
            return (
                f"this version's event, made by {event.origin}, is of requests {[s.request_id for s in event.served]}"
            )
        if write.value is not None and event.value is not None and write.value != event.value:
            return f"this version's event holds value {event.value!r} instead of {write.value!r}"
    return None


def _lost_in_rows(write: Acknowledged, final: Mapping[str, Version]) -> str | None:
    version = final.get(write.name)
    if version is None:
        return "no store holds a row that it owns"
    return f"the owner's row is older: {version}" if version < write.version else None


def duplicated(writes: Iterable[Acknowledged], events: Iterable[LogEvent]) -> list[str]:
    """Requests with two revisions of one record, and versions that belong to two different changes."""
    revisions: dict[tuple[str, str], set[Version]] = defaultdict(set)
    for write in writes:
        revisions[write.name, write.request_id].add(write.version)
    makers: dict[tuple[str, Version], set[tuple[str, tuple[str, ...]]]] = defaultdict(set)
    for event in events:
        for served in event.served:
            revisions[event.name, served.request_id].add(served.version)
        own = tuple(served.request_id for served in event.served if served.version == event.version)
        makers[event.name, event.version].add((event.origin, own))
    offenders = [
        f"{name} request {request_id}: made revisions {sorted(made)}"
        for (name, request_id), made in revisions.items()
        if len(made) > 1
    ]
    offenders += [
        f"{name} {version}: two different changes, {sorted(made)}"
        for (name, version), made in makers.items()
        if len(made) > 1
    ]
    return offenders


def stale_strict_reads(calls: Sequence[Call]) -> list[str]:
    """Strict reads below a revision that was acknowledged before they began.

    Not found counts as below a live revision, unless a delete may be above it. A delete of unknown outcome may be.
    """
    by_name: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_name[call.key].append(call)
    return [offender for name, own in by_name.items() if name for offender in _stale_of_name(own)]


def _stale_of_name(calls: Sequence[Call]) -> list[str]:
    known = [(call.end, call) for call in calls if call.method in WRITES and call.outcome is Outcome.OK]
    ended = sorted(((end, call) for end, call in known if end is not None and call.revision), key=lambda pair: pair[0])
    ends = [end for end, _ in ended]
    newest: list[Call] = []
    for _, call in ended:
        newest.append(call if not newest or _revision(call) > _revision(newest[-1]) else newest[-1])
    deletes = [call for call in calls if call.method == "delete" and call.outcome is not Outcome.FAILED]
    offenders = []
    for read in filter(_strict_read, calls):
        before = bisect_left(ends, read.start)
        if before and _is_below(read, newest[before - 1], deletes):
            offenders.append(f"{_words(read)}, below {_words(newest[before - 1])}, acknowledged before it began")
    return offenders


def _is_below(read: Call, write: Call, deletes: Sequence[Call]) -> bool:
    if not read.not_found:
        return read.revision is not None and read.revision < _revision(write)
    if write.method == "delete":
        return False
    above = (d for d in deletes if d.revision is None or d.revision > _revision(write))
    return not any(read.end is None or delete.start <= read.end for delete in above)


def diverged(rows: Iterable[Row]) -> list[str]:
    """Names that differ between the stores: version, owner or payload, or present only in some stores."""
    by_name: dict[str, dict[str, Row]] = defaultdict(dict)
    stores = set()
    for row in rows:
        by_name[row.name][row.store] = row
        stores.add(row.store)
    offenders = []
    for name, held in sorted(by_name.items()):
        if held.keys() != stores:
            offenders.append(f"{name}: only in {sorted(held)}")
        elif len({(row.version, row.owner, row.digest) for row in held.values()}) > 1:
            shown = "; ".join(f"{r.store} {r.version} owner {r.owner} digest {r.digest[:12]}" for r in held.values())
            offenders.append(f"{name}: {shown}")
    return offenders


def misowned(rows: Iterable[Row]) -> list[str]:
    """Names that no store, or more than one, owns by its own row."""
    owners: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        owners[row.name] += [row.store] if row.owner == row.store else []
    return [f"{name}: owned by {sorted(own) or 'no store'}" for name, own in sorted(owners.items()) if len(own) != 1]


def _strict_read(call: Call) -> bool:
    if call.method not in READS or not call.key or call.stale:
        return False
    return call.outcome is Outcome.OK or call.not_found


def _unjudged(call: Call) -> bool:
    if call.method in WRITES and call.outcome is Outcome.OK:
        return call.revision is None or call.request_id is None
    return _strict_read(call) and not call.not_found and call.revision is None


def _revision(call: Call) -> Version:
    assert call.revision is not None
    return call.revision


def _words(call: Call) -> str:
    shown = "not found" if call.not_found else f"revision {call.revision}"
    return f"{call.method} {call.key} #{call.number} of client {call.client} ({shown})"
