"""Flags in memory, all replaced at once: what a control store says is put here when it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import FlagNotFoundError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from libs.flags.openfeature import OpenFeatureSource


class BooleanProvider(AbstractProvider):
    """An OpenFeature provider that only has flags that are true or false. A subclass says how one is found."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def get_metadata(self) -> Metadata:
        return Metadata(name=self._name)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        self._refuse(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        self._refuse(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        self._refuse(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        self._refuse(flag_key)

    def _refuse(self, flag_key: str) -> NoReturn:
        raise TypeMismatchError(f"{flag_key}: {self._name} has flags that are true or false only")


class MemoryProvider(BooleanProvider):
    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self._values: Mapping[str, bool] = {}

    def put(self, values: Mapping[str, bool]) -> None:
        """These are the flags from now on; any other is unset."""
        if values == self._values:
            return
        self._values = dict(values)
        self.emit_provider_configuration_changed(ProviderEventDetails())

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        value = self._values.get(flag_key)
        if value is None:
            raise FlagNotFoundError(flag_key)
        return FlagResolutionDetails(value, reason=Reason.STATIC)


class MemoryFlags(OpenFeatureSource):
    """A `FlagSource` that has what was put into it. Its `evaluate` does not block."""

    def __init__(self, name: str) -> None:
        self._memory = MemoryProvider(name)
        super().__init__(name, lambda: self._memory)

    def put(self, values: Mapping[str, bool]) -> None:
        """These are the flags from now on; any other is unset."""
        self._memory.put(values)
