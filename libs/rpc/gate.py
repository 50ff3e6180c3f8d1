"""Admission of calls to a listener: token, identity, limits, deadline, body, errors.

The order matters against hostile callers. Token and identity are checked before a call takes a slot, and the caller's
own limits (`libs.rpc.callers`) before it is served. The deadline runs from the headers on. The memory of a refused call
is free at once: an error keeps alive the frames that it passed, and with them the request, until the garbage collector
finds the cycle. So errors lose their traceback here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Never, TypeVar

import grpc

from libs.clock import Clock, SystemClock
from libs.errors import BatonError, InvalidField, Overloaded, StoreNotReady
from libs.identity.none import NoAuthentication
from libs.identity.port import Authenticator, Credentials
from libs.identity.principal import Principal, current
from libs.rpc import callers
from libs.rpc.auth import check_token
from libs.rpc.bodies import Bodies
from libs.rpc.call_context import CallContext
from libs.rpc.callers import Caller, CallerLimits, Callers
from libs.rpc.errors import Context, DeadlineExceeded, Internal, abort, log_defect
from libs.rpc.limits import REQUEST_BYTES
from libs.rpc.proof import Proof
from libs.rpc.signals import Answering, ServedCalls
from libs.rpc.slots import release_slot, take_slot
from libs.rpc.time_limit import TimeLimit, TimeLimitPassed

Handler = Callable[[bytes, Context], Awaitable[bytes]]
"""Raises BatonError, or ends the call through the context."""

Stream = Callable[[bytes, Context], AsyncGenerator[bytes, None]]
"""One request, many answers; raises as a Handler does. The next answer is requested once the last one was sent. If the
caller does not take an answer, `SlowReader` is raised at the yield of that answer."""

E = TypeVar("E", bound=BaseException)

WRITE_SECONDS = 5.0
"""Time limit for the caller of a stream to take one answer, which occupies the listener's memory."""


CONNECTION_SHARE = 0.5
"""Share of a public listener that one connection may use."""


class SlowReader(BatonError):
    """The stream was ended because its caller took no answer for too long. Call again with the newest resume token."""

    code = "UNAVAILABLE"
    reason = "SLOW_READER"
    retry_seconds = 1.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of one listener."""

    calls: int = 256
    """Maximum number of concurrent calls; more are refused with OVERLOADED."""
    waiting: Callable[[], int] = lambda: 0
    """Number of calls in a queue with a limit of its own. They do not count towards `calls`."""
    streams: int = 16
    """Maximum number of concurrent streams. They have no deadline but the caller's."""
    connection_share: float = 1.0
    """Share of `calls`, and of `streams`, that one connection may use.

    HTTP/2's own limit of streams does not replace it: a client that has not read that limit yet gets a bare
    UNAVAILABLE.
    """
    request_bytes: int = REQUEST_BYTES
    default_deadline_seconds: float = 5.0
    """Deadline of a call that has none."""
    longest_deadline_seconds: float = 30.0
    caller: CallerLimits = field(default_factory=CallerLimits)
    """Limits of each caller."""
    urgent: frozenset[str] = frozenset()
    """Methods (such as "Rollback") that are served even at the limit of `calls`. No other limit concerns them."""
    urgent_calls: int = 16
    """Number of concurrent calls of each urgent method that are served at the limit of `calls`."""


