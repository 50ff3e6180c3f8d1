"""The operator's API for shadow reads."""

from __future__ import annotations

from collections.abc import Callable

from libs.ownership.wire import STORE_NUMBERS, version_to_pb
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import setting_to_pb, timestamp
from services.router.api.roles import actor_of
from services.router.core.compare import AGREEING, Kind
from services.router.core.difference_evidence import Example
from services.router.core.measure import ShadowCounts
from services.router.core.noise import NoiseFloor
from services.router.core.tally import Difference, Side
from services.router.flows.calls.difference_book import DifferenceBook
from services.router.flows.calls.shadow import Shadow
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache

KIND_NUMBERS: dict[Kind, pb.ShadowDifference.Kind.ValueType] = {
    kind: pb.ShadowDifference.Kind.Value(f"KIND_{kind.value}") for kind in Kind if kind not in AGREEING
}


class ShadowMethods:
    """Methods of the control API."""

    def __init__(
        self,
        migration: Migration,
        cache: SettingCache,
        shadow: Shadow,
        book: DifferenceBook,
        noise: Callable[[], NoiseFloor | None],
    ) -> None:
        self._migration = migration
        self._noise = noise
        self._cache = cache
        self._shadow = shadow
        self._book = book

    async def SetShadow(self, request: pb.SetShadowRequest, context: Context) -> pb.SetShadowResponse:  # noqa: N802
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.set_shadow(decision, request.permille, same=request.same)
        return pb.SetShadowResponse(setting=setting_to_pb(setting))

    async def GetShadow(self, request: pb.GetShadowRequest, context: Context) -> pb.GetShadowResponse:  # noqa: N802
        report, noise = self._shadow.report(), self._noise()
        return pb.GetShadowResponse(
            setting=setting_to_pb(self._cache.current),
            total=_tally_to_pb("", report.counts),
            operations=[_tally_to_pb(operation, counts) for operation, counts in report.operations.items()],
            skipped=report.skipped,
            queued=report.queued,
            waiting=report.waiting,
            differences=[_difference_to_pb(difference) for difference in report.differences],
            noise_different=noise.different if noise else 0,
            noise_compared=noise.compared if noise else 0,
        )

    async def ListDifferences(  # noqa: N802
        self, request: pb.ListDifferencesRequest, context: Context
    ) -> pb.ListDifferencesResponse:
        return pb.ListDifferencesResponse(examples=[_example_to_pb(one) for one in await self._book.examples()])

    async def GetDifference(  # noqa: N802
        self, request: pb.GetDifferenceRequest, context: Context
    ) -> pb.GetDifferenceResponse:
        found = await self._book.find(request.id)
        example = _example_to_pb(found)
        example.request = found.request
        example.one, example.other = found.answers
        for value in found.values:
            example.values.add(path=value.path, one=value.one, other=value.other)
        return pb.GetDifferenceResponse(example=example)


def _example_to_pb(example: Example) -> pb.DifferenceExample:
    return pb.DifferenceExample(
        id=example.id,
        difference=_difference_to_pb(example.difference),
        router=example.router,
        generation=example.generation,
    )


def _tally_to_pb(operation: str, counts: ShadowCounts) -> pb.ShadowTally:
    return pb.ShadowTally(operation=operation, **counts._asdict())


def _difference_to_pb(difference: Difference) -> pb.ShadowDifference:
    one, other = difference.sides
    return pb.ShadowDifference(
        time=timestamp(difference.time_seconds),
        operation=difference.operation,
        key=difference.key,
        kind=KIND_NUMBERS[difference.kind],
        fields=difference.fields,
        one=_side_to_pb(one),
        other=_side_to_pb(other),
        waited_seconds=difference.waited_seconds,
    )


def _side_to_pb(side: Side) -> pb.ShadowDifference.Side:
    version = None if side.version is None else version_to_pb(side.version)
    return pb.ShadowDifference.Side(store=STORE_NUMBERS[side.store], version=version, content=side.content)
