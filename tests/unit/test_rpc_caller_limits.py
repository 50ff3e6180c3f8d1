"""The limits of each caller at a listener, as clients meet them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from libs.clock import ManualClock
from libs.identity.port import AUTHORIZATION, Credentials
from libs.identity.principal import Principal, subject_of
from libs.rpc.bodies import Bodies
from libs.rpc.callers import CallerLimits
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import DETAILS_KEY, Context, reason_of
from libs.rpc.gate import ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig
from tests.unit.test_rpc_limits import connected_from
from tests.unit.test_rpc_server import SERVICE, Held, echo, refusal, serving
from tests.waiting import eventually

ECHO, HOLD, WATCH = (f"/{SERVICE}/{name}" for name in ("Echo", "Hold", "Watch"))
BOUND_SECONDS = 20.0


class ByToken:
    """Takes the token as the subject. Without one the caller is anonymous."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        token = dict(credentials.invocation_metadata() or ()).get(AUTHORIZATION, "anonymous")
        return Principal(token if token == "anonymous" else subject_of("test", token))


class At:
    """A listener with a method that waits, and one stream."""

    def __init__(self, limits: ServerLimits, clock: ManualClock) -> None:
        self.held = Held()
        self.clock = clock
        config = ServerConfig("127.0.0.1:0", "public", limits, authenticator=ByToken(), clock=clock)
        self.server = Server(config, [RawService(SERVICE, {"Echo": echo, "Hold": self.held}, {"Watch": _watch})])
        self.calls: list[Any] = []

    async def hold(self, channel: Channel, count: int, who: str = "") -> None:
        """Begin calls that stay."""
        before = self.held.entered
        self.calls += [call(channel, HOLD, who) for _ in range(count)]
        await eventually(lambda: self.held.entered == before + count)

    async def let_go(self) -> None:
        self.held.go_on.set()
        assert set(await asyncio.gather(*self.calls)) == {b"done"}


async def _watch(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
    yield request
    await asyncio.Event().wait()


@asynccontextmanager
async def listening(
    caller: CallerLimits, *, calls: int = 8, streams: int = 4, connection_share: float = 1.0
) -> AsyncIterator[tuple[At, Channel]]:
    limits = ServerLimits(calls, streams=streams, connection_share=connection_share, caller=caller)
    at = At(limits, ManualClock())
    await at.server.start()
    try:
        async with open_channel(at.server.address) as channel:
            yield at, channel
    finally:
        await at.server.drain(1.0)


def call(channel: Channel, path: str = ECHO, who: str = "", request: bytes = b"x") -> Any:
    shown = grpc.aio.Metadata(*([(AUTHORIZATION, who)] if who else []))
    return channel.multi_callable(path)(request, metadata=shown, timeout=BOUND_SECONDS)


def watch(channel: Channel, who: str = "") -> Any:
    shown = grpc.aio.Metadata(*([(AUTHORIZATION, who)] if who else []))
    return channel.stream_callable(WATCH)(b"x", metadata=shown)


async def refused(calling: Any) -> tuple[str, str, float]:
    """Reason, limit and delay in seconds of a refusal."""
    error = await refusal(calling)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    reason, found = reason_of(error)
    details = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())[DETAILS_KEY]).details
    (retry,) = (one for one in details if one.type_url.endswith("RetryInfo"))
    delay = error_details_pb2.RetryInfo.FromString(retry.value).retry_delay.ToTimedelta().total_seconds()
    return reason, found["limit"], delay


async def test_a_caller_with_many_connections_has_no_more_than_its_share() -> None:
    async with listening(CallerLimits(share=0.5)) as (at, first), open_channel(at.server.address) as second:
        await at.hold(first, 2, "ann")
        await at.hold(second, 2, "ann")
        for channel in (first, second):
            assert await refused(call(channel, who="ann")) == ("LIMIT_CALLS", "caller_calls", 0.2)
            assert await call(channel, who="ben") == b"x"
        assert at.server.gate.refused["LIMIT_CALLS"] == 2
        await at.let_go()


async def test_anonymous_connections_of_one_host_have_one_share() -> None:
    async with (
        listening(CallerLimits(share=0.5), connection_share=0.5) as (at, first),
        open_channel(at.server.address) as second,
        connected_from("127.0.0.2", at.server) as elsewhere,
    ):
        await at.hold(first, 2)
        await at.hold(second, 2)
        assert (await refused(call(second)))[0] == "LIMIT_CALLS"
        assert await call(elsewhere) == b"x"
        assert await call(second, who="ann") == b"x"
        await at.let_go()


async def test_ended_calls_are_no_longer_a_callers() -> None:
    async with listening(CallerLimits(calls=1)) as (at, channel):
        for _ in range(3):
            assert await call(channel, who="ann") == b"x"
        at.calls.append(held := call(channel, HOLD, "ann"))
        await eventually(lambda: at.held.entered == 1)
        assert (await refused(call(channel, who="ann")))[1] == "caller_calls"
        at.held.go_on.set()
        assert await held == b"done"
        assert await call(channel, who="ann") == b"x"


