"""Malformed requests of health and reflection are refused as those of any other service, without a stack trace."""

import logging
from typing import Any

import grpc
import pytest

from libs.rpc.errors import reason_of
from libs.rpc.server import RawService, ServerConfig
from tests.unit.test_rpc_server import SERVICE, echo, serving

CONFIG = ServerConfig("127.0.0.1:0", "public")
NOT_A_REQUEST = b"\xff"


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/List"])
async def test_a_malformed_question_about_health_is_refused(method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(CONFIG, RawService(SERVICE, {"Echo": echo})) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.multi_callable(f"/{method}")(NOT_A_REQUEST, timeout=10)
    # List is not served.
    wanted = grpc.StatusCode.INVALID_ARGUMENT if method.endswith("Check") else grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.code() is wanted
    assert not caplog.records


async def test_a_malformed_watch_of_health_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(CONFIG, RawService(SERVICE, {"Echo": echo})) as (_, channel):
        call: Any = channel.stream_callable("/grpc.health.v1.Health/Watch")(NOT_A_REQUEST, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert reason_of(caught.value)[0] == "INVALID_FIELD"
    assert not caplog.records


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_a_malformed_question_about_the_contract_is_refused(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    async with serving(CONFIG, RawService(SERVICE, {"Echo": echo})) as (_, channel):
        raw: Any = channel.grpc.stream_stream(path)
        call = raw(iter([NOT_A_REQUEST]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert reason_of(caught.value)[0] == "INVALID_FIELD"
    assert not caplog.records
