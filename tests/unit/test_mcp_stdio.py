"""Calls of an MCP client over standard input and output."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from libs.contract.descriptors import Contract
from libs.http.mcp_stdio import GrpcCaller
from libs.identity.port import AUTHORIZATION
from libs.rpc.channel import Channel, open_channel
from tests.system.programs import CONTRACT


@pytest.fixture
async def channel() -> AsyncIterator[Channel]:
    async with open_channel("127.0.0.1:1") as opened:
        yield opened


async def _nothing() -> bytes:
    return b""


async def test_each_call_has_the_token_of_its_moment(channel: Channel) -> None:
    tokens = iter(["one", "two", ""])
    caller = GrpcCaller(Contract.load(CONTRACT), channel, lambda: next(tokens))
    shown = [dict(caller.open(None, _nothing).invocation_metadata()).get(AUTHORIZATION) for _ in range(3)]
    assert shown == ["Bearer one", "Bearer two", None]
