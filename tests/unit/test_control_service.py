"""The control API is put together of parts, each method once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from unittest.mock import MagicMock

import pytest

from libs.clock import ManualClock
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.api.approvals import ApprovalMethods
from services.router.api.control import control_service
from services.router.control.memory import MemoryControlStore
from services.router.flows.steering.observe import SettingCache

OWN = {name for name in dir(ApprovalMethods) if name[0].isupper()}
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["ControlService"].methods if method.name not in OWN]
"""All methods but those of the two-person rule."""


def approvals() -> ApprovalMethods:
    clock = ManualClock()
    return ApprovalMethods(MagicMock(), SettingCache(MemoryControlStore(clock=clock), clock), clock, MagicMock())


class Part:
    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, self._named(name))

    @staticmethod
    def _named(name: str) -> Callable[..., Awaitable[str]]:
        async def method(request: object, context: object) -> str:
            return name

        return method


async def test_each_method_is_taken_from_the_part_that_has_it() -> None:
    servicer = control_service([Part(*METHODS[:5]), Part(), Part(*METHODS[5:])], approvals()).servicer
    assert [await getattr(servicer, name)(MagicMock(id="backfill-1"), None) for name in METHODS] == METHODS


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([Part(*METHODS[1:])], f"{METHODS[0]} is in 0 parts"),
        ([Part(*METHODS), Part(METHODS[2])], f"{METHODS[2]} is in 2 parts"),
    ],
)
def test_a_method_without_a_part_or_with_two_is_refused(parts: list[Part], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        control_service(parts, approvals())
