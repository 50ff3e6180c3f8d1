"""The target of a call: the first rule that applies decides.

hold > global flag false > the operation's flag > global flag true > rehearsed bucket > canary bucket
> client's schema > phase.

The target is a hint. The store that gets the call checks its row and may answer NOT_OWNER.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.ownership.model import BUCKETS, Store
from services.router.core.phase import CANARY_FULL, Phase, Setting


@dataclass(frozen=True, slots=True)
class Flags:
    """Kill switches: True is B, False is A, None leaves the decision to the next rule."""

    use_service_layer: bool | None = None
    operations: Mapping[str, bool] = field(default_factory=dict)
    """By operation: create, get, list, update, delete. An absent one leaves the decision to the next rule."""


NO_FLAGS = Flags()

LASTING_SECONDS = 5.0
"""Records follow the global flag once it has been false for this long. Calls follow at once."""


CLIENT_SCHEMA = "client schema"
"""The rule for clients of an old schema version."""


class Target(NamedTuple):
    store: Store
    rule: str
    """The rule that decided, in words."""

    @property
    def moves(self) -> bool:
        """Whether a call may move its record to the target. Records do not follow the schema of a client: such a call
        goes on to the owner, at the other store."""
        return self.rule != CLIENT_SCHEMA


def canary_buckets(permille: int) -> int:
    """Number of canary buckets: those with a lower number than this."""
    return round(BUCKETS * permille / CANARY_FULL)


def is_canary(bucket: int, permille: int) -> bool:
    """A larger canary only adds buckets and a smaller one only removes some, so no record moves twice."""
    return bucket < canary_buckets(permille)


def target(setting: Setting, flags: Flags, operation: str, bucket: int | None, *, old_client: bool = False) -> Target:
    """`bucket`: None for a call without a key. `old_client`: the call is of a client with an old schema version, and
    reads or may create a record."""
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
    return _by_phase(setting, bucket, old_client=old_client)


def home(setting: Setting, flags: Flags, bucket: int) -> Store:
    """Target of a bucket for the mover: as `target`, without the flags of operations, which steer calls only."""
    if setting.hold:
        return Store.A
    if flags.use_service_layer is not None and setting.rule.way_back:
        return Store.B if flags.use_service_layer else Store.A
    return _by_phase(setting, bucket).store


class Kind(NamedTuple):
    """Buckets whose calls have the same target, and which have the same home."""

    buckets: Sequence[int]
    """In order; not empty."""
    in_rehearsal: bool = False

    @property
    def first(self) -> int:
        return self.buckets[0]


def kinds(setting: Setting) -> list[Kind]:
    """All buckets, each in one kind."""
    canary, away = canary_buckets(setting.canary_permille), frozenset(setting.rehearsal)
    found = [
        Kind([bucket for bucket in buckets if (bucket in away) is in_rehearsal], in_rehearsal)
        for buckets in (range(canary), range(canary, BUCKETS))
        for in_rehearsal in (False, True)
    ]
    return [kind for kind in found if kind.buckets]


class Aim(NamedTuple):
    """All that the homes of buckets depend on."""

    phase: Phase
    canary_permille: int
    hold: bool
    rehearsal: tuple[int, ...]
    use_service_layer: bool | None


def aim(setting: Setting, flags: Flags) -> Aim:
    return Aim(setting.phase, setting.canary_permille, setting.hold, setting.rehearsal, flags.use_service_layer)


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
