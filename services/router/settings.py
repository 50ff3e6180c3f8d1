"""Settings of a router."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model
from pydantic_settings import SettingsConfigDict

from libs.flags.openfeature import PLACE
from libs.process import (
    Address,
    Addresses,
    Count,
    ProcessSettings,
    Seconds,
    check_optional_address,
    check_optional_addresses,
)
from libs.settings import check_readable
from services.router.core.limits import THRESHOLDS
from services.router.core.phase import Phase
from services.router.core.routes import LEAST_SAMPLE_PERMILLE
from services.router.core.thresholds import Limits, Threshold
from services.router.core.throttle import ThrottleLimits
from services.router.core.write_ledger import LedgerLimits

_CONTROL_STORE = re.compile(r"sqlite:///.+|postgresql://\S+|memory:")


_FLAG_PROVIDER = re.compile(rf"control-store|flagd:.+|{PLACE.pattern}")
_FLAG_WORD = re.compile(r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)?")


def check_flag_provider(value: str) -> str:
    """Raises ValueError."""
    if _FLAG_PROVIDER.fullmatch(value) is None:
        raise ValueError("must be control-store, flagd:/path/to/flags.json, or package.module:factory")
    return value


def check_flag_word(value: str) -> str:
    """Raises ValueError."""
    if _FLAG_WORD.fullmatch(value) is None:
        raise ValueError("must be letters, digits, _ and -, in parts separated by dots")
    return value


def check_control_store(value: str) -> str:
    """Raises ValueError."""
    if _CONTROL_STORE.fullmatch(value) is None:
        raise ValueError("must be sqlite:///path or postgresql://user@host:port/database")
    return check_readable(value)


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
        raise ValueError(f"must be all, or names of phases separated by commas: {', '.join(known)}")
    return frozenset(known[name] for name in names)


Percent = Annotated[float, Field(gt=0, le=100)]
Milliseconds = Annotated[float, Field(gt=0, le=60_000)]


def _field(threshold: Threshold[float]) -> tuple[Any, Any]:
    """The type and the default of a threshold's setting."""
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
    """A setting for each threshold of a gate or of automatic rollback, with the threshold's name."""


