"""What a router can be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, create_model
from pydantic_settings import SettingsConfigDict

from libs.flags.openfeature import PLACE
from libs.process import Address, Addresses, Count, ProcessSettings, Seconds
from services.router.core.ledger import LedgerLimits
from services.router.core.limits import THRESHOLDS
from services.router.core.phase import Phase
from services.router.core.thresholds import Limits, Threshold
from services.router.core.throttle import ThrottleLimits

_CONTROL_STORE = re.compile(r"sqlite:///.+|postgresql://\S+|memory:")


_FLAG_PROVIDER = re.compile(rf"control-store|flagd:.+|{PLACE.pattern}")
_FLAG_WORD = re.compile(r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)?")


def check_flag_provider(value: str) -> str:
    """Raises ValueError."""
    if _FLAG_PROVIDER.fullmatch(value) is None:
        raise ValueError("flags come from control-store, flagd:/path/to/flags.json, or package.module:factory")
    return value


def check_flag_word(value: str) -> str:
    """Raises ValueError."""
    if _FLAG_WORD.fullmatch(value) is None:
        raise ValueError("letters, digits, _ and -, in parts with a dot between them")
    return value


def check_control_store(value: str) -> str:
    """Raises ValueError."""
    if _CONTROL_STORE.fullmatch(value) is None:
        raise ValueError("a control store is at sqlite:///path or postgresql://user@host:port/database")
    return value


def check_phases(value: str) -> str:
    """Raises ValueError."""
    read_phases(value)
    return value


def read_phases(value: str) -> frozenset[Phase]:
    """Raises ValueError."""
    if value.strip().lower() == "all":
        return frozenset(Phase)
    names = [name.strip().upper() for name in value.split(",") if name.strip()]
    known = {phase.value: phase for phase in Phase}
    if not set(names) <= set(known):
        raise ValueError(f"names of phases with commas between them, or all: {', '.join(known)}")
    return frozenset(known[name] for name in names)


Percent = Annotated[float, Field(gt=0, le=100)]
Milliseconds = Annotated[float, Field(gt=0, le=60_000)]


def _field(threshold: Threshold[float]) -> tuple[Any, Any]:
    """The setting that has the threshold's name, kind, range and default."""
    least, most = (None, None) if threshold.kind is bool else (threshold.least, threshold.most)
    return Annotated[threshold.kind, Field(description=threshold.meaning, ge=least, le=most)], threshold.default


if TYPE_CHECKING:
    ThresholdSettings = ProcessSettings
else:
    ThresholdSettings = create_model(
        "ThresholdSettings",
        __base__=ProcessSettings,
        **{threshold.name: _field(threshold) for threshold in THRESHOLDS.values()},
    )
    """A setting for each threshold of a gate or of automatic rollback, under its name."""


class RouterSettings(ThresholdSettings):
    model_config = SettingsConfigDict(env_prefix="BATON_ROUTER_")

    public: Address = "127.0.0.1:7600"
    """Where clients are served."""
    control: Address = "127.0.0.1:7700"
    """Where operators are."""
    control_token_file: Path | None = None
    """Holds the token that the control listener asks for. Needed when that listens beyond this machine."""
    store_a: Address
    """The old store's internal listener."""
    store_b: Addresses
    """The new store's internal listener, or those of its processes: 10.0.0.1:7811,10.0.0.2:7811."""
    token_file: Path | None = None
    """Holds the token that the stores' internal listeners ask for."""

    control_store: Annotated[str, AfterValidator(check_control_store)]
    """What all routers share: sqlite:///path, or postgresql:// on another server than the new store's."""
    contract: str = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"
    """The compiled contract: package.module_pb2:ServiceName."""
    name: str = ""
    """Of this router among others, for its leases. Empty: made from host and process."""

    flag_provider: Annotated[str, AfterValidator(check_flag_provider)] = "control-store"
    """Where flags come from beside the operator's: nowhere (control-store), flagd:/path/to/flags.json, or what makes an
    OpenFeature provider, package.module:factory."""
    flag_prefix: Annotated[str, AfterValidator(check_flag_word)] = ""
    """What the flags' names begin with. Empty: made from the contract's name, sandbox.routing."""
    flag_noun: Annotated[str, AfterValidator(check_flag_word)] = ""
    """What the flags' names call a record. Empty: made from the contract's name, sandbox."""

    public_calls: Count = 256
    """Under way at once; further ones are refused."""
    watchers: Count = 256
    """Watches under way at once, beside the calls."""
    watch_patience_seconds: Seconds = 10.0
    """How long a watch waits for its store to come back before it goes on at the other one, anew."""
    writes: Count = 256
    """Under way at once, those included whose callers have left."""
    owner_patience_seconds: Annotated[float, Field(ge=0, le=60)] = 5.0
    """How long a call waits for a store that is out of reach, such as one that restarts, if its deadline allows; 0: it
    fails at once. A read waits only while the store has been away for less than this."""
    stale_reads: bool = True
    """Answer a read from the other store, marked stale, when the record's owner is out of reach."""
    ack_logged: Annotated[str, AfterValidator(check_phases)] = ""
    """Phases in which a write is answered only when its event is in the log, so that even the loss of a whole store
    loses nothing that was answered: names with commas between them, or "all". In the others, when its owner has
    committed it."""
    ledger_permille: Annotated[int, Field(ge=0, le=1000)] = 100
    """Thousandths of the acknowledged writes of which the ledger checks later that they are still there."""
    ledger_seconds: Seconds = 10.0
    """How much later."""
    refresh_seconds: Annotated[float, Field(gt=0, le=1.0)] = 0.3
    """How old this router's view of the setting may be, flags included; what asking takes comes on top."""

    reconcile_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """Between two comparisons of all records, from the first backfill on; 0: only when somebody asks for one."""
    job_lag_seconds: Seconds = 10.0
    """Lag of a feed above which jobs slow down."""
    job_latency_milliseconds: Milliseconds = 500.0
    """P99 of live calls to the stores above which jobs slow down."""
    job_error_percent: Percent = 1.0
    """Of live calls that fail by a store's fault; above it jobs slow down."""

    default_deadline_seconds: Seconds = 5.0
    longest_deadline_seconds: Seconds = 30.0
    drain_seconds: Seconds = 10.0
    """How long a process that was told to stop waits for what is under way."""

    @property
    def logged_phases(self) -> frozenset[Phase]:
        return read_phases(self.ack_logged)

    @property
    def ledger_limits(self) -> LedgerLimits:
        return LedgerLimits(self.ledger_permille, settle_seconds=self.ledger_seconds)

    @property
    def limits(self) -> Limits:
        return Limits({name: float(getattr(self, name)) for name in THRESHOLDS})

    @property
    def throttle_limits(self) -> ThrottleLimits:
        return ThrottleLimits(
            lag_seconds=self.job_lag_seconds,
            latency_seconds=self.job_latency_milliseconds / 1000,
            error_rate=self.job_error_percent / 100,
        )
