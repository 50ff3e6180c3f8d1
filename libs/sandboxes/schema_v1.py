"""Schema version 1: the flat record of the old service (`FlatSandbox`).

Its fields stand in one message with the remaining fields of the newest version. A flat field replaces the newest one
where it can express the value exactly. Where it cannot (half seconds of a timeout), it shows a rounded value; the exact
one stays in the message and counts until the client changes the rounded one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import InvalidField
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox, SandboxSpec
from libs.sandboxes.unknown import split

PATHS: Mapping[str, str] = {
    "state": "state",
    "image": "spec.image",
    "command": "spec.command",
    "env": "spec.env",
    "cpu": "spec.cpu_millis",
    "memory_mb": "spec.memory_mib",
    "timeout_s": "spec.timeout",
    "metadata": "labels",
}
"""Fields that a client of version 1 can change, with their paths in the newest version."""

NUMBERS = frozenset(range(30, 39))
"""Field numbers that only version 1 uses."""

_MILLIS = 1000
_INT64 = 1 << 63


def write(sandbox: Sandbox) -> bytes:
    """Convert from the newest version. Values that version 1 can express move out of `sandbox`; the rest stays in
    it."""
    flat = FlatSandbox(metadata=sandbox.labels)
    sandbox.ClearField("labels")
    if sandbox.HasField("create_time"):
        flat.created_at = _seconds(sandbox.create_time)
    if sandbox.HasField("update_time"):
        flat.updated_at = _seconds(sandbox.update_time)
    if sandbox.HasField("spec"):
        _move_spec(flat, sandbox.spec)
    return sandbox.SerializeToString(deterministic=True) + flat.SerializeToString(deterministic=True)


def _move_spec(flat: FlatSandbox, spec: SandboxSpec) -> None:
    flat.image = spec.image
    flat.command.extend(spec.command)
    flat.env.update(spec.env)
    flat.memory_mb = spec.memory_mib
    flat.cpu = spec.cpu_millis / _MILLIS
    for name in ("image", "command", "env", "memory_mib"):
        spec.ClearField(name)
    if round(flat.cpu * _MILLIS) == spec.cpu_millis:
        spec.ClearField("cpu_millis")
    if spec.HasField("timeout"):
        flat.timeout_s = spec.timeout.seconds
        if spec.timeout.SerializeToString() == Duration(seconds=flat.timeout_s).SerializeToString():
            spec.ClearField("timeout")


def read(data: bytes) -> Sandbox:
    """Convert to the newest version. Raises DecodeError, and InvalidField for an impossible number."""
    flat = FlatSandbox.FromString(data)
    sandbox = Sandbox.FromString(b"".join(raw for number, raw in split(data) if number not in NUMBERS))
    if flat.metadata:
        sandbox.ClearField("labels")
        sandbox.labels.update(flat.metadata)
    if flat.image:
        sandbox.spec.image = flat.image
    if flat.command:
        sandbox.spec.ClearField("command")
        sandbox.spec.command.extend(flat.command)
    if flat.env:
        sandbox.spec.ClearField("env")
        sandbox.spec.env.update(flat.env)
    if flat.memory_mb:
        sandbox.spec.memory_mib = flat.memory_mb
    if sandbox.spec.cpu_millis / _MILLIS != flat.cpu:
        sandbox.spec.cpu_millis = _millis(flat.cpu)
    if not flat.HasField("timeout_s"):
        # The client removed the rounded value, so the exact one goes with it.
        _without_timeout(sandbox)
    elif not _shows(sandbox, flat.timeout_s):
        sandbox.spec.timeout.CopyFrom(Duration(seconds=flat.timeout_s))
    return sandbox


def keep_exact(update: Sandbox, current: Sandbox) -> None:
    """Restore exact values for a client that drops unknown fields.

    If the update repeats the rounded timeout of the current sandbox, it gets the exact one.
    """
    timeout = update.spec.timeout
    if update.spec.HasField("timeout") and not timeout.nanos and _shows(current, timeout.seconds):
        timeout.CopyFrom(current.spec.timeout)


def _without_timeout(sandbox: Sandbox) -> None:
    if sandbox.HasField("spec"):
        sandbox.spec.ClearField("timeout")


def _shows(sandbox: Sandbox, seconds: int) -> bool:
    """Whether the sandbox has a timeout of these whole seconds."""
    return sandbox.spec.HasField("timeout") and sandbox.spec.timeout.seconds == seconds


def _millis(cpu: float) -> int:
    exact = cpu * _MILLIS
    if math.isfinite(exact) and -_INT64 <= (millis := round(exact)) < _INT64:
        return millis
    raise InvalidField("sandbox.cpu", cpu, "a finite number of processors")


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9
