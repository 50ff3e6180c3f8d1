"""The contract of control stores for jobs, run against each adapter."""

import asyncio
from dataclasses import replace

import pytest

from services.router.control.port import KEPT_JOBS, JobNotFound
from services.router.core.jobs import Job, JobState, JobUnderWay
from tests.contracts.control_adapters import OpenControl, ReportingStore

COPY = Job("copy", "copy to B", "ann", {"to": "B"}, 2.5, created_seconds=1_700_000_000.5)


async def test_a_job_is_kept_with_every_field(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        added = await one.add(COPY)
        assert added == replace(COPY, id="copy-1", version=1)
        full = Job(
            "copy", "copy to B", "ann", {"to": "B"}, 7.5, "copy-1", 1, JobState.RUNNING, "run-1", "router-1", 3, 10,
            1.25, "lag 12 s is above 10 s", "naïve “note”", b"\x00\xff" * 1000, '{"found": 1}', 12.5, 99.5,
        )  # fmt: skip
        changed = await other.put(full)
        assert changed == replace(full, version=2)
        assert await one.job("copy-1") == changed
        assert list(await one.jobs()) == [replace(full, version=2, checkpoint=b"", report="")]


async def test_of_two_who_change_a_job_at_once_one_must_look_again(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        job = await one.add(COPY)
        changes = (one.put(replace(job, done=1)), other.put(replace(job, done=2)))
        results = await asyncio.gather(*changes)
        assert sorted(result is None for result in results) == [False, True]
        (winner,) = [result for result in results if result is not None]
        assert await one.job(job.id) == winner
        assert await one.put(replace(job, done=3)) is None, "its version is an old one"
        assert await one.put(replace(winner, id="copy-99")) is None, "there is none of that id"


async def test_a_lane_has_one_job_under_way(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        first, second = await asyncio.gather(one.add(COPY), other.add(COPY), return_exceptions=True)
        assert sorted(isinstance(result, JobUnderWay) for result in (first, second)) == [False, True]
        (job,) = await one.jobs()
        assert (await other.add(replace(COPY, lane="copy to A"))).lane == "copy to A"
        assert await one.put(replace(job, state=JobState.FAILED)) is not None
        with pytest.raises(JobUnderWay):
            await other.add(COPY)
        assert await one.put(replace(await one.job(job.id), state=JobState.CANCELLED)) is not None
        assert (await other.add(COPY)).id != job.id


@pytest.mark.parametrize("name", ["copy-2", "move-1", "copy", "", "copy-x", "copy-99999999999999999999", "1"])
async def test_a_job_that_is_not_there_is_named(control: ReportingStore, name: str) -> None:
    await control.add(COPY)
    with pytest.raises(JobNotFound, match=f"no job '{name}'"):
        await control.job(name)


async def test_the_latest_jobs_of_each_lane_are_kept_newest_first(control: ReportingStore) -> None:
    rare = await control.add(replace(COPY, lane="copy to A"))
    await control.put(replace(rare, state=JobState.FINISHED))
    for _ in range(KEPT_JOBS + 2):
        job = await control.add(COPY)
        await control.put(replace(job, state=JobState.FINISHED))
    numbers = [int(job.id.removeprefix("copy-")) for job in await control.jobs()]
    assert numbers == [*range(KEPT_JOBS + 3, 3, -1), 1]
