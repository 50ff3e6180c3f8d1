"""Decides whether the leases of one key had one holder at a time, and were kept for their TTL.

Acknowledged writes are ordered by their revisions, which the linearizability search checks. In that order:

* A token is the revision of its grant.
* A successful write with a token comes before the end of that token's lease: the next grant, a release, a new record of
  the name.
* No other client gets a lease before its TTL is over, and no holder loses it before that.
* No client is refused because of a holder that never existed, or that had released the lease before.

A lease's time counts from the start of the first call that asked for it, so from before the grant: a store may keep a
lease for longer, never shorter. If a call of unknown outcome may have ended a lease or changed its time, nothing counts
as a violation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from libs.proving.history.history import LEASES, WRITES, Call, Lease, Outcome, Version

LEASE_HELD, LEASE_LOST = "LEASE_HELD", "LEASE_LOST"

_GRANTS = frozenset({"acquire", "renew"})
_ENDS = frozenset({"acquire", "release", "create"})
"""Methods that end an earlier lease."""

Broken = tuple[str, list[Call]]
"""The reason, and the calls to blame."""


@dataclass(frozen=True, slots=True)
class _Done:
    """An acknowledged write: from its first attempt to its first acknowledgement."""

    method: str
    revision: Version
    start: float
    end: float
    lease: Lease
    call: Call


def broken(calls: Iterable[Call]) -> Broken | None:
    """The first contradiction in the calls of one key, or None."""
    found = _Leases(list(calls))
    if not any(done.lease.token for done in found.done) and not found.refused:
        return None
    for rule in (found.wrong_tokens, found.two_holders, found.granted_too_early, found.lost_too_early, found.no_holder):
        for reason, culprits in rule():
            return reason, culprits
    return None


class _Leases:
    def __init__(self, calls: Sequence[Call]) -> None:
        requests: dict[object, list[Call]] = defaultdict(list)
        for call in calls:
            if call.method in WRITES:
                requests[call.request_id or (call.client, call.number)].append(call)
        self.done: list[_Done] = []
        self._unknown: list[Call] = []
        for attempts in requests.values():
            self._add(attempts)
        self.done.sort(key=lambda done: done.revision)
        self.refused = [call for call in calls if call.reason in (LEASE_HELD, LEASE_LOST)]

    def _add(self, attempts: list[Call]) -> None:
        start = min(call.start for call in attempts)
        known = [call for call in attempts if call.outcome is Outcome.OK and call.revision and call.end is not None]
        if known:
            first = min(known, key=lambda call: call.end or math.inf)
            assert first.revision is not None and first.end is not None
            lease = first.lease or Lease()
            self.done.append(_Done(first.method, first.revision, start, first.end, lease, first))
        elif attempts[0].method in LEASES | _ENDS:
            self._unknown += [call for call in attempts if call.outcome is Outcome.UNKNOWN][:1]

    def wrong_tokens(self) -> Iterator[Broken]:
        for done in self.done:
            if done.method == "acquire" and _version(done.lease.token) != done.revision:
                yield f"{_name(done.call)} was granted token {done.lease.token!r}, not its revision", [done.call]

    def two_holders(self) -> Iterator[Broken]:
        """Fencing: a write with an old token has no effect."""
        for done in self.done:
            if done.method == "acquire" or not (granted := _version(done.lease.token)):
                continue
            for other in self._between(granted, done.revision):
                if other.method in _ENDS:
                    blamed = [other.call, done.call]
                    yield f"{_name(done.call)} was done with token {done.lease.token} after {_name(other.call)}", blamed

    def granted_too_early(self) -> Iterator[Broken]:
        grants = [done for done in self.done if done.method == "acquire"]
        for before, after in pairwise(grants):
            if before.lease.holder == after.lease.holder or self._unsure(before, after.end):
                continue
            between = self._between(before.revision, after.revision)
            if any(other.method in _ENDS for other in between):
                continue
            last = [before, *(other for other in between if other.method == "renew")][-1]
            if after.end < self._until(last):
                yield f"{_name(after.call)} was granted while {before.lease.holder!r} held it", [last.call, after.call]

    def lost_too_early(self) -> Iterator[Broken]:
        for call in self.refused:
            token = call.lease.token if call.lease else ""
            end = call.end or math.inf
            if call.reason != LEASE_LOST:
                continue
            begun = [done for done in self.done if done.start <= end]
            own = [done for done in begun if done.method in _GRANTS and done.lease.token == token]
            if not own or any(done.method in _ENDS and done.revision > own[0].revision for done in begun):
                continue
            if self._unsure(own[0], end):
                continue
            ended = [done for done in own if done.end < call.start][-1:]
            touching = [done for done in own if done.end >= call.start]
            if end < min(self._until(done) for done in ended + touching):
                yield (
                    f"{_name(call)} was refused because {token} was lost before its TTL was over",
                    [own[-1].call, call],
                )

    def no_holder(self) -> Iterator[Broken]:
        for call in self.refused:
            end = call.end or math.inf
            holder = call.lease.holder if call.lease else ""
            if call.reason != LEASE_HELD or any(
                one.method == "acquire" and one.start <= end and one.lease and one.lease.holder != holder
                for one in self._unknown
            ):
                continue
            released = {done.lease.token for done in self.done if done.method == "release" and done.end < call.start}
            held = [
                done
                for done in self.done
                if done.method == "acquire"
                and done.start <= end
                and done.lease.holder != holder
                and done.lease.token not in released
            ]
            if not held:
                yield f"{_name(call)} was refused because of a holder, and there was none", [call]

    def _between(self, first: Version, last: Version) -> list[_Done]:
        return [done for done in self.done if first < done.revision < last]

    def _unsure(self, grant: _Done, until: float) -> bool:
        """Whether a call of unknown outcome may have ended this grant's lease, or changed its time. Another client's
        acquire is no excuse: if that was granted, it was granted too early as well."""
        return any(
            call.start <= until
            and (
                call.method == "create"
                or (call.lease is not None and call.lease.token == grant.lease.token)
                or (call.method == "acquire" and call.lease is not None and call.lease.holder == grant.lease.holder)
            )
            for call in self._unknown
        )

    def _until(self, done: _Done) -> float:
        """Earliest time at which the lease may end."""
        ttl_seconds = done.lease.ttl_seconds
        if not ttl_seconds:
            # A renewal without a TTL keeps that of the previous grant or renewal.
            before = [one for one in self.done if one.lease.token == done.lease.token and one.revision < done.revision]
            ttl_seconds = next((one.lease.ttl_seconds for one in reversed(before) if one.lease.ttl_seconds), 0.0)
        return done.start + ttl_seconds


def _version(token: str) -> Version | None:
    term, _, revision = token.partition(".")
    return (int(term), int(revision)) if term.isdigit() and revision.isdigit() else None


def _name(call: Call) -> str:
    return f"{call.method} #{call.number} of client {call.client}"