class Gate:
    """Admission and completion of every call of one listener."""

    def __init__(
        self,
        limits: ServerLimits,
        token: bytes | None,
        authenticator: Authenticator | None = None,
        clock: Clock | None = None,
        calls: ServedCalls | None = None,
    ) -> None:
        """`authenticator`: None if every caller is anonymous. `calls`: measures each call."""
        self._limits = limits
        self._token = token
        self._authenticator = authenticator or NoAuthentication()
        self._bodies = Bodies(share=limits.caller.share)
        self.answer: Answering = self._answer if calls is None else calls.around(self._answer)
        """Runs the handler of a method. Errors are sent in Baton's form."""
        self.stream: Answering = self._stream if calls is None else calls.around(self._stream)
        """Sends the answers of a method's handler one at a time, until the stream, the caller or the drain ends it."""
        self.refused = Counter(dict.fromkeys((Overloaded.reason, *callers.REASONS), 0))
        """Number of calls that a limit refused since the start, by reason."""
        self.callers = Callers(limits.caller, limits.calls, limits.streams, clock or SystemClock(), self.refused)
        self._default_limit = TimeLimit(limits.default_deadline_seconds)
        self._longest_limit = TimeLimit(limits.longest_deadline_seconds)
        self._connection_calls = limits.calls * limits.connection_share
        self._connection_streams = limits.streams * limits.connection_share
        self.in_flight = 0
        self.arrived = 0
        """Number of calls since the start, without streams."""
        self._waiting: set[asyncio.Task[None]] = set()
        """Streams that wait for their next answer."""
        self.streams = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._calls_of: dict[str, int] = {}
        self._streams_of: dict[str, int] = {}
        """Streams by connection, named as gRPC's peer."""
        self._urgent_of: dict[str, int] = {}
        """Calls by urgent method."""

    @property
    def request_bytes(self) -> int:
        return self._limits.request_bytes

    @property
    def caller_share(self) -> float:
        """Share of the listener that one caller may use."""
        return self._limits.caller.share

    async def _answer(self, handler: Handler, name: str, _: object, given: Context) -> bytes:
        self.arrived += 1
        context: Any = CallContext(given)
        peer = context.peer()
        try:
            caller = await self._caller(context, peer)
            urgent = name in self._limits.urgent
            if urgent:
                self._admit_urgent(name)
            else:
                self._admit_call(peer, caller)
        except BatonError as error:
            failure = error
        else:
            self.in_flight += 1
            caller.calls += 1
            take_slot(self._calls_of, peer)
            if urgent:
                take_slot(self._urgent_of, name)
            self.idle.clear()
            try:
                answer = await self._run(handler, context, None if urgent else caller)
                _keep_until_taken(caller, len(answer))
                return answer
            except BatonError as error:
                failure = error
            except grpc.aio.BaseError as error:
                # The call was aborted in order (AbortError), or its caller's connection is gone.
                raise _without_frames(error) from None
            # The outermost handler of a call: the log gets the stack trace, the client a status.
            except Exception as error:  # noqa: BLE001
                failure = _defect(error)
            finally:
                self.in_flight -= 1
                caller.calls -= 1
                release_slot(self._calls_of, peer)
                if urgent:
                    release_slot(self._urgent_of, name)
                self._update_idle()
        return await _end(context, failure)

    async def _stream(self, handler: Stream, name: str, _: object, context: Context) -> None:
        peer = context.peer()
        try:
            caller = await self._caller(context, peer)
            self._admit_stream(peer, caller)
        except BatonError as error:
            failure = error
        else:
            self.streams += 1
            caller.streams += 1
            take_slot(self._streams_of, peer)
            self.idle.clear()
            try:
                failed = await self._streamed(handler, context, caller)
            finally:
                self.streams -= 1
                caller.streams -= 1
                release_slot(self._streams_of, peer)
                self._update_idle()
            if failed is None:
                return
            # An answer that the caller did not take may still be in front of the status.
            _keep_until_taken(caller, 0)
            failure = failed
        await _end(context, failure)

    def close_streams(self) -> None:
        """End streams, which have no end of their own, at the begin of the drain. A stream that is being written to
        ends after that write: gRPC accepts no status during a write."""
        for pump in self._waiting:
            pump.cancel()

    def _update_idle(self) -> None:
        if not self.in_flight and not self.streams:
            self.idle.set()

    async def _streamed(self, handler: Stream, context: Context, caller: Caller) -> BatonError | None:
        """Error that ended the stream early; None at its regular end."""
        proof = Proof(self.authenticate, current.get())
        pump = asyncio.ensure_future(self._pump(handler, context, caller, proof))
        self._waiting.add(pump)
        pump.add_done_callback(self._waiting.discard)
        open_to_all = isinstance(self._authenticator, NoAuthentication)
        proving = None if open_to_all else self._prove(proof, context, pump)
        try:
            await pump
        except asyncio.CancelledError:
            if not (self.draining or proof.ended) or context.cancelled():
                raise
            return proof.ended or _draining()
        except BatonError as error:
            return error
        except grpc.aio.BaseError as error:
            raise _without_frames(error) from None
        # As for a call.
        except Exception as error:  # noqa: BLE001
            return _defect(error)
        finally:
            if proving is not None:
                proving.cancel()
        return None

    def _prove(self, proof: Proof, context: Context, pump: asyncio.Task[None]) -> asyncio.Task[None]:
        """Start the task that ends a stream with the proof of its caller's identity. As in the drain, a stream that is
        being written to ends after that write."""

        async def prove() -> None:
            await proof.wait(context)
            if pump in self._waiting:
                pump.cancel()

        return asyncio.create_task(prove())

    async def _pump(self, handler: Stream, context: Context, caller: Caller, proof: Proof) -> None:
        request = self._checked(await self._bodies.read(context, context.time_remaining(), caller))
        size = len(request)
        self.callers.hold(caller, size)
        try:
            await self._send(handler, request, context, proof)
        finally:
            caller.request_bytes -= size

    async def _send(self, handler: Stream, request: bytes, context: Context, proof: Proof) -> None:
        pump = asyncio.current_task()
        assert pump is not None, "it runs in a task"
        begun = False
        async with aclosing(handler(request, context)) as answers:
            async for answer in answers:
                self._waiting.discard(pump)
                if not begun:
                    await _begin(context)
                    begun = True
                await self._write(answers, answer, context)
                self._waiting.add(pump)
                if proof.ended is not None:
                    raise proof.ended
                if self.draining:
                    raise _draining()

    async def _write(self, answers: AsyncGenerator[bytes, None], answer: bytes, context: Context) -> None:
        """Raises SlowReader, or the handler's own error in response to it."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await context.write(answer)
        except TimeoutError:
            await answers.athrow(SlowReader())
            raise SlowReader() from None

    async def _caller(self, context: Context, peer: str) -> Caller:
        """Find the principal and the caller of the running call. Raises BatonError."""
        principal = await self.authenticate(context)
        current.set(principal)
        caller = self.callers.of(principal, peer)
        callers.current.set(caller)
        return caller

    async def authenticate(self, credentials: Credentials) -> Principal:
        """The principal of a call that carries the listener's token, if it needs one. Raises BatonError."""
        if self._token is not None:
            check_token(credentials.invocation_metadata(), self._token)
        try:
            return await self._authenticator.authenticate(credentials)
        except BatonError:
            raise
        # A defect of the authenticator serves no call. The log gets the stack trace, the client a status.
        except Exception as error:  # noqa: BLE001
            raise _defect(error) from None

    def _admit_call(self, peer: str, caller: Caller) -> None:
        """Raises Overloaded, CallerLimitReached."""
        if self._is_full(peer):
            raise self._overloaded()
        self.callers.admit_call(caller)

    def _admit_urgent(self, name: str) -> None:
        """Raises Overloaded. Other calls cannot prevent an urgent one, nor can calls of another urgent method."""
        if self._is_full() and self._urgent_of.get(name, 0) >= self._limits.urgent_calls:
            raise self._overloaded()

    def _is_full(self, peer: str = "") -> bool:
        """Whether the listener, or the connection's share of it, is in use."""
        waiting = self._limits.waiting()
        if self.in_flight - waiting >= self._limits.calls:
            return True
        return self._calls_of.get(peer, 0) - waiting >= self._connection_calls

    def _admit_stream(self, peer: str, caller: Caller) -> None:
        """Raises Overloaded, CallerLimitReached, StoreNotReady."""
        if self.streams >= self._limits.streams or self._streams_of.get(peer, 0) >= self._connection_streams:
            raise self._overloaded()
        self.callers.admit_stream(caller)
        if self.draining:
            raise _draining()

    def _overloaded(self) -> Overloaded:
        self.refused[Overloaded.reason] += 1
        return Overloaded()

    def _checked(self, request: bytes) -> bytes:
        if len(request) > self._limits.request_bytes:
            raise InvalidField("request", f"{len(request)} bytes", f"at most {self._limits.request_bytes} bytes")
        return request

    async def _run(self, handler: Handler, context: Context, caller: Caller | None) -> bytes:
        remaining: float | None = context.time_remaining()
        if remaining is not None and remaining <= self._limits.longest_deadline_seconds:
            return await self._handle(handler, context, remaining, caller)
        limit = self._default_limit if remaining is None else self._longest_limit
        try:
            return await limit.run(self._handle(handler, context, limit.seconds, caller))
        except TimeLimitPassed:
            raise DeadlineExceeded() from None

    async def _handle(self, handler: Handler, context: Context, seconds: float, caller: Caller | None) -> bytes:
        """`caller`: None for an urgent call, which waits for no one and has no limit of bytes."""
        request = self._checked(await self._bodies.read(context, seconds, caller))
        if caller is None:
            return await handler(request, context)
        size = len(request)
        self.callers.hold(caller, size)
        try:
            return await handler(request, context)
        finally:
            caller.request_bytes -= size


