"""The names of a contract's flags, and the routing that their values cause.

A router has no method names in its code, so flags are named after the contract: `sandbox.v1.SandboxService` has
`sandbox.routing.use_service_layer` for all calls, and `sandbox.routing.create_sandbox_use_service_layer` and so on for
each operation that one of its methods has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from libs.contract.descriptors import OPERATIONS, Contract
from libs.errors import InvalidField
from services.router.core.plan import Flags

WORD = "use_service_layer"

_VERSION = re.compile(r"v\d+\w*")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class FlagNames:
    everything: str
    """The flag that steers every call."""
    operations: Mapping[str, str]
    """The flag of each operation that the contract has."""

    @classmethod
    def of(cls, contract: Contract, prefix: str = "", noun: str = "") -> FlagNames:
        """`prefix` and `noun` replace those of the contract's name ("sandbox.routing", "sandbox")."""
        *package, service = contract.service.split(".")
        words = [word for word in package if not _VERSION.fullmatch(word)]
        noun = noun or _HUMP.sub("_", service.removesuffix("Service") or service).lower()
        prefix = prefix or ".".join([*words, "routing"])
        used = {method.operation for method in contract.methods.values()}
        operations = {name: f"{prefix}.{name}_{noun}_{WORD}" for name in OPERATIONS if name in used}
        return cls(f"{prefix}.{WORD}", operations)

    @property
    def all(self) -> tuple[str, ...]:
        return (self.everything, *self.operations.values())

    def check(self, name: str) -> None:
        """Raises InvalidField, which names all flags."""
        if name not in self.all:
            raise InvalidField("name", name, "one of " + ", ".join(self.all))

    def of_operation(self, operation: str) -> str:
        """Raises InvalidField."""
        if operation not in self.operations:
            raise InvalidField("operation", operation, "one of " + ", ".join(self.operations))
        return self.operations[operation]

    def steering(self, values: Mapping[str, bool | None]) -> Flags:
        """The routing for these values, by full name. Flags of other contracts are ignored."""
        operations = {
            operation: value for operation, name in self.operations.items() if (value := values.get(name)) is not None
        }
        return Flags(values.get(self.everything), operations)
