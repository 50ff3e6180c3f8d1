"""Counts of a store on SQLite that its writer keeps in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from libs.ownership.model import Version
from libs.store.outbox import ChangeEntry
from libs.store.sqlite_core import OutboxBook

OUTBOX = (
    "CREATE TABLE outbox (id INTEGER PRIMARY KEY, key TEXT, term INTEGER, revision INTEGER, size INTEGER, tick REAL,"
    " traceparent TEXT, event BLOB)"
)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        for statement in (
            OUTBOX,
            "CREATE TABLE standing (changes INTEGER)",
            "INSERT INTO standing VALUES (0)",
            "CREATE TABLE tick (seconds REAL)",
            "INSERT INTO tick VALUES (0.0)",
        ):
            opened.execute(statement)
        yield opened


def changes(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT changes FROM standing").fetchone()
    return int(count)


def test_a_transaction_of_several_jobs_counts_as_one_change_even_if_the_first_of_them_is_undone(
    connection: sqlite3.Connection,
) -> None:
    book = OutboxBook("record")
    for transaction in (1, 1, 2):
        with book.job(connection, 0):
            book.count_change(connection, transaction)
    assert changes(connection) == 2
    connection.execute("BEGIN")
    connection.execute("SAVEPOINT job")
    with suppress(KeyError), book.job(connection, 0):
        book.count_change(connection, 3)
        raise KeyError
    connection.execute("ROLLBACK TO job")
    with book.job(connection, 0):
        book.count_change(connection, 3)
    connection.execute("COMMIT")
    assert changes(connection) == 3


def test_the_age_of_the_oldest_entry_is_of_an_entry_that_is_there(connection: sqlite3.Connection) -> None:
    book = OutboxBook("record")
    with book.job(connection, 0):
        for revision in (1, 2):
            book.add(connection, [ChangeEntry("key", Version(0, revision), b"event")])
            connection.execute("UPDATE tick SET seconds = seconds + 7")
        assert book.depth(connection) == (2, 10, 14.0)
        connection.execute("DELETE FROM outbox WHERE revision = 1")
        book.removed([5])
        assert book.depth(connection) == (1, 5, 7.0)
