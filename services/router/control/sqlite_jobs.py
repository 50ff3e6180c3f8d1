"""Jobs in the SQLite control store. Each function is one transaction on its connection."""

from __future__ import annotations

import sqlite3

from services.router.control.codec import job_from_json, job_to_json, number_of_job
from services.router.control.port import KEPT_JOBS, JobNotFound
from services.router.core.jobs import Job, JobUnderWay

TABLES = (
    "CREATE TABLE durable_job (number INTEGER PRIMARY KEY, lane TEXT NOT NULL, ended INTEGER NOT NULL,"
    " version INTEGER NOT NULL, value TEXT NOT NULL, checkpoint BLOB NOT NULL, report TEXT NOT NULL)",
    "CREATE UNIQUE INDEX one_job_in_each_lane ON durable_job (lane) WHERE NOT ended",
)
"""Table added by schema version 3."""


def add(connection: sqlite3.Connection, job: Job) -> Job:
    busy = connection.execute(
        "SELECT number, version, value FROM durable_job WHERE lane = ? AND NOT ended", (job.lane,)
    ).fetchone()
    if busy:
        number, version, value = busy
        raise JobUnderWay(f"{job_from_json(value, number, version).id} is under way; nothing was changed")
    connection.execute(
        "DELETE FROM durable_job WHERE lane = ? AND number NOT IN"
        " (SELECT number FROM durable_job WHERE lane = ? ORDER BY number DESC LIMIT ?)",
        (job.lane, job.lane, KEPT_JOBS - 1),
    )
    number = connection.execute(
        "INSERT INTO durable_job (lane, ended, version, value, checkpoint, report) VALUES (?, ?, 1, ?, ?, ?)",
        (job.lane, job.state.ended, job_to_json(job), job.checkpoint, job.report),
    ).lastrowid
    if number is None:
        raise sqlite3.InternalError("an insert gave no row number")
    return job_from_json(job_to_json(job), number, 1, job.checkpoint, job.report)


def put(connection: sqlite3.Connection, job: Job) -> Job | None:
    row = (job.state.ended, job.version + 1, job_to_json(job), job.checkpoint, job.report)
    number = number_of_job(job.id)
    changed = connection.execute(
        "UPDATE durable_job SET ended = ?, version = ?, value = ?, checkpoint = ?, report = ?"
        " WHERE number = ? AND version = ?",
        (*row, number, job.version),
    ).rowcount
    return job_from_json(job_to_json(job), number, job.version + 1, job.checkpoint, job.report) if changed else None


def find(connection: sqlite3.Connection, wanted: str) -> Job:
    row = connection.execute(
        "SELECT value, number, version, checkpoint, report FROM durable_job WHERE number = ?", (number_of_job(wanted),)
    ).fetchone()
    if row is None or job_from_json(*row).id != wanted:
        raise JobNotFound(f"there is no job {wanted!r}: baton jobs lists all jobs")
    return job_from_json(*row)


def newest(connection: sqlite3.Connection) -> list[Job]:
    rows = connection.execute("SELECT value, number, version FROM durable_job ORDER BY number DESC").fetchall()
    return [job_from_json(*row) for row in rows]
