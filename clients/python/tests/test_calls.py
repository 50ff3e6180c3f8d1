"""Calls, retries and watches against a scripted server: blocking and asyncio alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing
from typing import Any

import grpc
import pytest

from baton_client import CallError, connect, connect_async
from baton_client.messages import (
    CreateSandboxRequest,
    GetSandboxRequest,
    Sandbox,
    WatchSandboxesRequest,
    WatchSandboxesResponse,
)
from scripted import Refusal, Scripted, serving

UNAVAILABLE, ABORTED, EXHAUSTED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
ONE = Sandbox(name="sandboxes/one")
Call = Callable[..., Any]


def blocking(server: Scripted, method: str, request: Any, **arguments: Any) -> Any:
    with connect(server.address, name="a test") as client:
        return getattr(client, method)(request, **arguments)


def asynchronous(server: Scripted, method: str, request: Any, **arguments: Any) -> Any:
    async def run() -> Any:
        async with connect_async(server.address, name="a test") as client:
            return await getattr(client, method)(request, **arguments)

    return asyncio.run(run())


def watch(server: Scripted, answers: int, timeout: float | None = None) -> list[Any]:
    request = WatchSandboxesRequest(filter="x")
    with (
        connect(server.address, timeout=2) as client,
        closing(client.WatchSandboxes(request, timeout=timeout)) as watched,
    ):
        return [next(watched) for _ in range(answers)]


def watch_asynchronous(server: Scripted, answers: int, timeout: float | None = None) -> list[Any]:
    async def run() -> list[Any]:
        request = WatchSandboxesRequest(filter="x")
        async with (
            connect_async(server.address, timeout=2) as client,
            aclosing(client.WatchSandboxes(request, timeout=timeout)) as watched,
        ):
            return [await watched.__anext__() for _ in range(answers)]

    return asyncio.run(run())


both = pytest.mark.parametrize("call", [blocking, asynchronous])
both_watches = pytest.mark.parametrize("watched", [watch, watch_asynchronous])


@both
def test_a_write_is_retried_with_the_request_id_that_the_client_made(call: Call) -> None:
    refusals = [Refusal(UNAVAILABLE), Refusal(ABORTED, "LOCK_TIMEOUT", 0.01), Refusal(EXHAUSTED, "OVERLOADED", 0.01)]
    with serving(*([refusal] for refusal in refusals), [ONE]) as server:
        request = CreateSandboxRequest(sandbox_id="one")
        assert call(server, "CreateSandbox", request) == ONE
    sent = [CreateSandboxRequest.FromString(data) for data in server.requests]
    assert len(sent) == 4
    assert len({one.request_id for one in sent}) == 1
    assert len(sent[0].request_id) == 36
    assert not request.request_id, "the caller's own request is left alone"


@both
def test_the_caller_s_own_request_id_is_kept(call: Call) -> None:
    with serving([Refusal(UNAVAILABLE)], [ONE]) as server:
        call(server, "CreateSandbox", CreateSandboxRequest(request_id="mine"))
    assert [CreateSandboxRequest.FromString(data).request_id for data in server.requests] == ["mine", "mine"]


@both
@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", metadata={"field": "name"}),
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", 0.01),
        Refusal(grpc.StatusCode.INTERNAL),
        Refusal(ABORTED, "ETAG_MISMATCH"),
        Refusal(EXHAUSTED, message="CLIENT: Sent message larger than max (17 vs. 16)"),
    ],
)
def test_a_refusal_that_will_not_pass_is_raised_at_once(call: Call, refusal: Refusal) -> None:
    with serving([refusal]) as server, pytest.raises(CallError) as caught:
        call(server, "GetSandbox", GetSandboxRequest(name="!"))
    assert len(server.requests) == 1
    error = caught.value
    assert (error.code, error.reason, error.message) == (refusal.code, refusal.reason, refusal.message)
    assert error.metadata == refusal.metadata
    assert error.request_id == ""


@both
def test_the_deadline_bounds_the_retries_and_the_error_names_the_request_id(call: Call) -> None:
    with serving([Refusal(UNAVAILABLE, "OWNER_UNAVAILABLE", 0.2)]) as server, pytest.raises(CallError) as caught:
        call(server, "CreateSandbox", CreateSandboxRequest(), timeout=0.7)
    assert caught.value.reason == "OWNER_UNAVAILABLE"
    assert caught.value.retry_seconds == pytest.approx(0.2)
    assert 2 <= len(server.requests) <= 4, "an attempt each 0.2 seconds or later"
    assert caught.value.request_id == CreateSandboxRequest.FromString(server.requests[0]).request_id


@both
def test_an_answer_s_metadata_is_there_and_the_call_names_schema_and_client(call: Call) -> None:
    received: dict[str, str] = {}
    with serving([ONE]) as server:
        call(server, "GetSandbox", GetSandboxRequest(), received=received, metadata=(("baton-explain", "1"),))
    assert received["baton-store"] == "A"
    assert received["baton-stale"] == "1"
    sent = server.metadata[0]
    assert (sent["sandbox-schema-version"], sent["baton-client"], sent["baton-explain"]) == ("2", "a test", "1")


@both_watches
def test_a_watch_goes_on_with_its_resume_token(watched: Call) -> None:
    def shown(token: str) -> WatchSandboxesResponse:
        return WatchSandboxesResponse(sandboxes=[ONE], resume_token=token)

    ends = Refusal(UNAVAILABLE, "STORE_NOT_READY", 0.01)
    with serving([shown("1"), shown("2"), ends], [ends], [shown("3")], [shown("4"), ends]) as server:
        answers = watched(server, 4)
    assert [answer.resume_token for answer in answers] == ["1", "2", "3", "4"]
    asked = [WatchSandboxesRequest.FromString(data) for data in server.requests]
    assert [request.resume_token for request in asked] == ["", "2", "2", "3"]
    assert {request.filter for request in asked} == {"x"}


@both_watches
def test_a_watch_that_gets_no_answer_ends_with_the_error(watched: Call) -> None:
    with serving([Refusal(UNAVAILABLE, "STORE_NOT_READY")]) as server, pytest.raises(CallError) as caught:
        watched(server, 1)
    assert caught.value.reason == "STORE_NOT_READY"
    assert len(server.requests) > 2


@both_watches
def test_a_watch_s_filter_that_is_refused_is_not_sent_again(watched: Call) -> None:
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    with serving([refusal]) as server, pytest.raises(CallError):
        watched(server, 1)
    assert len(server.requests) == 1


def test_a_server_that_cannot_be_reached_is_tried_until_the_deadline() -> None:
    with connect("127.0.0.1:1") as client, pytest.raises(CallError) as caught:
        client.GetSandbox(GetSandboxRequest(), timeout=0.5)
    assert caught.value.code in (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_a_timeout_that_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timeout: 0 is not valid: seconds, more than 0"):
        connect("127.0.0.1:1", timeout=0)


def test_each_attempt_has_the_token_of_its_time() -> None:
    tokens = iter(["first", "second", "third"])
    with serving([Refusal(UNAVAILABLE, "OWNER_UNAVAILABLE", 0.01)], [ONE]) as server:
        with connect(server.address, token=lambda: next(tokens)) as client:
            assert client.GetSandbox(GetSandboxRequest(name="sandboxes/one")) == ONE

        async def run() -> None:
            async with connect_async(server.address, token="fixed") as fixed:
                assert await fixed.GetSandbox(GetSandboxRequest(name="sandboxes/one")) == ONE

        asyncio.run(run())
        assert [found["authorization"] for found in server.metadata] == [
            "Bearer first",
            "Bearer second",
            "Bearer fixed",
        ]
