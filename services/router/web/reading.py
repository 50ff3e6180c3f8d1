"""Answers of the control API for the page, besides the stream of the status."""

from __future__ import annotations

import asyncio
from typing import Any

from libs.pb.baton.control.v1 import approvals_pb2, conflicts_pb2, events_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.web.calls import CALL_SECONDS, Caller, CallFailed
from services.router.web.view.page import MOST_OF_A_STORE, Answers

JOURNAL_ENTRIES = 20
RECONCILE = "reconcile"


async def read(caller: Caller, earlier: Answers | None = None, seconds: float = CALL_SECONDS) -> Answers:
    """Ask for everything at once. A call that is refused, fails, or takes longer than `seconds` has its error in
    `troubles`. The report of a job that has ended is not asked for again."""
    questions: dict[str, Any] = {
        "ListLimits": pb.ListLimitsRequest(),
        "GetShadow": pb.GetShadowRequest(),
        "ListDifferences": pb.ListDifferencesRequest(),
        "ListJobs": pb.ListJobsRequest(),
        "ListJournal": pb.ListJournalRequest(limit=JOURNAL_ENTRIES),
        "GetLedger": pb.GetLedgerRequest(),
        "ListParked": events_pb2.ListParkedRequest(limit=MOST_OF_A_STORE),
        "ListConflicts": conflicts_pb2.ListConflictsRequest(limit=MOST_OF_A_STORE),
        "ListPendingCalls": approvals_pb2.ListPendingCallsRequest(),
    }
    answers = Answers()

    async def ask(method: str, request: Any) -> None:
        try:
            answers.found[method] = await caller.call(method, request, seconds)
        except CallFailed as error:
            answers.troubles[method] = error.message

    await asyncio.gather(*(ask(method, request) for method, request in questions.items()))
    answers.comparison = await _comparison(caller, answers, earlier, seconds)
    return answers


async def _comparison(caller: Caller, answers: Answers, earlier: Answers | None, seconds: float) -> pb.Job | None:
    """The latest comparison of all records that has a report."""
    ran = [one for one in answers.get("ListJobs", pb.ListJobsResponse()).jobs if one.kind == RECONCILE]
    last = next((one for one in ran if one.state == pb.Job.STATE_FINISHED), None)
    if last is None:
        return None
    if earlier is not None and earlier.comparison is not None and earlier.comparison.id == last.id:
        return earlier.comparison
    try:
        job: pb.Job = (await caller.call("GetJob", pb.GetJobRequest(id=last.id), seconds)).job
    except CallFailed:
        return None
    return job
