"""Maps exceptions of PostgreSQL, its driver and its pool to errors of this project: by SQLSTATE, else by type."""

from __future__ import annotations

import asyncpg
import sqlalchemy.exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from libs.errors import BatonError, DiskFull, LockTimeout, Overloaded, StoreUnavailable
from libs.store.transaction import StartAgain

SQLSTATES: dict[str, type[BatonError] | None] = {
    # Single codes, whose class is too broad.
    "23505": StartAgain,  # unique_violation: a concurrent transaction made the row, or served the request
    "40001": StartAgain,  # serialization_failure
    "40P01": StartAgain,  # deadlock_detected
    "0A000": StartAgain,  # feature_not_supported: "cached plan must not change result type", after a migration
    "55P03": LockTimeout,  # lock_not_available
    "53100": DiskFull,  # disk_full
    "53300": Overloaded,  # too_many_connections
    "42501": StoreUnavailable,  # insufficient_privilege: the role has lost a privilege
    "42P01": StoreUnavailable,  # undefined_table: it was dropped or renamed
    # Classes: the first two characters, https://www.postgresql.org/docs/current/errcodes-appendix.html
    "08": StoreUnavailable,  # connection exception
    "25": StoreUnavailable,  # invalid transaction state: a standby, an idle timeout, a transaction that has failed
    "26": StoreUnavailable,  # invalid SQL statement name: a pooler gave the connection to another session
    "28": StoreUnavailable,  # invalid authorization
    "34": StoreUnavailable,  # invalid cursor name: as 26
    "3D": StoreUnavailable,  # invalid catalog name: no such database
    "3F": StoreUnavailable,  # invalid schema name
    "40": StoreUnavailable,  # transaction rollback, its outcome unknown; the two above are known
    "53": StoreUnavailable,  # insufficient resources
    "54": StoreUnavailable,  # program limit exceeded
    "55": StoreUnavailable,  # object not in prerequisite state
    "57": StoreUnavailable,  # operator intervention: shutdown, cannot connect now, statement timeout
    "58": StoreUnavailable,  # system error: an I/O error of the server
    "72": StoreUnavailable,  # snapshot failure
    "F0": StoreUnavailable,  # configuration file error
    "HV": StoreUnavailable,  # foreign data wrapper error
    "XX": StoreUnavailable,  # internal error, data corrupted
    # Defects of this program's statements. They stay unchanged: the client gets INTERNAL, the log the stack trace.
    **dict.fromkeys(
        (
            "01",
            "02",
            "03",
            "09",
            "0A",
            "0B",
            "0F",
            "0L",
            "0P",
            "0Z",
            "10",
            "20",
            "21",
            "22",
            "23",
            "24",
            "27",
            "2B",
            "2D",
        )
    ),
    **dict.fromkeys(("2F", "38", "39", "3B", "42", "44", "P0")),
}
"""Errors by code, else by class. None: a defect of this program. A class that is not listed is a failure of the
database."""

_BREAKS = frozenset({"08", "25", "26", "34", "57", "58", "XX"})
"""Classes of SQLSTATE after which a connection is discarded."""

TYPES: tuple[tuple[type[BaseException], type[BatonError]], ...] = (
    (sqlalchemy.exc.TimeoutError, Overloaded),  # the pool is exhausted
    (asyncpg.TargetServerAttributeNotMatched, StoreUnavailable),  # a standby answers
    (asyncpg.InterfaceError, StoreUnavailable),  # the connection is closed or was lost
    (asyncpg.InternalClientError, StoreUnavailable),
    (TimeoutError, StoreUnavailable),
    (OSError, StoreUnavailable),
)
"""Checked in this order if an exception has no SQLSTATE."""

FOREIGN: tuple[type[Exception], ...] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlalchemy.exc.SQLAlchemyError,
    AsyncAdapt_asyncpg_dbapi.Error,  # connecting failed: the driver's own error is its cause
    OSError,
    TimeoutError,
)
"""All exceptions that `translated` accepts."""


def translated(error: BaseException) -> BatonError | None:
    """Translate a foreign exception. None: it is a defect of this program, not a failure of the database."""
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, AsyncAdapt_asyncpg_dbapi.Error) and error.__cause__ is not None:
        error = error.__cause__
    kind = _kind(error)
    return None if kind is None else kind(detail=f"{type(error).__name__}: {error}")


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection that raised the error may be lost or in an unknown state."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "08000"
        return state != "57014" and state[:2] in _BREAKS
    return not isinstance(error, BatonError)


def _kind(error: BaseException) -> type[BatonError] | None:
    state: str | None = getattr(error, "sqlstate", None)
    if state:
        return SQLSTATES[state] if state in SQLSTATES else SQLSTATES.get(state[:2], StoreUnavailable)
    return next((ours for theirs, ours in TYPES if isinstance(error, theirs)), None)
