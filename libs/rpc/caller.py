"""Identity and ids of a caller, from a call's metadata."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from libs.errors import InvalidField
from libs.identity.principal import ANONYMOUS_SUBJECT, current_principal
from libs.rpc import metadata
from libs.telemetry import trace_context

_MADE_IDS = uuid5(uuid5(NAMESPACE_URL, "baton:principals"), ANONYMOUS_SUBJECT)
"""Namespace of made ids. It has been that of anonymous callers from the start."""
_MADE_ID_CHARACTERS = 63


def make_id(request_id: str) -> str:
    """Id for a create without one. It is the same for each retry, at the router and at both stores, also if the
    caller's subject changes between two attempts."""
    return str(uuid5(_MADE_IDS, request_id.lower()))


def asks_why(found: Any) -> bool:
    """Whether a call asks for an explanation of its route, by its metadata."""
    return any(name == metadata.EXPLAIN and value == "1" for name, value in found or ())


class Caller(NamedTuple):
    """Identity, ids and options of a call. Ids are "" if the call has none."""

    principal: str = ANONYMOUS_SUBJECT
    """Principal under which its request is stored once it is served."""
    subject: str = ANONYMOUS_SUBJECT
    request_id: str = ""
    made_id: str = ""
    replica: bool = False
    explain: bool = False
    """Return the record's version with the answer."""
    logged: bool = False
    """Acknowledge a write only once its event is in the log."""
    traceparent: str = ""
    """W3C trace context of the call: of the running span, else of the caller; "" if neither has a valid one."""
    schema_version: int = 0
    """Schema version of the call, read by the contract's own metadata. 0: the newest."""


def read_caller(
    found: Any,
    *,
    internal: bool,
    serves_subjects: bool = False,
    schema_version: int = 0,
    logged: bool = False,
) -> Caller:
    """Read a call's metadata. Raises InvalidField.

    Ids and replica reads are trusted on internal listeners only; a public listener uses just the trace. The subject is
    that of the gate. `serves_subjects`: serve a public listener's requests under subjects; routers decide for theirs.
    `schema_version`: see `Caller`. `logged`: acknowledge a public listener's writes from the log.
    """
    subject = current_principal().subject
    values = {name: value for name, value in found or () if name in _NAMES and isinstance(value, str)}
    traceparent = trace_context.current.get() or trace_context.checked(values.get(metadata.TRACEPARENT, ""))
    if not internal:
        return Caller(
            subject if serves_subjects else ANONYMOUS_SUBJECT,
            subject,
            logged=logged,
            traceparent=traceparent,
            schema_version=schema_version,
        )
    made_id = values.get(metadata.MADE_ID, "")
    if len(made_id) > _MADE_ID_CHARACTERS:
        raise InvalidField(metadata.MADE_ID, made_id, f"at most {_MADE_ID_CHARACTERS} characters")
    return Caller(
        principal=subject if values.get(metadata.SERVED_AS) == metadata.SUBJECT else ANONYMOUS_SUBJECT,
        subject=subject,
        request_id=values.get(metadata.REQUEST_ID, ""),
        made_id=made_id,
        replica=values.get(metadata.REPLICA) == "1",
        explain=values.get(metadata.EXPLAIN) == "1",
        logged=values.get(metadata.ACK) == metadata.LOGGED,
        traceparent=traceparent,
        schema_version=schema_version,
    )


_NAMES = frozenset(
    {
        metadata.REQUEST_ID,
        metadata.MADE_ID,
        metadata.SERVED_AS,
        metadata.REPLICA,
        metadata.EXPLAIN,
        metadata.ACK,
        metadata.TRACEPARENT,
    }
)
