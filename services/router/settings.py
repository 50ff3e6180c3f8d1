"""What a router can be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from libs.flags.openfeature import PLACE
from libs.process import Address, Addresses, Count, ProcessSettings, Seconds

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


class RouterSettings(ProcessSettings):
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
    """Where flags come from beside the operator's: nowhere, flagd:/path/to/flags.json, or what makes an OpenFeature
    provider, package.module:factory."""
    flag_prefix: Annotated[str, AfterValidator(check_flag_word)] = ""
    """What the flags' names begin with. Empty: made from the contract's name, sandbox.routing."""
    flag_noun: Annotated[str, AfterValidator(check_flag_word)] = ""
    """What the flags' names call a record. Empty: made from the contract's name, sandbox."""

    public_calls: Count = 256
    """Under way at once; further ones are refused."""
    writes: Count = 256
    """Under way at once, those included whose callers have left."""
    stale_reads: bool = True
    """Answer a read from the other store, marked stale, when the record's owner is out of reach."""
    refresh_seconds: Annotated[float, Field(gt=0, le=1.0)] = 0.5
    """How old this router's view of the setting may be."""
    default_deadline_seconds: Seconds = 5.0
    longest_deadline_seconds: Seconds = 30.0
    drain_seconds: Seconds = 10.0
    """How long a process that was told to stop waits for what is under way."""