class RouterSettings(ThresholdSettings):
    model_config = SettingsConfigDict(env_prefix="BATON_ROUTER_")

    public: Address = "127.0.0.1:7600"
    """Address of the listener for clients, host:port."""
    control: Address = "127.0.0.1:7700"
    """Address of the listener for operators, host:port."""
    internal: Annotated[str, AfterValidator(check_optional_address)] = ""
    """Address of the listener for calls that stores pass on (their setting `router_internal`), host:port. Such a call
    has the identity that the store has verified, so the listener needs `token_file` if clients are authenticated or if
    other machines can reach it. Empty: there is none, and stores pass calls on to the public listener."""
    control_auth: Literal["none", "token", "jwt", "mtls", "tokens"] | None = None
    """How operators are authenticated: `token` (one shared token, without identities), `jwt`, `mtls` or `tokens` (as
    for `public_auth`, each with a subject and roles), `none`. Empty: `token` if `control_token_file` is set; else
    `none`, and the router refuses to listen for operators beyond loopback."""
    control_auth_file: Path | None = None
    """With control_auth `mtls` or `tokens`: TOML file with the names or tokens of operators and their roles. It is read
    again when it changes."""
    control_token_file: Path | None = None
    """File with the shared token of the control listener. Its holders have all roles, and no names."""
    control_jwt_audience: str = ""
    """With control_auth `jwt`: the audience of operators' tokens. Empty: `jwt_audience`. Give operators another
    audience than clients."""
    control_jwt_issuer: str = ""
    """With control_auth `jwt`: the issuer of operators' tokens, with `control_jwt_keys`. Empty: `jwt_issuer`."""
    control_jwt_keys: str = ""
    """With control_auth `jwt`: the key set of `control_jwt_issuer`. Empty: `jwt_keys`."""
    control_jwt_roles_claim: str = ""
    """With control_auth `jwt`: claim with the operator's roles. Empty: `jwt_roles_claim`."""
    console: Annotated[str, AfterValidator(check_optional_address)] = ""
    """Address of the operators' page, host:port. Its path is /console. Operators sign in as `control_auth` says.
    Without authentication the page is for this machine only. Empty: there is no page."""
    console_secret_file: Path | None = None
    """File with a secret that seals the page's sessions. Routers with the same secret accept each other's sessions, so
    `--workers` needs it. Empty: a random secret, and sessions end with the process."""
    notify_url: str = ""
    """Where notices are sent by webhook: changes of phase, rollbacks, gates that fail, ends of jobs, conflicts. It is
    https, or http on this machine. Give it to all routers: one of them sends. Empty: none are sent."""
    notify_secret_file: Path | None = None
    """File with the secret that signs notices (HMAC-SHA256, as Standard Webhooks). It is read again when it changes.
    Empty: they are not signed."""
    gate_webhook_url: str = ""
    """Where the gate `webhook` asks before a phase is entered. It is https, or http on this machine. Give it to all
    routers. Empty: there is no such gate."""
    gate_webhook_secret_file: Path | None = None
    """File with the secret that signs the questions, as `notify_secret_file` signs notices. Empty: they are not
    signed."""
    gate_webhook_phases: Annotated[str, AfterValidator(check_phases)] = "all"
    """Phases that the gate `webhook` is before: names separated by commas, or all."""
    share_ports: bool = False
    """Other routers of this machine may listen on the same addresses, and the kernel spreads the connections over them
    (SO_REUSEPORT). `--workers` sets it for its routers."""
    store_a: Address
    """The old store's internal address, host:port."""
    store_b: Addresses
    """The new store's internal address, or the addresses of its processes: 10.0.0.1:7811,10.0.0.2:7811."""
    token_file: Path | None = None
    """File with the shared token of the internal listeners."""

    control_store: Annotated[str, AfterValidator(check_control_store)]
    """The database that all routers share: sqlite:///path on one machine, or postgresql://user@host:port/name on
    another server than the new store's. For TLS, add ?sslmode=verify-full&sslrootcert=/path/ca.pem."""
    contract: str = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"
    """The compiled contract: package.module_pb2:ServiceName."""
    name: str = ""
    """Unique name of this router. Empty: made from host and process id."""

    flag_provider: Annotated[str, AfterValidator(check_flag_provider)] = "control-store"
    """Source of flags in addition to `baton flags set`: control-store (no other source), flagd:/path/to/flags.json, or
    a factory of an OpenFeature provider, package.module:factory."""
    flag_prefix: Annotated[str, AfterValidator(check_flag_word)] = ""
    """Prefix of the flags' names. Empty: made from the contract's name (sandbox.routing)."""
    flag_noun: Annotated[str, AfterValidator(check_flag_word)] = ""
    """Noun for a record in the flags' names. Empty: made from the contract's name (sandbox)."""

    public_calls: Count = 256
    """Calls in flight, with HTTP; further calls fail with OVERLOADED."""
    watchers: Count = 256
    """Watches in flight, in addition to the calls."""
    watch_patience_seconds: Seconds = 10.0
    """Time that a watch waits for its store to come back before it restarts at the other store."""
    writes: Count = 256
    """Writes in flight, including those whose callers have disconnected."""
    owner_patience_seconds: Annotated[float, Field(ge=0, le=60)] = 5.0
    """Time that a call waits for an unreachable store, such as one that restarts, within its deadline; 0: the call
    fails at once. A read waits only while the store has been unreachable for less than this."""
    stale_reads: bool = True
    """Answer a read from the other store, marked stale, if the record's owner is unreachable."""
    ack_logged: Annotated[str, AfterValidator(check_phases)] = ""
    """Phases in which a write is acknowledged only after its event is in the event log, so that the loss of a whole
    store loses no acknowledged write: names separated by commas, or all. In other phases a commit is enough."""
    ledger_permille: Annotated[int, Field(ge=0, le=1000)] = 100
    """Share of the acknowledged writes that the ledger checks later."""
    ledger_seconds: Seconds = 10.0
    """Time between the acknowledgement of a write and its check by the ledger."""
    refresh_seconds: Annotated[float, Field(gt=0, le=1.0)] = 0.3
    """Interval between two reads of phase, canary, flags and limits from the control store."""

    reconcile_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """Interval between two scheduled comparisons of all records, from the first backfill on; 0: none are scheduled."""
    job_lag_seconds: Seconds = 10.0
    """Lag of a feed above which jobs slow down."""
    job_latency_milliseconds: Milliseconds = 500.0
    """P99 of live calls to the stores above which jobs slow down."""
    job_error_percent: Percent = 1.0
    """Share of live calls that fail by a store's fault above which jobs slow down."""

    xds: Annotated[str, AfterValidator(check_optional_address)] = ""
    """Address of the listener that gives clients direct routes to the stores by xDS, host:port. Empty: all calls go
    through routers. See docs/zero-hop.md."""
    xds_auth: Literal["none", "mtls", "public"] | None = None
    """How clients of the xDS listener are authenticated: `mtls` (a certificate from `tls_public_client_ca`), `public`
    (as at the public listener), `none`. Empty: `none`, and the router refuses to listen for them beyond loopback."""
    xds_store_a: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """Public address of the old store, as clients reach it. The router watches its health there. Empty: no direct calls
    to it."""
    xds_store_b: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """Public address of the new store, or the addresses of its processes, as clients reach them. A name stands for all
    processes that it resolves to. Empty: no direct calls to it."""
    xds_routers: Annotated[str, AfterValidator(check_optional_addresses)] = ""
    """Public addresses of all routers, as clients reach them. Empty: this router's `public`."""
    xds_envoy: Annotated[str, AfterValidator(check_optional_address)] = ""
    """Address where an Envoy that gets its configuration here listens for clients, host:port with an IP address. Empty:
    Envoys get no listener."""
    xds_certificate_provider: str = ""
    """Name of the certificate provider in the clients' bootstrap for TLS to stores and routers; clients then check that
    certificates are from its CA and have the name `tls_server_name`, if that is set. Empty: clients connect as their
    channel credentials say."""
    xds_streams: Count = 1024
    """Clients of the xDS listener; further ones are refused with OVERLOADED."""
    xds_sample_permille: Annotated[int, Field(ge=0, le=1000)] = LEAST_SAMPLE_PERMILLE
    """Least share of the direct calls that still go through a router, for the evidence of gates and the ledger. None do
    in OFF and DEPRECATED."""

    default_deadline_seconds: Seconds = 5.0
    """Deadline of a call that has none."""
    longest_deadline_seconds: Seconds = 30.0
    """Longest deadline; a longer one is shortened to it."""
    drain_seconds: Seconds = 10.0
    """Time that a process waits after SIGTERM for the calls in flight."""

    @property
    def logged_phases(self) -> frozenset[Phase]:
        return read_phases(self.ack_logged)

    @property
    def decided_phases(self) -> frozenset[Phase]:
        return read_phases(self.gate_webhook_phases)

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
