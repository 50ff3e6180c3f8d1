"""Errors of PostgreSQL and its driver become Baton's, however they are wrapped."""

from __future__ import annotations

import asyncpg
import pytest
import sqlalchemy.exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from libs.errors import BatonError, DiskFull, LockTimeout, Overloaded, StoreUnavailable
from libs.store.transaction import StartAgain
from services.service_layer.store.postgres_errors import FOREIGN, SQLSTATES, translated


def raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of_state(state: str) -> asyncpg.PostgresError:
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": state, "M": "said the server", "S": "ERROR"})
    return error


@pytest.mark.parametrize(
    ("state", "ours"),
    [
        ("57P03", StoreUnavailable),
        ("57P01", StoreUnavailable),
        ("25P03", StoreUnavailable),
        ("55P03", LockTimeout),
        ("40P01", StartAgain),
        ("23505", StartAgain),
        ("53100", DiskFull),
        ("53300", Overloaded),
        ("42601", None),
        ("42P01", StoreUnavailable),
        ("55000", StoreUnavailable),
        ("55006", StoreUnavailable),
        ("25P02", StoreUnavailable),
        ("40003", StoreUnavailable),
        ("26000", StoreUnavailable),
        ("ZZ000", StoreUnavailable),
    ],
)
def test_a_state_of_the_server_is_known_bare_and_wrapped(state: str, ours: type[BatonError] | None) -> None:
    bare = of_state(state)
    at_connecting = raised(AsyncAdapt_asyncpg_dbapi.Error("wrapped"), bare)  # type: ignore[no-untyped-call]
    at_use = sqlalchemy.exc.DBAPIError("SELECT", None, at_connecting)
    for error in (bare, at_connecting, at_use):
        assert isinstance(error, FOREIGN)
        found = translated(error)
        assert (type(found) if found is not None else None) is ours


def test_a_connection_that_cannot_be_made_is_a_store_that_is_away() -> None:
    assert isinstance(translated(ConnectionRefusedError()), StoreUnavailable)
    assert isinstance(translated(TimeoutError()), StoreUnavailable)


CLASSES = sorted({kind.sqlstate[:2] for kind in vars(asyncpg.exceptions).values() if getattr(kind, "sqlstate", None)})


@pytest.mark.parametrize("state", CLASSES)
def test_every_class_of_the_server_has_a_default(state: str) -> None:
    assert state in SQLSTATES


def test_a_client_sees_no_words_of_the_driver() -> None:
    found = translated(of_state("55000"))
    assert found is not None
    assert "said the server" in str(found)
    assert "said the server" not in found.message
    assert found.message == StoreUnavailable.__doc__
