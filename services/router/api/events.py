"""The operator's API for the log's events and for those that a store could not apply."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from libs.ownership.wire import STORE_NUMBERS, store_from_pb
from libs.pb.baton.control.v1 import events_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import timestamp
from services.router.api.roles import actor_of
from services.router.flows.feed.events import EventCode, LogEvents, Question, ReadableEvent
from services.router.flows.feed.parked import ParkedAt, ParkedEvents
from services.router.flows.feed.reveal import Reveals
from services.router.flows.jobs.restart_events import RestartEvents
from services.router.flows.steering.migration import Decision

_CODES = {
    EventCode.NONE: pb.EVENT_CODE_NONE,
    EventCode.RIGHT: pb.EVENT_CODE_RIGHT,
    EventCode.WRONG: pb.EVENT_CODE_WRONG,
    EventCode.UNCHECKED: pb.EVENT_CODE_UNCHECKED,
}


class EventMethods:
    """Methods of the control API."""

    def __init__(self, events: LogEvents, parked: ParkedEvents, restart: RestartEvents, reveals: Reveals) -> None:
        self._events = events
        self._reveals = reveals
        self._parked = parked
        self._restart = restart

    async def ReadEvents(  # noqa: N802
        self, request: pb.ReadEventsRequest, context: Context
    ) -> AsyncGenerator[pb.ReadEventsResponse, None]:
        question = Question(request.start, request.name, request.limit, request.follow, request.content, request.reveal)
        question.check()
        if question.reveal:
            subject = f"events of {question.name}" if question.name else f"events {question.start}".strip()
            await self._reveals.note(actor_of(request.actor), request.reason, subject)
        async with aclosing(self._events.read(question)) as found:
            async for seen in found:
                yield pb.ReadEventsResponse(event=_event_to_pb(seen))

    async def LookUpEvents(  # noqa: N802
        self, request: pb.LookUpEventsRequest, context: Context
    ) -> pb.LookUpEventsResponse:
        window = await self._events.look_up(request.start, request.name)
        answer = pb.LookUpEventsResponse(events=window.events)
        for partition, (start, end) in window.ranges.items():
            answer.ranges.add(partition=partition, start=start, end=end)
        return answer

    async def ListParked(self, request: pb.ListParkedRequest, context: Context) -> pb.ListParkedResponse:  # noqa: N802
        found, troubles = await self._parked.list(request.limit)
        return pb.ListParkedResponse(events=[_parked_to_pb(one) for one in found], troubles=troubles)

    async def RetryParked(  # noqa: N802
        self, request: pb.RetryParkedRequest, context: Context
    ) -> pb.RetryParkedResponse:
        store = store_from_pb(request.store, "store")
        answer = await self._parked.retry(store, request.partition, request.offset)
        return pb.RetryParkedResponse(reason=answer.reason, applied=answer.applied)

    async def DropParked(self, request: pb.DropParkedRequest, context: Context) -> pb.DropParkedResponse:  # noqa: N802
        decision = Decision(actor_of(request.actor), request.reason)
        store = store_from_pb(request.store, "store")
        if request.unauthenticated:
            return pb.DropParkedResponse(count=await self._parked.drop_unauthenticated(decision, store))
        dropped = await self._parked.drop(decision, store, request.partition, request.offset)
        return pb.DropParkedResponse(dropped=_parked_to_pb(dropped), count=1)

    async def RestartEvents(  # noqa: N802
        self, request: pb.RestartEventsRequest, context: Context
    ) -> pb.RestartEventsResponse:
        restarted = await self._restart.restart(Decision(actor_of(request.actor), request.reason))
        return pb.RestartEventsResponse(job=restarted.job, skipped=restarted.skipped)


def _parked_to_pb(one: ParkedAt) -> pb.ParkedEvent:
    event = one.event
    return pb.ParkedEvent(
        store=STORE_NUMBERS[one.store],
        partition=event.partition,
        offset=event.offset,
        key=event.key,
        reason=event.reason,
        bytes=len(event.event),
        topic=event.topic,
        unauthenticated=event.unauthenticated,
        headers=[pb.ParkedHeader(name=one.name, value=one.value.decode(errors="replace")) for one in event.headers],
    )


def _event_to_pb(seen: ReadableEvent) -> pb.LogEvent:
    return pb.LogEvent(
        partition=seen.partition,
        offset=seen.offset,
        time=timestamp(seen.time_seconds),
        key=seen.key,
        type=seen.type,
        bytes=seen.bytes,
        record=seen.record,
        trouble=seen.trouble,
        content=seen.content,
        code=_CODES[seen.code],
        code_trouble=seen.code_trouble,
        trace_id=seen.trace_id,
    )
