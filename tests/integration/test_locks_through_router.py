"""A store whose locks are away says so itself: through the router it is the same answer, not a store that is away."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc
import pytest

from libs.errors import BatonError
from libs.locks.port import LocksUnavailable
from libs.ownership.model import Store
from libs.rpc.errors import reason_of
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import running_system, step


class _Refusing:
    """A store's records, none of which can be written."""

    def __init__(self, records: Any, error: BatonError) -> None:
        self.write = self._write
        self._records = records
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    async def _write(self, *arguments: Any) -> Any:
        raise self._error


async def test_a_client_learns_that_locks_are_away_and_nobody_asks_the_other_store() -> None:
    async with running_system(feeds=False, mover=False) as system:
        while system.setting.current.phase is not Phase.DUAL_READ:
            await step(system.migration, Decision("a test", "because", override=True))
        ports: Any = system.ports(Store.B)
        ports.records = _Refusing(ports.records, LocksUnavailable())
        asked: Any = system.ports(Store.A)
        asked.records = _Refusing(asked.records, BatonError("A was asked"))
        order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn="1"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refused.value)[0] == "LOCKS_UNAVAILABLE"