async def _begin(context: Context) -> None:
    """Send the initial metadata, unless the handler has sent its own.

    Else gRPC sends them with the first answer. If that write does not end, it would send them once more with the status
    that ends the stream, which it then refuses: the caller would get no status.
    """
    with suppress(grpc.aio.UsageError):
        await context.send_initial_metadata(())


def _keep_until_taken(caller: Caller, size: int) -> None:
    """Count the running call among those whose end the caller has not taken, until gRPC has sent it: an answer stays in
    memory as long as the caller grants no room for it by HTTP/2's flow control."""
    task = asyncio.current_task()
    assert task is not None, "gRPC runs each call in a task, which ends when its end is sent"
    caller.untaken += 1
    caller.untaken_bytes += size
    task.add_done_callback(partial(_taken, caller, size))


def _taken(caller: Caller, size: int, _: asyncio.Task[object]) -> None:
    caller.untaken -= 1
    caller.untaken_bytes -= size


def _without_frames(error: E) -> E:
    """The error without traceback and causes, which would keep the call's frames alive."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


async def _end(context: Context, failure: BatonError) -> Never:
    """End the call with the error, which must not keep the call's frames alive."""
    await abort(context, _without_frames(failure))


def _defect(error: Exception) -> BatonError:
    """Log a defect with its stack trace, and return the error for the client."""
    log_defect(error)
    return Internal()


def _draining() -> StoreNotReady:
    return StoreNotReady("the process is draining")
