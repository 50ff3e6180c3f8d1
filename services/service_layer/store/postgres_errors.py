"""What PostgreSQL, its driver and its pool raise, and what that means here: tables, by SQLSTATE, else by type."""

from __future__ import annotations

import asyncpg
import sqlalchemy.exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from libs.errors import BatonError, LockTimeout, Overloaded
from libs.store.port import StoreUnavailable


class StartAgain(BatonError):
    """What a decision was made on has changed: read again, decide again."""

    code = "ABORTED"
    reason = "LOCK_TIMEOUT"


class DiskFull(BatonError):
    """The database has no room left; nothing was changed. Reads go on."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUTBOX_FULL"
    retry_seconds = 5.0


class UnfitDatabase(BatonError):
    """The database cannot keep what this store promises."""


SQLSTATES: dict[str, type[BatonError]] = {
    "23505": StartAgain,  # unique_violation: somebody else made the row, or served the request, at the same time
    "40001": StartAgain,  # serialization_failure
    "40P01": StartAgain,  # deadlock_detected
    "0A000": StartAgain,  # feature_not_supported: "cached plan must not change result type", after a migration
    "55P03": LockTimeout,  # lock_not_available
    "53100": DiskFull,  # disk_full
    "53300": Overloaded,  # too_many_connections
    "53": StoreUnavailable,  # insufficient_resources: memory, configuration
    "08": StoreUnavailable,  # connection_exception
    "57": StoreUnavailable,  # admin_shutdown, crash_shutdown, cannot_connect_now, and statement_timeout
    "58": StoreUnavailable,  # system_error: an I/O error of the server
    "25006": StoreUnavailable,  # read_only_sql_transaction: this has become a standby
    "25P03": StoreUnavailable,  # idle_in_transaction_session_timeout
    "XX": StoreUnavailable,  # internal_error, data_corrupted
    "3D000": StoreUnavailable,  # invalid_catalog_name: no such database
    "28": StoreUnavailable,  # invalid_authorization
}
"""A code, or the class that its first two characters name."""

TYPES: tuple[tuple[type[BaseException], type[BatonError]], ...] = (
    (sqlalchemy.exc.TimeoutError, Overloaded),  # of the pool
    (asyncpg.TargetServerAttributeNotMatched, StoreUnavailable),  # a standby answers
    (asyncpg.InterfaceError, StoreUnavailable),  # the connection is closed, or was lost meanwhile
    (asyncpg.InternalClientError, StoreUnavailable),
    (TimeoutError, StoreUnavailable),
    (OSError, StoreUnavailable),
)
"""Asked in this order when there is no SQLSTATE."""

FOREIGN: tuple[type[Exception], ...] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlalchemy.exc.SQLAlchemyError,
    AsyncAdapt_asyncpg_dbapi.Error,  # of a connection that could not be made: the driver's own error is its cause
    OSError,
    TimeoutError,
)
"""All that `translated` may be asked about."""


def translated(error: BaseException) -> BatonError | None:
    """Ours for a foreign exception. None: it is a defect of this program, not trouble of the database."""
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, AsyncAdapt_asyncpg_dbapi.Error) and error.__cause__ is not None:
        error = error.__cause__
    kind = _kind(error)
    return None if kind is None else kind(f"{(kind.__doc__ or '').strip()} [{type(error).__name__}: {error}]")


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection on which it was raised may be in an unknown state, or gone."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "08000"
        return state != "57014" and (state[:2] in ("08", "57", "58", "XX") or state in ("25P03", "25006"))
    return not isinstance(error, BatonError)


def _kind(error: BaseException) -> type[BatonError] | None:
    state: str | None = getattr(error, "sqlstate", None)
    if state:
        return SQLSTATES.get(state) or SQLSTATES.get(state[:2])
    return next((ours for theirs, ours in TYPES if isinstance(error, theirs)), None)
