"""Signals of calls: measurements, spans and sampled log lines, around the gate of a listener and the calls of a client.

A process without any of them has no such object, and its calls pass no line of this module.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from libs.telemetry import trace_context
from libs.telemetry.durations import Cell, Durations
from libs.telemetry.metrics import NO_METRICS, Metrics
from libs.telemetry.tracing import OK, Span, Spans

log = logging.getLogger("call")

T = TypeVar("T")
Pairs = Sequence[tuple[str, str | bytes]]

Answering = Callable[[Any, str, object, Any], Awaitable[Any]]
"""The gate's method for a call: handler, name of the method, requests, context."""

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Signals:
    """Where a process shows its calls."""

    metrics: Metrics = NO_METRICS
    spans: Spans | None = None
    """None: calls are not traced."""
    logged_share: float = 0.0
    """Share of the calls served that get a line in the log."""

    def served_by(self, listener: str, methods: Mapping[str, str], *, private: bool) -> ServedCalls | None:
        """Signals of a listener's calls; None if there are none. `methods`, `private`: see `ServedCalls`."""
        if self.metrics.served is None and self.spans is None and not self.logged_share:
            return None
        return ServedCalls(self, listener, methods, private=private)

    def sent_to(self, peer: str) -> SentCalls | None:
        """Signals of the calls to a store; None if there are none."""
        if self.metrics.sent is None and self.spans is None:
            return None
        return SentCalls(self, peer)


NO_SIGNALS = Signals()


class ServedCalls:
    """The calls of one listener."""

    def __init__(self, signals: Signals, listener: str, methods: Mapping[str, str], *, private: bool) -> None:
        """`methods`: full names such as "sandbox.v1.SandboxService/GetSandbox", by the name that the gate uses.
        `private`: its callers are processes of Baton, which call it all the time: no trace begins there."""
        self._cells = _Cells(signals.metrics.served, listener)
        self._spans = signals.spans
        self._logged_share = signals.logged_share
        self._listener = listener
        self._methods = methods
        self._private = private
        self._attributes = {name: _attributes(full, "baton.listener", listener) for name, full in methods.items()}

    def around(self, answer: Answering) -> Answering:
        """Measure, trace and log each call of `answer`."""

        async def watched(handler: Any, name: str, requests: object, context: Any) -> Any:
            span = None if self._spans is None else self._begin(self._spans, name, context)
            token = None if span is None else trace_context.current.set(span.traceparent)
            began = time.perf_counter()
            try:
                found = await answer(handler, name, requests, context)
            except BaseException as error:
                self._end(name, status_of_end(context, error), time.perf_counter() - began, span)
                raise
            else:
                self._end(name, OK, time.perf_counter() - began, span)
                return found
            finally:
                if token is not None:
                    trace_context.current.reset(token)

        return watched

    def _begin(self, spans: Spans, name: str, context: Any) -> Span | None:
        given = dict(context.invocation_metadata() or ()).get(trace_context.HEADER)
        traceparent = trace_context.checked(given)
        if self._private and not traceparent:
            return None
        return spans.server(self._methods.get(name, name), traceparent, self._attributes.get(name, {}))

    def _end(self, name: str, status: str, seconds: float, span: Span | None) -> None:
        full = self._methods.get(name, name)
        self._cells.add(full, status, seconds, "" if span is None else span.recorded_id)
        if self._logged_share and random.random() < self._logged_share:
            log.info("%s at %s: %s in %.1f ms", full, self._listener, status, 1000 * seconds)
        if span is not None:
            span.end(status)


class SentCalls:
    """The calls to one store."""

    def __init__(self, signals: Signals, store: str) -> None:
        self._cells = _Cells(signals.metrics.sent, store)
        self._spans = signals.spans
        self._store = store
        self._attributes: dict[str, Mapping[str, str]] = {}

    async def sent(self, path: str, extra: Pairs, send: Callable[[Pairs], Awaitable[T]]) -> T:
        """Send a call with `send`, which gets its metadata. `path`: "/sandbox.v1.SandboxService/GetSandbox". `extra`:
        its metadata besides the trace context."""
        span = None
        if self._spans is not None and trace_context.current.get():
            span = self._spans.client(path[1:], self._attributes_of(path))
            extra = (*(pair for pair in extra if pair[0] != trace_context.HEADER), (_HEADER, span.traceparent))
        began = time.perf_counter()
        try:
            found = await send(extra)
        except BaseException as error:
            self._end(path, _status_of(error), time.perf_counter() - began, span)
            raise
        self._end(path, OK, time.perf_counter() - began, span)
        return found

    def _end(self, path: str, status: str, seconds: float, span: Span | None) -> None:
        self._cells.add(path[1:], status, seconds, "" if span is None else span.recorded_id)
        if span is not None:
            span.end(status)

    def _attributes_of(self, path: str) -> Mapping[str, str]:
        found = self._attributes.get(path)
        if found is None:
            found = self._attributes[path] = _attributes(path[1:], "baton.store", self._store)
        return found


_HEADER = trace_context.HEADER


class _Cells:
    """The prepared cells of one listener or store, by method and status."""

    def __init__(self, durations: Durations | None, place: str) -> None:
        self._durations = durations
        self._place = place
        self._found: dict[tuple[str, str], Cell] = {}

    def add(self, method: str, status: str, seconds: float, trace_id: str) -> None:
        if self._durations is None:
            return
        cell = self._found.get((method, status))
        if cell is None:
            cell = self._found[method, status] = self._durations.cell(method, self._place, status)
        cell.add(seconds, trace_id)


class NamedChannel:
    """A channel for generated stubs whose methods know their `path`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, path: str, *arguments: Any, **named: Any) -> Any:
        return _Named(path, self._channel.unary_unary(path, *arguments, **named))

    def unary_stream(self, path: str, *arguments: Any, **named: Any) -> Any:
        return self._channel.unary_stream(path, *arguments, **named)


class _Named:
    __slots__ = ("_call", "path")

    def __init__(self, path: str, call: Any) -> None:
        self.path = path
        self._call = call

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._call(*arguments, **named)


def status_of_end(context: Any, error: BaseException) -> str:
    """Name of the status with which a served call has ended by this error."""
    if isinstance(error, asyncio.CancelledError):
        remaining: float | None = context.time_remaining()
        late = remaining is not None and remaining <= 0
        return (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED).name
    # The doors over HTTP end a call by an error with its code.
    code = getattr(error, "code", None)
    if not isinstance(code, grpc.StatusCode) and hasattr(context, "code"):
        code = context.code()
    return _name_of(code)


def _status_of(error: BaseException) -> str:
    """Name of the status with which a call to another process has ended."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    return (grpc.StatusCode.CANCELLED if isinstance(error, asyncio.CancelledError) else grpc.StatusCode.UNKNOWN).name


def _name_of(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code or grpc.StatusCode.UNKNOWN.value[0], grpc.StatusCode.UNKNOWN.name)


def _attributes(method: str, place: str, name: str) -> Mapping[str, str]:
    return {"rpc.system.name": "grpc", "rpc.method": method, place: name}
