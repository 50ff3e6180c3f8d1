"""Sends calls and watches, blocking and for asyncio, and repeats them by the rules of `retries`."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from baton_client.bucket import bucket_metadata
from baton_client.errors import CallError, call_error
from baton_client.retries import Retries, Watching

Answer = TypeVar("Answer", bound=Message)
Metadata = Sequence[tuple[str, str]]
AUTHORIZATION = "authorization"
Received = dict[str, str]
"""The metadata of an answer, filled by a call. baton-stale is 1 if the answer comes from a replica."""


@dataclass(frozen=True)
class Method(Generic[Answer]):
    """A method of the service. `request_id` and `resume_token`: names of fields, or "". `key`: form of the record's
    name, with fields of the request; "" if the method names no record."""

    path: str
    answer: type[Answer]
    request_id: str = ""
    resume_token: str = ""
    key: str = ""

    def prepared(self, request: Message) -> tuple[Any, str]:
        """A copy of the request with a request id, if the method takes one, and the id."""
        copied: Any = type(request)()
        copied.CopyFrom(request)
        if not self.request_id:
            return copied, ""
        if not getattr(copied, self.request_id):
            setattr(copied, self.request_id, str(uuid.uuid4()))
        return copied, getattr(copied, self.request_id)


@dataclass(frozen=True)
class Settings:
    """Settings that all calls of a client share."""

    timeout: float
    metadata: Metadata = ()
    token: Callable[[], str] | None = None
    """Returns the token of the next attempt."""


class _Base:
    """Caches one multi-callable per method."""

    def __init__(self, channel: Any, settings: Settings) -> None:
        self._channel = channel
        self._settings = settings
        self._callables: dict[str, Any] = {}

    def _callable(self, method: Method[Any], make: Callable[..., Any]) -> Any:
        found = self._callables.get(method.path)
        if found is None:
            found = self._callables[method.path] = make(method.path, _serialized, method.answer.FromString)
        return found

    def _retries(self, timeout: float | None) -> Retries:
        return Retries(time.monotonic() + (self._settings.timeout if timeout is None else timeout))

    def _watching(self, timeout: float | None) -> Watching:
        now = time.monotonic()
        ends = None if timeout is None else now + timeout
        return Watching(ends, patience_seconds=self._settings.timeout, answered=now)

    def _all(self, metadata: Metadata) -> Metadata:
        token = self._settings.token
        own = ((AUTHORIZATION, f"Bearer {token()}"),) if token is not None else ()
        return (*self._settings.metadata, *own, *metadata)


class Caller(_Base):
    """Sends the calls of a blocking client."""

    def _call(
        self,
        method: Method[Answer],
        request: Message,
        timeout: float | None,
        metadata: Metadata,
        received: Received | None,
    ) -> Answer:
        """Raises CallError."""
        retries, send = self._retries(timeout), self._callable(method, self._channel.unary_unary)
        request, request_id = method.prepared(request)
        metadata = (*metadata, *bucket_metadata(method.key, request))
        while True:
            try:
                left = retries.left(time.monotonic())
                answer, call = send.with_call(request, timeout=left, metadata=self._all(metadata))
            except grpc.RpcError as error:
                time.sleep(_pause(retries, call_error(error, request_id)))
            else:
                _note(received, call.initial_metadata(), call.trailing_metadata())
                found: Answer = answer
                return found

    def _watch(
        self,
        method: Method[Answer],
        request: Message,
        timeout: float | None,
        metadata: Metadata,
        received: Received | None,
    ) -> Generator[Answer, None, None]:
        """Raises CallError. Close it to end the watch."""
        watching, send = self._watching(timeout), self._callable(method, self._channel.unary_stream)
        request, _ = method.prepared(request)
        while True:
            call = send(request, timeout=watching.left(time.monotonic()), metadata=self._all(metadata))
            try:
                for answer in call:
                    _note(received, call.initial_metadata())
                    watching.note_answer(time.monotonic())
                    setattr(request, method.resume_token, getattr(answer, method.resume_token))
                    yield answer
                failed = _ended()
            except grpc.RpcError as error:
                failed = call_error(error)
            finally:
                call.cancel()
            time.sleep(_pause(watching, failed))


class AsyncCaller(_Base):
    """Sends the calls of a client for asyncio."""

    async def _call(
        self,
        method: Method[Answer],
        request: Message,
        timeout: float | None,
        metadata: Metadata,
        received: Received | None,
    ) -> Answer:
        """Raises CallError."""
        retries, send = self._retries(timeout), self._callable(method, self._channel.unary_unary)
        request, request_id = method.prepared(request)
        metadata = (*metadata, *bucket_metadata(method.key, request))
        while True:
            try:
                call = send(request, timeout=retries.left(time.monotonic()), metadata=self._all(metadata))
                answer: Answer = await call
            except grpc.RpcError as error:
                await asyncio.sleep(_pause(retries, call_error(error, request_id)))
            else:
                _note(received, await call.initial_metadata(), await call.trailing_metadata())
                return answer

    async def _watch(
        self,
        method: Method[Answer],
        request: Message,
        timeout: float | None,
        metadata: Metadata,
        received: Received | None,
    ) -> AsyncGenerator[Answer, None]:
        """Raises CallError. Close it to end the watch."""
        watching, send = self._watching(timeout), self._callable(method, self._channel.unary_stream)
        request, _ = method.prepared(request)
        while True:
            call = send(request, timeout=watching.left(time.monotonic()), metadata=self._all(metadata))
            try:
                async for answer in call:
                    _note(received, await call.initial_metadata())
                    watching.note_answer(time.monotonic())
                    setattr(request, method.resume_token, getattr(answer, method.resume_token))
                    yield answer
                failed = _ended()
            except grpc.RpcError as error:
                failed = call_error(error)
            finally:
                call.cancel()
            await asyncio.sleep(_pause(watching, failed))


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()


def _pause(retries: Retries, error: CallError) -> float:
    return retries.pause(error, time.monotonic(), random.random())


def _ended() -> CallError:
    return CallError(grpc.StatusCode.UNAVAILABLE, "the server has ended the watch")


def _note(received: Received | None, *parts: Any) -> None:
    if received is None:
        return
    received.clear()
    for part in parts:
        for name, value in part or ():
            with suppress(UnicodeDecodeError):
                received[name] = value.decode() if isinstance(value, bytes) else value
