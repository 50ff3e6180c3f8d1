"""Flags in memory that are replaced as a whole, for the flags of a control store."""

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
    """An OpenFeature provider of flags that are true or false. Subclasses implement the lookup."""

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
        """Replace all flags; any other is unset."""
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
    """A `FlagSource` with flags from `put`. Its `evaluate` does not block."""

    def __init__(self, name: str) -> None:
        self._memory = MemoryProvider(name)
        super().__init__(name, lambda: self._memory)

    def put(self, values: Mapping[str, bool]) -> None:
        """Replace all flags; any other is unset."""
        self._memory.put(values)
