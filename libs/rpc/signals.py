"""Measurement of calls, around the gate of a listener and around the calls of a client.

A process without metrics has no such object, and its calls pass no line of this module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc

from libs.telemetry.durations import Cell, Durations

T = TypeVar("T")

Answering = Callable[[Any, str, object, Any], Awaitable[Any]]
"""The gate's method for a call: handler, name of the method, requests, context."""

_OK = grpc.StatusCode.OK.name
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class ServedCalls:
    """The calls of one listener."""

    def __init__(self, durations: Durations, listener: str, methods: Mapping[str, str]) -> None:
        """`methods`: full names such as "sandbox.v1.SandboxService/GetSandbox", by the name that the gate knows."""
        self._durations = durations
        self._listener = listener
        self._methods = methods
        self._ok: dict[str, Cell] = {}

    def around(self, answer: Answering) -> Answering:
        async def measured(handler: Any, name: str, requests: object, context: Any) -> Any:
            began = time.perf_counter()
            try:
                found = await answer(handler, name, requests, context)
            except BaseException as error:
                self._cell(name, status_of_end(context, error)).add(time.perf_counter() - began)
                raise
            cell = self._ok.get(name)
            if cell is None:
                cell = self._ok[name] = self._cell(name, _OK)
            cell.add(time.perf_counter() - began)
            return found

        return measured

    def _cell(self, name: str, status: str) -> Cell:
        return self._durations.cell(self._methods.get(name, name), self._listener, status)


class SentCalls:
    """The calls to one store."""

    def __init__(self, durations: Durations, store: str) -> None:
        self._durations = durations
        self._store = store
        self._ok: dict[str, Cell] = {}

    async def measured(self, path: str, answering: Awaitable[T]) -> T:
        """`path`: "/sandbox.v1.SandboxService/GetSandbox"."""
        began = time.perf_counter()
        try:
            found = await answering
        except BaseException as error:
            cell = self._durations.cell(path[1:], self._store, _status_of(error))
            cell.add(time.perf_counter() - began)
            raise
        cell = self._ok.get(path) or self._ok_cell(path)
        cell.add(time.perf_counter() - began)
        return found

    def _ok_cell(self, path: str) -> Cell:
        cell = self._ok[path] = self._durations.cell(path[1:], self._store, _OK)
        return cell


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
