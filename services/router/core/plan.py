"""The target of a call: the first rule that applies decides.

hold > global flag false > the operation's flag > global flag true > rehearsed bucket > cohort > canary bucket
> client's schema > phase.

The target is a hint. The store that gets the call checks its row and may answer NOT_OWNER.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from libs.ownership.model import BUCKETS, Store, bucket_of
from services.router.core.cohorts import Cohort, cohort_of, share_buckets
from services.router.core.phase import Phase, Setting


@dataclass(frozen=True, slots=True)
class Flags:
    """Kill switches: True is B, False is A, None leaves the decision to the next rule."""

    use_service_layer: bool | None = None
    operations: Mapping[str, bool] = field(default_factory=dict)
    """Flags by operation: create, get, list, update, delete. An absent one leaves the decision to the next rule."""


NO_FLAGS = Flags()

LASTING_SECONDS = 5.0
"""Records follow the global flag once it has been false for this long. Calls follow at once."""


CLIENT_SCHEMA = "client schema"
"""The rule for clients of an old schema version."""

UNKNOWN_ACCOUNT = "unknown account"
"""The rule for a record whose account the router does not know, if a cohort by account may want it elsewhere."""


class Target(NamedTuple):
    store: Store
    rule: str
    """The rule that decided, in words."""

    @property
    def moves(self) -> bool:
        """Whether a call may move its record to the target. Records follow neither the schema of a client nor a guess
        at their account: such a call goes on to the owner, at the other store."""
        return self.rule not in (CLIENT_SCHEMA, UNKNOWN_ACCOUNT)


canary_buckets = share_buckets
"""Number of canary buckets: those with a lower number than this."""


def is_canary(bucket: int, permille: int) -> bool:
    """A larger canary only adds buckets and a smaller one only removes some, so no record moves twice."""
    return bucket < canary_buckets(permille)


def target(
    setting: Setting,
    flags: Flags,
    operation: str,
    bucket: int | None,
    *,
    old_client: bool = False,
    key: str = "",
    account: str | None = None,
) -> Target:
    """`bucket`: None for a call without a key. `old_client`: the call is of a client with an old schema version, and
    reads or may create a record. `key`: the record's name; without it the target of other records of the bucket.
    `account`: that of the record, "" if it has none, None if it is unknown."""
    if setting.hold:
        return Target(Store.A, "hold")
    if not setting.rule.way_back:
        # A may be shut down: flags are ignored.
        return _by_phase(setting, bucket, old_client=old_client)
    if flags.use_service_layer is False:
        return Target(Store.A, "global flag")
    flag = flags.operations.get(operation)
    if flag is not None:
        return Target(Store.B if flag else Store.A, f"{operation} flag")
    if flags.use_service_layer:
        return Target(Store.B, "global flag")
    if bucket is not None and key and bucket not in setting.rehearsal:
        found = _by_cohort(setting, bucket, key, account)
        if found is not None:
            return found
    return _by_phase(setting, bucket, old_client=old_client)


def home(setting: Setting, flags: Flags, bucket: int) -> Store:
    """Target of a bucket for the mover: as `target`, without the flags of operations, which steer calls only. Records
    of a cohort may have another one (`record_home`)."""
    if setting.hold:
        return Store.A
    if flags.use_service_layer is not None and setting.rule.way_back:
        return Store.B if flags.use_service_layer else Store.A
    return _by_phase(setting, bucket).store


def steering_cohorts(setting: Setting, flags: Flags) -> tuple[Cohort, ...]:
    """The cohorts if they decide where records are: no hold, flag or phase overrules them."""
    overruled = setting.hold or flags.use_service_layer is not None or not setting.rule.cohorts
    return () if overruled else setting.cohorts


def parts_from(setting: Setting, cohort: Cohort, bucket: int) -> bool:
    """Whether the cohort wants its records of this bucket elsewhere than the other ones of the bucket."""
    return bucket not in setting.rehearsal and cohort.store(bucket) is not _usual(setting, bucket).store


def record_home(setting: Setting, flags: Flags, key: str, account: str) -> Store:
    """Target of a record for the mover. `account`: "" if it has none."""
    bucket = bucket_of(key)
    cohort = cohort_of(steering_cohorts(setting, flags), key, account)
    if cohort is not None and bucket not in setting.rehearsal:
        return cohort.store(bucket)
    return home(setting, flags, bucket)


class Kind(NamedTuple):
    """Buckets whose calls have the same target, apart from records of cohorts, and which have the same home."""

    buckets: Sequence[int]
    """Bucket numbers in order; not empty."""
    in_rehearsal: bool = False
    is_mixed: bool = False
    """A cohort wants records of these buckets elsewhere."""

    @property
    def first(self) -> int:
        return self.buckets[0]


def kinds(setting: Setting) -> list[Kind]:
    """All buckets, each in one kind."""
    cohorts, away = steering_cohorts(setting, NO_FLAGS), frozenset(setting.rehearsal)
    shares = {setting.canary_permille, *(cohort.permille for cohort in cohorts)}
    edges = sorted({0, *map(share_buckets, shares), BUCKETS})
    found = []
    for first, end in pairwise(edges):
        rehearsed = [bucket for bucket in range(first, end) if bucket in away]
        usual = [bucket for bucket in range(first, end) if bucket not in away]
        found += [Kind(rehearsed, in_rehearsal=True)] if rehearsed else []
        if usual:
            mixed = any(parts_from(setting, cohort, usual[0]) for cohort in cohorts)
            found.append(Kind(usual, is_mixed=mixed))
    return found


class Aim(NamedTuple):
    """All that the homes of buckets depend on."""

    phase: Phase
    canary_permille: int
    hold: bool
    rehearsal: tuple[int, ...]
    use_service_layer: bool | None
    cohorts: tuple[Cohort, ...] = ()


def aim(setting: Setting, flags: Flags) -> Aim:
    return Aim(
        setting.phase,
        setting.canary_permille,
        setting.hold,
        setting.rehearsal,
        flags.use_service_layer,
        steering_cohorts(setting, flags),
    )


def _by_cohort(setting: Setting, bucket: int, key: str, account: str | None) -> Target | None:
    """None: no cohort takes the record."""
    cohorts = steering_cohorts(setting, NO_FLAGS)
    cohort = cohort_of(cohorts, key, account)
    if cohort is not None:
        return Target(cohort.store(bucket), f"cohort {cohort.name}")
    if account is None and any(one.account and parts_from(setting, one, bucket) for one in cohorts):
        return Target(_usual(setting, bucket).store, UNKNOWN_ACCOUNT)
    return None


def _by_phase(setting: Setting, bucket: int | None, *, old_client: bool = False) -> Target:
    usual = _usual(setting, bucket)
    if bucket in setting.rehearsal:
        return Target(usual.store.other, "rehearsal")
    if old_client and setting.rule.old_clients_at_a and usual == Target(Store.B, "phase"):
        return Target(Store.A, CLIENT_SCHEMA)
    return usual


def _usual(setting: Setting, bucket: int | None) -> Target:
    if setting.rule.canary and bucket is not None and is_canary(bucket, setting.canary_permille):
        return Target(Store.B, "canary")
    return Target(setting.rule.home, "phase")
