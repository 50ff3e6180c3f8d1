"""Where a call should go: the first rule that speaks.

hold > global flag false > the operation's flag > global flag true > rehearsed bucket > canary bucket
> client's schema > phase.

This is a hint. The store that gets the call looks at its row and may answer that it is not the owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.ownership.model import BUCKETS, Store
from services.router.core.phase import CANARY_FULL, Phase, Setting


@dataclass(frozen=True, slots=True)
class Flags:
    """Kill switches: True is B, False is A, None asks the next rule."""

    use_service_layer: bool | None = None
    operations: Mapping[str, bool] = field(default_factory=dict)
    """By operation: create, get, list, update, delete. One that is not there asks the next rule."""


NO_FLAGS = Flags()

LASTING_SECONDS = 5.0
"""How long the flag for everything must have been false until records follow it. Calls follow at once."""


CLIENT_SCHEMA = "client schema"
"""The rule for clients of an old schema version."""


class Target(NamedTuple):
    store: Store
    rule: str
    """Which rule decided, in words."""

    @property
    def moves(self) -> bool:
        """A call may bring its record there. A client's schema is no reason to, since records do not follow clients: a
        call that meets another owner goes on to the other store, the home."""
        return self.rule != CLIENT_SCHEMA


def canary_buckets(permille: int) -> int:
    """How many buckets are canary: those with a lower number."""
    return round(BUCKETS * permille / CANARY_FULL)


def is_canary(bucket: int, permille: int) -> bool:
    """Growing only adds buckets, shrinking only takes away: a record never flaps between steps."""
    return bucket < canary_buckets(permille)


def target(setting: Setting, flags: Flags, operation: str, bucket: int | None, *, old_client: bool = False) -> Target:
    """`bucket`: None for a call without a key. `old_client`: it is a client of an old schema version that reads, or may
    begin a new name."""
    if setting.hold:
        return Target(Store.A, "hold")
    if not setting.rule.way_back:
        # A may be shut down: no flag leads there any more.
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
    """Where the mover brings a bucket: as `target`, without the flags of operations (they steer calls, not records)."""
    if setting.hold:
        return Store.A
    if flags.use_service_layer is not None and setting.rule.way_back:
        return Store.B if flags.use_service_layer else Store.A
    return _by_phase(setting, bucket).store


class Aim(NamedTuple):
    """What the homes of buckets depend on: while this stays, they stay."""

    phase: Phase
    canary_permille: int
    hold: bool
    rehearsal: tuple[int, ...]
    use_service_layer: bool | None


def aim(setting: Setting, flags: Flags) -> Aim:
    return Aim(setting.phase, setting.canary_permille, setting.hold, setting.rehearsal, flags.use_service_layer)


def _by_phase(setting: Setting, bucket: int | None, *, old_client: bool = False) -> Target:
    usual = _usual(setting, bucket)
    # Almost always empty, else a few buckets.
    if bucket in setting.rehearsal:
        return Target(usual.store.other, "rehearsal")
    if old_client and setting.rule.old_clients_at_a and usual == Target(Store.B, "phase"):
        return Target(Store.A, CLIENT_SCHEMA)
    return usual


def _usual(setting: Setting, bucket: int | None) -> Target:
    if setting.rule.canary and bucket is not None and is_canary(bucket, setting.canary_permille):
        return Target(Store.B, "canary")
    return Target(setting.rule.home, "phase")