async def test_a_caller_has_no_more_streams_than_its_own() -> None:
    async with listening(CallerLimits(share=0.5)) as (at, channel):
        mine = [watch(channel, "ann") for _ in range(2)]
        for stream in mine:
            assert await stream.read() == b"x"
        assert await refused(watch(channel, "ann").read()) == ("LIMIT_STREAMS", "caller_watches", 1.0)
        other = watch(channel, "ben")
        assert await other.read() == b"x"
        mine[0].cancel()
        await eventually(lambda: at.server.streams == 2)
        again = watch(channel, "ann")
        assert await again.read() == b"x"
        for stream in (mine[1], other, again):
            stream.cancel()


async def test_the_requests_of_a_caller_in_flight_have_a_size() -> None:
    async with listening(CallerLimits(request_bytes=100)) as (at, channel):
        for _ in range(3):
            assert await call(channel, who="ann", request=bytes(100)) == bytes(100)
        at.calls.append(call(channel, HOLD, "ann", bytes(60)))
        stream = channel.stream_callable(WATCH)(bytes(20), metadata=grpc.aio.Metadata((AUTHORIZATION, "ann")))
        assert await stream.read() == bytes(20)
        await eventually(lambda: at.held.entered == 1)
        large = call(channel, who="ann", request=bytes(21))
        assert await refused(large) == ("LIMIT_REQUEST_BYTES", "caller_request_bytes", 0.2)
        assert await call(channel, who="ann", request=bytes(20)) == bytes(20)
        assert await call(channel, who="ben", request=bytes(100)) == bytes(100)
        stream.cancel()
        await eventually(lambda: at.server.streams == 0)
        assert await call(channel, who="ann", request=bytes(40)) == bytes(40)
        await at.let_go()


async def test_a_caller_that_waits_as_told_keeps_its_rate() -> None:
    async with listening(CallerLimits(rate=4, burst=2)) as (at, channel):
        assert [await call(channel, who="ann"), await call(channel, who="ann")] == [b"x", b"x"]
        for _ in range(3):
            reason, limit, delay = await refused(call(channel, who="ann"))
            assert (reason, limit, delay) == ("LIMIT_RATE", "caller_rate", 0.25)
            assert (await refused(watch(channel, "ann").read()))[0] == "LIMIT_RATE"
            assert await call(channel, who=f"other-{at.clock.seconds}") == b"x"
            at.clock.advance(delay)
            assert await call(channel, who="ann") == b"x"


async def test_slow_bodies_of_one_caller_leave_slots_to_others() -> None:
    limits = ServerLimits(caller=CallerLimits(share=0.5))
    at = At(limits, ManualClock())
    async with serving(replace(at.server._config), RawService(SERVICE, {"Echo": echo})) as (server, channel):
        # No body is slow here: a slot is never taken from its call.
        server.gate._bodies = Bodies(reading=4, slow_seconds=BOUND_SECONDS, share=0.5)
        ann = grpc.aio.Metadata((AUTHORIZATION, "ann"))
        without_a_body: Any = channel.grpc.stream_unary(ECHO)
        stalled = [without_a_body(timeout=BOUND_SECONDS, metadata=ann) for _ in range(5)]
        await eventually(lambda: server.in_flight == 5)
        for _ in range(3):
            assert await asyncio.wait_for(call(channel, who="ben"), BOUND_SECONDS / 2) == b"x"
        for one in stalled:
            one.cancel()


async def test_a_body_of_the_caller_that_uses_its_share_gives_its_slot_up_and_no_other() -> None:
    at = At(ServerLimits(caller=CallerLimits(share=0.5)), ManualClock())
    async with serving(replace(at.server._config), RawService(SERVICE, {"Echo": echo})) as (server, channel):
        server.gate._bodies = Bodies(reading=4, slow_seconds=0.0, share=0.5)
        without_a_body: Any = channel.grpc.stream_unary(ECHO)

        async def begin(who: str) -> Any:
            before = len(server.gate._bodies._reading)
            begun = without_a_body(timeout=BOUND_SECONDS, metadata=grpc.aio.Metadata((AUTHORIZATION, who)))
            await eventually(lambda: len(server.gate._bodies._reading) == before + 1)
            return begun

        ben = await begin("ben")
        first, second = await begin("ann"), await begin("ann")
        assert await call(channel, who="ann") == b"x"
        assert reason_of(await refusal(first))[0] == "DEADLINE_EXCEEDED"
        assert not ben.done() and not second.done()
        for one in (ben, second):
            one.cancel()
        await eventually(lambda: server.in_flight == 0)
        caller = server.gate.callers.of(Principal("test:ann"), "")
        assert (caller.reading, caller.calls, caller.request_bytes) == (0, 0, 0)


async def test_callers_without_calls_hold_nothing() -> None:
    async with listening(CallerLimits(share=0.5)) as (at, channel):
        for _ in range(3):
            await call(channel, who="ann")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, "/test.Service/Absent", "ann")
        caller = at.server.gate.callers.of(Principal("test:ann"), "")
        assert caller.idle and not caller.request_bytes
