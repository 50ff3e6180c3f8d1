"""Jobs in the PostgreSQL control store."""

from __future__ import annotations

from typing import Any, TypeAlias

import asyncpg

from services.router.control.codec import job_from_json, job_to_json, number_of_job
from services.router.control.port import KEPT_JOBS, JobNotFound
from services.router.core.jobs import Job, JobUnderWay

TABLES = """
CREATE TABLE IF NOT EXISTS baton_control.durable_job (
  number bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, lane text NOT NULL, ended boolean NOT NULL,
  version bigint NOT NULL, value text NOT NULL, checkpoint bytea NOT NULL, report text NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_job_in_each_lane ON baton_control.durable_job (lane) WHERE NOT ended;
"""
"""Table added by schema version 3."""

_Connection: TypeAlias = Any


async def add(connection: _Connection, job: Job) -> Job:
    try:
        number = await connection.fetchval(
            "INSERT INTO baton_control.durable_job (lane, ended, version, value, checkpoint, report)"
            " VALUES ($1, $2, 1, $3, $4, $5) RETURNING number",
            job.lane,
            job.state.ended,
            job_to_json(job),
            job.checkpoint,
            job.report,
        )
    except asyncpg.UniqueViolationError:
        raise JobUnderWay(f"a job of the lane {job.lane!r} is under way; nothing was changed") from None
    await connection.execute(
        "DELETE FROM baton_control.durable_job WHERE lane = $1 AND ended AND number NOT IN"
        " (SELECT number FROM baton_control.durable_job WHERE lane = $1 ORDER BY number DESC LIMIT $2)",
        job.lane,
        KEPT_JOBS,
    )
    return job_from_json(job_to_json(job), number, 1, job.checkpoint, job.report)


async def put(connection: _Connection, job: Job) -> Job | None:
    number = number_of_job(job.id)
    changed = await connection.fetchval(
        "UPDATE baton_control.durable_job SET ended = $1, version = version + 1, value = $2, checkpoint = $3,"
        " report = $4 WHERE number = $5 AND version = $6 RETURNING 1",
        job.state.ended,
        job_to_json(job),
        job.checkpoint,
        job.report,
        number,
        job.version,
    )
    return job_from_json(job_to_json(job), number, job.version + 1, job.checkpoint, job.report) if changed else None


async def find(connection: _Connection, wanted: str) -> Job:
    row = await connection.fetchrow(
        "SELECT value, number, version, checkpoint, report FROM baton_control.durable_job WHERE number = $1",
        number_of_job(wanted),
    )
    if row is None or job_from_json(*row).id != wanted:
        raise JobNotFound(f"there is no job {wanted!r}: baton jobs lists all jobs")
    return job_from_json(*row)


async def newest(connection: _Connection) -> list[Job]:
    rows = await connection.fetch("SELECT value, number, version FROM baton_control.durable_job ORDER BY number DESC")
    return [job_from_json(*row) for row in rows]
